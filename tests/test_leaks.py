"""Test images that are training images too are counted, and nothing else is."""

import shutil

import numpy as np
import pytest
from PIL import Image

from lgm_jax.data import leaks, load_dataset
from lgm_jax.data.records import FileRecords, ImageSplit


def notes(**options):
    dataset = load_dataset(resolution=8, val_fraction=0.0, **options)
    return [note for note in dataset.notes if "byte by byte" in note]


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Files of this format have one size: content alone tells them apart.
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def photos(folder):
    for split, first in (("train", 0), ("test", 100)):
        for number in range(6):
            draw(folder / split / "ab"[number % 2] / f"{number}.bmp", first + number)
    return folder


def test_files_under_other_names_and_links_are_counted(tmp_path):
    folder = photos(tmp_path / "photos")
    assert notes(name="folder", folder=str(folder)) == []
    shutil.copy(folder / "train/a/0.bmp", folder / "test/a/other.bmp")
    # Two of one: both are seen in training.
    shutil.copy(folder / "train/a/0.bmp", folder / "test/b/another.bmp")
    (folder / "test/b/link.bmp").symlink_to(folder / "train/b/1.bmp")
    (said,) = notes(name="folder", folder=str(folder))
    assert said == "photos: 3 of 9 test images are training images too, byte by byte"


def test_copies_in_one_split_are_no_leak(tmp_path):
    folder = photos(tmp_path / "photos")
    shutil.copy(folder / "train/a/0.bmp", folder / "train/b/copy.bmp")
    shutil.copy(folder / "test/a/0.bmp", folder / "test/b/copy.bmp")
    assert notes(name="folder", folder=str(folder)) == []


def test_copies_that_a_split_made_here_parts_are_counted(tmp_path):
    folder = tmp_path / "photos"
    for number in range(20):
        draw(folder / "ab"[number % 2] / f"{number}.bmp", number % 2)
    (said,) = notes(name="folder", folder=str(folder))
    assert said.startswith("photos: 4 of 4 test images are training images too")


def test_classes_that_are_left_out_do_not_count(tmp_path):
    folder = photos(tmp_path / "photos")
    for split in ("train", "test"):
        draw(folder / split / "c" / "same.bmp", 7)
    assert len(notes(name="folder", folder=str(folder))) == 1
    assert notes(name="folder", folder=str(folder), subset="a,b") == []


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_arrays_are_counted(channels, tmp_path):
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 8, 8, *channels), np.uint8) for n in (8, 5))
    test[1:4] = train[2:5]
    for clean in (False, True):
        np.savez(
            tmp_path / "set.npz",
            train_images=train,
            train_labels=np.arange(8) % 2,
            test_images=rng.integers(0, 256, test.shape, np.uint8) if clean else test,
            test_labels=np.arange(5) % 2,
        )
        said = notes(name="npz", folder=str(tmp_path / "set.npz"))
        assert said == (
            [] if clean else ["set: 3 of 5 test images are training images too, byte by byte"]
        )


def test_only_files_of_equal_size_are_read_and_never_too_much(tmp_path, monkeypatch):
    folder = photos(tmp_path / "photos")
    for split in ("train", "test"):
        Image.new("RGB", (8, 8)).save(folder / split / "a" / f"{split}.png")
    (folder / "train/a/longer.png").write_bytes(
        (folder / "train/a/train.png").read_bytes() + b"\0" * 99
    )
    read, found = [], FileRecords.read
    monkeypatch.setattr(FileRecords, "read", lambda *given: read.append(given[1]) or found(*given))
    assert len(notes(name="folder", folder=str(folder))) == 1
    # All but the one that is longer.
    assert len(read) == 14
    for limit in ({"_LARGEST": 1000, "_OPENING": 0}, {"_OPENING": 2**28}):
        for name, value in limit.items():
            monkeypatch.setattr(leaks, name, value)
        read.clear()
        assert notes(name="folder", folder=str(folder)) == []
        assert read == []
        monkeypatch.undo()
        monkeypatch.setattr(FileRecords, "read", lambda *given: read.append(given[1]))


def test_a_file_that_cannot_be_read_is_no_leak(tmp_path):
    folder = photos(tmp_path / "photos")
    dataset = load_dataset("folder", folder=str(folder), resolution=8, val_fraction=0.0)
    shutil.copy(folder / "train/a/0.bmp", folder / "test/a/0.bmp")
    for name in ("train/b/1.bmp", "test/b/1.bmp"):
        (folder / name).unlink()
    assert isinstance(dataset.splits["test"], ImageSplit)
    (said,) = leaks.note_leaks(dataset).notes
    assert "1 of 6 test images" in said
