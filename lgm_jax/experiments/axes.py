"""Axes of an experiment: image sets, backbones, seeds, numbers."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from lgm_jax import checks, data, plugins, real
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.experiments import paper
from lgm_jax.objectives import OBJECTIVES
from lgm_jax.settings import split_list

SECTION, PAPER_SCALE = "experiment", "paper"

# As the paper writes them.
TITLES: Mapping[str, str] = {
    "clip_vitb16": "CLIP",
    "clip_vitb32": "CLIP ViT-B/32",
    "dinov2_vits14": "DINOv2 ViT-S/14",
    "dinov2_vitb14": "DINO-v2",
    "eva02_vitb14": "EVA-02",
    "mocov3_vitb16": "MoCo-v3",
}

_Number = TypeVar("_Number", int, float)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of images that experiments know by name.

    Attributes:
        title: As the paper writes it.
        changes: Config values, by dotted key, that select and require these images.
        copies: Augmentations of each image in a step, at the paper's scale where the command line
            sets nothing else.
        published: Whether the set is one of the paper's.
    """

    title: str
    changes: Mapping[str, Any]
    copies: int = 10
    published: bool = False


_IMAGENET, GIVEN = "imagenet2012", "given"


def _papers(recipe: str) -> ImageSet:
    images = paper.IMAGES[recipe]
    changes = {"data.name": images.name, "data.subset": images.subset}
    # Without the variant of the data set.
    title = images.title.partition(" (")[0]
    return ImageSet(title, changes, images.copies, published=True)


def _ours(title: str, name: str, subset: str = "", **others: Any) -> ImageSet:
    return ImageSet(title, {"data.name": name, "data.subset": subset, **others})


SETS: Mapping[str, ImageSet] = {
    "imagenet-100": _papers("in100"),
    "imagenet-1k": _papers("in1k"),
    "imagenet-fruits": _papers("fruits"),
    **{
        name: _papers(name)
        for name in (
            *("imagenette", "dogs", "cub", "flowers", "food"),
            *("spawrious", "waterbirds"),
        )
    },
    "digits": _ours("digits", "digits"),
    # Digits of similar shape: round strokes, and straight ones.
    "digits-round": _ours("digits 3, 5, 8, 9", "digits", "three,five,eight,nine"),
    "digits-straight": _ours("digits 1, 4, 7", "digits", "one,four,seven"),
    # Tints are colours, which grey images cannot show.
    "digits-spurious": _ours(
        "digits on misleading tints", "digits_spurious", "", **{"images.grey": False}
    ),
    # Whatever `config.data` selects.
    GIVEN: _ours("the given images", "folder"),
}


def sets(config: ConfigDict) -> dict[str, ImageSet]:
    """Returns the image sets of an experiment by name, with all their changes of the config.

    Raises:
        UserError: If a set is unknown or named twice, if the config selects other images, or if the
            number of folders is not the number of sets.
    """
    section = config[SECTION]
    names, folders = split_list(section.sets), split_list(section.folders)
    if folders and len(folders) != len(names):
        raise UserError(
            f"config.experiment.folders has {len(folders)} folders for the {len(names)} sets of "
            "config.experiment.sets; give one each"
        )
    _refuse_repeated("sets", names)
    chosen = {}
    for name, folder in itertools.zip_longest(names, folders):
        if name not in SETS:
            raise unknown_name("set", name, list(SETS))
        changes = _changes_of(config, name) | ({"data.folder": folder} if folder else {})
        chosen[name] = dataclasses.replace(SETS[name], changes=changes)
    sources = {each.changes["data.name"] for each in chosen.values()}
    # A folder of TFDS holds one folder for each data set.
    is_shared = all(data.get_source(source).prepared for source in sources)
    if config.data.folder and not folders and len(sources) > 1 and not is_shared:
        raise UserError(
            f"config.data.folder is one folder for {' and '.join(sorted(sources))}: name one for "
            f"each of {section.sets} in config.experiment.folders"
        )
    return chosen


