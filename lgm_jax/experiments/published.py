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
    **dict.fromkeys(("ipc", "data.subset", "augment.preset", "augment.crops"), ()),
    **dict.fromkeys(("backbone.normalization", "backbone.position_offset"), ()),
    **dict.fromkeys((f"probe.{name}" for name in _PROBE), ()),
    **dict.fromkeys(("data.val_fraction", *(f"augment.{name}" for name in _AUGMENT)), (None,)),
    "data.name": ("imagenet",),
    "images.resolution": (None, 256),
    "images.crop": (None, 224),
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

    Args:
        config: The experiment's config.
        name: The image set.
        outcomes: Finished runs, whose folders have the number of images.

    Returns:
        Nothing if the setting is another, and else the numbers of the set, with the backbones of
        the config's preset.
    """
    preset, others = _nearest(_settings(config, name))
    if others or not _has_all_images(outcomes, name):
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
    """Returns the note on data, backbones and probe.

    Args:
        config: The experiment's config.
        outcomes: Its finished runs.
    """
    is_quick = config[SECTION].scale == "quick"
    quick = "A quick test of everything, whose numbers mean nothing. " if is_quick else ""
    every = list(dict.fromkeys([*backbones(config), *evaluated(config)]))
    images = sets(config)
    is_digits = all(each.changes["data.name"].startswith("digits") for each in images.values())
    if is_digits and all(each in specs.NAMES and specs.NAMES[each].folder for each in every):
        return (
            f"{quick}Embedded data and backbones, not the paper's: handwritten digits at 32 px and "
            "small Vision Transformers that were trained on them."
        )
    known = {name for preset in paper.PRESETS for name in paper.backbones(preset)}
    foreign = [
        f"backbone {label(each)}" for each in every if each not in known | {*paper.BACKBONES}
    ]
    if not any(SETS[name].published for name in images) and len(foreign) == len(every):
        return f"{quick}Data and backbones are not the paper's."
    other = [*foreign, *(text for name in images for text in _differences(config, name, outcomes))]
    if other:
        return (
            f"{quick}Not the paper's setting, and so without its numbers beside ours: "
            f"{'; '.join(dict.fromkeys(other))}."
        )
    recipes = {preset: {**paper.SHARED, **own} for preset, own in paper.PRESETS.items()}
    values = {key: operator.attrgetter(key)(config) for each in recipes.values() for key in each}
    preset, others = _nearest({name: _others(values, each) for name, each in recipes.items()})
    changed = ", ".join(f"{key}={value}" for key, value in others.items())
    return (
        f"{quick}Data, backbones and probe are the paper's. The recipe is `{preset}`"
        f"{f', but for {changed}' if changed else ''}."
    )


def _differences(config: ConfigDict, name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Returns, in words, what differs from the paper in an image set and its runs."""
    where = SETS[name].title
    if not SETS[name].published:
        return [where]
    _, others = _nearest(_settings(config, name))
    found = [f"{key}={value} on {where}" for key, value in others.items()]
    if not _has_all_images(outcomes, name):
        found.append(f"{where} with other images than all of it")
    return found


def _nearest(others: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """Returns the preset with the fewest other values, and these."""
    return min(others.items(), key=lambda item: len(item[1]))


def _settings(config: ConfigDict, name: str) -> dict[str, dict[str, Any]]:
    """Returns, by preset of the recipes, the values of an image set's runs that differ."""
    image_set, ours = SETS[name], dict(sets(config)[name].changes)
    ours["data.name"] = ours["data.name"].removeprefix("tfds:")
    if not image_set.published:
        return {preset: {"data.name": ours["data.name"]} for preset in paper.PRESETS}
    as_good = dict(_SETTING)
    if image_set.changes["data.name"] != "imagenet2012":
        as_good["data.name"] = ()
    values = {key: ours.get(key, operator.attrgetter(key)(config)) for key in _SETTING}
    values = {key: value for key, value in values.items() if value not in as_good[key]}
    own = {**image_set.changes, **image_set.recipe}
    return {
        preset: _others(values, {**paper.SHARED, **each, **own})
        for preset, each in paper.PRESETS.items()
    }


def _others(values: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values, by dotted key, that are not those of a recipe."""
    return {k: v for k, v in values.items() if k not in recipe or v != recipe[k]}


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
