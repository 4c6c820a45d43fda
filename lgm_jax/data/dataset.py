"""What every data source gives: labelled images by index, class names, splits, a fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from lgm_jax.names import plain

SPLITS = ("train", "val", "test")

Places = Float[np.ndarray, "b 2"]


@runtime_checkable
class Split(Protocol):
    """Random access to labelled images.

    Attributes:
        labels: (n,) int32, indices into the data set's class names.
        groups: (n,) int32, indices into its group names, or `None` where it has no groups.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def groups(self) -> np.ndarray | None: ...

    def load(self, indices: np.ndarray, places: Places | None = None) -> np.ndarray:
        """Images (len(indices), r, r, 3) uint8.

        Args:
            indices: Which images.
            places: Where to crop each image once its shorter side is `r`, from 0 (top, left) to
                below 1 (bottom, right), uniform numbers making a uniform random crop; by default
                the middle.
        """
        ...

    def take(self, rows: np.ndarray) -> Split:
        """The split that has only these images, in this order."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """A split in memory: images (n, r, r, 3) uint8, or float in [0, 1]; labels (n,) int32.

    Images are square already, so there is nothing left to crop. Where labels are soft,
    `probabilities` has those of all classes, (n, k) float32.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def load(self, indices: np.ndarray, places: Places | None = None) -> np.ndarray:
        return self.images[indices]

    def take(self, rows: np.ndarray) -> ArraySplit:
        groups = None if self.groups is None else self.groups[rows]
        return ArraySplit(self.images[rows], self.labels[rows], groups)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled image data set.

    Attributes:
        name: Short name, free of paths.
        class_names: Human-readable, in label order.
        splits: `train`, `test`, and `val` unless none is held out; recipes are tuned on `val`,
            numbers reported on `test`.
        fingerprint: Changes when the images, labels or splits do.
        group_names: Human-readable, in the order of the splits' groups; empty without groups.
        wnids: The classes' WordNet names, where they are classes of ImageNet-1k; else empty.
        skipped: By split, the images that cannot be read and were left out, without their folder.
        notes: What is worth saying about how it was read, a line each.
        lost: Images that are links to nowhere, without their folder, and what they link to.

    Names are made plain, whatever the source has: see `names.plain`.
    """

    name: str
    class_names: Sequence[str]
    splits: Mapping[str, Split]
    fingerprint: str
    group_names: Sequence[str] = ()
    wnids: Sequence[str] = ()
    skipped: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    lost: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", plain(self.name))
        object.__setattr__(self, "class_names", list(map(plain, self.class_names)))
        object.__setattr__(self, "group_names", list(map(plain, self.group_names)))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def counts(self) -> dict[str, Int[np.ndarray, " k"]]:
        """By split, how many images each class has."""
        return {
            name: np.bincount(split.labels, minlength=self.num_classes)
            for name, split in self.splits.items()
        }


def digest(*facts: Any) -> str:
    """A fingerprint of JSON values, bytes and arrays, each told apart from the next."""
    result = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, np.ndarray):
            fact = f"{fact.dtype.str}{fact.shape}".encode() + fact.tobytes()
        elif not isinstance(fact, bytes):
            fact = json.dumps(fact).encode()
        result.update(len(fact).to_bytes(8, "little"))
        result.update(fact)
    return result.hexdigest()
