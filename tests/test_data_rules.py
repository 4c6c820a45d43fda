"""Rules that hold for every source alike: splits by name, labels by name, and what is refused."""

from __future__ import annotations

import importlib.util
import json
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


def pixels(names: Sequence[str | None]) -> np.ndarray:
    """Images of one level by class, each with a corner of its own."""
    images = np.stack([np.full((R, R, 3), LEVELS.get(str(name), 200), np.uint8) for name in names])
    images[:, 0, 0, 0] = np.arange(len(names))
    return images


def numbers(names: Sequence[str | None], order: Sequence[str]) -> np.ndarray:
    return np.asarray([-1 if name is None else list(order).index(name) for name in names])


def order_of(split: str, splits: Splits, orders: Orders) -> Sequence[str]:
    return orders.get(split) or sorted({name for name in splits[split] if name})


def folder(root: Path, splits: Splits, orders: Orders) -> dict[str, Any]:
    for split, names in splits.items():
        for i, (image, name) in enumerate(zip(pixels(names), names, strict=True)):
            path = root / split / (name or "") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return {"name": "folder", "folder": str(root)}


def npz(root: Path, splits: Splits, orders: Orders) -> dict[str, Any]:
    arrays: dict[str, np.ndarray] = {}
    for split, names in splits.items():
        order = order_of(split, splits, orders)
        arrays[f"{split}_images"] = pixels(names)
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
        with pytest.raises(UserError, match="2 of 12 train images have no label, the first is n"):
            load(write, {"train": [*TWO, None, None], "test": ["cat", "dog"]})

    def test_a_class_without_any_image_is_refused(self, load, write):
        orders = {split: ["bee", "cat", "dog"] for split in ("train", "test")}
        with pytest.raises(UserError, match="no images to train on of: bee;"):
            load(write, {"train": TWO, "test": ["cat", "dog"]}, orders)
