"""Data sets from the images and labels that a source lists by split: every source goes this way.

A source returns what it has (`Stored`, or files as `Listed`); names, labels, missing splits, notes
and the fingerprint follow from one rule each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lgm_jax.data import imagenet
from lgm_jax.data.class_names import FILE, name_wordnet
from lgm_jax.data.dataset import Dataset, Split, digest
from lgm_jax.data.labels import Labels, match_labels
from lgm_jax.data.listing import File, Listing
from lgm_jax.data.records import FileRecords, ImageSplit, Records
from lgm_jax.data.splits import complete


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `load_dataset`, which has the meaning of the fields."""

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
        groups: (n,) Indices into the data set's group names, if it has groups.
        identity: What the fingerprint is made of, beside labels and groups.
    """

    records: Records
    labels: Labels
    groups: Int[np.ndarray, " n"] | None = None
    identity: Any = ()


class Entry(NamedTuple):
    """An image file, its class (`None` where unknown), and its group, where there are groups."""

    file: File
    name: str | None
    group: str = ""


class Listed(NamedTuple):
    """The image files of a data set, by split and in their order.

    Attributes:
        classes: Names in label order; by default those of each split in order of appearance.
        groups: Names in their order; empty without groups.
    """

    splits: Mapping[str, Sequence[Entry]]
    classes: Sequence[str] = ()
    groups: Sequence[str] = ()


def assemble(
    request: Request,
    name: str,
    stored: Mapping[str, Stored],
    *,
    benchmark: bool,
    orient: bool = False,
    group_names: Sequence[str] = (),
    identity: Sequence[Any] = (),
    notes: Iterable[str] = (),
) -> Dataset:
    """Makes one data set of splits: labels matched by name, what is missing held out.

    Args:
        benchmark: Whether results on it are published, so that no training image is held out for
            `val` unless that is asked for.
        group_names, notes: As `Dataset` has them.
        identity: What the fingerprint is made of; by default everything.
    """
    labels_of = {split: part.labels for split, part in stored.items()}
    class_names, matched, more = match_labels(labels_of, name)
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
        digest(*(identity or facts)),
        group_names,
        notes=[*notes, *more],
    )
    val_fraction = request.val_fraction
    if benchmark:
        val_fraction = val_fraction or 0.0
        # Which images are held out depends on the names of their classes.
        dataset = name_wordnet(dataset) if set(class_names) <= set(imagenet.wnids()) else dataset
    return complete(dataset, seed=request.seed, val_fraction=val_fraction)


def assemble_files(
    request: Request, name: str, listing: Listing, listed: Listed, *, own: bool = False
) -> Dataset:
    """Makes one data set of image files, a person's `own` or a published set's; see `assemble`."""
    # Whoever names the classes reads it.
    listing.use(FILE)
    number_of_group = {group: number for number, group in enumerate(listed.groups)}
    stored = {}
    for split, entries in listed.splits.items():
        names = listed.classes or list(dict.fromkeys(e.name for e in entries if e.name is not None))
        number = {None: -1} | {each: i for i, each in enumerate(names)}
        files = [entry.file for entry in entries]
        groups = [number_of_group[entry.group] for entry in entries] if listed.groups else None
        stored[split] = Stored(
            FileRecords(listing.root, [f.path for f in files], [f.size for f in files]),
            Labels(np.asarray([number[entry.name] for entry in entries], np.int32), names),
            None if groups is None else np.asarray(groups, np.int32),
            files,
        )
    return assemble(
        request,
        name,
        stored,
        benchmark=not own,
        orient=own,
        group_names=listed.groups,
        notes=listing.notes(),
    )
