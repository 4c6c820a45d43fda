"""Data sources: the embedded digits, folders of images, and which images a step sees."""

from __future__ import annotations

import functools
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lgm_jax.data import ArraySplit, Dataset, Split, in_memory, load_dataset
from lgm_jax.data.dataset import SPLITS
from lgm_jax.data.digits import load_spurious_digits
from lgm_jax.data.records import FileRecords, ImageSplit
from lgm_jax.data.splits import check
from lgm_jax.errors import UserError

RESOLUTION = 8


def load_folder(folder: Path | str, **options: Any) -> Dataset:
    return load_dataset("folder", folder=str(folder), **options)


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def write_classes(folder: Path, images: int, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """Folders of plain images, each with a grey level of its own."""
    for label, name in enumerate(classes):
        for number in range(images):
            write_image(folder / name / f"{number}.png", value=100 * label + number)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def files(dataset: Dataset, split: str) -> list[str]:
    members = dataset.splits[split]
    assert isinstance(members, ImageSplit)
    return [members.name(row) for row in range(len(members.labels))]


def split_of(folder: Path, *names: str, resolution: int = RESOLUTION, orient: bool = True) -> Split:
    zeros = np.zeros(len(names), np.int32)
    return ImageSplit(
        FileRecords(folder, names), np.arange(len(names)), zeros, resolution, orient=orient
    )


def load_one(path: Path, resolution: int = RESOLUTION) -> np.ndarray:
    return split_of(path.parent, path.name, resolution=resolution).load(np.asarray([0]))[0]


@functools.cache
def digits() -> Dataset:
    return load_dataset("digits", resolution=32)


class TestDigits:
    def test_split_sizes_and_content_are_fixed(self):
        sizes = {name: len(split.labels) for name, split in digits().splits.items()}
        assert sizes == {"train": 1149, "val": 288, "test": 360}
        assert digits().fingerprint == (
            "c875aaf2b02da7e4939f08a8e2eecd55396e41848ed0550f90d263ce83d945d0"
        )
        assert digits().num_classes == 10

    def test_splits_are_stratified(self):
        counts = [np.bincount(split.labels, minlength=10) for split in digits().splits.values()]
        total = np.sum(counts, axis=0)
        for count in counts:
            assert np.all(np.abs(count - total * count.sum() / 1797) < 1)

    def test_splits_are_disjoint(self):
        images = np.concatenate(
            [split.load(np.arange(len(split.labels))) for split in digits().splits.values()]
        )
        assert images.shape == (1797, 32, 32, 3)
        assert images.dtype == np.uint8
        # All 1,797 scans differ, and so must those of three disjoint splits.
        assert len({image.tobytes() for image in images}) == 1797

    def test_resolution_enlarges_the_scans_directly(self):
        small = load_dataset("digits", resolution=8)
        image = small.splits["train"].load(np.arange(3))
        assert image.shape == (3, 8, 8, 3)
        # At 8 px nothing is resampled: the 17 levels of the scans.
        assert set(np.unique(image)) <= set(np.round(np.arange(17) * 255 / 16).astype(np.uint8))
        assert small.fingerprint != digits().fingerprint
        np.testing.assert_array_equal(small.splits["test"].labels, digits().splits["test"].labels)


@functools.cache
def spurious() -> Dataset:
    return load_dataset("digits_spurious", resolution=8)


class TestSpuriousDigits:
    def test_tint_goes_with_parity_in_train_and_with_nothing_elsewhere(self):
        for name, split in spurious().splits.items():
            share = 0.95 if name == "train" else 0.5
            for label in range(10):
                tints = split.groups[split.labels == label] % 2
                own = np.sum(tints == label % 2)
                assert abs(own - share * len(tints)) <= 0.5

    def test_groups_are_parity_and_tint(self):
        expected = ["even on yellow", "even on blue", "odd on yellow", "odd on blue"]
        assert spurious().group_names == expected
        split = spurious().splits["test"]
        np.testing.assert_array_equal(split.groups // 2, split.labels % 2)
        # The darkest pixel of each image shows the tint.
        darkest = split.images.min(axis=(1, 2))
        np.testing.assert_array_equal(darkest[:, 2] > darkest[:, 0], split.groups % 2 == 1)

    def test_the_digits_are_the_plain_ones(self):
        plain = load_dataset("digits", resolution=8)
        for name, split in spurious().splits.items():
            same = plain.splits[name]
            np.testing.assert_array_equal(split.labels, same.labels)
            # Yellow has no blue, and blue no red.
            for tint, channel in ((0, 2), (1, 0)):
                of_tint = split.groups % 2 == tint
                np.testing.assert_array_equal(
                    split.images[of_tint][..., channel], same.images[of_tint][..., channel]
                )

    def test_is_always_the_same(self):
        again = load_spurious_digits(8)
        assert again.fingerprint == spurious().fingerprint
        assert again.fingerprint != load_dataset("digits", resolution=8).fingerprint


class TestRegistry:
    def test_unknown_name_suggests_a_known_one(self):
        with pytest.raises(UserError, match="unknown data set 'digit': did you mean digits"):
            load_dataset("digit", resolution=8)

    def test_folder_needs_a_folder(self):
        with pytest.raises(UserError, match=r"set --config\.data\.folder="):
            load_dataset("folder", resolution=8)

    def test_a_folder_is_not_silently_ignored(self):
        with pytest.raises(UserError, match=r"set --config\.data\.name=folder"):
            load_dataset("digits", folder="photos", resolution=8)

    def test_folder_arguments_arrive(self, tmp_path):
        write_classes(tmp_path, 10)
        by_name = load_dataset("folder", folder=str(tmp_path), resolution=8, seed=3)
        assert by_name.fingerprint == load_folder(tmp_path, resolution=8, seed=3).fingerprint


class TestInMemory:
    def test_equals_loading(self, tmp_path, capsys):
        write_classes(tmp_path, 10)
        split = load_folder(tmp_path, resolution=8).splits["train"]
        everything = np.arange(len(split.labels))
        held = in_memory(split, limit_bytes=len(everything) * 8 * 8 * 3, progress="train")
        np.testing.assert_array_equal(held.images, split.load(everything))
        np.testing.assert_array_equal(held.labels, split.labels)
        assert capsys.readouterr().err == ""

    def test_more_than_one_batch(self):
        class Counted:
            labels = np.arange(300, dtype=np.int32)
            groups = None

            def take(self, rows: np.ndarray) -> Split:
                raise NotImplementedError

            def load(self, indices: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
                return np.broadcast_to(indices[:, None, None, None] % 256, (len(indices), 2, 2, 3))

        held = in_memory(Counted(), limit_bytes=10**6)
        np.testing.assert_array_equal(held.images[:, 0, 0, 0], np.arange(300) % 256)

    def test_refuses_before_decoding(self):
        class Large:
            labels = np.zeros(10**6, np.int32)
            groups = None

            def take(self, rows: np.ndarray) -> Split:
                raise NotImplementedError

            def load(self, indices: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
                assert len(indices) <= 1
                return np.zeros((len(indices), 224, 224, 3), np.uint8)

        with pytest.raises(UserError, match="take 151 GB of memory, more than the limit of 8 GB"):
            in_memory(Large(), limit_bytes=8 * 10**9)

    def test_limit_is_inclusive(self):
        split = ArraySplit(np.zeros((5, 2, 2, 3), np.uint8), np.zeros(5, np.int32))
        assert in_memory(split, limit_bytes=60).images.nbytes == 60
        with pytest.raises(UserError, match="5 images of 2 px"):
            in_memory(split, limit_bytes=59)


class TestOneFolder:
    def test_split_is_stratified_disjoint_and_complete(self, tmp_path):
        write_classes(tmp_path, 20, ("dog", "cat", "eel"))
        dataset = load_folder(tmp_path, resolution=RESOLUTION)
        assert dataset.class_names == ["cat", "dog", "eel"]
        assert dataset.name == tmp_path.name
        for name, count in (("train", 14), ("val", 2), ("test", 4)):
            labels = dataset.splits[name].labels
            assert labels.dtype == np.int32
            np.testing.assert_array_equal(np.bincount(labels), [count] * 3)
            assert files(dataset, name) == sorted(files(dataset, name))
        members = [file for name in SPLITS for file in files(dataset, name)]
        assert len(members) == len(set(members)) == 60

    def test_images_belong_to_their_labels(self, tmp_path):
        write_classes(tmp_path, 10)
        split = load_folder(tmp_path, resolution=RESOLUTION).splits["train"]
        assert isinstance(split, ImageSplit)
        # In an order of its own, with a repetition.
        indices = np.asarray([9, 0, 13, 0])
        images = split.load(indices)
        assert images.shape == (4, 8, 8, 3)
        np.testing.assert_array_equal(images[:, 0, 0, 0] // 100, split.labels[indices])
        names = [int(Path(split.name(i)).stem) for i in indices]
        np.testing.assert_array_equal(images[:, 4, 4, 1] % 100, names)

    @pytest.mark.parametrize(
        ("images", "counts"),
        [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (5, (3, 1, 1)), (11, (8, 1, 2))],
    )
    def test_small_classes_keep_an_image_for_training(self, tmp_path, images, counts):
        write_classes(tmp_path, images, ("small",))
        write_classes(tmp_path, 10, ("big",))
        dataset = load_folder(tmp_path, resolution=RESOLUTION)
        label = list(dataset.class_names).index("small")
        assert tuple(np.sum(dataset.splits[name].labels == label) for name in SPLITS) == counts

    def test_two_images_a_class_leave_none_for_val(self, tmp_path):
        write_classes(tmp_path, 2)
        dataset = load_folder(tmp_path, resolution=RESOLUTION)
        assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
            "train": 2,
            "test": 2,
        }
        assert check(dataset) == [
            f"{tmp_path.name} has too few images per class for a val split: it has none"
        ]
        with pytest.raises(UserError, match=r"out for 'val': set --config\.data\.val_fraction=0$"):
            load_folder(tmp_path, resolution=RESOLUTION, val_fraction=0.1)

    def test_one_image_a_class_cannot_be_split(self, tmp_path):
        write_classes(tmp_path, 1)
        with pytest.raises(UserError, match="has one image per class: two are needed at least"):
            load_folder(tmp_path, resolution=RESOLUTION)

    def test_seed_decides_the_split(self, tmp_path):
        write_classes(tmp_path, 10)
        first, again, other = (load_folder(tmp_path, resolution=8, seed=s) for s in (0, 0, 1))
        assert files(first, "test") == files(again, "test") != files(other, "test")
        assert first.fingerprint == again.fingerprint != other.fingerprint

    def test_split_is_the_same_anywhere_in_any_order(self, tmp_path, monkeypatch):
        for place in ("here", "there/photos"):
            write_classes(tmp_path / place, 10)
            write_image(tmp_path / place / "cat" / "more" / "1.png", 50)
            write_image(tmp_path / place / "cat" / "more" / "0.png", 51)
        here = load_folder(tmp_path / "here", resolution=8)

        listing = os.scandir

        class Backwards:
            def __init__(self, path):
                with listing(path) as entries:
                    self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

            def __enter__(self):
                return iter(self.entries)

            def __exit__(self, *error):
                return None

        monkeypatch.setattr(os, "scandir", Backwards)
        there = load_folder(tmp_path / "there" / "photos", resolution=8)
        for name in SPLITS:
            assert files(here, name) == files(there, name)
            np.testing.assert_array_equal(here.splits[name].labels, there.splits[name].labels)
        assert here.fingerprint == there.fingerprint
        assert (here.name, there.name) == ("here", "photos")

    def test_fingerprint_sees_sizes_names_labels_and_resolution(self, tmp_path):
        write_classes(tmp_path, 10)
        seen = [load_folder(tmp_path, resolution=8).fingerprint]
        seen.append(load_folder(tmp_path, resolution=9).fingerprint)
        with (tmp_path / "cat" / "0.png").open("ab") as file:
            file.write(b"\0")
        seen.append(load_folder(tmp_path, resolution=8).fingerprint)
        (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "00.png")
        seen.append(load_folder(tmp_path, resolution=8).fingerprint)
        (tmp_path / "cat").rename(tmp_path / "bat")
        seen.append(load_folder(tmp_path, resolution=8).fingerprint)
        assert len(set(seen)) == 5

    def test_nested_images_and_every_suffix_count(self, tmp_path):
        write_classes(tmp_path, 10)
        names = ("a.JPG", "b.jpeg", "c.webp", "d.bmp", "e.gif", "f.tif", "g/h/i.TIFF")
        for name in names:
            write_image(tmp_path / "cat" / name)
        dataset = load_folder(tmp_path, resolution=8)
        members = {file for name in SPLITS for file in files(dataset, name)}
        assert {f"cat/{name}" for name in names} < members
        for name in names:
            assert load_one(tmp_path / "cat" / name).max() == 0

    def test_hidden_and_other_files_are_ignored(self, tmp_path):
        write_classes(tmp_path, 10)
        before = load_folder(tmp_path, resolution=8)
        write_image(tmp_path / "cat" / ".hidden.png")
        write_image(tmp_path / "cat" / ".thumbnails" / "0.png")
        write_image(tmp_path / ".cache" / "0.png")
        write_image(tmp_path / "stray.png")
        (tmp_path / "cat" / "notes.txt").write_text("no image")
        (tmp_path / "dog" / "folder.png").mkdir()
        os.mkfifo(tmp_path / "dog" / "pipe.png")
        after = load_folder(tmp_path, resolution=8)
        assert after.fingerprint == before.fingerprint
        assert after.class_names == before.class_names

    def test_home_is_expanded_and_dot_is_named(self, tmp_path, monkeypatch):
        write_classes(tmp_path / "photos", 10)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path / "photos")
        assert load_folder("~/photos", resolution=8).num_classes == 2
        assert load_folder(".", resolution=8).name == "photos"

    def test_a_class_may_be_called_train(self, tmp_path):
        write_classes(tmp_path, 10, ("car", "plane", "train"))
        assert load_folder(tmp_path, resolution=8).class_names == ["car", "plane", "train"]


class TestSplitFolders:
    def test_three_splits_are_taken_as_they_are(self, tmp_path):
        for name, images in (("train", 5), ("val", 2), ("test", 3)):
            write_classes(tmp_path / name, images)
        dataset = load_folder(tmp_path, resolution=8)
        assert dataset.class_names == ["cat", "dog"]
        assert files(dataset, "val") == [
            "val/cat/0.png",
            "val/cat/1.png",
            "val/dog/0.png",
            "val/dog/1.png",
        ]
        np.testing.assert_array_equal(dataset.splits["val"].labels, [0, 0, 1, 1])
        assert [len(files(dataset, name)) for name in SPLITS] == [10, 4, 6]
        assert dataset.splits["test"].load(np.arange(6))[:, 0, 0, 0].tolist() == [
            0,
            1,
            2,
            100,
            101,
            102,
        ]

    @pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation", "Test"])
    def test_one_held_out_folder_is_the_test_split(self, tmp_path, held_out):
        write_classes(tmp_path / "train", 10)
        write_classes(tmp_path / held_out, 4)
        dataset = load_folder(tmp_path, resolution=8)
        assert {file.split("/")[0] for file in files(dataset, "test")} == {held_out}
        assert len(files(dataset, "test")) == 8
        train, val = files(dataset, "train"), files(dataset, "val")
        assert {file.split("/")[0] for file in train + val} == {"train"}
        assert len(set(train + val)) == 20
        np.testing.assert_array_equal(np.bincount(dataset.splits["val"].labels), [2, 2])

    def test_last_training_image_stays(self, tmp_path):
        write_classes(tmp_path / "train", 1, ("cat",))
        write_classes(tmp_path / "train", 2, ("dog",))
        write_classes(tmp_path / "test", 1)
        dataset = load_folder(tmp_path, resolution=8)
        np.testing.assert_array_equal(dataset.splits["train"].labels, [0, 1])
        np.testing.assert_array_equal(dataset.splits["val"].labels, [1])

    def test_classes_that_train_lacks_are_named_unless_they_are_not_chosen(self, tmp_path):
        write_classes(tmp_path / "train", 2)
        write_classes(tmp_path / "val", 2, ("bee", "cat", "dog"))
        options = {"folder": str(tmp_path), "resolution": 8}
        with pytest.raises(UserError, match=r"has no images to train on of: bee; .*data\.subset$"):
            load_dataset("folder", **options)
        chosen = load_dataset("folder", **options, subset="cat,dog").splits["test"]
        np.testing.assert_array_equal(chosen.labels, [0, 0, 1, 1])
        assert chosen.load(np.arange(4))[:, 0, 0, 0].tolist() == [100, 101, 200, 201]

    def test_classes_that_a_split_lacks_are_said(self, tmp_path):
        write_classes(tmp_path / "train", 2, tuple("abcdefgh"))
        write_classes(tmp_path / "test", 2, ("h",))
        dataset = load_folder(tmp_path, resolution=8)
        np.testing.assert_array_equal(dataset.splits["test"].labels, [7, 7])
        assert f"{tmp_path.name} has no test images of: a, b, c, d, e and 2 more" in check(dataset)

    def test_train_is_needed(self, tmp_path):
        write_classes(tmp_path / "val", 2)
        write_classes(tmp_path / "test", 2)
        with pytest.raises(UserError, match="has val and test but no train folder"):
            load_folder(tmp_path, resolution=8)

    def test_train_alone_says_which_folder_to_give(self, tmp_path):
        write_classes(tmp_path / "train", 10)
        with pytest.raises(UserError, match=r"neither val nor test: give .*train to have it split"):
            load_folder(tmp_path, resolution=8)
        assert load_folder(tmp_path / "train", resolution=8).num_classes == 2

    def test_two_folders_for_one_split_are_refused(self, tmp_path):
        for name in ("train", "val", "validation"):
            write_classes(tmp_path / name, 2)
        with pytest.raises(UserError, match="has both val and validation"):
            load_folder(tmp_path, resolution=8)


class TestWhatIsASplit:
    """Folders beside `train`, whose names say nothing."""

    def test_a_folder_of_classes_that_may_be_held_out(self, tmp_path):
        write_classes(tmp_path / "train", 4)
        write_classes(tmp_path / "holdout", 2)
        with pytest.raises(UserError, match="has holdout beside train, which has folders as a sp"):
            load_folder(tmp_path, resolution=8)

    def test_beside_a_held_out_folder_it_is_ignored(self, tmp_path):
        for name in ("train", "test", "holdout"):
            write_classes(tmp_path / name, 4)
        dataset = load_folder(tmp_path, resolution=8)
        assert sum(len(split.labels) for split in dataset.splits.values()) == 16
        assert [note for note in check(dataset) if "holdout is ignored" in note]

    def test_folders_of_images_are_classes(self, tmp_path):
        write_classes(tmp_path, 5, ("dev", "ops", "bullet_train"))
        dataset = load_folder(tmp_path, resolution=8)
        assert dataset.class_names == ["bullet_train", "dev", "ops"]
        assert [note for note in check(dataset) if "the folder dev is a class" in note]

    def test_splits_inside_classes_are_refused(self, tmp_path):
        for name in ("cat", "dog"):
            write_classes(tmp_path / name, 4, ("train", "test"))
        with pytest.raises(UserError, match="cat has train and test: splits must hold classes"):
            load_folder(tmp_path, resolution=8)

    def test_the_folder_above_is_answered_with_the_one_below(self, tmp_path):
        for name in ("train", "test"):
            write_classes(tmp_path / "photos" / name, 4)
        with pytest.raises(UserError, match=rf"photos alone, .*: give {tmp_path}/photos$"):
            load_folder(tmp_path, resolution=8)


class TestFolderErrors:
    def test_missing(self, tmp_path):
        with pytest.raises(UserError, match=r"nowhere is not a folder: expected <folder>/<class>"):
            load_folder(tmp_path / "nowhere", resolution=8)

    def test_a_file(self, tmp_path):
        write_image(tmp_path / "a.png")
        with pytest.raises(UserError, match=r"a.png is not a folder"):
            load_folder(tmp_path / "a.png", resolution=8)

    def test_empty(self, tmp_path):
        with pytest.raises(UserError, match=r"has no class folders: expected <folder>/<class>"):
            load_folder(tmp_path, resolution=8)

    def test_images_without_class_folders(self, tmp_path):
        write_classes(tmp_path / "val", 2)
        write_image(tmp_path / "train" / "0.png")
        with pytest.raises(UserError, match=r"train has no class folders, but images \(1\): move"):
            load_folder(tmp_path, resolution=8)

    def test_one_class(self, tmp_path):
        write_classes(tmp_path, 10, ("cat",))
        with pytest.raises(
            UserError, match=r"has one class only, 'cat': expected <folder>/<class>"
        ):
            load_folder(tmp_path, resolution=8)

    def test_class_without_images(self, tmp_path):
        write_classes(tmp_path, 10)
        (tmp_path / "emu").mkdir()
        (tmp_path / "emu" / "readme.txt").write_text("soon")
        (tmp_path / "emu" / "film.mp4").write_text("a film")
        with pytest.raises(UserError, match=rf"class 'emu' has no images in {tmp_path}/emu$"):
            load_folder(tmp_path, resolution=8)

    def test_messages_are_one_line(self, tmp_path):
        write_classes(tmp_path, 10, ("cat",))
        for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "cat"):
            with pytest.raises(UserError) as error:
                load_folder(folder, resolution=8)
            assert "\n" not in str(error.value)


class TestSymbolicLinks:
    def test_inside_is_followed(self, tmp_path):
        write_classes(tmp_path, 10)
        (tmp_path / "cat" / "linked.png").symlink_to(tmp_path / "cat" / "0.png")
        dataset = load_folder(tmp_path, resolution=8)
        assert "cat/linked.png" in {file for name in SPLITS for file in files(dataset, name)}

    def test_the_folder_itself_may_be_one(self, tmp_path):
        write_classes(tmp_path / "real", 10)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        linked, real = (load_folder(tmp_path / name, resolution=8) for name in ("link", "real"))
        assert linked.fingerprint == real.fingerprint

    def test_links_out_of_the_folder_are_followed(self, tmp_path):
        write_classes(tmp_path / "data", 10)
        write_classes(tmp_path / "pool", 10, ("emu",))
        write_image(tmp_path / "pool" / "deep" / "1.png")
        (tmp_path / "data" / "emu").symlink_to(tmp_path / "pool" / "emu")
        (tmp_path / "data" / "cat" / "x.png").symlink_to("../../pool/emu/0.png")
        (tmp_path / "data" / "cat" / "nested").symlink_to(tmp_path / "pool" / "deep")
        dataset = load_dataset("folder", folder=str(tmp_path / "data"), resolution=8)
        assert dataset.class_names == ["cat", "dog", "emu"]
        assert sum(dataset.counts().values()).tolist() == [12, 10, 10]
        members = {file for name in SPLITS for file in files(dataset, name)}
        assert {"cat/x.png", "cat/nested/1.png"} < members

    def test_a_folder_of_links_as_hubs_keep_it(self, tmp_path):
        for label, name in enumerate(("cat", "dog")):
            for i in range(10):
                blob = tmp_path / "blobs" / f"{label}{i}"
                write_image(blob.with_suffix(".png"), 100 * label)
                blob.with_suffix(".png").rename(blob)
                link = tmp_path / "snapshots" / "1f3a" / name / f"{i}.PNG"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path("../../../blobs") / blob.name)
        dataset = load_dataset("folder", folder=str(tmp_path / "snapshots" / "1f3a"), resolution=8)
        split = dataset.splits["train"]
        images = split.load(np.arange(len(split.labels)))
        np.testing.assert_array_equal(images[:, 0, 0, 0], 100 * split.labels)

    @pytest.mark.parametrize("target", ["gone.png", "x.png"])
    def test_links_to_nowhere_are_counted_and_named(self, tmp_path, target):
        write_classes(tmp_path, 10)
        for name in ("cat/x.png", "cat/y.png", "dog/z.jpg"):
            (tmp_path / name).symlink_to(target if name == "cat/x.png" else "../.git/annex/1")
        with pytest.raises(UserError, match=r"^3 images of .* lead nowhere, .* -> .*git annex get"):
            load_dataset("folder", folder=str(tmp_path), resolution=8)
        kept = load_dataset("folder", folder=str(tmp_path), resolution=8, on_bad_image="skip")
        assert sum(map(sum, kept.counts().values())) == 20
        left_out = [name for names in kept.skipped.values() for name in names]
        assert sorted(left_out) == ["cat/x.png", "cat/y.png", "dog/z.jpg"]

    def test_a_class_that_leads_nowhere_is_not_dropped(self, tmp_path):
        write_classes(tmp_path, 10)
        (tmp_path / "emu").symlink_to("../unmounted/emu")
        with pytest.raises(
            UserError, match=r"1 links that lead nowhere .* emu -> \.\./unmounted/emu"
        ):
            load_folder(tmp_path, resolution=8)

    def test_circles_end(self, tmp_path):
        names = list("abcdefghijkl")
        write_classes(tmp_path, 10, tuple(names))
        for name in names:
            (tmp_path / name / "up.png").symlink_to("..")
            (tmp_path / name / "far").symlink_to("/")
            (tmp_path / name / "self").symlink_to(".")
        # Each leads to all others: without a memory, 12! ways.
        for name in names[:6]:
            for other in names[:6]:
                (tmp_path / name / f"to_{other}").symlink_to(Path("..") / other)
        dataset = load_folder(tmp_path, resolution=8)
        assert sum(dataset.counts().values()).tolist() == [60] * 6 + [10] * 6
        assert any("links to folders that are read anyway" in note for note in dataset.notes)


ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: np.rot90(image),
}


