"""From the images that a source holds to the data set that was asked for.

Hold out what is missing, choose classes, leave out broken images, and say what is in it.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL
from jaxtyping import Int

from lgm_jax.data import cache, formats, imagenet
from lgm_jax.data.dataset import Dataset, Split, digest
from lgm_jax.data.records import ImageSplit
from lgm_jax.data.split_names import SPLITS
from lgm_jax.errors import UserError, list_some, unknown_name
from lgm_jax.progress import progress

_TEST_FRACTION = 0.2
# Of what is left after the test images: a tenth of all.
_VAL_FRACTION = 1 / 8
# Images checked between two updates of the progress bar.
_BATCH = 512


def complete(dataset: Dataset, *, seed: int, val_fraction: float | None) -> Dataset:
    """Holds out what the owner of the images did not.

    With `train` alone, a fifth of each class becomes `test`. With `train` and one other split, the
    other is `test`, whatever it is called: recipes are tuned on `val`, so the images given to
    report on must not be it. Then, without a `val`, a part of `train` becomes it. A class too
    small for all three keeps an image for `train` first, then for `test`; if all are, there is no
    `val`, unless a fraction was asked for. What is not as its owner called it is noted.

    Which images of a class are held out depends on the seed and the class's name, not on the
    other classes.

    Args:
        dataset: The images with the splits that their owner made.
        seed: Seed of the split.
        val_fraction: Part of `train` that becomes `val`; 0 holds none out. By default an eighth
            where `test` was made here too, else a fifth.

    Raises:
        UserError: If no image could be held out.
    """
    given = dict(dataset.splits)
    if set(given) == set(SPLITS):
        return dataset
    asked = val_fraction is not None
    if val_fraction is None:
        val_fraction = _VAL_FRACTION if len(given) == 1 else 0.2
    notes = list(dataset.notes)
    train = given.pop("train")
    called, test = given.popitem() if given else ("test", None)
    if called != "test":
        notes.append(f"{dataset.name} has no test images: its {called} images are the test split")
    if test is None:
        train, test = _hold_out(dataset, train, _TEST_FRACTION, seed, "test")
        if test is None:
            raise UserError(
                f"{dataset.name} has one image per class: two are needed at least, to hold one "
                "out for 'test'"
            )
    splits = {"train": train, "test": test}
    if val_fraction:
        train, val = _hold_out(dataset, train, val_fraction, seed, "val")
        if val is not None:
            splits |= {"train": train, "val": val}
        elif asked:
            raise UserError(
                f"{dataset.name} has too few images per class to hold any out for 'val': set "
                "--config.data.val_fraction=0"
            )
        else:
            notes.append(
                f"{dataset.name} has too few images per class for a val split: it has none"
            )
    facts = [dataset.fingerprint, seed, val_fraction, sorted(dataset.splits)]
    return dataclasses.replace(dataset, splits=splits, fingerprint=digest(*facts), notes=notes)


def select_classes(dataset: Dataset, subset: str) -> Dataset:
    """Keeps some classes; the order in which they are named becomes that of the labels.

    Args:
        dataset: Any data set.
        subset: A subset of `imagenet.SUBSETS`, or comma-separated indices or names of classes; a
            name that has commas stands in double quotes, as in a CSV file. Where the classes are
            ImageNet's, indices count ImageNet-1k's.

    Raises:
        UserError: If a class is unknown, named twice, or the only one.
    """
    chosen = [_find_class(dataset, item, subset) for item in _subset_items(subset)]
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


def skip_unreadable(dataset: Dataset) -> Dataset:
    """Leaves out the images that cannot be decoded.

    Every image is decoded once to find them, which takes as long as one pass over the data; what
    was found is remembered on this machine.
    """
    splits: dict[str, Split] = {}
    skipped: dict[str, list[str]] = {}
    notes = list(dataset.notes)
    for name, split in dataset.splits.items():
        if isinstance(split, ImageSplit):
            # Another Pillow may read more.
            key = digest(dataset.fingerprint, name, PIL.__version__, list(formats.read_by_pillow()))
            bad = cache.remember(
                "unreadable", key, functools.partial(_find_unreadable, split, name)
            )
            if len(bad):
                skipped[name] = [split.name(row) for row in bad]
                reason = _why_unreadable(split, int(bad[0]))
                if len(bad) == len(split.labels):
                    raise UserError(
                        f"none of the {name} images of {dataset.name} can be read: {reason}"
                    )
                notes.append(f"{dataset.name}: {reason}")
                split = split.take(np.setdiff1d(np.arange(len(split.labels)), bad))
        splits[name] = split
    if not skipped:
        return dataset
    fingerprint = digest(dataset.fingerprint, skipped)
    return dataclasses.replace(
        dataset, splits=splits, skipped=skipped, notes=notes, fingerprint=fingerprint
    )


def check_links(dataset: Dataset) -> None:
    """Refuses images that are links to nowhere, all at once rather than the first that is read.

    Raises:
        UserError: If there are any; the message counts them and names one.
    """
    splits = [s for s in dataset.splits.values() if dataset.lost and isinstance(s, ImageSplit)]
    lost = [name for split in splits for name in map(split.name, range(len(split.labels)))]
    lost = [name for name in lost if name in dataset.lost]
    if lost:
        raise UserError(
            f"{len(lost)} images of {dataset.name} are links that lead nowhere, "
            f"{lost[0]} -> {dataset.lost[lost[0]]} among them: fetch them (git annex get, dvc "
            "pull), or leave them out with --config.data.on_bad_image=skip"
        )


def check(dataset: Dataset) -> list[str]:
    """Checks that every class can be learned; `Dataset` itself refuses what no data set may have.

    Returns:
        What is worth saying: what the source ignored, classes that a held-out split lacks, images
        left out.

    Raises:
        UserError: If a class has no image to train on.
    """
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
    for name, images in dataset.skipped.items():
        notes.append(
            f"{dataset.name}: {len(images)} {name} images cannot be read and are left out: "
            f"{list_some(images)}"
        )
    return notes


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a run records about its data: name, fingerprint, images by split and class, notes."""
    counts = {
        name: {
            "images": int(count.sum()),
            "smallest_class": int(count.min()),
            "largest_class": int(count.max()),
            "classes": dict(zip(dataset.class_names, count.tolist(), strict=True)),
        }
        for name, count in dataset.counts().items()
    }
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "counts": counts,
        "notes": check(dataset),
    }


