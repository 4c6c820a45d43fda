"""Images on disk for tests of data: folders of plain photos, and what a data set made of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lgm_jax.data import Dataset, Split, load_dataset
from lgm_jax.data.records import FileRecords, ImageSplit


def load_folder(folder: Path | str, **options: Any) -> Dataset:
    return load_dataset("folder", folder=str(folder), **options)


def png(level: int) -> bytes:
    """A small grey image as a file."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (8, 8), **options: Any) -> None:
    """Saves a grey image, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path, **options)


def write_classes(folder: Path, images: int, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """Folders of plain images, each with a grey level of its own."""
    for label, name in enumerate(classes):
        for number in range(images):
            write_image(folder / name / f"{number}.png", value=100 * label + number)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def names(dataset: Dataset, split: str) -> list[str]:
    """The names of a split's images, in their order."""
    members = dataset.splits[split]
    assert isinstance(members, ImageSplit)
    return [members.name(row) for row in range(len(members.labels))]


def split_of(folder: Path, *names: str, resolution: int = 8, orient: bool = True) -> Split:
    zeros = np.zeros(len(names), np.int32)
    return ImageSplit(
        FileRecords(folder, names), np.arange(len(names)), zeros, resolution, orient=orient
    )


def load_one(path: Path, resolution: int = 8) -> np.ndarray:
    return split_of(path.parent, path.name, resolution=resolution).load(np.asarray([0]))[0]
