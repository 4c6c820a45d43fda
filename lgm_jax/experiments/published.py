"""The paper's numbers, and which of them may stand beside ours: those of the same setting."""

from __future__ import annotations

import csv
import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
"""What a number is of: set, variant, method, metric, and pairs of the backbone that is distilled
against (`real` for what is not) and the one that is evaluated on, over which it is the mean."""

FILE = Path(__file__).parent / "paper.csv"

# By a word in the column `evaluated`, the pairs that an average in `paper.csv` is over.
_OVER = {"same": operator.eq, "others": operator.ne, "all": lambda *_: True}

# What other numbers than the paper's come of, whatever is distilled: which images, what the
# backbone sees of them, and how the probe is trained. By key, what is as good as the recipe's.
_SETTING: Mapping[str, Sequence[Any]] = {
    "ipc": (),
    "data.name": ("imagenet",),
    "data.subset": (),
    "data.val_fraction": (None,),
    "images.resolution": (None, 256),
    "images.crop": (None, 224),
    "backbone.normalization": (),
    "backbone.position_offset": (),
    "backbone.pooling": ("native",),
    "backbone.revision": ("",),
    "augment.preset": (),
    "augment.crops": (),
    **dict.fromkeys(
        [f"augment.{name}" for name in ("flip", "scale_min", "scale_max")]
        + [f"augment.{name}" for name in ("noise", "noise_mean", "noise_std")],
        (None,),
    ),
    **dict.fromkeys(
        [f"probe.{name}" for name in ("solver", "epochs", "full_epochs", "batch", "full_batch")]
        + [f"probe.{name}" for name in ("learning_rate", "decay", "drop_last", "augment")]
        + ["probe.noise", "probe.split"],
        (),
    ),
    # The authors augment all images, too many of which fit in no memory.
    "probe.full_augment": ("fresh",),
}

# Images that a data set may lack before it is another: sizes of subsets are estimates.
_MISSING = 0.05


@functools.cache
def numbers() -> Mapping[Key, Number]:
    """Returns the paper's numbers, by what they are numbers of."""
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
        name: The set of images.
        variant: What is changed of the method.
        method: A row of table 1.
        over: Of distilled images, whether those of the `same` backbone, or `others`, evaluate.
    """
    sources: Sequence[str] = paper.BACKBONES
    is_over = _OVER[over]
    if method in ("random", "full"):
        sources, is_over = ("real",), _OVER["all"]
    pairs = frozenset((a, b) for a in sources for b in paper.BACKBONES if is_over(a, b))
    return numbers().get((name, variant, method, "top-1", pairs))


def papers(config: ConfigDict, name: str, outcomes: Sequence[Outcome] = ()) -> Mapping[Key, Number]:
    """Returns the paper's numbers on a set of images that may stand beside ours.

    Args:
        config: The experiment's config.
        name: The set of images.
        outcomes: Finished runs, which know how many images there were.

    Returns:
        None where the setting is another, and else those of the set, keyed by the backbones of the
        preset that the config is of.
    """
    others = _other_settings(config, name)
    preset = min(others, key=lambda each: len(others[each]))
    if others[preset] or not _has_all_images(outcomes, name):
        return {}
    # Whatever it is called, a folder has weights of its own.
    folders = {label(each) for each in [*backbones(config), *evaluated(config)] if "/" in each}
    found: dict[Key, Number] = {}
    for names in ({}, paper.PRESET_BACKBONES.get(preset, {})):
        for (where, variant, method, metric, pairs), number in numbers().items():
            renamed = frozenset((names.get(a, a), names.get(b, b)) for a, b in pairs)
            if where == name and folders.isdisjoint(itertools.chain(*renamed)):
                found[where, variant, method, metric, renamed] = number
    return found


def note_of(config: ConfigDict, outcomes: Sequence[Outcome] = ()) -> str:
    """Returns what a reader must know of data, backbones and probe.

    Args:
        config: The experiment's config.
        outcomes: Its finished runs.
    """
    every = list(dict.fromkeys([*backbones(config), *evaluated(config)]))
    images = sets(config)
    quick = (
        "A quick test of everything, whose numbers mean nothing. "
        if config[SECTION].scale == "quick"
        else ""
    )
    if all(each.changes["data.name"].startswith("digits") for each in images.values()) and all(
        each in specs.NAMES and specs.NAMES[each].folder is not None for each in every
    ):
        return (
            f"{quick}Embedded data and backbones, not the paper's: handwritten digits at 32 px and "
            "small Vision Transformers that were trained on them."
        )
    known = {*paper.BACKBONES, *(b for preset in paper.PRESETS for b in paper.backbones(preset))}
    foreign = [f"backbone {label(each)}" for each in every if each not in known]
    if not any(SETS[name].published for name in images) and len(foreign) == len(every):
        return f"{quick}Data and backbones are not the paper's."
    other = [*foreign, *(text for name in images for text in _differences(config, name, outcomes))]
    if other:
        return (
            f"{quick}Not the paper's setting, and so without its numbers beside ours: "
            f"{'; '.join(dict.fromkeys(other))}."
        )
    return f"{quick}Data, backbones and probe are the paper's. {_recipe_note(config)}"


def _differences(config: ConfigDict, name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Returns what is not the paper's of a set of images and its runs, in words."""
    where = SETS[name].title
    if not SETS[name].published:
        return [where]
    nearest = min(_other_settings(config, name).values(), key=len)
    found = [f"{key}={value} on {where}" for key, value in nearest.items()]
    if not _has_all_images(outcomes, name):
        found.append(f"{where} with other images than all of it")
    return found


def _other_settings(config: ConfigDict, name: str) -> dict[str, dict[str, Any]]:
    """Returns, by preset of the recipes, the keys of a set's runs that are not the paper's."""
    image_set = SETS[name]
    ours = sets(config)[name].changes
    if not image_set.published:
        return {preset: {"data.name": ours["data.name"]} for preset in paper.PRESETS}
    found = {}
    for preset, own in paper.PRESETS.items():
        recipe = {**paper.SHARED, **own, **image_set.changes, **image_set.recipe}
        values = {key: ours.get(key, operator.attrgetter(key)(config)) for key in _SETTING}
        values["data.name"] = values["data.name"].removeprefix("tfds:")
        found[preset] = {
            key: value
            for key, value in values.items()
            if value not in _as_good(key, name) and (key not in recipe or value != recipe[key])
        }
    return found


def _as_good(key: str, name: str) -> Sequence[Any]:
    """Returns values of a key that are not the recipe's but come to the same."""
    if key == "data.name" and SETS[name].changes[key] != "imagenet2012":
        return ()
    return _SETTING[key]


def _has_all_images(outcomes: Sequence[Outcome], name: str) -> bool:
    """Whether runs had as many images as the data set has, as far as they say."""
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


def _recipe_note(config: ConfigDict) -> str:
    """Returns which of the paper's recipes the runs are of, and what they have of their own."""
    found = {
        preset: [
            f"{key}={operator.attrgetter(key)(config)}"
            for key, value in {**paper.SHARED, **own}.items()
            if operator.attrgetter(key)(config) != value
        ]
        for preset, own in paper.PRESETS.items()
    }
    preset = min(found, key=lambda each: len(found[each]))
    changed = f", but for {', '.join(found[preset])}" if found[preset] else ""
    return f"The recipe is `{preset}`{changed}."