def _changes_of(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns the changes of a set, of which the experiment's config may override some."""
    changes = dict(SETS[name].changes)
    for key in ("data.name", "data.subset"):
        value = operator.attrgetter(key)(config)
        if value is None or value == changes[key]:
            continue
        # ImageNet is read from TFDS or from its own folders.
        if name != GIVEN and (key, changes[key]) != ("data.name", _IMAGENET):
            raise UserError(
                f"config.{key} is {value}, but that of set {name} is "
                f"{changes[key] or 'all classes'}: for other images, set "
                f"--config.experiment.sets={GIVEN}"
            )
        changes[key] = value
    if config[SECTION].scale == PAPER_SCALE:
        changes["copies"] = SETS[name].copies if config.copies is None else config.copies
    return changes


def backbones(config: ConfigDict) -> list[str]:
    """Returns the backbones to distil against, one at a time.

    Raises:
        UserError: If there is none, or if two have the same name in the tables.
    """
    names = split_list(config[SECTION].backbones)
    if not names:
        raise UserError(
            "the experiment needs backbones: set --config.experiment.backbones=FOLDER, or several "
            "folders, comma-separated"
        )
    _refuse_repeated("backbones", names)
    # Tables and run folders name a backbone without the folder that it lies in.
    owners: dict[str, str] = {}
    for name in [*names, *split_list(config[SECTION].evaluate)]:
        other = owners.setdefault(label(name), name)
        if other != name:
            raise UserError(
                f"{other} and {name} are two backbones of one name, {label(name)}, in the tables "
                "of the experiment: rename a folder, or link to it by another name"
            )
    return names


def evaluated(config: ConfigDict) -> list[str]:
    """Returns the backbones to evaluate on: those of `evaluate`, by default `backbones`."""
    names = split_list(config[SECTION].evaluate)
    _refuse_repeated("evaluate", names)
    return names or backbones(config)


def pairs(config: ConfigDict) -> list[tuple[str, str]]:
    """Returns the pairs of backbones to distil against at once."""
    return list(itertools.combinations(backbones(config), 2)) if config[SECTION].joint else []


def _refuse_repeated(key: str, items: Sequence[str]) -> None:
    twice = next((item for item in items if items.count(item) > 1), None)
    if twice is not None:
        raise UserError(f"config.experiment.{key} names {twice} twice")


def seeds(config: ConfigDict) -> range:
    """Returns the distillation seeds, from `config.seed` on; a `UserError` if there are none."""
    count = config[SECTION].seeds
    if count < 1:
        raise UserError(f"config.experiment.seeds must be at least 1, not {count}")
    return range(config.seed, config.seed + count)


def objectives(config: ConfigDict) -> list[str]:
    """Returns the objectives to compare, the config's own first; a `UserError` for unknown ones."""
    named = split_list(config[SECTION].objectives)
    for objective in named:
        plugins.resolve("objective", objective, OBJECTIVES)
    return list(dict.fromkeys([config.objective, *named]))


def sources(config: ConfigDict) -> list[str]:
    """Returns the sources of real features to compare, as `objectives`."""
    named = split_list(config[SECTION].sources)
    for source in named:
        checks.one_of("real.source", source, real.SOURCES)
    return list(dict.fromkeys([config.real.source, *named]))


def numbers(config: ConfigDict, key: str, kind: type[_Number]) -> list[_Number]:
    """Returns a list of positive numbers of the section `experiment`, up to a million.

    Args:
        kind: `int` or `float`.

    Raises:
        UserError: If the list is empty or has anything else.
    """
    try:
        values = [kind(word) for word in split_list(config[SECTION][key])]
    except ValueError:
        values = []
    # The comparison is false for NaN.
    if not values or not all(0 < value <= 1e6 for value in values):
        words = "whole numbers, for example 1,5" if kind is int else "numbers, for example 0.1,1"
        raise UserError(
            f"config.experiment.{key} must be positive {words}, not {config[SECTION][key]!r}"
        )
    return list(dict.fromkeys(values))


def label(backbone: str) -> str:
    """Returns the name of a backbone without the folder that it lies in."""
    return Path(backbone).name


def joined(backbone: str) -> str:
    """Returns the label of one backbone, or of several, comma-separated."""
    return "+".join(map(label, split_list(backbone)))
