"""Rules that hold for every source alike: splits by name, labels by name, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lgm_jax import data
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.splits import check
from lgm_jax.errors import UserError

R = 8
# By class, the grey level of its images: whatever a label says, pixels tell what is on an image.
LEVELS = {"cat": 40, "dog": 80, "emu": 120, "bee": 160}

Splits = Mapping[str, Sequence[str | None]]
Orders = Mapping[str, Sequence[str]]


def pixels(names: Sequence[str | None], split: str = "") -> np.ndarray:
    """Images of one level by class, each with a corner of its own, other ones in each split."""
    images = np.stack([np.full((R, R, 3), LEVELS.get(str(name), 200), np.uint8) for name in names])
    images[:, 0, 0, 0] = np.arange(len(names))
    images[:, 0, 0, 1] = zlib.crc32(split.encode()) % 256
    return images


def numbers(names: Sequence[str | None], order: Sequence[str]) -> np.ndarray:
    return np.asarray([-1 if name is None else list(order).index(name) for name in names])


def order_of(split: str, splits: Splits, orders: Orders) -> Sequence[str]:
    return orders.get(split) or sorted({name for name in splits[split] if name})


def folder(root: Path, splits: Splits, orders: Orders) -> dict[str, Any]:
    for split, names in splits.items():
        for i, (image, name) in enumerate(zip(pixels(names, split), names, strict=True)):
            path = root / split / (name or "") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return {"name": "folder", "folder": str(root)}


def npz(root: Path, splits: Splits, orders: Orders) -> dict[str, Any]:
    arrays: dict[str, np.ndarray] = {}
    for split, names in splits.items():
        order = order_of(split, splits, orders)
        arrays[f"{split}_images"] = pixels(names, split)
        arrays[f"{split}_labels"] = numbers(names, order)
        arrays[f"{split}_class_names"] = np.asarray(order, np.str_)
    np.savez(root / "set.npz", **arrays)
    return {"name": "npz", "folder": str(root / "set.npz")}


def _table(names: Sequence[str | None], order: Sequence[str]) -> Any:
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(order) or ["x"])}
    columns = {
        "image": [Image.fromarray(image) for image in pixels(names)],
        "label": numbers(names, order).tolist(),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def saved(root: Path, splits: Splits, orders: Orders) -> dict[str, Any]:
    import datasets

    tables = {s: _table(names, order_of(s, splits, orders)) for s, names in splits.items()}
    datasets.DatasetDict(tables).save_to_disk(root)
    return {"name": "huggingface", "folder": str(root)}


def parquet(root: Path, splits: Splits, orders: Orders) -> dict[str, Any]:
    for split, names in splits.items():
        path = root / "data" / f"{split}-00000-of-00001.parquet"
        _table(names, order_of(split, splits, orders)).to_parquet(path)
    return {"name": "huggingface", "folder": str(root)}


_NO_DATASETS = importlib.util.find_spec("datasets") is None
_hub = pytest.mark.skipif(_NO_DATASETS, reason="datasets is not installed")
SOURCES = [
    folder,
    npz,
    *(pytest.param(write, marks=_hub) for write in (saved, parquet)),
]
Write = Callable[[Path, Splits, Orders], dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    if not _NO_DATASETS:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(place / "hub"))
        monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 10**9)


@pytest.fixture
def load(tmp_path) -> Callable[..., Dataset]:
    """Writes splits with a source's own tools and opens them."""

    def load(write: Write, splits: Splits, orders: Orders | None = None, **options: Any) -> Dataset:
        root = tmp_path / "set"
        root.mkdir()
        found = write(root, splits, orders or {})
        return data.load_dataset(**found, **options, resolution=R)

    return load


