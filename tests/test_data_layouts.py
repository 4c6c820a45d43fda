"""Published sets as their archives unpack, and names of classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import io

from lgm_jax.data import Dataset, get_source, load_dataset
from lgm_jax.data.layouts import LAYOUTS
from lgm_jax.data.records import ImageSplit
from lgm_jax.errors import UserError
from tests.photos import write_image

R = 8
DOGS = ("n02085620-Chihuahua", "n02094114-Norfolk_terrier")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")


def write_birds(root: Path) -> Path:
    root = root / "CUB_200_2011"
    rows = [(1, 0, 1), (2, 0, 0), (3, 1, 1), (4, 1, 1), (5, 1, 0)]
    for number, label, _ in rows:
        write_image(root / "images" / BIRDS[label] / f"{number}.jpg", 20 * number)
    (root / "attributes").mkdir()
    (root / "attributes" / "certainties.txt").write_text("1 not visible\n")
    lists = {
        "classes": [f"{label + 1} {name}" for label, name in enumerate(BIRDS)],
        "images": [f"{number} {BIRDS[label]}/{number}.jpg" for number, label, _ in rows],
        "image_class_labels": [f"{number} {label + 1}" for number, label, _ in rows],
        "train_test_split": [f"{number} {train}" for number, _, train in rows],
    }
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_dogs(root: Path) -> Path:
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for number, (split, label) in enumerate(
        [("train", 0), ("test", 0), ("train", 1), ("train", 1), ("test", 1)], 1
    ):
        name = f"{DOGS[label]}/{DOGS[label][:9]}_{number}.jpg"
        write_image(root / "Images" / name, 20 * number)
        # Of their archive, annotations have no suffix.
        annotation = root / "Annotation" / name[:-4]
        annotation.parent.mkdir(parents=True, exist_ok=True)
        annotation.write_text("<annotation/>")
        lists[split].append(name)
    for split, names in lists.items():
        cells = np.asarray([[name] for name in names], object)
        io.savemat(root / f"{split}_list.mat", {"file_list": cells, "labels": np.ones((3, 1))})
    return root


def write_flowers(root: Path) -> Path:
    for number in range(1, 6):
        write_image(root / "jpg" / f"image_{number:05d}.jpg", 20 * number)
    io.savemat(root / "imagelabels.mat", {"labels": np.asarray([[1, 1, 77, 77, 77]], np.uint8)})
    ids = {"trnid": [[1, 3, 4]], "valid": [[2]], "tstid": [[2, 5]]}
    io.savemat(root / "setid.mat", {key: np.asarray(value) for key, value in ids.items()})
    return root


def write_food(root: Path) -> Path:
    root = root / "food-101"
    lists = {
        "train": ["apple_pie/1", "waffles/3", "waffles/4"],
        "test": ["apple_pie/2", "waffles/5"],
    }
    for split, names in lists.items():
        for name in names:
            write_image(root / "images" / f"{name}.jpg", 20 * int(name[-1]))
        (root / "meta").mkdir(exist_ok=True)
        (root / "meta" / f"{split}.txt").write_text("\n".join(names))
    return root


def write_pets(root: Path) -> Path:
    lists = {
        "trainval": ["Abyssinian_1 1 1 1", "american_bulldog_3 2 2 1", "american_bulldog_4 2 2 1"],
        "test": ["Abyssinian_2 1 1 1", "american_bulldog_5 2 2 1"],
    }
    (root / "annotations").mkdir(parents=True)
    for name, lines in lists.items():
        for line in lines:
            image = line.split()[0]
            write_image(root / "images" / f"{image}.jpg", 20 * int(image[-1]))
        text = "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(lines) + "\n"
        (root / "annotations" / f"{name}.txt").write_text(text)
    return root


# In each of them, image 1 is to train on and of the first class, 2 of the first and tested on, 3
# and 4 are to train on, 5 is tested on, all of the second; image n is of the grey level 20 n.
SETS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "caltech_birds2011": (write_birds, ["Black footed Albatross", "Laysan Albatross"]),
    "stanford_dogs": (write_dogs, ["Chihuahua", "Norfolk terrier"]),
    "oxford_flowers102": (write_flowers, ["pink primrose", "passion flower"]),
    "food101": (write_food, ["apple pie", "waffles"]),
    "oxford_iiit_pet": (write_pets, ["Abyssinian", "american bulldog"]),
}


def open_set(name: str, folder: Path, **options: Any) -> Dataset:
    options = {"subset": "0,76"} if name == "oxford_flowers102" else options
    return load_dataset(name, folder=str(folder), resolution=R, **options)


def levels(dataset: Dataset, split: str) -> list[tuple[str, int]]:
    """The class of each image and its number, from what is on it."""
    members = dataset.splits[split]
    images = members.load(np.arange(len(members.labels)))
    shown = np.round(images[:, 4, 4, 0] / 20).astype(int).tolist()
    classes = [dataset.class_names[label] for label in members.labels]
    return sorted(zip(classes, shown, strict=True), key=lambda each: each[1])


@pytest.mark.parametrize("name", SETS)
class TestUnpacked:
    def test_official_splits_labels_and_names(self, tmp_path, name):
        write_set, (first, second) = SETS[name]
        dataset = open_set(name, write_set(tmp_path))
        assert (dataset.name, list(dataset.class_names)) == (name, [first, second])
        assert levels(dataset, "train") == [(first, 1), (second, 3), (second, 4)]
        assert levels(dataset, "test") == [(first, 2), (second, 5)]
        assert set(dataset.splits) - {"val"} == {"train", "test"}

    def test_folder_above_and_folder_by_no_name_are_the_same(self, tmp_path, name):
        write_set, _ = SETS[name]
        inside = write_set(tmp_path)
        named = open_set(name, inside)
        if inside != tmp_path:
            assert open_set(name, tmp_path).fingerprint == named.fingerprint
        if name != "oxford_flowers102":
            recognised = load_dataset("folder", folder=str(inside), resolution=R)
            assert recognised.fingerprint == named.fingerprint
            assert any(f"is read as {name}" in note for note in recognised.notes)

    def test_an_image_that_is_missing_is_named(self, tmp_path, name):
        inside = SETS[name][0](tmp_path)
        image = next(path for path in inside.rglob("*1.jpg"))
        image.unlink()
        with pytest.raises(UserError, match=rf"{image.name} does not exist"):
            open_set(name, inside)

    def test_without_its_lists_it_is_sought_among_those_of_tfds(self, tmp_path, name):
        pytest.importorskip("tensorflow_datasets")
        inside = SETS[name][0](tmp_path)
        (inside / LAYOUTS[name].marks[-1]).unlink()
        with pytest.raises(UserError, match=rf"holds no {name}: .*tfds build") as error:
            open_set(name, inside)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "table", "text", "message"),
    [
        (
            "caltech_birds2011",
            "train_test_split.txt",
            "1 1\n",
            r"CUB_200_2011 are not as published: KeyError\('2'\)",
        ),
        ("caltech_birds2011", "images.txt", "1\n", "are not as published: ValueError"),
        ("caltech_birds2011", "images.txt", "1 ../../x.jpg", "leads out of"),
        ("caltech_birds2011", "image_class_labels.txt", "1 9\n2 9", r"KeyError\('9'\)"),
        ("stanford_dogs", "train_list.mat", "no", "are not as published: "),
        ("oxford_flowers102", "setid.mat", "", "are not as published: "),
        ("food101", "meta/train.txt", b"\xff\xfe", "train.txt is not UTF-8"),
        ("oxford_iiit_pet", "annotations/test.txt", "a_1", "are not as published: ValueError"),
    ],
)
def test_lists_that_are_not_in_order_are_one_line(tmp_path, name, table, text, message):
    inside = SETS[name][0](tmp_path)
    (inside / table).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        open_set(name, inside)
    assert "\n" not in str(error.value)


def test_dogs_count_as_classes_of_imagenet(tmp_path):
    dataset = open_set("stanford_dogs", write_dogs(tmp_path), subset="185,n02085620")
    assert list(dataset.class_names) == ["Norfolk terrier", "Chihuahua"]
    assert list(dataset.wnids) == ["n02094114", "n02085620"]


@pytest.mark.parametrize("name", ["imagenet2012", "imagenette"])
def test_imagenet_s_own_folders_by_tfds_s_names(tmp_path, name):
    for split in ("train", "val"):
        for number, wnid in enumerate(("n01440764", "n02102040"), 1):
            write_image(tmp_path / split / wnid / "a.JPEG", 20 * number)
    dataset = load_dataset(name, folder=str(tmp_path), resolution=R)
    assert levels(dataset, "test") == [("tench", 1), ("English springer", 2)]
    assert list(dataset.splits) == ["train", "test"]


def test_every_layout_is_a_source():
    assert all(get_source(name) for name in LAYOUTS)


class TestClassNames:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        for number, name in enumerate(("n01440764", "n09999999", "n1 x"), 1):
            for i in range(4):
                write_image(tmp_path / name / f"{i}.png", 40 * number)
        return tmp_path

    def test_wordnet_names_become_words_and_splits_stay(self, folder):
        before = open_files(folder)
        dataset = load_dataset("folder", folder=str(folder), resolution=R)
        assert list(dataset.class_names) == ["tench", "n09999999", "n1 x"]
        assert not dataset.wnids
        (folder / "n01440764").rename(folder / "tench")
        assert open_files(folder) != before

    @pytest.mark.parametrize("separator", ["\t", " ", ", "])
    def test_a_file_of_names(self, folder, separator):
        lines = [f"n09999999{separator}blue whale", f"n1 x{separator}\u00e9mu"]
        (folder / "class_names.txt").write_text("\n".join(lines), encoding="utf-8")
        dataset = load_dataset("folder", folder=str(folder), resolution=R)
        assert list(dataset.class_names) == ["tench", "blue whale", "\u00e9mu"]
        assert any("class_names.txt names 2 of 3 classes" in note for note in dataset.notes)
        assert not any("left out" in note for note in dataset.notes)
        assert levels(dataset, "test")[0] == ("tench", 2)

    def test_a_class_that_begins_another_takes_none_of_its_lines(self, tmp_path):
        for name in ("black", "black cat"):
            for i in range(2):
                write_image(tmp_path / name / f"{i}.png", 40)
        (tmp_path / "class_names.txt").write_text("black noir\nblack cat Felix\n")
        dataset = load_dataset("folder", folder=str(tmp_path), resolution=R)
        assert list(dataset.class_names) == ["noir", "Felix"]
        (tmp_path / "class_names.txt").write_text("black\nblack cat\n")
        dataset = load_dataset("folder", folder=str(tmp_path), resolution=R)
        assert list(dataset.class_names) == ["black", "black cat"]
        (tmp_path / "class_names.txt").write_text("black noir\nblack cat Felix\nblack schwarz\n")
        with pytest.raises(UserError, match=r"class_names.txt names 'black' twice"):
            load_dataset("folder", folder=str(tmp_path), resolution=R)

    def test_names_alone_count_numbers(self, tmp_path):
        for number in range(11):
            for i in range(2):
                write_image(tmp_path / str(number) / f"{i}.png", 20 * number)
        names = [f"class {chr(97 + number)}" for number in range(11)]
        (tmp_path / "class_names.txt").write_text("\n".join(names))
        dataset = load_dataset("folder", folder=str(tmp_path), resolution=R)
        assert levels(dataset, "test") == [(name, i) for i, name in enumerate(names)]

    def test_names_of_no_class_are_refused(self, folder):
        (folder / "class_names.txt").write_text("cat a cat\ndog a dog\n")
        with pytest.raises(UserError, match=r"names none of the classes, as n01440764: expected"):
            load_dataset("folder", folder=str(folder), resolution=R)


def open_files(folder: Path) -> list[str]:
    split = load_dataset("folder", folder=str(folder), resolution=R).splits["test"]
    assert isinstance(split, ImageSplit)
    return [split.name(row) for row in range(len(split.labels))]
