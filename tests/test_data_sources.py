"""Named data sources: their layouts, groups, subsets, broken images, and what they refuse."""

from __future__ import annotations

import io
import pickle
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgm_jax import data
from lgm_jax.data import imagenet, load_dataset
from lgm_jax.data.dataset import ArraySplit, Dataset
from lgm_jax.data.decode import decode, resize_and_crop
from lgm_jax.data.records import ImageSplit
from lgm_jax.data.splits import check, select_classes
from lgm_jax.data.spurious import SPAWRIOUS
from lgm_jax.errors import UserError

R = 8
IMAGENETTE = [imagenet.wnids()[i] for i in imagenet.SUBSETS["imagenette"]]


def write(path: Path, value: int = 0, size: tuple[int, int] = (R, R)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def names(dataset: Dataset, split: str) -> list[str]:
    members = dataset.splits[split]
    assert isinstance(members, ImageSplit)
    return [members.name(i) for i in range(len(members.labels))]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


class TestImageNetTable:
    def test_thousand_sorted_wordnet_names_with_distinct_words(self):
        assert len(imagenet.wnids()) == len(set(imagenet.names())) == 1000
        assert list(imagenet.wnids()) == sorted(set(imagenet.wnids()))
        assert imagenet.names()[574] == "golf ball"

    def test_subsets_have_distinct_classes(self):
        sizes = {name: len(set(subset)) for name, subset in imagenet.SUBSETS.items()}
        assert sizes.pop("imagenet-100") == 100
        assert set(sizes.values()) == {10}
        assert IMAGENETTE[:2] == ["n01440764", "n02102040"]
        birds = [imagenet.names()[i] for i in imagenet.SUBSETS["imagenet-birds"]]
        assert birds[:2] == ["peacock", "flamingo"]


class TestImageNet:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        for label, wnid in enumerate(IMAGENETTE):
            for i in range(3):
                write(tmp_path / "train" / wnid / f"{i}.JPEG", 20 * label)
            write(tmp_path / "val" / wnid / "v.JPEG", 20 * label)
        return tmp_path

    def test_official_validation_is_test_and_nothing_is_held_out(self, folder):
        dataset = load_dataset("imagenet", folder=str(folder), resolution=R)
        assert list(dataset.splits) == ["train", "test"]
        assert names(dataset, "test")[1] == "val/n02102040/v.JPEG"
        assert len(dataset.splits["train"].labels) == 30
        assert list(dataset.class_names[:2]) == ["tench", "English springer"]
        assert (dataset.name, list(dataset.wnids)) == ("imagenet", IMAGENETTE)

    def test_validation_images_on_request(self, folder):
        dataset = load_dataset("imagenet", folder=str(folder), resolution=R, val_fraction=0.4)
        assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
            "train": 20,
            "val": 10,
            "test": 10,
        }

    def test_subset_lists_only_its_classes_in_its_order(self, folder):
        # A class outside the subset may even be broken.
        (folder / "train" / "n02085620").mkdir()
        (folder / "val" / "n02085620").mkdir()
        dataset = load_dataset(
            "imagenet", folder=str(folder), resolution=R, subset="imagenette", val_fraction=0.4
        )
        assert list(dataset.wnids) == IMAGENETTE
        for name, split in dataset.splits.items():
            values = split.load(np.arange(len(split.labels)))[:, 0, 0, 0]
            np.testing.assert_array_equal(values, 20 * split.labels, err_msg=name)

    def test_indices_are_those_of_imagenet_1k(self, folder):
        dataset = load_dataset("imagenet", folder=str(folder), resolution=R, subset="701, 0,church")
        assert list(dataset.class_names) == ["parachute", "tench", "church"]

    def test_class_that_the_folder_lacks_is_named(self, folder):
        with pytest.raises(UserError, match=r"imagenet has no class n01443537 \(goldfish\)"):
            load_dataset("imagenet", folder=str(folder), resolution=R, subset="0,1")

    def test_unsorted_validation_images(self, folder):
        for path in sorted((folder / "val").glob("*/*")):
            path.rename(folder / "val" / f"{path.parent.name}.JPEG")
            path.parent.rmdir()
        with pytest.raises(UserError, match=r"val has no folders: move each image into"):
            load_dataset("imagenet", folder=str(folder), resolution=R)

    def test_other_folders_are_refused(self, folder):
        for split in ("train", "val"):
            write(folder / split / "cat" / "0.JPEG")
        with pytest.raises(UserError, match=r"no classes of ImageNet-1k: cat; .*name=folder"):
            load_dataset("imagenet", folder=str(folder), resolution=R)

    def test_missing_split(self, folder):
        (folder / "val").rename(folder / "held_out")
        with pytest.raises(UserError, match=r"has no folder val: expected <folder>/train/<wnid>"):
            load_dataset("imagenet", folder=str(folder), resolution=R)

    def test_folder_is_asked_for(self):
        with pytest.raises(UserError, match=r"imagenet needs the folder that holds train/<wnid>/"):
            load_dataset("imagenet", resolution=R)


