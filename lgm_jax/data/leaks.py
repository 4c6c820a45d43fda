"""Test images that are training images too, byte by byte."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int

from lgm_jax.data.dataset import ArraySplit, Dataset, Split
from lgm_jax.data.records import FileRecords, ImageSplit, PixelRecords

# What is read at most: about a second. Of files, only those of one size can be equal, and to open
# one takes as long as to read so many bytes.
_LARGEST, _OPENING = 2**28, 2**15


def note_leaks(dataset: Dataset) -> Dataset:
    """Notes how many test images are training images too.

    Nothing is said of images that are neither files of their own nor arrays, nor of very many.
    """
    if "test" not in dataset.splits:
        return dataset
    train, test = dataset.splits["train"], dataset.splits["test"]
    sizes, test_sizes = _sizes(train), _sizes(test)
    alike, test_alike = np.isin(sizes, test_sizes), np.isin(test_sizes, sizes)
    read = np.concatenate([sizes[alike], test_sizes[test_alike]])
    files = isinstance(train, ImageSplit) and isinstance(train.records, FileRecords)
    if np.maximum(read, _OPENING if files else 0).sum() > _LARGEST:
        return dataset
    known = set(_hashes(train, alike))
    leaked = sum(found in known for found in _hashes(test, test_alike))
    if not leaked:
        return dataset
    note = (
        f"{dataset.name}: {leaked} of {len(test.labels)} test images are training images too, "
        "byte by byte"
    )
    return dataclasses.replace(dataset, notes=[*dataset.notes, note])


def _sizes(split: Split) -> Int[np.ndarray, " m"]:
    """Bytes of each image; none where they are unknown."""
    stored = split.records if isinstance(split, ImageSplit) else split
    if isinstance(split, ImageSplit) and isinstance(stored, FileRecords):
        return np.asarray(stored.sizes, np.int64)[split.rows]
    if isinstance(stored, ArraySplit | PixelRecords):
        return np.full(len(split.labels), stored.images[0].nbytes)
    return np.zeros(0, np.int64)


def _hashes(split: Split, which: Bool[np.ndarray, " m"]) -> Iterator[bytes]:
    for row in np.flatnonzero(which):
        # The error of a file that cannot be read is raised when the image is loaded.
        with contextlib.suppress(OSError):
            if isinstance(split, ImageSplit):
                stored = split.records.read(int(split.rows[row]))
            else:
                stored = split.load(np.asarray([row]))[0]
            content = stored if isinstance(stored, bytes) else stored.tobytes()
            yield hashlib.sha256(content).digest()
