"""Splits of a data set: hold out missing ones, choose classes, leave out broken images."""

from __future__ import annotations

import csv
import dataclasses
import functools
from typing import Any

import numpy as np
import PIL
from jaxtyping import Int

from lgm_jax.data import cache, formats, imagenet
from lgm_jax.data.dataset import Dataset, Split, digest
from lgm_jax.data.records import FileRecords, ImageSplit
from lgm_jax.data.split_names import SPLITS
from lgm_jax.errors import UserError, list_some, unknown_name
from lgm_jax.progress import progress

_TEST_FRACTION = 0.2
# Of what is left after the test images: a tenth of all.
_VAL_FRACTION = 1 / 8
# Images checked between two updates of the progress bar.
_BATCH = 512


def complete(dataset: Dataset, *, seed: int, val_fraction: float | None) -> Dataset:
    """Holds out the splits that a data set lacks.

    With `train` alone, a fifth of each class becomes `test`. With `train` and one other split, the
    other is `test`, whatever it is called: recipes are tuned on `val`, so the images given to
    report on must not be it. Then, without a `val`, a part of `train` becomes it: `val_fraction`,
    by default an eighth where `test` was made here too, else a fifth. A class too small for all
    three keeps an image for `train` first, then for `test`.

    Which images of a class are held out depends on the seed and the class's name alone.

    Raises:
        UserError: If no class has two images, or none can give one to a `val` that was asked for.
    """
    splits, notes, name = dict(dataset.splits), list(dataset.notes), dataset.name
    if set(splits) == set(SPLITS):
        return dataset
    fraction = val_fraction
    if fraction is None:
        fraction = _VAL_FRACTION if len(splits) == 1 else 0.2
    if "val" in splits:
        notes.append(f"{name} has no test images: its val images are the test split")
        splits["test"] = splits.pop("val")
    if "test" not in splits and not _hold_out(dataset, splits, _TEST_FRACTION, seed, "test"):
        raise UserError(
            f"{name} has one image per class: two are needed at least, to hold one out for 'test'"
        )
    if fraction and not _hold_out(dataset, splits, fraction, seed, "val"):
        few = f"{name} has too few images per class"
        if val_fraction is not None:
            raise UserError(f"{few} to hold any out for 'val': set --config.data.val_fraction=0")
        notes.append(f"{few} for a val split: it has none")
    facts = [dataset.fingerprint, seed, fraction, sorted(dataset.splits)]
    return dataclasses.replace(dataset, splits=splits, fingerprint=digest(*facts), notes=notes)


def select_classes(dataset: Dataset, subset: str) -> Dataset:
    """Keeps some classes; the order in which they are named becomes that of the labels.

    `subset` is one of `imagenet.SUBSETS`, or comma-separated indices or names of classes; a name
    that has commas stands in double quotes, as in a CSV file. Where the classes are ImageNet's,
    indices count ImageNet-1k's.

    Raises:
        UserError: If a class is unknown, named twice, or the only one.
    """
    chosen = [_find_class(dataset, item) for item in split_subset(subset)]
    if len(chosen) < 2:
        raise UserError("config.data.subset names fewer than two classes")
    for i, label in enumerate(chosen):
        if label in chosen[:i]:
            raise UserError(f"config.data.subset names {dataset.class_names[label]!r} twice")
    new_label = np.full(dataset.num_classes, -1, np.int32)
    new_label[chosen] = np.arange(len(chosen))

    def choose(split: Split) -> Split:
        kept = split.take(np.flatnonzero(new_label[split.labels] >= 0))
        # Every split is one of the package's frozen dataclasses.
        return dataclasses.replace(kept, labels=new_label[kept.labels])  # type: ignore[type-var]

    return dataclasses.replace(
        dataset,
        class_names=[dataset.class_names[label] for label in chosen],
        wnids=[dataset.wnids[label] for label in chosen] if dataset.wnids else (),
        splits={name: choose(split) for name, split in dataset.splits.items()},
        fingerprint=digest(dataset.fingerprint, chosen),
    )