def _hold_out(
    dataset: Dataset, split: Split, fraction: float, seed: int, name: str
) -> tuple[Split, Split | None]:
    """Splits off a part of each class, at least one image, but never the last one."""
    held_out = np.zeros(len(split.labels), bool)
    order = np.argsort(split.labels, kind="stable")
    bounds = np.searchsorted(split.labels[order], np.arange(dataset.num_classes + 1))
    for label, class_name in enumerate(dataset.class_names):
        members = order[bounds[label] : bounds[label + 1]]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        rng = np.random.default_rng(int(digest(seed, name, class_name)[:16], 16))
        held_out[rng.permutation(members)[: max(0, count)]] = True
    if not held_out.any():
        return split, None
    return split.take(np.flatnonzero(~held_out)), split.take(np.flatnonzero(held_out))


def _subset_items(subset: str) -> list[str]:
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


def _find_class(dataset: Dataset, item: str, subset: str) -> int:
    """The label of a class given by name, WordNet name or index.

    Args:
        dataset: Whose class it is.
        item: What names it.
        subset: All that was asked for.
    """
    names: Mapping[str, int] = {name: i for i, name in enumerate(dataset.class_names)}
    wnids: Mapping[str, int] = {wnid: i for i, wnid in enumerate(dataset.wnids)}
    if item.isdecimal() and item not in names:
        index = int(item)
        known = imagenet.wnids() if wnids else dataset.class_names
        if index >= len(known):
            raise UserError(
                f"config.data.subset has class {index}, but indices end at {len(known) - 1}"
            )
        if not wnids:
            return index
        item = imagenet.wnids()[index]
    if item in wnids:
        return wnids[item]
    if item in names:
        return names[item]
    if item in imagenet.wnids():
        what = f"{item} ({imagenet.names()[imagenet.wnids().index(item)]})"
        raise UserError(f"{dataset.name} has no class {what}, which config.data.subset names")
    cut = [name for name in names if "," in name and item in name and name in subset]
    if cut:
        quoted = cut[0].replace('"', '""')
        raise UserError(
            f"config.data.subset has {item}, which is no class: a name with commas stands in "
            f"double quotes: --config.data.subset='\"{quoted}\",...'"
        )
    raise unknown_name("class of config.data.subset", item, list(names) + list(wnids))


def _why_unreadable(split: ImageSplit, row: int) -> str:
    """An image's name and what is wrong with it, without the folder."""
    try:
        split.load_one(row)
    except UserError as error:
        return f"{split.name(row)}: {error.__cause__}"
    return f"{split.name(row)}: could not be read before"


def _find_unreadable(split: ImageSplit, name: str) -> Int[np.ndarray, " bad"]:
    every = np.arange(len(split.labels))
    bad: list[int] = []
    for start in progress(range(0, len(every), _BATCH), f"checking {name} images"):
        part = every[start : start + _BATCH]
        bad += [int(i) for i, good in zip(part, split.readable(part), strict=True) if not good]
    return np.asarray(bad, np.int64)
