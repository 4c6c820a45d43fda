"""Photos whose backgrounds mislead: groups, photos used once, what is seen of an object."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lgm_jax.data import load_dataset
from tools import mislead

# A colour of each class: two objects, two places.
COLOURS = {"axe": (250, 0, 0), "bell": (0, 250, 0), "lake": (0, 0, 250), "moor": (250, 250, 0)}
TRAIN, TEST = 20, 7


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of slightly different levels, no two alike but one of training among those of test."""
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", TRAIN), ("val", TEST)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                shade = np.array(colour, np.uint8) // 4 * 3 + np.uint8(
                    number + 40 * (split == "val")
                )
                if (split, name, number) == ("val", "lake", 0):
                    shade = np.array(colour, np.uint8) // 4 * 3
                Image.fromarray(np.full((4, 4, 3), shade)).save(
                    folder / split / name / f"{number}.png"
                )
    return folder


def run(photos, out, *flags):
    return mislead.main([str(photos), str(out), "--objects=bell,axe", "--places=lake,moor", *flags])


@pytest.fixture(scope="module")
def dataset(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "set"
    assert run(photos, out) == 0
    return load_dataset("folder", folder=str(out), resolution=mislead.SIDE, val_fraction=0.0)


def test_groups_agree_in_training_and_are_balanced_in_test(dataset):
    names = ["axe on lake", "axe on moor", "bell on lake", "bell on moor"]
    assert list(dataset.class_names) == ["axe", "bell"]
    assert list(dataset.group_names) == names
    counts = {name: np.bincount(split.groups).tolist() for name, split in dataset.splits.items()}
    # Of 20, 95 % agree; of seven test photos a class has, one is a training photo, too.
    assert counts == {"train": [1, 19, 19, 1], "test": [3, 3, 3, 3]}
    for split in dataset.splits.values():
        assert [names[group].split()[0] for group in split.groups] == [
            dataset.class_names[label] for label in split.labels
        ]


def test_an_image_shows_its_object_round_on_its_place(dataset):
    split = dataset.splits["test"]
    images = split.load(np.arange(len(split.labels))).astype(np.int32)
    sides = set()
    for image, group in zip(images, split.groups, strict=True):
        thing, _, place = dataset.group_names[group].split()
        # Nearest in colour to either: the object covers a disc.
        near = [np.abs(image - np.array(COLOURS[name]) // 4 * 3).sum(-1) for name in (thing, place)]
        covered = near[0] < near[1]
        side = covered.any(0).sum()
        sides.add(int(side))
        assert abs(int(covered.any(1).sum()) - side) <= 2
        assert covered.sum() == pytest.approx(np.pi / 4 * side**2, rel=0.03)
        # Seen is what is more than half opaque, nine tenths of its radius.
        assert 0.9 * 0.5 - 0.02 < side / mislead.SIDE < 0.9 * 0.7 + 0.02
    assert len(sides) > 6


def test_no_photo_is_used_twice():
    rows = [np.arange(first, first + 12) for first in (0, 20, 40, 60)]
    pairs = mislead.plan(rows[:2], rows[2:], 0.75, np.random.default_rng(0))
    used = [photo for pair in pairs for photo in pair.photos]
    assert len(used) == len(set(used)) == 48
    for pair in pairs:
        thing, place = pair.photos
        assert (thing // 20, place // 20 - 2) == (pair.thing, pair.place)
    assert sum(pair.thing == pair.place for pair in pairs) == 18


def test_the_same_seed_makes_the_same_images(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(mislead, "SIDE", 16)

    def content(name, *flags):
        assert run(photos, tmp_path / name, *flags) == 0
        return {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")}

    assert (
        content("one", "--seed=1") == content("again", "--seed=1") != content("other", "--seed=2")
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--places=lake,marsh"], "marsh"),
        (["--places=lake"], "--places must be two classes, not 1"),
        (["--objects=axe,bell,lake", "--places=moor"], "--objects must be two classes, not 3"),
        (["--places=axe,moor"], "names 'axe' twice"),
        (["--agreement=0.2"], "--agreement must be from 0.5 to 1, not 0.2"),
        (["--seed=x"], "--seed"),
    ],
)
def test_what_is_wrong_is_one_line(photos, tmp_path, capsys, flags, words):
    assert run(photos, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "out").exists()
