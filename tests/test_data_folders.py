"""Folders of images: classes, splits, links, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lgm_jax.data import load_dataset
from lgm_jax.data.dataset import SPLITS
from lgm_jax.data.decode import decode
from lgm_jax.data.records import ImageSplit
from lgm_jax.data.splits import check
from lgm_jax.errors import UserError
from tests.photos import load_folder, names, write_classes, write_image

RESOLUTION = 8


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
            assert names(dataset, name) == sorted(names(dataset, name))
        members = [file for name in SPLITS for file in names(dataset, name)]
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
        assert names(first, "test") == names(again, "test") != names(other, "test")
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
            assert names(here, name) == names(there, name)
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
        several = ("a.JPG", "b.jpeg", "c.webp", "d.bmp", "e.gif", "f.tif", "g/h/i.TIFF")
        for name in several:
            write_image(tmp_path / "cat" / name)
        dataset = load_folder(tmp_path, resolution=8)
        members = {file for name in SPLITS for file in names(dataset, name)}
        assert {f"cat/{name}" for name in several} < members
        for name in several:
            content = (tmp_path / "cat" / name).read_bytes()
            assert np.asarray(decode(content, orient=True, name=name)).max() == 0

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
        assert names(dataset, "val") == [
            "val/cat/0.png",
            "val/cat/1.png",
            "val/dog/0.png",
            "val/dog/1.png",
        ]
        np.testing.assert_array_equal(dataset.splits["val"].labels, [0, 0, 1, 1])
        assert [len(names(dataset, name)) for name in SPLITS] == [10, 4, 6]
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
        assert {file.split("/")[0] for file in names(dataset, "test")} == {held_out}
        assert len(names(dataset, "test")) == 8
        train, val = names(dataset, "train"), names(dataset, "val")
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

    def test_train_alone_says_which_folder_to_give(self, tmp_path):
        write_classes(tmp_path / "train", 10)
        with pytest.raises(UserError, match=r"neither val nor test: give .*train to have it split"):
            load_folder(tmp_path, resolution=8)
        assert load_folder(tmp_path / "train", resolution=8).num_classes == 2


class TestWhatIsASplit:
    """Folders beside `train`, whose names say nothing."""

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


TREES = {
    "nothing": ((), r"set has no class folders: expected <folder>/<class>"),
    "one class": (("cat",), "has one class only, 'cat': expected <folder>/<class>"),
    "no train": (("val/cat", "test/cat"), "has val and test but no train folder"),
    "splits in classes": (
        ("cat/train", "cat/test", "dog/train", "dog/test"),
        "cat has train and test: splits must hold classes",
    ),
    "splits one below": (("photos/train", "photos/test"), "photos has train.*, give it alone$"),
    "classes one below": (("images/cat", "images/dog"), "one class only, 'images': expected <fol"),
    "no classes": (("train", "test"), r"train has no class folders, but images \(4\): move"),
    "two domains": (("trainA", "trainB", "testA", "testB"), "expected train/<class> and test/<cla"),
    "split and letter": (("train_A", "test_A"), "expected train/<class> and test/<class>"),
    "class and split": (
        ("cat_train", "cat_test", "dog_train", "dog_test"),
        "expected train/<class> and test/<class>",
    ),
    "other classes": (
        ("train/cat", "train/dog", "test/0", "test/1"),
        r"test images \(0, 1\) is one of train's \(cat, dog\): name them alike",
    ),
    "an archive's": (
        ("images", "annotations"),
        "which are no classes by their names: expected",
    ),
    "an archive's splits": (
        ("train/image", "train/mask", "val/image", "val/mask"),
        "which are no classes by their names: expected <class",
    ),
    **{
        name: (("cat", "dog", f"emu/{name}"), "class 'emu' has no images in .*/set/emu$")
        for name in ("film.mp4", "scans.pdf", "0.npy", "cat.zip")
    },
}


@pytest.mark.parametrize("case", TREES)
def test_a_folder_laid_out_otherwise_is_refused_in_one_line(tmp_path, case):
    tree, message = TREES[case]
    (tmp_path / "set").mkdir()
    for inside in tree:
        if "." in inside:
            (tmp_path / "set" / inside).parent.mkdir()
            (tmp_path / "set" / inside).write_text("no image")
        else:
            write_classes(tmp_path / "set", 4, (inside,))
    with pytest.raises(UserError, match=message) as error:
        load_folder(tmp_path / "set", resolution=8)
    assert "\n" not in str(error.value)


def test_what_is_no_folder_is_refused(tmp_path):
    write_image(tmp_path / "a.png")
    for name in ("nowhere", "a.png"):
        with pytest.raises(UserError, match=f"{name} is not a folder: expected <folder>/<class>"):
            load_folder(tmp_path / name, resolution=8)


class TestSymbolicLinks:
    def test_inside_is_followed(self, tmp_path):
        write_classes(tmp_path, 10)
        (tmp_path / "cat" / "linked.png").symlink_to(tmp_path / "cat" / "0.png")
        dataset = load_folder(tmp_path, resolution=8)
        assert "cat/linked.png" in {file for name in SPLITS for file in names(dataset, name)}

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
        members = {file for name in SPLITS for file in names(dataset, name)}
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