class TestArtBench:
    STYLES = (
        *("art_nouveau", "baroque", "expressionism", "impressionism", "post_impressionism"),
        *("realism", "renaissance", "romanticism", "surrealism", "ukiyo_e"),
    )

    def unpack(self, folder: Path) -> Path:
        inner = folder / "artbench-10-imagefolder-split"
        for i, style in enumerate(self.STYLES):
            write(inner / "train" / style / "a.jpg", 10 * i)
            write(inner / "train" / style / "b.jpg", 10 * i)
            write(inner / "test" / style / "c.jpg", 10 * i)
        return inner

    def test_as_it_unpacks_and_from_inside(self, tmp_path):
        inner = self.unpack(tmp_path)
        outside, inside = (
            load_dataset("artbench", folder=str(folder), resolution=R)
            for folder in (tmp_path, inner)
        )
        assert outside.fingerprint == inside.fingerprint
        assert (outside.name, tuple(outside.class_names)) == ("artbench", self.STYLES)
        assert {n: len(s.labels) for n, s in outside.splits.items()} == {"train": 20, "test": 10}
        assert outside.splits["test"].load(np.asarray([3]))[0, 0, 0, 0] == 30

    def test_at_their_own_size_images_are_not_resampled(self, tmp_path):
        inner = self.unpack(tmp_path)
        pixels = np.random.default_rng(0).integers(0, 256, (R, R, 3), np.uint8)
        path = inner / "train" / "baroque" / "a.jpg"
        Image.fromarray(pixels).save(path)
        with Image.open(path) as image:
            expected = np.asarray(image)
        dataset = load_dataset("artbench", folder=str(inner), resolution=R)
        row = names(dataset, "train").index("train/baroque/a.jpg")
        np.testing.assert_array_equal(dataset.splits["train"].load(np.asarray([row]))[0], expected)

    def test_other_folders_are_refused(self, tmp_path):
        inner = self.unpack(tmp_path)
        write(inner / "train" / "cubism" / "a.jpg")
        with pytest.raises(UserError, match="other folders than ArtBench's"):
            load_dataset("artbench", folder=str(inner), resolution=R)

    def test_archive_itself(self, tmp_path):
        (tmp_path / "artbench.tar").touch()
        with pytest.raises(UserError, match=r"artbench\.tar is an archive: unpack it"):
            load_dataset("artbench", folder=str(tmp_path / "artbench.tar"), resolution=R)


