"""Test images that are training images too, byte by byte."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int

from lgm_jax.data.dataset import Dataset
from lgm_jax.data.records import FileRecords, ImageSplit, PixelRecords

# What is read at most: about a second. Of files, only those of one size can be equal, and to open
# one takes as long as to read so many bytes.
_LARGEST, _OPENING = 2**28, 2**15


def note_leaks(dataset: Dataset) -> Dataset:
    """Notes how many test images are training images too.

    Nothing is said of images that are neither files of their own nor arrays, nor of very many.
    """
    train, test = (dataset.splits.get(name) for name in ("train", "test"))
    if not (isinstance(train, ImageSplit) and isinstance(test, ImageSplit)):
        return dataset
    sizes, test_sizes = _sizes(train), _sizes(test)
    alike, test_alike = np.isin(sizes, test_sizes), np.isin(test_sizes, sizes)
    read = np.concatenate([sizes[alike], test_sizes[test_alike]])
    if np.maximum(read, _OPENING if isinstance(train.records, FileRecords) else 0).sum() > _LARGEST:
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


def _sizes(split: ImageSplit) -> Int[np.ndarray, " m"]:
    """Bytes of each image; none where they are unknown."""
    if isinstance(split.records, FileRecords):
        return np.asarray(split.records.sizes, np.int64)[split.rows]
    if isinstance(split.records, PixelRecords):
        return np.full(len(split.rows), split.records.images[0].nbytes)
    return np.zeros(0, np.int64)


def _hashes(split: ImageSplit, which: Bool[np.ndarray, " m"]) -> Iterator[bytes]:
    for row in split.rows[np.flatnonzero(which)].tolist():
        # The error of a file that cannot be read is raised when the image is loaded.
        with contextlib.suppress(OSError):
            stored = split.records.read(row)
            content = stored if isinstance(stored, bytes) else stored.tobytes()
            yield hashlib.sha256(content).digest()
