"""Forms that data sets come in, beside the plain one: folders, tables and arrays of other tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import launch
from lgm_jax import data
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.listing import is_left_behind
from lgm_jax.data.splits import select_classes
from lgm_jax.errors import UserError
from tests.photos import png

PAIR = ("cat", "dog")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class TestFolders:
    def open(self, root: Path, *folders: str) -> Dataset:
        for number, folder in enumerate(folders):
            (root / "set" / folder).mkdir(parents=True)
            for i in range(4):
                (root / "set" / folder / f"{i}.png").write_bytes(png(4 * number + i))
        return data.load_dataset("folder", folder=str(root / "set"), resolution=8)

    @pytest.mark.parametrize("held_out", ["test/unknown", "val/images", "Testing/all"])
    def test_one_folder_for_images_without_labels_is_no_class(self, tmp_path, held_out):
        dataset = self.open(tmp_path, "train/cat", "train/dog", held_out)
        assert dataset.class_names == list(PAIR)
        assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
            "train": 4,
            "val": 2,
            "test": 2,
        }
        assert [note for note in dataset.notes if "have no labels and are ignored" in note]

    def test_one_folder_of_a_class_is_one(self, tmp_path):
        dataset = self.open(tmp_path, "train/cat", "train/dog", "test/Dog")
        assert dataset.splits["test"].labels.tolist() == [1] * 4

    def test_classes_that_mention_one_split_are_classes(self, tmp_path):
        dataset = self.open(tmp_path, "bullet_train", "steam_train", "bus")
        assert dataset.class_names == ["bullet_train", "bus", "steam_train"]

    @pytest.mark.parametrize("pair", [("seen", "unseen"), ("fold_0", "fold_1"), ("base", "novel")])
    def test_classes_that_hold_the_same_folders_are_said(self, tmp_path, pair):
        dataset = self.open(tmp_path, *(f"{name}/{each}" for name in pair for each in PAIR))
        assert dataset.class_names == list(pair)
        (note,) = dataset.notes
        assert f"{', '.join(pair)} are the classes, and each has folders cat, dog: if" in note

    @pytest.mark.parametrize("pair", [("Cat", "cat"), ("big cat", "big_cat"), ("a-b", "a b")])
    def test_names_that_are_nearly_the_same_are_said_to_be_two(self, tmp_path, pair):
        dataset = self.open(tmp_path, *pair, "dog")
        assert sorted(dataset.class_names) == sorted([*pair, "dog"])
        (note,) = dataset.notes
        first, second = sorted(pair)
        assert f"set: {first!r} and {second!r} are 2 classes, though only case" in note

    @pytest.mark.parametrize("root", ["", "train", "test"])
    def test_a_folder_of_text_is_no_class_and_stops_nothing(self, tmp_path, root):
        for name in ("annotations/deep/a.xml", "annotations/list.txt", "docs/README.md"):
            path = tmp_path / "set" / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("cat 0.png")
        folders = PAIR if not root else [f"{s}/{c}" for s in ("train", "test") for c in PAIR]
        dataset = self.open(tmp_path, *folders)
        assert dataset.class_names == list(PAIR)
        said = " ".join(dataset.notes)
        assert "no classes, since they hold text alone: annotations, docs" in said
        assert "not images: 3 (" in said

    @pytest.mark.parametrize("name", ["_gsdata_", "found.000", "~snapshot", "@sharebin"])
    def test_what_disks_and_servers_leave_is_no_class(self, tmp_path, name):
        assert is_left_behind(name)
        assert self.open(tmp_path, *PAIR, name).class_names == list(PAIR)


@pytest.mark.parametrize("above", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", ""])
def test_imagenet_is_found_where_its_archive_unpacks_to(tmp_path, above):
    for split in ("train", "val"):
        for number, wnid in enumerate(("n01440764", "n01443537")):
            for i in range(2):
                path = tmp_path / "set" / above / split / wnid / f"{i}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(number))
    (tmp_path / "set" / above / "test").mkdir()
    (tmp_path / "set" / above / "test" / "0.JPEG").write_bytes(png(0))
    dataset = data.load_dataset("imagenet", folder=str(tmp_path / "set"), resolution=8)
    assert dataset.class_names == ["tench", "goldfish"]
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
        "train": 4,
        "test": 4,
    }
    assert (f"set: images are those in {above}" in dataset.notes) == bool(above)
    assert not any(str(tmp_path) in note for note in dataset.notes)


class TestSubset:
    NAMES = ("goldfish, Carassius auratus", 'a "b", c', "tench", "church")

    def choose(self, subset: str) -> list[str]:
        images = np.zeros((8, 8, 8, 3), np.uint8)
        given = {"train": (images, np.arange(8) % 4), "test": (images, np.arange(8) % 4)}
        dataset = data.from_arrays(given, resolution=8, class_names=self.NAMES)
        return list(select_classes(dataset, subset).class_names)

    @pytest.mark.parametrize(
        ("subset", "numbers"),
        [
            ('"goldfish, Carassius auratus",church', [0, 3]),
            ('church, "goldfish, Carassius auratus"', [3, 0]),
            ('tench,"a ""b"", c"', [2, 1]),
            ('tench\n"goldfish, Carassius auratus"\nchurch', [2, 0, 3]),
            ("tench,3", [2, 3]),
        ],
    )
    def test_names_with_commas_stand_in_quotes(self, subset, numbers):
        assert self.choose(subset) == [self.NAMES[number] for number in numbers]

    @pytest.mark.parametrize(
        ("subset", "line"),
        [
            (
                "tench,goldfish, Carassius auratus",
                "class of config.data.subset 'goldfish': did you mean goldfish, Carassius auratus?",
            ),
            ('tench,"church', "a name in quotes ends with one"),
            ("tench,golfish", "unknown class of config.data.subset 'golfish'"),
        ],
    )
    def test_what_is_meant_is_said(self, subset, line):
        with pytest.raises(UserError) as error:
            self.choose(subset)
        assert line in str(error.value)

    def test_quotes_pass_the_command_line(self, tmp_path):
        subset = '"goldfish, Carassius auratus",church'
        arguments = ["--config=configs/quickstart.py", f"--config.data.subset={subset}"]
        config, *_ = launch.parse(["launch.py", *arguments, f"--workdir={tmp_path / 'run'}"])
        assert config.data.subset == subset


def test_numbers_of_arrays_count_the_names_of_train_too(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    splits = {"train": (images, [0, 1, 0, 1]), "test": (images, [1, 0, 0, 0])}
    dataset = data.from_arrays(splits, resolution=8, class_names={"train": ["dog", "cat"]})
    assert dataset.class_names == ["dog", "cat"]
    assert dataset.splits["test"].labels.tolist() == [1, 0, 0, 0]
    assert any("0 is dog, 1 is cat" in note for note in dataset.notes)


class TestArrays:
    IMAGES = np.arange(10 * 8 * 8 * 3).reshape(10, 8, 8, 3) % 256

    def test_labels_may_begin_anywhere(self):
        given = {"train": (self.IMAGES.astype(np.uint8), np.arange(10) % 2 + 1)}
        assert data.from_arrays(given, resolution=8).class_names == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("npz", "set/photos.npz"),
        ("waterbirds", "set/metadata.csv"),
        ("huggingface", "set/train.parquet"),
    ],
)
def test_pointers_are_called_so_in_every_source(tmp_path, name, path):
    if name == "huggingface":
        pytest.importorskip("datasets")
    file = tmp_path / path
    file.parent.mkdir()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    folder = file if name == "npz" else file.parent
    with pytest.raises(UserError, match=f"{file.name}: it is a git-lfs pointer: run git lfs pull"):
        data.load_dataset(name, folder=str(folder), resolution=8)