class TestWaterbirds:
    ROWS = (
        ("001.A/a.jpg", 0, 0, 0),
        ("001.A/b.jpg", 0, 0, 1),
        ("002.B/a.jpg", 1, 0, 0),
        ("002.B/b.jpg", 1, 0, 1),
        ("001.A/c.jpg", 0, 1, 1),
        ("002.B/c.jpg", 1, 1, 0),
        ("001.A/d.jpg", 0, 2, 0),
        ("002.B/d.jpg", 1, 2, 0),
        ("002.B/e.jpg", 1, 2, 1),
    )

    def unpack(self, folder: Path, rows=ROWS, columns="img_filename,y,split,place") -> Path:
        # As WILDS writes it, with an index and one more column.
        lines = [f"img_id,{columns},place_filename"]
        for i, (name, y, split, place) in enumerate(rows):
            write(folder / name, 10 * i)
            lines.append(f"{i},{name},{y},{split},{place},/b/beach/1.jpg")
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
        return folder

    def test_labels_groups_and_official_splits(self, tmp_path):
        dataset = load_dataset("waterbirds", folder=str(self.unpack(tmp_path)), resolution=R)
        assert list(dataset.class_names) == ["landbird", "waterbird"]
        assert list(dataset.group_names) == [
            "landbird on land",
            "landbird on water",
            "waterbird on land",
            "waterbird on water",
        ]
        train, val, test = (dataset.splits[name] for name in ("train", "val", "test"))
        assert (train.labels.tolist(), train.groups.tolist()) == ([0, 0, 1, 1], [0, 1, 2, 3])
        assert (val.labels.tolist(), val.groups.tolist()) == ([0, 1], [1, 2])
        assert (test.labels.tolist(), test.groups.tolist()) == ([0, 1, 1], [0, 2, 3])
        np.testing.assert_allclose(test.load(np.arange(3))[:, 0, 0, 0], [60, 70, 80], atol=1)

    @pytest.mark.parametrize(
        ("column", "value"), [("y", 2), ("y", ""), ("split", 3), ("place", -1), ("split", "train")]
    )
    def test_strange_value_is_named_with_its_line(self, tmp_path, column, value):
        row = {"img_filename": "x.jpg", "y": 0, "split": 0, "place": 0} | {column: value}
        self.unpack(tmp_path, [*self.ROWS, tuple(row.values())])
        with pytest.raises(UserError, match=rf"csv, line 11: {column} is '{value}', not from 0"):
            load_dataset("waterbirds", folder=str(tmp_path), resolution=R)

    @pytest.mark.parametrize("kind", ["bom", "crlf", "semicolons", "tabs", "floats", "spaces"])
    def test_table_as_other_programs_save_it(self, tmp_path, kind):
        folder = self.unpack(tmp_path)
        table = folder / "metadata.csv"
        text = table.read_text()
        changed = {
            "bom": "\ufeff" + text,
            "crlf": text.replace("\n", "\r\n"),
            "semicolons": text.replace(",", ";"),
            "tabs": text.replace(",", "\t"),
            "floats": re.sub(r"(?<=,)[012](?=,)", r"\g<0>.0", text),
            "spaces": text.replace(",", ", "),
        }[kind]
        expected = load_dataset("waterbirds", folder=str(folder), resolution=R)
        table.write_bytes(changed.encode())
        assert (
            load_dataset("waterbirds", folder=str(folder), resolution=R).fingerprint
            == expected.fingerprint
        )

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("9", "line 11: y is '', not from 0 to 1"),
            ("9,,0,0,0,x", "line 11: img_filename is empty"),
            ("9,001.A/a.jpg,nan,0,0,x", "line 11: y is 'nan', not from 0"),
            ("9,001.A/a.jpg,0.5,0,0,x", r"line 11: y is '0\.5', not from 0"),
            ("9,001.A/a.jpg,0,0,,x", "line 11: place is ''"),
            (b"\xff\xfe", "is not UTF-8"),
            ("9,a\0.jpg,0,0,0,x", "metadata|no file's path"),
        ],
    )
    def test_rows_that_lack_something(self, tmp_path, line, message):
        folder = self.unpack(tmp_path)
        with (folder / "metadata.csv").open("ab") as table:
            table.write(line if isinstance(line, bytes) else line.encode())
        with pytest.raises(UserError, match=message) as error:
            load_dataset("waterbirds", folder=str(folder), resolution=R)
        assert "\n" not in str(error.value)

    def test_missing_column(self, tmp_path):
        self.unpack(tmp_path, columns="img_filename,y,split,background")
        with pytest.raises(UserError, match=r"has no column place: expected metadata\.csv with"):
            load_dataset("waterbirds", folder=str(tmp_path), resolution=R)

    def test_missing_table_and_image(self, tmp_path):
        with pytest.raises(UserError, match=r"has no metadata\.csv"):
            load_dataset("waterbirds", folder=str(tmp_path), resolution=R)
        self.unpack(tmp_path)
        (tmp_path / "001.A" / "a.jpg").unlink()
        with pytest.raises(UserError, match=r"001\.A/a\.jpg does not exist"):
            load_dataset("waterbirds", folder=str(tmp_path), resolution=R)

    @pytest.mark.parametrize("way", ["dots", "absolute"])
    def test_way_out_of_the_folder_is_refused(self, tmp_path, way):
        write(tmp_path / "outside.jpg")
        folder = self.unpack(tmp_path / "data")
        name = {"dots": "../outside.jpg", "absolute": str(tmp_path / "outside.jpg")}[way]
        with (folder / "metadata.csv").open("a") as table:
            table.write(f"9,{name},0,0,0,x\n")
        with pytest.raises(UserError, match=r"leads out of .*data$"):
            load_dataset("waterbirds", folder=str(folder), resolution=R)

    def test_links_are_followed_and_names_found_in_the_other_encoding(self, tmp_path):
        write(tmp_path / "pool.jpg", 77)
        rows = [*self.ROWS, ("caf\u00e9/z.jpg", 0, 2, 0), ("l.jpg", 1, 2, 1)]
        folder = self.unpack(tmp_path / "data", rows)
        (folder / "caf\u00e9").rename(folder / "cafe\u0301")
        (folder / "l.jpg").unlink()
        (folder / "l.jpg").symlink_to("../pool.jpg")
        test = load_dataset("waterbirds", folder=str(folder), resolution=R).splits["test"]
        np.testing.assert_allclose(test.load(np.asarray([3, 4]))[:, 0, 0, 0], [90, 77], atol=1)

    def test_worst_group_needs_groups_to_survive_decoding(self, tmp_path):
        dataset = load_dataset("waterbirds", folder=str(self.unpack(tmp_path)), resolution=R)
        held = data.in_memory(dataset.splits["test"], limit_bytes=10**6)
        np.testing.assert_array_equal(held.groups, dataset.splits["test"].groups)
        np.testing.assert_array_equal(held.take(np.asarray([2])).groups, [3])


