"""Test images that are training images too, byte by byte."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from lgm_jax.data.dataset import ArraySplit, Dataset, Split
from lgm_jax.data.records import FileRecords, ImageSplit, PixelRecords

# What is read at most: about a second. Of files, only those of one size can be equal, and to open
# one takes as long as to read so many bytes.
_LARGEST, _OPENING = 2**28, 2**15


def note_leaks(dataset: Dataset) -> Dataset:
    """Notes how many test images are training images too.

    Nothing is said of images that are neither files of their own nor arrays, nor where more than
    `_LARGEST` bytes would have to be read.
    """
    train, test = dataset.splits["train"], dataset.splits.get("test")
    if test is None:
        return dataset
    sizes, test_sizes = _sizes(train), _sizes(test)
    alike, test_alike = np.isin(sizes, test_sizes), np.isin(test_sizes, sizes)
    read = np.concatenate([sizes[alike], test_sizes[test_alike]])
    if np.maximum(read, _OPENING if _files(train) else 0).sum() > _LARGEST:
        return dataset
    known = set(_hashes(train, np.flatnonzero(alike)))
    leaked = sum(found in known for found in _hashes(test, np.flatnonzero(test_alike)))
    if not leaked:
        return dataset
    note = (
        f"{dataset.name}: {leaked} of {len(test.labels)} test images are training images too, "
        "byte by byte"
    )
    return dataclasses.replace(dataset, notes=[*dataset.notes, note])


def _files(split: Split) -> FileRecords | None:
    records = split.records if isinstance(split, ImageSplit) else None
    return records if isinstance(records, FileRecords) else None


def _sizes(split: Split) -> Int[np.ndarray, " m"]:
    """Bytes of each image; none where they are unknown."""
    if isinstance(split, ImageSplit):
        files = _files(split)
        if files is not None and len(files.sizes):
            return np.asarray(files.sizes, np.int64)[split.rows]
        if isinstance(split.records, PixelRecords):
            return np.full(len(split.rows), split.records.images[0].nbytes)
    if isinstance(split, ArraySplit):
        return np.full(len(split.labels), split.images[0].nbytes)
    return np.zeros(0, np.int64)


def _hashes(split: Split, rows: Int[np.ndarray, " m"]) -> Iterator[bytes]:
    for row in rows.tolist():
        if isinstance(split, ArraySplit):
            content = split.images[row].tobytes()
        else:
            assert isinstance(split, ImageSplit)
            try:
                stored = split.records.read(int(split.rows[row]))
            except OSError:
                # Said when it is to be shown.
                continue
            content = stored if isinstance(stored, bytes) else stored.tobytes()
        yield hashlib.sha256(content).digest()