def split_subset(subset: str) -> list[str]:
    """Returns the classes that `subset` names, each as it is written; see `select_classes`."""
    if subset in imagenet.SUBSETS:
        return [imagenet.wnids()[index] for index in imagenet.SUBSETS[subset]]
    try:
        rows = list(csv.reader(subset.split("\n"), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UserError(
            f"config.data.subset is {subset}: a name in quotes ends with one, and quotes within it "
            'are doubled, as in "a ""b"", c"'
        ) from error
    return [item.strip() for row in rows for item in row if item.strip()]


def skip_unreadable(dataset: Dataset) -> Dataset:
    """Leaves out the images that cannot be decoded.

    Every image is decoded once to find them; the result is remembered on this machine.

    Raises:
        UserError: If no image of a split can be.
    """
    splits, notes = dict(dataset.splits), list(dataset.notes)
    skipped: dict[str, list[str]] = {}
    for name, split in dataset.splits.items():
        if not isinstance(split, ImageSplit):
            continue
        # Another Pillow may read more.
        key = digest(dataset.fingerprint, name, PIL.__version__, list(formats.read_by_pillow()))
        bad = cache.remember("unreadable", key, functools.partial(_find_unreadable, split, name))
        if not len(bad):
            continue
        fault = split.faults(bad[:1])[0] or "could not be read before"
        reason = f"{split.name(bad[0])}: {fault}"
        if len(bad) == len(split.labels):
            raise UserError(f"none of the {name} images of {dataset.name} can be read: {reason}")
        notes.append(f"{dataset.name}: {reason}")
        skipped[name] = [split.name(row) for row in bad]
        splits[name] = split.take(np.setdiff1d(np.arange(len(split.labels)), bad))
    if not skipped:
        return dataset
    fingerprint = digest(dataset.fingerprint, skipped)
    return dataclasses.replace(
        dataset, splits=splits, skipped=skipped, notes=notes, fingerprint=fingerprint
    )


def check(dataset: Dataset) -> list[str]:
    """Refuses links to nowhere, and classes without training images; `Dataset` checks the rest.

    Returns:
        Notes: what the source ignored, classes that a held-out split lacks, images left out.
    """
    lost: list[str] = []
    for split in dataset.splits.values():
        if isinstance(split, ImageSplit) and isinstance(split.records, FileRecords):
            lost += split.records.dead_links(split.rows)
    # All at once, rather than the first that is read.
    if lost:
        raise UserError(
            f"{len(lost)} images of {dataset.name} are links that lead nowhere, {lost[0]} among "
            "them: fetch them (git annex get, dvc pull), or leave them out with "
            "--config.data.on_bad_image=skip"
        )
    notes = list(dataset.notes)
    for name, split in dataset.splits.items():
        lacking = np.setdiff1d(np.arange(dataset.num_classes), split.labels)
        if len(lacking):
            names = list_some([dataset.class_names[label] for label in lacking.tolist()])
            if name == "train":
                raise UserError(
                    f"{dataset.name} has no images to train on of: {names}; add some, or name the "
                    "classes to keep in --config.data.subset"
                )
            notes.append(f"{dataset.name} has no {name} images of: {names}")
    for name, skipped in dataset.skipped.items():
        notes.append(
            f"{dataset.name}: {len(skipped)} {name} images cannot be read and are left out: "
            f"{list_some(skipped)}"
        )
    return notes


def describe(dataset: Dataset) -> dict[str, Any]:
    """Returns the record of a run's data: name, fingerprint, images by split and class, notes."""
    counts = {
        name: {
            "images": int(count.sum()),
            "smallest_class": int(count.min()),
            "largest_class": int(count.max()),
            "classes": dict(zip(dataset.class_names, count.tolist(), strict=True)),
        }
        for name, count in dataset.counts().items()
    }
    facts = {"name": dataset.name, "fingerprint": dataset.fingerprint}
    return {**facts, "counts": counts, "notes": check(dataset)}


def _hold_out(
    dataset: Dataset, splits: dict[str, Split], fraction: float, seed: int, name: str
) -> bool:
    """Moves a part of each class of `train`, at least one image, but never the last one.

    Returns whether any class has two images.
    """
    train = splits["train"]
    held_out = np.zeros(len(train.labels), bool)
    order = np.argsort(train.labels, kind="stable")
    bounds = np.searchsorted(train.labels[order], np.arange(dataset.num_classes + 1))
    for label, class_name in enumerate(dataset.class_names):
        members = order[bounds[label] : bounds[label + 1]]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        rng = np.random.default_rng(int(digest(seed, name, class_name)[:16], 16))
        held_out[rng.permutation(members)[: max(0, count)]] = True
    if held_out.any():
        splits["train"] = train.take(np.flatnonzero(~held_out))
        splits[name] = train.take(np.flatnonzero(held_out))
    return bool(held_out.any())


def _find_class(dataset: Dataset, item: str) -> int:
    """The label of a class by its name, WordNet name or index."""
    names, wnids = list(dataset.class_names), list(dataset.wnids)
    if item.isdecimal() and item not in names:
        known = imagenet.wnids() if wnids else names
        if int(item) >= len(known):
            raise UserError(
                f"config.data.subset has class {item}, but indices end at {len(known) - 1}"
            )
        item = known[int(item)]
    for each in (wnids, names):
        if item in each:
            return each.index(item)
    if item in imagenet.names_by_wnid():
        what = f"{item} ({imagenet.names_by_wnid()[item]})"
        raise UserError(f"{dataset.name} has no class {what}, which config.data.subset names")
    raise unknown_name("class of config.data.subset", item, names + wnids)


def _find_unreadable(split: ImageSplit, name: str) -> Int[np.ndarray, " bad"]:
    every = np.arange(len(split.labels))
    starts = progress(range(0, len(every), _BATCH), f"checking {name} images")
    faults = [fault for start in starts for fault in split.faults(every[start : start + _BATCH])]
    return np.flatnonzero([fault is not None for fault in faults])