class TestSpawrious:
    @pytest.fixture
    def few(self, monkeypatch) -> None:
        """Folders of 100 images stand for the real 3,168: 97 and 3, 87 and 13."""
        monkeypatch.setattr("lgm_jax.data.spurious._DOGS_PER_FOLDER", 100)

    def unpack(self, folder: Path, benchmark: str, count: int = 100) -> Path:
        spec = SPAWRIOUS[benchmark]
        image = io.BytesIO()
        Image.new("RGB", (R, R)).save(image, "PNG")
        places = {*spec.train, *spec.test, *filter(None, [spec.filler])}
        for environment in (0, 1) if spec.filler else (0,):
            for place in places:
                for dog in ("bulldog", "corgi", "dachshund", "labrador"):
                    inside = folder / "spawrious224" / str(environment) / place / dog
                    inside.mkdir(parents=True)
                    for i in range(count):
                        (inside / f"{i:03d}.png").write_bytes(image.getvalue())
        return folder

    def tally(self, dataset: Dataset, split: str) -> dict[str, int]:
        groups = np.bincount(dataset.splits[split].groups, minlength=len(dataset.group_names))
        named = zip(dataset.group_names, groups.tolist(), strict=True)
        return {name: count for name, count in named if count}

    @pytest.mark.usefixtures("few")
    def test_one_to_one(self, tmp_path):
        folder = self.unpack(tmp_path, "spawrious_o2o_hard")
        dataset = load_dataset("spawrious_o2o_hard", folder=str(folder), resolution=R)
        assert list(dataset.class_names) == ["bulldog", "corgi", "dachshund", "labrador"]
        # In the authors' code: bulldog jungle, dachshund mountain, labrador snow, corgi desert.
        assert self.tally(dataset, "train") == {
            "bulldog, jungle": 184,
            "bulldog, beach": 16,
            "dachshund, mountain": 184,
            "dachshund, beach": 16,
            "labrador, snow": 184,
            "labrador, beach": 16,
            "corgi, desert": 184,
            "corgi, beach": 16,
        }
        assert self.tally(dataset, "test") == {
            "bulldog, mountain": 200,
            "dachshund, snow": 200,
            "labrador, desert": 200,
            "corgi, jungle": 200,
        }
        for split in dataset.splits.values():
            dogs = [dataset.group_names[group].split(",")[0] for group in split.groups]
            assert dogs == [dataset.class_names[label] for label in split.labels]
        assert list(dataset.splits) == ["train", "test"]
        assert not set(names(dataset, "train")) & set(names(dataset, "test"))

    @pytest.mark.usefixtures("few")
    def test_many_to_many(self, tmp_path):
        folder = self.unpack(tmp_path, "spawrious_m2m_easy") / "spawrious224"
        dataset = load_dataset("spawrious_m2m_easy", folder=str(folder), resolution=R)
        pairs = {
            "bulldog": ("desert", "mountain"),
            "dachshund": ("desert", "mountain"),
            "labrador": ("dirt", "jungle"),
            "corgi": ("dirt", "jungle"),
        }
        expected = {f"{dog}, {place}": 100 for dog in pairs for place in pairs[dog]}
        assert self.tally(dataset, "train") == expected
        swapped = {"desert": "dirt", "mountain": "jungle", "dirt": "desert", "jungle": "mountain"}
        expected = {f"{dog}, {swapped[place]}": 100 for dog in pairs for place in pairs[dog]}
        assert self.tally(dataset, "test") == expected

    def test_missing_folder_is_named(self, tmp_path):
        (tmp_path / "0").mkdir()
        with pytest.raises(UserError, match="has no folder 0/jungle/bulldog: expected 0/<backgr"):
            load_dataset("spawrious_o2o_hard", folder=str(tmp_path), resolution=R)

    @pytest.mark.usefixtures("few")
    def test_incomplete_copy_is_refused(self, tmp_path):
        folder = self.unpack(tmp_path, "spawrious_o2o_easy", count=90)
        with pytest.raises(UserError, match="0/desert/bulldog has 90 images, but 97 are needed"):
            load_dataset("spawrious_o2o_easy", folder=str(folder), resolution=R)


