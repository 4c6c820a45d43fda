"""The paper's numbers, and which of them are comparable with ours: those of the same setting."""

from __future__ import annotations

import csv
import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from lgm_jax import files, runs
from lgm_jax.backbones import specs
from lgm_jax.data.sources import known_size
from lgm_jax.experiments import paper
from lgm_jax.experiments.axes import SECTION, SETS, backbones, evaluated, label, sets
from lgm_jax.experiments.runner import Outcome

Number = tuple[float, float | None]
"""A mean and a standard deviation over probe runs, if there is one."""

Key = tuple[str, str, str, str, frozenset[tuple[str, str]]]
"""The place of a number: set, variant, method, metric, and pairs of the backbone that is distilled
against (`real` if none is) and the one that is evaluated on, over which the number is the mean."""

FILE = Path(__file__).parent / "paper.csv"

TOP1, NORMALISED = "top-1", "normalised 1-NN"

# By a word in the column `evaluated`, the pairs that an average in `paper.csv` is over.
_OVER = {"same": operator.eq, "others": operator.ne, "all": lambda *_: True}

_PROBE = (
    *("solver", "epochs", "full_epochs", "batch", "full_batch", "learning_rate", "decay"),
    *("drop_last", "augment", "noise", "split"),
)
_AUGMENT = ("flip", "scale_min", "scale_max", "noise", "noise_mean", "noise_std")

# The keys that make numbers incomparable with the paper's, whatever is distilled: which images,
# what the backbone sees of them, and how the probe is trained. By key, the values that are as good
# as the recipe's.
_SETTING: Mapping[str, Sequence[Any]] = {
    **dict.fromkeys(("ipc", "images.crop", "data.subset", "augment.preset", "augment.crops"), ()),
    **dict.fromkeys(("backbone.normalization", "backbone.position_offset"), ()),
    **dict.fromkeys((f"probe.{name}" for name in _PROBE), ()),
    **dict.fromkeys(("data.val_fraction", *(f"augment.{name}" for name in _AUGMENT)), (None,)),
    "data.name": ("imagenet",),
    "images.resolution": (None, 256),
    "backbone.pooling": ("native",),
    "backbone.resize": ("positions",),
    "backbone.revision": ("",),
    "probe.full_augment": (None, "fresh"),
}

# The part of its images that a data set may lack: sizes of subsets are estimates.
_MISSING = 0.05


@functools.cache
def numbers() -> Mapping[Key, Number]:
    """Returns the paper's numbers by their places."""
    found = {}
    with FILE.open(newline="") as lines:
        for row in csv.DictReader(lines):
            source, where = row["backbone"], row["evaluated"]
            is_over = _OVER.get(where, lambda _, other, where=where: other == where)
            named = paper.BACKBONES if source == "average" else (source,)
            pairs = frozenset((a, b) for a in named for b in paper.BACKBONES if is_over(a, b))
            key = row["set"], row["variant"], row["method"], row["metric"], pairs
            found[key] = float(row["mean"]), float(row["std"]) if row["std"] else None
    return found


def average(name: str, variant: str, method: str, over: str = "same") -> Number | None:
    """Returns the paper's average top-1 accuracy over its four backbones.

    Args:
        name: The image set.
        variant: The change of the method.
        method: A row of table 1.
        over: For distilled images, whether the `same` backbones evaluate, or `others`.
    """
    is_real = method in ("random", "full")
    is_over = _OVER["all" if is_real else over]
    sources = ("real",) if is_real else paper.BACKBONES
    pairs = frozenset((a, b) for a in sources for b in paper.BACKBONES if is_over(a, b))
    return numbers().get((name, variant, method, TOP1, pairs))


def transfer_and_alignment() -> list[Float[np.ndarray, "4 4"]]:
    """Returns the paper's normalised 1-NN transfer and its alignment of backbones."""
    size = len(paper.BACKBONES)
    pairs = [frozenset({(a, b)}) for a in paper.BACKBONES for b in paper.BACKBONES]
    return [
        np.array([numbers()["imagenet-1k", "", *kind, pair][0] for pair in pairs]).reshape(size, -1)
        for kind in (("distilled", NORMALISED), ("", "alignment"))
    ]