class TestDecoding:
    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    def test_exif_orientation_is_applied(self, tmp_path, orientation):
        pixels = noise(8, 8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(
            load_one(tmp_path / "a.png"), ORIENTATIONS[orientation](pixels)
        )

    def test_exif_is_applied_before_the_crop(self, tmp_path):
        pixels = np.zeros((8, 24, 3), np.uint8)
        pixels[:, 8:16] = noise(8, 8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(load_one(tmp_path / "a.png"), np.rot90(noise(8, 8), -1))

    def test_grey(self, tmp_path):
        grey = noise(8, 8)[..., 0]
        Image.fromarray(grey).save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_one(tmp_path / "a.png"), np.stack([grey] * 3, -1))

    def test_black_and_white(self, tmp_path):
        bits = noise(8, 8)[..., 0] > 127
        Image.fromarray(bits).save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_one(tmp_path / "a.png")[..., 2], bits * 255)

    @pytest.mark.parametrize("suffix", ["png", "gif"])
    def test_palette(self, tmp_path, suffix):
        pixels = (noise(8, 8) // 128 * 255).astype(np.uint8)
        Image.fromarray(pixels).quantize(8).save(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(load_one(tmp_path / f"a.{suffix}"), pixels)

    def test_transparency_is_laid_on_white(self, tmp_path):
        color, alpha = noise(8, 8), noise(16, 8)[8:, :, :1]
        Image.fromarray(np.concatenate([color, alpha], -1)).save(tmp_path / "a.png")
        expected = color * (alpha / 255) + 255 * (1 - alpha / 255)
        np.testing.assert_allclose(load_one(tmp_path / "a.png"), expected, atol=1)

    def test_transparent_grey_is_laid_on_white(self, tmp_path):
        grey = np.full((8, 8, 2), 10, np.uint8)
        grey[:4, :, 1], grey[4:, :, 1] = 0, 255
        Image.fromarray(
            grey,
        ).save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_one(tmp_path / "a.png")[:, 0, 0], [255] * 4 + [10] * 4)

    def test_transparent_palette_entry_is_laid_on_white(self, tmp_path):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.paste(1, (0, 0, 8, 4))
        for name in ("a.png", "a.gif"):
            image.save(tmp_path / name, transparency=0)
            loaded = load_one(tmp_path / name)
            np.testing.assert_array_equal(loaded[0, 0], [40, 50, 60])
            np.testing.assert_array_equal(loaded[7, 0], [255, 255, 255])

    def test_cmyk(self, tmp_path):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
        Image.new("CMYK", (8, 8), (255, 0, 0, 128)).save(tmp_path / "a.tif")
        np.testing.assert_allclose(load_one(tmp_path / "a.jpg")[4, 4], [255, 0, 0], atol=2)
        np.testing.assert_allclose(load_one(tmp_path / "a.tif")[4, 4], [0, 127, 127], atol=1)

    @pytest.mark.parametrize("name", ["a.png", "a.tif", "big_endian.tif"])
    def test_16_bit_grey_is_scaled(self, tmp_path, name):
        grey = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
        image = Image.fromarray(grey)
        if name.startswith("big"):
            image = Image.frombytes("I;16B", (8, 8), grey.astype(">u2").tobytes())
        image.save(tmp_path / name)
        expected = np.round(grey / 257)
        np.testing.assert_array_equal(load_one(tmp_path / name)[..., 1], expected)

    def test_animation_gives_its_first_frame(self, tmp_path):
        frames = [Image.new("RGB", (8, 8), (value,) * 3) for value in (10, 200)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert np.unique(load_one(tmp_path / "a.gif")).tolist() == [10]

    @pytest.mark.parametrize(
        ("height", "width", "resolution"),
        [
            (37, 53, 16),
            (61, 40, 16),
            (10, 7, 16),
            (33, 33, 16),
            (16, 19, 16),
            (19, 16, 16),
            (30, 101, 13),
        ],
    )
    def test_resize_and_crop(self, tmp_path, height, width, resolution):
        pixels = noise(height, width)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        # PIL rounds to 8 bits after each of its two passes.
        np.testing.assert_allclose(
            load_one(tmp_path / "a.png", resolution),
            resize_and_crop(pixels, resolution),
            atol=1.01,
        )


def resize_and_crop(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """torchvision's `Resize(r)` and `CenterCrop(r)`, by their definition, in float64."""

    def matrix(size: int, new_size: int) -> np.ndarray:
        scale = size / new_size
        centers = (np.arange(new_size)[:, None] + 0.5) * scale
        distances = np.abs(np.arange(size)[None] + 0.5 - centers) / max(scale, 1)
        weights = np.maximum(1 - distances, 0)
        return weights / weights.sum(axis=1, keepdims=True)

    height, width = pixels.shape[:2]
    if height < width:
        new_height, new_width = resolution, int(resolution * width / height)
    else:
        new_height, new_width = int(resolution * height / width), resolution
    large = np.einsum(
        "ah,bw,hwc->abc", matrix(height, new_height), matrix(width, new_width), pixels
    )
    top, left = round((new_height - resolution) / 2), round((new_width - resolution) / 2)
    return large[top : top + resolution, left : left + resolution]


class TestBrokenImages:
    def check(self, path: Path, reason: str) -> None:
        write_image(path.parent / "good.png")
        split = split_of(path.parent, "good.png", path.name)
        with pytest.raises(UserError, match=rf"^cannot read image {path}: .*{reason}"):
            split.load(np.asarray([0, 1]))
        assert split.load(np.asarray([0])).shape == (1, 8, 8, 3)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
    def test_truncated(self, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise(64, 64)).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with warnings.catch_warnings():
            # libtiff's directory is gone, about which PIL warns too.
            warnings.simplefilter("ignore")
            self.check(path, "")

    def test_not_an_image(self, tmp_path):
        (tmp_path / "a.jpg").write_text("<html>404</html>")
        self.check(tmp_path / "a.jpg", "it is a web page")

    def test_empty_file(self, tmp_path):
        (tmp_path / "a.png").touch()
        self.check(tmp_path / "a.png", "it is empty$")

    def test_file_that_went_away(self, tmp_path):
        self.check(tmp_path / "a.png", "No such file or directory$")

    def test_format_in_disguise(self, tmp_path):
        # PIL would hand it to Ghostscript.
        Image.fromarray(noise(8, 8)).save(tmp_path / "a.jpg", format="EPS")
        self.check(tmp_path / "a.jpg", "not in a format that is read, like JPEG or PNG$")

    def test_32_bit_grey_has_no_range(self, tmp_path):
        Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a.tif")
        self.check(tmp_path / "a.tif", "32-bit grey has no agreed range")

    def test_decompression_bomb(self, tmp_path):
        # 30,000 x 30,000 black pixels in 3 MB would be an hour's test: its header says enough.
        write_image(tmp_path / "a.png")
        data = bytearray((tmp_path / "a.png").read_bytes())
        data[16:24] = (30_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        (tmp_path / "a.png").write_bytes(data)
        self.check(tmp_path / "a.png", "30000 x 30000 pixels are more than 134,217,728: save it")