class TestArrays:
    def images(self, count: int, *shape: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)

    def test_one_set_is_split_and_shown_as_a_folder_is(self, tmp_path):
        images, labels = self.images(40, 12, 16, 3), np.arange(40) % 2
        np.savez(tmp_path / "a.npz", images=images, labels=labels, class_names=["cat", "dog"])
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / "folder" / ["cat", "dog"][label] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        arrays = load_dataset("npz", folder=str(tmp_path / "a.npz"), resolution=R, seed=1)
        folder = load_dataset("folder", folder=str(tmp_path / "folder"), resolution=R, seed=1)
        assert list(arrays.class_names) == list(folder.class_names)
        for name in ("train", "val", "test"):
            a, f = arrays.splits[name], folder.splits[name]
            by_class = np.argsort(a.labels, kind="stable")
            np.testing.assert_array_equal(a.labels[by_class], f.labels)
            everything = np.arange(len(f.labels))
            np.testing.assert_array_equal(a.load(by_class), f.load(everything))

    def test_given_splits_and_groups(self, tmp_path):
        np.savez(
            tmp_path / "m.npz",
            train_images=self.images(6, R, R),
            train_labels=np.arange(6)[:, None] % 3,
            train_groups=np.arange(6) % 2,
            test_images=self.images(3, R, R, 1),
            test_labels=np.arange(3, dtype=np.uint8),
            test_groups=np.zeros(3, np.int64),
            val_images=self.images(3, R, R, 4),
            val_labels=np.arange(3),
        )
        dataset = load_dataset("npz", folder=str(tmp_path / "m.npz"), resolution=R)
        assert (list(dataset.class_names), list(dataset.group_names)) == (list("012"), ["0", "1"])
        assert dataset.splits["train"].labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert dataset.splits["train"].groups.tolist() == [0, 1, 0, 1, 0, 1]
        grey = self.images(6, R, R)[..., None].repeat(3, -1)
        np.testing.assert_array_equal(dataset.splits["train"].load(np.arange(6)), grey)

    def test_fingerprint_sees_pixels_labels_and_groups(self):
        images, labels = self.images(20, R, R, 3), np.arange(20) % 2
        seen = [data.from_arrays({"train": (images, labels)}, resolution=R).fingerprint]
        assert seen == [data.from_arrays({"train": (images, labels)}, resolution=R).fingerprint]
        for change in (
            (images + 1, labels),
            (images, labels[::-1]),
            (images, labels, labels),
        ):
            seen.append(data.from_arrays({"train": change}, resolution=R).fingerprint)
        assert len(set(seen)) == 4

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": np.zeros((4, R, R, 3)), "labels": np.arange(4)}, r"images are float64"),
            ({"images": np.zeros((4, R), np.uint8), "labels": np.arange(4)}, r"uint8 \(4, 8\)"),
            ({"images": np.zeros((4, R, R, 2), np.uint8), "labels": np.arange(4)}, "8, 2"),
            ({"images": np.zeros((4, R, R), np.uint8), "labels": np.arange(3)}, r"integers \(4,"),
            (
                {"images": np.zeros((4, R, R), np.uint8), "labels": np.full(4, 0.5)},
                "labels are float",
            ),
            ({"images": np.zeros((4, R, R), np.uint8)}, "images but no labels"),
            ({"x": np.zeros(3)}, r"has arrays \['x'\]: expected images"),
            ({"images": np.asarray([{}]), "labels": np.arange(1)}, "cannot read .*allow_pickle"),
        ],
    )
    def test_what_does_not_fit_is_named(self, tmp_path, arrays, message):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(UserError, match=message):
            load_dataset("npz", folder=str(tmp_path / "a.npz"), resolution=R)

    @pytest.mark.parametrize(
        ("images", "hint"),
        [
            (
                np.zeros((4, R, R, 3), np.float32),
                r"\(255 \* images\)\.round\(\)\.astype\('uint8'\)$",
            ),
            (np.full((4, R, R, 3), 255.0), r": images\.astype\('uint8'\)$"),
            (np.zeros((4, 3, R, R), np.uint8), r": images\.transpose\(0, 2, 3, 1\)$"),
        ],
    )
    def test_images_in_another_form_are_refused_with_the_way_to_convert_them(self, images, hint):
        with pytest.raises(UserError, match=hint):
            data.from_arrays({"train": (images, np.arange(4) % 2)}, resolution=R)

    def test_both_one_set_and_a_train_split(self, tmp_path):
        images, labels = self.images(4, R, R), np.arange(4) % 2
        np.savez(
            tmp_path / "a.npz",
            images=images,
            labels=labels,
            train_images=images,
            train_labels=labels,
        )
        with pytest.raises(UserError, match="has both images and train_images: keep one of them"):
            load_dataset("npz", folder=str(tmp_path / "a.npz"), resolution=R)

    def test_arrays_that_are_not_used_are_said(self, tmp_path):
        images, labels = self.images(6, R, R), np.arange(6) % 2
        arrays = {"images": images, "labels": labels, "ids": labels, "test_labels": labels}
        np.savez(tmp_path / "a.npz", **arrays)
        (note,) = check(load_dataset("npz", folder=str(tmp_path / "a.npz"), resolution=R))
        assert note.startswith(f"{tmp_path}/a.npz: ids, test_labels is ignored: expected images")

    def test_names_of_all_splits(self, tmp_path):
        arrays = {f"{s}_images": self.images(4, R, R) for s in ("train", "test")}
        arrays |= {f"{s}_labels": np.arange(4) % 2 for s in ("train", "test")}
        np.savez(tmp_path / "a.npz", **arrays, class_names=["cat", "dog"])
        dataset = load_dataset("npz", folder=str(tmp_path / "a.npz"), resolution=R)
        assert dataset.class_names == ["cat", "dog"]

    def test_other_files(self, tmp_path):
        (tmp_path / "text.npz").write_text("no archive")
        np.save(tmp_path / "one.npy", np.zeros(3))
        for name, message in (
            ("text.npz", "cannot read"),
            ("one.npy", "is one array"),
            ("gone.npz", "there is no file"),
            (".", "is a folder"),
        ):
            with pytest.raises(UserError, match=message):
                load_dataset("npz", folder=str(tmp_path / name), resolution=R)

    def test_labels_must_count_from_zero(self):
        images = self.images(4, R, R)
        with pytest.raises(UserError, match=r"labels from 0 to 5 .* 2 classes: labels must count"):
            check(
                data.from_arrays(
                    {
                        "train": (images, np.asarray([0, 1, 5, 0])),
                        "test": (images, np.arange(4) % 2),
                    },
                    resolution=R,
                    class_names=["a", "b"],
                    val_fraction=0.0,
                )
            )

    def test_class_without_training_images_is_refused_and_without_test_images_said(self):
        images = self.images(4, R, R)
        few, all_ = np.asarray([0, 1, 0, 1]), np.asarray([0, 1, 2, 1])

        def make(train: np.ndarray, test: np.ndarray) -> Dataset:
            arrays = {"train": (images, train), "test": (images, test)}
            return data.from_arrays(arrays, resolution=R, class_names="abc", val_fraction=0.0)

        with pytest.raises(UserError, match="no images to train on of: c"):
            check(make(few, all_))
        dataset = make(all_, few)
        assert check(dataset) == ["arrays has no test images of: c"]
        described = data.describe(dataset)
        assert described["counts"]["train"] == {
            "images": 4,
            "smallest_class": 1,
            "largest_class": 2,
            "classes": {"a": 1, "b": 2, "c": 1},
        }
        assert described["notes"] == check(dataset)