def papers(config: ConfigDict, name: str, outcomes: Sequence[Outcome] = ()) -> Mapping[Key, Number]:
    """Returns the paper's numbers on an image set that are comparable with ours.

    None if the setting is another, or runs had other images by what their folders say; else those
    of the set, with the backbones of the config's preset.
    """
    preset, differences = _compare(config, name, outcomes)
    if differences:
        return {}
    # A folder has its own weights, whatever its name.
    folders = {label(each) for each in [*backbones(config), *evaluated(config)] if "/" in each}
    found: dict[Key, Number] = {}
    for names in ({}, paper.PRESET_BACKBONES.get(preset, {})):
        for (where, variant, method, metric, pairs), number in numbers().items():
            renamed = frozenset((names.get(a, a), names.get(b, b)) for a, b in pairs)
            if where == name and folders.isdisjoint(itertools.chain(*renamed)):
                found[where, variant, method, metric, renamed] = number
    return found


def note_of(config: ConfigDict, outcomes: Sequence[Outcome] = ()) -> str:
    """Returns the note on data, backbones and probe of an experiment's finished runs."""
    is_quick = config[SECTION].scale == "quick"
    quick = "A quick test of everything, whose numbers mean nothing. " if is_quick else ""
    every = dict.fromkeys([*backbones(config), *evaluated(config)])
    images = sets(config)
    is_digits = all(each.changes["data.name"].startswith("digits") for each in images.values())
    if is_digits and all(each in specs.NAMES and specs.NAMES[each].folder for each in every):
        return (
            f"{quick}Embedded data and backbones, not the paper's: handwritten digits at 32 px and "
            "small Vision Transformers that were trained on them."
        )
    known = {*paper.BACKBONES, *(name for each in paper.PRESETS for name in paper.backbones(each))}
    other = [f"backbone {label(each)}" for each in every if each not in known]
    if not any(SETS[name].published for name in images) and len(other) == len(every):
        return f"{quick}Data and backbones are not the paper's."
    other += [text for name in images for text in _compare(config, name, outcomes)[1]]
    if other:
        return (
            f"{quick}Not the paper's setting, and so without its numbers beside ours: "
            f"{'; '.join(dict.fromkeys(other))}."
        )
    keys = dict.fromkeys(key for each in (paper.SHARED, *paper.PRESETS.values()) for key in each)
    preset, others = _nearest({key: operator.attrgetter(key)(config) for key in keys}, {})
    changed = ", ".join(f"{key}={value}" for key, value in others.items())
    return (
        f"{quick}Data, backbones and probe are the paper's. The recipe is `{preset}`"
        f"{f', but for {changed}' if changed else ''}."
    )


def _compare(
    config: ConfigDict, name: str, outcomes: Sequence[Outcome]
) -> tuple[str, Sequence[str]]:
    """Returns the nearest preset, and in words what differs from it in an image set's runs."""
    where, theirs = SETS[name].title, SETS[name].changes
    if not SETS[name].published:
        return "", [where]
    ours = dict(sets(config)[name].changes)
    ours["data.name"] = ours["data.name"].removeprefix("tfds:")
    as_good = dict(_SETTING)
    if theirs["data.name"] != "imagenet2012":
        as_good["data.name"] = ()
    values = {key: ours.get(key, operator.attrgetter(key)(config)) for key in _SETTING}
    values = {key: value for key, value in values.items() if value not in as_good[key]}
    preset, others = _nearest(values, theirs)
    found = [f"{key}={value} on {where}" for key, value in others.items()]
    if not _has_all_images(outcomes, name):
        found.append(f"{where} with other images than all of it")
    return preset, found


def _nearest(values: Mapping[str, Any], images: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Returns the preset that fewest values, by dotted key, differ from, and these."""
    others = {}
    for preset, own in paper.PRESETS.items():
        recipe = {**paper.SHARED, **own, **images}
        others[preset] = {k: v for k, v in values.items() if k not in recipe or v != recipe[k]}
    return min(others.items(), key=lambda item: len(item[1]))


def _has_all_images(outcomes: Sequence[Outcome], name: str) -> bool:
    """Whether runs had as many images as the data set has, as far as their folders say."""
    images = SETS[name].changes
    size = known_size(images["data.name"], images["data.subset"])
    if size is None:
        return True
    for outcome in outcomes:
        if outcome.path is None or outcome.axes.get("set") != name:
            continue
        summary = (files.read_json(outcome.path / runs.CONFIG) or {}).get("data", {})
        for split, whole in (("train", size.train), ("test", size.test)):
            counts = summary.get("counts", {}).get(split, {})
            few = abs(counts.get("images", whole) - whole) > _MISSING * whole
            if few or len(counts.get("classes", range(size.classes))) != size.classes:
                return False
    return True