def shown(dataset: Dataset, split: str) -> list[str]:
    """What is on each image of a split, after checking that its label says the same."""
    members = dataset.splits[split]
    images = members.load(np.arange(len(members.labels)))
    by_level = {level: name for name, level in LEVELS.items()}
    names = [by_level[int(level)] for level in images[:, 4, 4, 0]]
    assert [dataset.class_names[label] for label in members.labels] == names
    return names


TWO = ["cat", "dog"] * 5


@pytest.mark.parametrize("write", SOURCES)
class TestEverySource:
    def test_labels_are_matched_by_name(self, load, write):
        orders = {"train": ["cat", "dog"], "test": ["dog", "cat"]}
        dataset = load(write, {"train": TWO, "test": ["cat", "cat", "dog"]}, orders)
        assert dataset.class_names == ["cat", "dog"]
        assert sorted(shown(dataset, "train") + shown(dataset, "val")) == sorted(TWO)
        assert sorted(shown(dataset, "test")) == ["cat", "cat", "dog"]

    def test_a_class_that_a_held_out_split_lacks_is_said(self, load, write):
        dataset = load(write, {"train": [*TWO, "emu"] * 2, "test": ["emu", "dog"]})
        assert sorted(shown(dataset, "test")) == ["dog", "emu"]
        assert f"{dataset.name} has no test images of: cat" in check(dataset)

    def test_a_class_that_train_lacks_is_refused(self, load, write):
        with pytest.raises(UserError, match=r"^set has no images to train on of: bee;"):
            load(write, {"train": TWO, "test": ["bee", "cat", "dog"]})

    def test_unless_it_is_not_chosen(self, load, write):
        splits = {"train": TWO, "test": ["bee", "cat", "dog"]}
        dataset = load(write, splits, subset="dog,cat")
        assert shown(dataset, "test") in (["cat", "dog"], ["dog", "cat"])
        assert dataset.class_names == ["dog", "cat"]

    def test_one_class_is_refused(self, load, write):
        with pytest.raises(UserError, match=r"has one class only, 'cat': "):
            load(write, {"train": ["cat"] * 5, "test": ["cat"]})

    def test_test_images_without_labels_are_ignored_and_it_is_said(self, load, write):
        dataset = load(write, {"train": TWO, "test": [None] * 3}, {"test": ["cat", "dog"]})
        said = "the test images have no labels and are ignored"
        assert [note for note in check(dataset) if note.endswith(said)]
        assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
            "train": 6,
            "val": 2,
            "test": 2,
        }
        assert set(shown(dataset, "test")) == {"cat", "dog"}

    def test_then_the_other_held_out_split_is_the_test_split(self, load, write):
        splits = {"train": TWO, "validation": ["dog", "cat"], "test": [None] * 3}
        dataset = load(write, splits, {"test": ["cat", "dog"]})
        assert sorted(shown(dataset, "test")) == ["cat", "dog"]
        assert f"{dataset.name} has no test images: its val images are the test split" in check(
            dataset
        )

    @pytest.mark.parametrize(
        ("train", "val", "test"),
        [
            ("Train", "VALID", "Testing"),
            ("training", "dev", "test2017"),
            ("pets_train", "pets_val", "pets_test"),
        ],
    )
    def test_usual_names_of_splits(self, load, write, train, val, test):
        dataset = load(write, {train: TWO, val: ["cat", "dog"], test: ["cat", "dog", "dog"]})
        assert {name: len(shown(dataset, name)) for name in dataset.splits} == {
            "train": 10,
            "val": 2,
            "test": 3,
        }
        assert check(dataset) == []

    def test_one_unknown_name_beside_train_is_refused(self, load, write):
        with pytest.raises(UserError, match=r"holdout beside train.*: call it val or test"):
            load(write, {"train": TWO, "holdout": ["cat", "dog"]})

    def test_an_unknown_name_beside_known_ones_is_said(self, load, write):
        dataset = load(write, {"train": TWO, "test": ["cat", "dog"], "extra": ["cat", "dog"]})
        assert len(shown(dataset, "train") + shown(dataset, "val")) == 10
        assert [note for note in check(dataset) if "extra is ignored" in note]

    def test_two_names_of_one_split_are_refused(self, load, write):
        with pytest.raises(UserError, match=r"has both val\w* and val\w*: keep one of them$"):
            load(write, {"train": TWO, "val": ["cat", "dog"], "validation": ["cat", "dog"]})

    def test_train_is_needed(self, load, write):
        with pytest.raises(UserError, match="train") as error:
            load(write, {"val": ["cat", "dog"], "test": ["cat", "dog"]})
        assert "\n" not in str(error.value)

    def test_two_images_a_class_are_enough(self, load, write):
        dataset = load(write, {"" if write is folder else "train": ["cat", "dog"] * 2})
        assert {name: sorted(shown(dataset, name)) for name in dataset.splits} == {
            "train": ["cat", "dog"],
            "test": ["cat", "dog"],
        }
        assert check(dataset) == ["set has too few images per class for a val split: it has none"]

    def test_odd_class_names(self, load, write):
        odd = ["two\nlines", "a\x1b[31mb", "\u202edrow", "e\u0301", "n" * 200, "$\\frac{", "<b>"]
        dataset = load(write, {"train": odd * 3, "test": odd})
        assert all(name.isprintable() for name in dataset.class_names)
        np.testing.assert_array_equal(dataset.counts()["test"], np.ones(7))
        json.dumps(data.describe(dataset), ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("write", SOURCES[1:])
class TestLabelsInTables:
    """Folders cannot have these."""

    def test_a_class_without_a_name_is_refused(self, load, write):
        orders = {split: [" ", "dog"] for split in ("train", "test")}
        with pytest.raises(UserError, match=r"class 0 has no name$"):
            load(write, {"train": [" ", "dog"] * 5, "test": ["dog"]}, orders)

    def test_train_without_labels_is_refused(self, load, write):
        with pytest.raises(UserError, match=r"has no labels in its train split$"):
            load(write, {"train": [None] * 4, "test": ["cat", "dog"]}, {"train": ["cat", "dog"]})

    def test_some_images_without_a_label_are_refused(self, load, write):
        with pytest.raises(
            UserError, match=r"2 of 12 train images have no label .*-1\), the first is n"
        ):
            load(write, {"train": [*TWO, None, None], "test": ["cat", "dog"]})

    def test_a_class_without_any_image_is_refused(self, load, write):
        orders = {split: ["bee", "cat", "dog"] for split in ("train", "test")}
        with pytest.raises(UserError, match="no images to train on of: bee;"):
            load(write, {"train": TWO, "test": ["cat", "dog"]}, orders)


class TestKindsOfLabels:
    """What arrays, tables and TFDS may have as labels of ten images of two classes."""

    def open(self, labels: Any, **options: Any) -> Dataset:
        images = np.concatenate([pixels(TWO), pixels(["cat", "dog"])])
        splits = {"train": (images[:10], labels), "test": (images[10:], np.asarray([0, 1]))}
        return data.from_arrays(splits, resolution=R, val_fraction=0.0, **options)

    @pytest.mark.parametrize(
        "labels",
        [
            np.arange(10) % 2,
            np.arange(10)[:, None] % 2,
            (np.arange(10) % 2).astype(np.float64),
            np.arange(10) % 2 == 1,
            (np.arange(10) % 2).astype(np.uint64),
            np.ma.masked_array(np.arange(10) % 2, np.zeros(10, bool)),
            [0, 1] * 5,
        ],
    )
    def test_whole_numbers(self, labels):
        dataset = self.open(labels, class_names=["cat", "dog"])
        assert shown(dataset, "train") == TWO
        assert shown(dataset, "test") == ["cat", "dog"]

    @pytest.mark.parametrize(
        "labels", [np.asarray(TWO), np.asarray(TWO, np.bytes_), np.asarray(TWO, object)]
    )
    def test_names(self, labels):
        images = pixels(TWO)
        splits = {"train": (images, labels), "test": (images[:2], ["cat", "dog"])}
        dataset = data.from_arrays(splits, resolution=R, val_fraction=0.0)
        assert (shown(dataset, "train"), shown(dataset, "test")) == (TWO, ["cat", "dog"])

    @pytest.mark.parametrize("parts", [1, 4])
    def test_splits_are_images_labels_and_perhaps_groups(self, parts):
        split = (pixels(TWO), np.arange(10) % 2, np.zeros(10, int), np.zeros(10, int))[:parts]
        # The annotation, which is checked under test, may refuse it first.
        with pytest.raises((UserError, TypeError), match=r"\(images, labels\)|splits"):
            data.from_arrays({"train": split}, resolution=R)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.arange(10) % 2 / 2, r"train labels are float64 like 0\.5: expected integers"),
            (np.where(np.arange(10) == 3, np.nan, np.arange(10) % 2), "1 of 10 .* number 3: "),
            (
                np.where(np.arange(10) == 3, np.inf, 0),
                "labels are float64 like inf: exp",
            ),
            (np.arange(10) % 2 - 2, "train labels are from -2 to -2, but there are 2 classes"),
            (np.arange(10), "train labels are from 0 to 9, but there are 2 classes"),
            (np.arange(10) % 2 + 2**32, "int64 like 4294967296: expected"),
            (np.full(10, 2**64 - 1, np.uint64), "uint64 like 18446744073709551615: exp"),
            (np.eye(2)[np.arange(10) % 2], r"float64 \(10, 2\): expected integers \(10,\)"),
            (np.zeros(9, int), r"int64 \(9,\): expected integers \(10,\)"),
            ([0, 1, None] * 3 + [0], r"3 of 10 train images have no label .*the first is number 2"),
            (["cat", 1] * 5, r"object \(10,\): expected integers"),
            (["cat", "cow"] * 5, "train: the label 'cow' is none of the class names"),
            ([[0], [1, 2]] * 5, "labels"),
            (np.zeros(10, complex), "labels are complex128"),
            (np.ma.masked_array(np.arange(10) % 2, np.arange(10) == 4), "1 of 10 .* number 4"),
            (np.full(10, -1), "no labels in its train split"),
            (np.zeros(10, int), "no images to train on of: dog"),
        ],
    )
    def test_what_is_no_label_is_refused(self, labels, message):
        with pytest.raises(UserError, match=message) as error:
            check(self.open(labels, class_names=["cat", "dog"]))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["cat"], "train labels are from 0 to 1, but there are 1 classes"),
            (["cat", "cat"], "two class names 'cat', numbers 0 and 1"),
            (["cat", ""], "class 1 has no name"),
            (["cat", None], "class 1 has no name"),
            (["caf\u00e9", "cafe\u0301"], "two class names 'caf\u00e9'"),
        ],
    )
    def test_names_that_are_none_are_refused(self, names, message):
        with pytest.raises(UserError, match=message):
            self.open(np.arange(10) % 2, class_names=names)

    def test_names_need_not_be_text(self):
        assert self.open(np.arange(10) % 2, class_names=[b"cat", 7]).class_names == ["cat", "7"]


