"""Data sets as every source returns them: images by index, labels, splits, a fingerprint."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from lgm_jax.data.labels import check_names, check_numbers
from lgm_jax.data.split_names import SPLITS, assign_splits
from lgm_jax.errors import UserError
from lgm_jax.names import plain

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

        `places` says where to crop each image once its shorter side is `r`, from 0 (top, left) to
        below 1 (bottom, right), uniform numbers making a uniform random crop; by default the
        middle.
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

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of images, labels and probabilities; computed once, for many rows ask for it."""
        result = hashlib.sha256(self.images.tobytes())
        result.update(self.labels.tobytes())
        if self.probabilities is not None:
            result.update(self.probabilities.tobytes())
        return result.hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled image data set: what every source returns, or a program makes of its own images.

    Attributes:
        name: Short name, free of paths.
        class_names: Human-readable, in label order; made text that can be shown everywhere.
        splits: `train`, `test`, and `val` unless none is held out; recipes are tuned on `val`,
            numbers reported on `test`.
        fingerprint: Changes when the images, labels or splits do.
        group_names: Human-readable, in the order of the splits' groups; empty without groups.
        wnids: The classes' WordNet names, where they are classes of ImageNet-1k; else empty.
        skipped: By split, the images that cannot be read and were left out, without their folder.
        notes: What was ignored, and why; a line each.

    Raises:
        UserError: If there are fewer than two classes, a name is missing or there twice, `train` is
            missing, a split has a name that is none of a split, has no images, or has labels or
            groups that are out of range or not as many as its images.
    """

    name: str
    class_names: Sequence[str]
    splits: Mapping[str, Split]
    fingerprint: str
    group_names: Sequence[str] = ()
    wnids: Sequence[str] = ()
    skipped: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        name = plain(self.name)
        class_names = check_names(self.class_names, name)
        group_names = check_names(self.group_names, name, "group")
        if len(class_names) < 2:
            what = f"one class only, {class_names[0]!r}" if class_names else "no classes"
            raise UserError(f"{name} has {what}: two are needed at least")
        assigned, ignored = assign_splits(self.splits, name)
        splits = {split: self.splits[assigned[split]] for split in SPLITS if split in assigned}
        for split, members in splits.items():
            _check_split(name, split, members, len(class_names), len(group_names))
        # The class is frozen.
        vars(self).update(name=name, class_names=class_names, group_names=group_names)
        vars(self).update(splits=splits, notes=[*self.notes, *ignored])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def counts(self) -> dict[str, Int[np.ndarray, " k"]]:
        """By split, how many images each class has."""
        return {
            name: np.bincount(split.labels, minlength=self.num_classes)
            for name, split in self.splits.items()
        }


def _check_split(name: str, split: str, members: Split, classes: int, groups: int) -> None:
    where, labels = f"{name}, {split}", np.asarray(members.labels)
    if not labels.size:
        raise UserError(f"{name} has no images in its {split} split")
    if isinstance(members, ArraySplit):
        images, count = members.images, labels.size
        floats = np.issubdtype(images.dtype, np.floating)
        # A comparison with NaN is false.
        valid = images.dtype == np.uint8 or (floats and images.min() >= 0 and images.max() <= 1)
        if images.ndim != 4 or (len(images), images.shape[-1]) != (count, 3) or not valid:
            raise UserError(
                f"{where} images are {images.dtype} {images.shape}: expected uint8 ({count}, h, w, "
                "3), or floats from 0 to 1"
            )
    check_numbers(labels, labels.size, classes, f"{where} labels")
    if members.groups is not None:
        numbers = np.asarray(members.groups)
        check_numbers(numbers, labels.size, groups, f"{where} groups", "groups")


def digest(*facts: Any) -> str:
    """Returns a fingerprint of JSON values, bytes and arrays, each delimited from the next."""
    result = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, np.ndarray):
            fact = f"{fact.dtype.str}{fact.shape}".encode() + fact.tobytes()
        elif not isinstance(fact, bytes):
            fact = json.dumps(fact).encode()
        result.update(len(fact).to_bytes(8, "little"))
        result.update(fact)
    return result.hexdigest()