class TestSubset:
    @pytest.fixture
    def dataset(self) -> Dataset:
        labels = np.arange(40) % 4
        images = np.broadcast_to((50 * labels).astype(np.uint8)[:, None, None], (40, R, R))
        return data.from_arrays(
            {"train": (images, labels, labels)},
            resolution=R,
            class_names=["ant", "bee", "cat", "dog"],
            group_names=list("wxyz"),
        )

    @pytest.mark.parametrize("subset", ["dog,ant", "3,0", " dog , 0 "])
    def test_order_is_the_new_label_order(self, dataset, subset):
        chosen = select_classes(dataset, subset)
        assert list(chosen.class_names) == ["dog", "ant"]
        for name, split in chosen.splits.items():
            assert np.bincount(split.labels).min() > 0
            values = split.load(np.arange(len(split.labels)))[:, 0, 0, 0]
            np.testing.assert_array_equal(values, np.asarray([150, 0])[split.labels], err_msg=name)
            np.testing.assert_array_equal(split.groups, np.asarray([3, 0])[split.labels])
        assert chosen.fingerprint != dataset.fingerprint
        assert chosen.fingerprint != select_classes(dataset, "ant,dog").fingerprint

    def test_held_out_images_do_not_depend_on_the_other_classes(self, tmp_path):
        for name in ("ant", "bee", "cat"):
            for i in range(20):
                write(tmp_path / "all" / name / f"{i}.png")
                if name != "bee":
                    write(tmp_path / "two" / name / f"{i}.png")
        some, all_ = (
            load_dataset("folder", folder=str(tmp_path / name), resolution=R, subset="ant,cat")
            for name in ("two", "all")
        )
        for split in ("train", "val", "test"):
            assert names(some, split) == names(all_, split)

    @pytest.mark.parametrize(
        ("subset", "message"),
        [
            ("dog", "fewer than two"),
            (" , ", "fewer than two"),
            ("dog,dog", "names 'dog' twice"),
            ("dog,3", "names 'dog' twice"),
            ("dog,4", "has class 4, but indices end at 3"),
            ("dog,bea", "unknown class of config.data.subset 'bea': did you mean bee"),
            ("imagenette", r"arrays has no class n01440764 \(tench\)"),
        ],
    )
    def test_refusals(self, dataset, subset, message):
        with pytest.raises(UserError, match=message):
            select_classes(dataset, subset)

    def test_digits_in_memory(self):
        chosen = load_dataset("digits", resolution=R, subset="seven,one")
        assert list(chosen.class_names) == ["seven", "one"]
        whole = load_dataset("digits", resolution=R).splits["test"]
        assert isinstance(chosen.splits["test"], ArraySplit)
        np.testing.assert_array_equal(
            chosen.splits["test"].images[chosen.splits["test"].labels == 0],
            whole.load(np.flatnonzero(whole.labels == 7)),
        )