@_hub
class TestColumns:
    """Hugging Face's sets, whose labels may be any column."""

    def write(self, root: Path, columns: Mapping[str, Sequence[Any]], **kinds: Any) -> str:
        import datasets

        images = {"image": [Image.fromarray(image) for image in pixels(TWO)]}
        table = datasets.Dataset.from_dict(images | dict(columns))
        table = table.cast_column("image", datasets.Image())
        for name, names in kinds.items():
            table = table.cast_column(name, datasets.ClassLabel(names=names))
        table.save_to_disk(root / "set")
        return str(root / "set")

    def open(self, folder: str, **options: Any) -> Dataset:
        return data.load_dataset("huggingface", folder=folder, resolution=R, **options)

    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            (TWO, ["cat", "dog"]),
            ([3, 12] * 5, ["3", "12"]),
            ([True, False] * 5, ["0", "1"]),
        ],
    )
    def test_text_and_numbers(self, tmp_path, labels, names):
        folder = self.write(tmp_path, {"species": labels})
        dataset = self.open(folder)
        assert dataset.class_names == names
        assert sum(len(split.labels) for split in dataset.splits.values()) == 10
        assert "set: labels are those of the column species" in check(dataset)

    def test_a_column_called_label_is_taken(self, tmp_path):
        folder = self.write(tmp_path, {"file": list("abcdefghij"), "Label": TWO})
        dataset = self.open(folder)
        assert dataset.class_names == ["cat", "dog"]
        assert check(dataset) == []

    def test_two_columns_need_a_choice(self, tmp_path):
        columns = {"coarse": [0] * 5 + [1] * 5, "fine": [0, 1] * 5}
        folder = self.write(tmp_path, columns, coarse=["pet", "stray"], fine=["cat", "dog"])
        with pytest.raises(
            UserError, match=r"in coarse, fine: set --config\.data\.label=coarse or"
        ):
            self.open(folder)
        assert self.open(folder, label="coarse").class_names == ["pet", "stray"]
        dataset = self.open(folder, label="fine")
        assert set(shown(dataset, "train")) == {"cat", "dog"}
        assert check(dataset) == []
        with pytest.raises(UserError, match=r"config\.data\.label 'fines': did you mean fine\?"):
            self.open(folder, label="fines")
        with pytest.raises(UserError, match=r"folder has no columns: leave config\.data\.label"):
            data.load_dataset("folder", folder=folder, resolution=R, label="fine")

    def test_the_one_called_label_is_taken_and_said(self, tmp_path):
        columns = {"label": [0, 1] * 5, "coarse_label": [0] * 5 + [1] * 5}
        kinds = {"label": ["cat", "dog"], "coarse_label": ["pet", "stray"]}
        dataset = self.open(self.write(tmp_path, columns, **kinds))
        assert set(shown(dataset, "train")) == {"cat", "dog"}
        assert [note for note in check(dataset) if "config.data.label=coarse_label" in note]

    def test_whole_numbers_that_are_stored_as_floats(self, tmp_path):
        dataset = self.open(self.write(tmp_path, {"label": [0.0, 1.0] * 5, "score": [0.5] * 10}))
        assert dataset.class_names == ["0", "1"]

    @pytest.mark.parametrize("name", ["holdout/part.parquet", "tst.parquet"])
    def test_a_file_that_is_in_no_split_is_refused(self, tmp_path, name):
        for each in ("train/part.parquet", name):
            (tmp_path / "set" / each).parent.mkdir(parents=True, exist_ok=True)
            _table(TWO, ["cat", "dog"]).to_parquet(tmp_path / "set" / each)
        with pytest.raises(UserError, match=rf"has a split {name} beside train: call it val"):
            self.open(str(tmp_path / "set"))

    def test_an_image_that_is_missing(self, tmp_path):
        import datasets

        images = [*map(Image.fromarray, pixels(TWO[:9])), None]
        table = datasets.Dataset.from_dict({"image": images, "label": TWO})
        table.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
        dataset = self.open(str(tmp_path / "set"), on_bad_image="skip")
        assert list(dataset.skipped.values()) == [["train[9]"]]
        with pytest.raises(UserError, match=r"train\[9\]: the record has no image"):
            list(map(shown, [self.open(str(tmp_path / "set"))] * 3, ("train", "val", "test")))

    def test_missing_labels(self, tmp_path):
        folder = self.write(tmp_path, {"label": [*TWO[:9], None]})
        with pytest.raises(UserError, match="1 of 10 train images have no label"):
            self.open(folder)
