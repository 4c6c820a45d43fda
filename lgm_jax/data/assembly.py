"""From the images and labels that a source lists, by split, to a data set: the way of every source.

A source says what it has (`Stored`) and how it is to be read (`Request`); names, labels, missing
splits, notes and the fingerprint follow from one rule each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from lgm_jax.data import imagenet
from lgm_jax.data.class_names import name_wordnet
from lgm_jax.data.dataset import Dataset, Split, digest
from lgm_jax.data.labels import Labels, match_labels
from lgm_jax.data.listing import File, Listing
from lgm_jax.data.records import FileRecords, ImageSplit, Records
from lgm_jax.data.splits import complete


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be opened; see `load_dataset` for the fields."""

    folder: str
    resolution: int
    seed: int = 0
    val_fraction: float | None = None
    name: str = "folder"
    subset: str = ""
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Stored:
    """One split as its source stores it.

    Attributes:
        records: Its images, in the order of its labels.
        labels: Of all images.
        groups: (n,) Indices into the data set's group names, if it has groups.
        identity: What the fingerprint is made of, beside labels and groups.
    """

    records: Records
    labels: Labels
    groups: Int[np.ndarray, " n"] | None = None
    identity: Any = ()


def assemble(
    request: Request,
    name: str,
    stored: Mapping[str, Stored],
    *,
    benchmark: bool,
    orient: bool = False,
    group_names: Sequence[str] = (),
    identity: Sequence[Any] | None = None,
    notes: Sequence[str] = (),
    lost: Mapping[str, str] | None = None,
) -> Dataset:
    """Makes one data set of splits: labels matched by name, what is missing held out.

    Args:
        request: What was asked for.
        name: Name of the data set.
        stored: By split, what there is.
        benchmark: Whether results are published of it, so that no training image is held out for
            `val` unless that is asked for.
        orient: Whether the EXIF orientation is applied.
        group_names: Of the groups, in their order.
        identity: What the fingerprint is made of; by default everything.
        notes: What is to be said.
        lost: Images that are links to nowhere, and what they link to.

    Raises:
        UserError: See `labels.match_labels`, `Dataset` and `splits.complete`.
    """
    class_names, matched, more = match_labels(
        {split: part.labels for split, part in stored.items()}, name
    )
    splits: dict[str, Split] = {}
    facts: list[Any] = [request.resolution, orient, class_names]
    for split, labels in matched.items():
        part = stored[split]
        splits[split] = ImageSplit(
            part.records, np.arange(len(labels)), labels, request.resolution, orient, part.groups
        )
        facts += [split, part.identity, labels]
        facts += [] if part.groups is None else [list(group_names), part.groups]
    dataset = Dataset(
        name,
        class_names,
        splits,
        digest(*(facts if identity is None else identity)),
        group_names,
        notes=[*notes, *more],
        lost=lost or {},
    )
    val_fraction = request.val_fraction
    if benchmark:
        val_fraction = val_fraction or 0.0
        # Which images are held out depends on the names of their classes.
        dataset = name_wordnet(dataset) if set(class_names) <= set(imagenet.wnids()) else dataset
    return complete(dataset, seed=request.seed, val_fraction=val_fraction)


@dataclasses.dataclass
class Listed:
    """The image files of one split, with the class and perhaps the group of each, in their order.

    A class is `None` where it is not said.
    """

    files: list[File] = dataclasses.field(default_factory=list)
    classes: list[str | None] = dataclasses.field(default_factory=list)
    groups: list[str] = dataclasses.field(default_factory=list)

    def add(self, files: Sequence[File], name: str | None, group: str = "") -> None:
        """Appends images of one class and group."""
        self.files += files
        self.classes += [name] * len(files)
        self.groups += [group] * len(files) if group else []


def assemble_files(
    request: Request,
    name: str,
    listing: Listing,
    listed: Mapping[str, Listed],
    *,
    classes: Sequence[str] = (),
    group_names: Sequence[str] = (),
    **options: Any,
) -> Dataset:
    """Makes one data set of listed files; see `assemble`.

    Args:
        request: What was asked for.
        name: Name of the data set.
        listing: What lists the files' folder.
        listed: By split, its images.
        classes: Names in label order; by default each split's in the order in which they come.
        group_names: Of the groups, in their order.
        options: See `assemble`.
    """
    numbers = {group: number for number, group in enumerate(group_names)}
    stored = {}
    for split, part in listed.items():
        own = list(classes or dict.fromkeys(each for each in part.classes if each is not None))
        index: dict[str | None, int] = {None: -1}
        index |= {each: number for number, each in enumerate(own)}
        labels = np.asarray([index[each] for each in part.classes], np.int32)
        own_groups = part.groups if group_names else []
        groups = np.asarray([numbers[each] for each in own_groups], np.int32)
        records = FileRecords(
            listing.root, [file.path for file in part.files], [file.size for file in part.files]
        )
        stored[split] = Stored(
            records, Labels(labels, own), groups if group_names else None, part.files
        )
    options |= {"group_names": group_names, "notes": listing.notes(), "lost": listing.lost}
    return assemble(request, name, stored, **options)
