"""Which of the paper's numbers may stand beside ours: those of the same setting."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lgm_jax import files, runs
from lgm_jax.backbones import specs
from lgm_jax.data.sources import known_size
from lgm_jax.experiments import paper
from lgm_jax.experiments.axes import AVERAGE, SETS, backbones, evaluated, sets
from lgm_jax.experiments.paper import Number, Row
from lgm_jax.experiments.runner import SECTION, Outcome, label

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


def is_papers(config: ConfigDict, name: str, *names: str, outcomes: Sequence[Outcome] = ()) -> bool:
    """Whether results on a set of images and backbones are of the paper's setting.

    Args:
        config: The experiment's config.
        name: Of the set of images.
        names: Backbones, as the config names them.
        outcomes: Finished runs on the set, which know how many images there were.
    """
    others = _other_settings(config, name)
    preset = min(others, key=lambda each: len(others[each]))
    known = [*paper.BACKBONES, *paper.backbones(preset)]
    whole = all(_has_all_images(outcome, name) for outcome in outcomes)
    return not others[preset] and whole and all(each in known for each in names)


def paper_number(row: Row | None, backbone: str) -> Number | None:
    """The paper's number on a backbone, or `AVERAGE`, of a row of its tables."""
    place = len(paper.BACKBONES) if backbone == AVERAGE else place_of(backbone)
    return None if row is None or place is None else row[place]


def place_of(backbone: str) -> int | None:
    """Which column of the paper's tables a backbone is in, if it is in one."""
    for preset in paper.PRESETS:
        if backbone in paper.backbones(preset):
            return paper.backbones(preset).index(backbone)
    return None


def row_of(rows: Mapping[str, Row], backbone: str) -> Row | None:
    """The paper's row of a backbone, of rows by `paper.BACKBONES`."""
    place = place_of(backbone)
    return None if place is None else rows.get(paper.BACKBONES[place])


def are_all(names: Sequence[str]) -> bool:
    """Whether an average over these backbones is one over the paper's four."""
    places = [place for place in map(place_of, names) if place is not None]
    return len(places) == len(names) and sorted(places) == list(range(len(paper.BACKBONES)))


def note_of(config: ConfigDict, outcomes: Sequence[Outcome] = ()) -> str:
    """What a reader must know of data, backbones and probe.

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
    other = _differences(config, images, every, outcomes)
    if other is None:
        return f"{quick}Data and backbones are not the paper's."
    if other:
        return (
            f"{quick}Not the paper's setting, and so without its numbers beside ours: "
            f"{'; '.join(other)}."
        )
    return f"{quick}Data, backbones and probe are the paper's. {_recipe_note(config)}"


def _differences(
    config: ConfigDict,
    images: Mapping[str, Any],
    every: Sequence[str],
    outcomes: Sequence[Outcome],
) -> list[str] | None:
    """What is not the paper's, in words; `None` if neither images nor backbones are."""
    foreign = [label(each) for each in every if place_of(each) is None]
    if not any(SETS[name].published for name in images) and len(foreign) == len(every):
        return None
    found = [f"backbone {each}" for each in foreign]
    for name in images:
        where = SETS[name].title
        if not SETS[name].published:
            found.append(where)
            continue
        others = _other_settings(config, name)
        nearest = min(others.values(), key=len)
        found += [f"{key}={value} on {where}" for key, value in nearest.items()]
        own = [outcome for outcome in outcomes if outcome.axes.get("set") == name]
        if not all(_has_all_images(outcome, name) for outcome in own):
            found.append(f"{where} with other images than all of it")
    return list(dict.fromkeys(found))


def _other_settings(config: ConfigDict, name: str) -> dict[str, dict[str, Any]]:
    """By preset of the recipes, the keys of a set's runs that are not the paper's."""
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
    """Values of a key that are not the recipe's but come to the same."""
    if key == "data.name" and SETS[name].changes[key] != "imagenet2012":
        return ()
    return _SETTING[key]


def _has_all_images(outcome: Outcome, name: str) -> bool:
    """Whether a run had as many images as the data set has, as far as the run says."""
    images = SETS[name].changes
    size = known_size(images["data.name"], images["data.subset"])
    if size is None or outcome.path is None:
        return True
    summary = (files.read_json(outcome.path / runs.CONFIG) or {}).get("data", {})
    counts = [summary.get("counts", {}).get(split, {}) for split in ("train", "test")]
    return all(
        len(each.get("classes", range(size.classes))) == size.classes
        and abs(each.get("images", whole) - whole) <= _MISSING * whole
        for each, whole in zip(counts, (size.train, size.test), strict=True)
    )


def _recipe_note(config: ConfigDict) -> str:
    """Which of the paper's recipes the runs are of, and what they have of their own."""
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
