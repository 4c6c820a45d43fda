"""What every data source gives: labelled images by index, class names, splits, a fingerprint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

SPLITS = ("train", "val", "test")


@runtime_checkable
class Split(Protocol):
    """Random access to labelled images.

    Attributes:
        labels: (n,) int32, indices into the data set's class names.
    """

    @property
    def labels(self) -> np.ndarray: ...

    def load(self, indices: np.ndarray) -> np.ndarray:
        """Images (len(indices), r, r, 3) uint8."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """A split in memory: images (n, r, r, 3) uint8, or float in [0, 1]; labels (n,) int32."""

    images: np.ndarray
    labels: np.ndarray

    def load(self, indices: np.ndarray) -> np.ndarray:
        return self.images[indices]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled image data set.

    Attributes:
        name: Short name, free of paths.
        class_names: Human-readable, in label order.
        splits: `train`, `val` and `test`; recipes are tuned on `val`, numbers reported on `test`.
        fingerprint: Changes when the images, labels or splits do.
    """

    name: str
    class_names: Sequence[str]
    splits: Mapping[str, Split]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