class TestBadImages:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        for name in ("cat", "dog"):
            for i in range(10):
                write(tmp_path / "train" / name / f"{i}.jpg")
                write(tmp_path / "test" / name / f"{i}.jpg")
        for bad in ("train/cat/3.jpg", "test/dog/5.jpg", "test/dog/6.jpg"):
            path = tmp_path / bad
            path.write_bytes(path.read_bytes()[:200])
        return tmp_path

    def test_stop_names_the_file_when_it_is_loaded(self, folder):
        dataset = load_dataset("folder", folder=str(folder), resolution=R)
        split = dataset.splits["test"]
        with pytest.raises(UserError, match=rf"^cannot read image {folder}/test/dog/5\.jpg: "):
            split.load(np.arange(len(split.labels)))

    def test_skip_drops_counts_and_lists(self, folder):
        dataset = load_dataset("folder", folder=str(folder), resolution=R, on_bad_image="skip")
        assert {name: set(names) for name, names in dataset.skipped.items() if name == "test"} == {
            "test": {"test/dog/5.jpg", "test/dog/6.jpg"}
        }
        sizes = {name: len(split.labels) for name, split in dataset.splits.items()}
        assert sum(sizes.values()) == 37
        assert sizes["test"] == 18
        for split in dataset.splits.values():
            assert split.load(np.arange(len(split.labels))).max() == 0
        kept = names(dataset, "test")
        assert "test/dog/5.jpg" not in kept
        assert [name.split("/")[1] for name in kept] == [
            dataset.class_names[label] for label in dataset.splits["test"].labels
        ]
        assert any("2 test images cannot be read" in note for note in check(dataset))
        stopping = load_dataset("folder", folder=str(folder), resolution=R)
        assert dataset.fingerprint != stopping.fingerprint

    def test_found_once_and_remembered(self, folder, cache, monkeypatch):
        first = load_dataset("folder", folder=str(folder), resolution=R, on_bad_image="skip")
        assert len(list((cache / "lgm_jax").glob("unreadable_*.npy"))) == 3

        def fail(*_: object) -> None:
            raise AssertionError("decoded again")

        monkeypatch.setattr(ImageSplit, "readable", fail)
        again = load_dataset("folder", folder=str(folder), resolution=R, on_bad_image="skip")
        assert (again.fingerprint, again.skipped) == (first.fingerprint, first.skipped)

    @pytest.mark.parametrize("damage", ["no folder", "cut short"])
    def test_a_cache_that_fails_costs_time_only(self, folder, cache, damage):
        if damage == "no folder":
            (cache / "lgm_jax").write_text("a file in the way")
        else:
            load_dataset("folder", folder=str(folder), resolution=R, on_bad_image="skip")
            for path in (cache / "lgm_jax").iterdir():
                path.write_bytes(path.read_bytes()[:20])
        dataset = load_dataset("folder", folder=str(folder), resolution=R, on_bad_image="skip")
        assert sum(len(images) for images in dataset.skipped.values()) == 3

    def test_nothing_to_skip_changes_nothing(self, folder):
        options = {"folder": str(folder / "train"), "resolution": R, "subset": "dog,cat"}
        (folder / "train" / "cat" / "3.jpg").unlink()
        skipping = load_dataset("folder", **options, on_bad_image="skip")
        assert skipping.fingerprint == load_dataset("folder", **options).fingerprint

    @pytest.mark.parametrize("name", ["a.heic", "a.avif", "a.nef", "a.JPG"])
    def test_a_file_that_may_be_an_image_is_not_ignored(self, folder, name):
        (folder / "test" / "cat" / name).write_bytes(b"something else")
        assert f"test/cat/{name}" in names(
            load_dataset("folder", folder=str(folder), resolution=R), "test"
        )

    @pytest.mark.parametrize("name", ["a.txt", "a.json", "a.db", ".DS_Store", "LICENSE"])
    def test_a_file_whose_suffix_says_so_is(self, folder, name):
        (folder / "test" / "cat" / name).write_bytes(b"something else")
        assert len(names(load_dataset("folder", folder=str(folder), resolution=R), "test")) == 20


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def photo(width: int = 61, height: int = 47) -> Image.Image:
    """Smooth colour with some grain, which a JPEG keeps mostly."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-9, 9, smooth.shape), 0, 255).astype("u1"))


class TestDecode:
    @pytest.mark.parametrize("quality", [30, 75, 95])
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_fast_jpeg_is_pil_s(self, quality, subsampling, progressive):
        source = jpeg(photo(), quality=quality, subsampling=subsampling, progressive=progressive)
        with Image.open(io.BytesIO(source)) as image:
            expected = np.asarray(image.convert("RGB"))
        for orient in (False, True):
            np.testing.assert_array_equal(np.asarray(decode(source, orient=orient)), expected)

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_grey_and_cmyk_jpeg_are_pil_s(self, mode):
        source = jpeg(photo().convert(mode))
        with Image.open(io.BytesIO(source)) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(np.asarray(decode(source, orient=False)), expected)

    def test_orientation_only_on_request(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        source = jpeg(photo(), exif=exif)
        assert decode(source, orient=False).size == (61, 47)
        assert decode(source, orient=True).size == (47, 61)

    def test_benchmark_sets_ignore_the_orientation_and_own_folders_do_not(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 3
        half = Image.fromarray(np.repeat(np.asarray([[0] * R, [255] * R], np.uint8), R // 2, 0))
        for split in ("train", "val"):
            for wnid in IMAGENETTE[:2]:
                for i in range(3):
                    path = tmp_path / split / wnid / f"{i}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(jpeg(half.convert("RGB"), exif=exif))
        top = {
            name: load_dataset(name, folder=str(tmp_path), resolution=R)
            .splits["test"]
            .load(np.asarray([0]))[0, 0, 0, 0]
            for name in ("imagenet", "folder")
        }
        assert top["imagenet"] < 20
        assert top["folder"] > 235

    def test_16_bit_rgb(self):
        values = np.linspace(0, 65535, 64 * 3).round().astype(">u2").reshape(8, 8, 3)

        def chunk(kind: bytes, body: bytes) -> bytes:
            return (
                struct.pack(">I", len(body))
                + kind
                + body
                + struct.pack(">I", zlib.crc32(kind + body))
            )

        rows = b"".join(b"\0" + row.tobytes() for row in values)
        header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        # PIL keeps the high byte, which is at most one level off.
        np.testing.assert_allclose(
            np.asarray(decode(png, orient=False)), values.astype(np.float64) / 257, atol=1
        )


class TestPlaces:
    def split(self, height: int, width: int) -> tuple[ImageSplit, np.ndarray]:
        pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        arrays = {"train": (pixels, np.zeros(1, int)), "test": (pixels, np.zeros(1, int))}
        dataset = data.from_arrays(arrays, resolution=R, class_names="ab", val_fraction=0.0)
        split = dataset.splits["train"]
        assert isinstance(split, ImageSplit)
        return split, pixels[0]

    @pytest.mark.parametrize(("height", "width"), [(R, R + 3), (R + 3, R), (R, R)])
    def test_uniform_places_reach_every_crop(self, height, width):
        split, pixels = self.split(height, width)
        room = max(height, width) - R
        for i in range(10):
            place = np.asarray([(i + 0.5) / 10] * 2)
            offset = int(place[0] * (room + 1))
            top, left = (offset, 0) if height > width else (0, offset)
            image = split.load(np.asarray([0]), place[None])[0]
            np.testing.assert_array_equal(image, pixels[top : top + R, left : left + R])
            np.testing.assert_array_equal(image, split.load_one(0, place))

    def test_default_is_the_middle(self):
        split, pixels = self.split(R + 4, R)
        np.testing.assert_array_equal(split.load(np.asarray([0]))[0], pixels[2 : R + 2])

    @pytest.mark.parametrize("size", [(61, 47), (47, 61), (19, 16), (16, 300), (224, 224), (5, 7)])
    def test_only_what_is_kept_is_resampled(self, size):
        image = photo(*size)
        width, height = (int(16 * side / min(size)) for side in size)
        whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.int16)
        for place in (None, np.asarray([0.0, 0.0]), np.asarray([0.999, 0.999])):
            top, left = (
                (round((height - 16) / 2), round((width - 16) / 2))
                if place is None
                else (int(place[0] * (height - 15)), int(place[1] * (width - 15)))
            )
            cropped = whole[top : top + 16, left : left + 16]
            # Weights summed from another start round differently now and then.
            difference = np.abs(resize_and_crop(image, 16, place) - cropped)
            assert difference.max() <= 1
            assert np.mean(difference > 0) < 0.01


@pytest.mark.parametrize(
    "name", ["imagenet", "artbench", "waterbirds", "npz", "folder", *SPAWRIOUS]
)
def test_every_source_that_needs_a_folder_says_so(name):
    with pytest.raises(UserError, match=r"set --config\.data\.folder="):
        load_dataset(name, resolution=R)


def test_splits_pickle_for_worker_processes(tmp_path):
    for label in ("a", "b"):
        for i in range(5):
            write(tmp_path / label / f"{i}.png", 7)
    split = load_dataset("folder", folder=str(tmp_path), resolution=R).splits["train"]
    copy = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(copy.load(np.arange(3)), split.load(np.arange(3)))


@pytest.mark.slow
@pytest.mark.heavy
def test_two_hundred_thousand_images_are_listed_in_seconds(tmp_path):
    pixel = jpeg(Image.new("RGB", (2, 2)))
    for label in range(200):
        (tmp_path / f"c{label:03d}").mkdir()
        for i in range(1000):
            (tmp_path / f"c{label:03d}" / f"{i:03d}.jpg").write_bytes(pixel)
    # Of the processor: a machine that is busy tells nothing of the code.
    started = time.process_time()
    dataset = load_dataset("folder", folder=str(tmp_path), resolution=R)
    data.describe(dataset)
    # Measured: 3 s.
    assert time.process_time() - started < 12
    assert len(dataset.splits["train"].labels) == 140_000
