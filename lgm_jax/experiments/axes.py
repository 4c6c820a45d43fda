"""What experiments range over: sets of images, backbones, seeds, numbers."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from lgm_jax import data
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.experiments import paper
from lgm_jax.settings import split_list

SECTION = "experiment"

# As the paper names them.
TITLES: Mapping[str, str] = {
    "clip_vitb16": "CLIP",
    "clip_vitb32": "CLIP ViT-B/32",
    "dinov2_vitb14": "DINO-v2",
    "eva02_vitb14": "EVA-02",
    "mocov3_vitb16": "MoCo-v3",
}

PAPER_SCALE = "paper"

# The name of the set that is whatever `config.data` says.
GIVEN = "given"

_Number = TypeVar("_Number", int, float)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of images that experiments know by name.

    Attributes:
        title: As the paper writes it.
        changes: Which images, and what they ask of the config, by dotted key.
        recipe: What the paper's recipe has for these images alone, by dotted key; at the paper's
            scale, it holds where the command line says nothing else.
        published: Whether they are the paper's.
    """

    title: str
    changes: Mapping[str, Any]
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"copies": 10})
    published: bool = False


def _papers(title: str, recipe: str) -> ImageSet:
    """The images of one of the paper's recipes."""
    images = paper.IMAGES[recipe]
    return ImageSet(
        title,
        {"data.name": images.name, "data.subset": images.subset},
        {"copies": images.copies, "probe.full_augment": images.full_augment},
        published=True,
    )


def _own(title: str, name: str, subset: str = "") -> ImageSet:
    return ImageSet(title, {"data.name": name, "data.subset": subset})


SETS: Mapping[str, ImageSet] = {
    "imagenet-100": _papers("ImageNet-100", "in100"),
    "imagenet-1k": _papers("ImageNet-1k", "in1k"),
    "imagenet-fruits": _papers("ImageNet-Fruits", "fruits"),
    "dogs": _papers("Stanford Dogs", "dogs"),
    "cub": _papers("CUB-200-2011", "cub"),
    "flowers": _papers("Flowers-102", "flowers"),
    "food": _papers("Food-101", "food"),
    "spawrious": _papers("Spawrious", "spawrious"),
    "waterbirds": _papers("Waterbirds", "waterbirds"),
    "digits": _own("digits", "digits"),
    # Digits that are taken for each other: of round strokes, and of straight ones.
    "digits-round": _own("digits 3, 5, 8, 9", "digits", "three,five,eight,nine"),
    "digits-straight": _own("digits 1, 4, 7", "digits", "one,four,seven"),
    # Tints are colours, and so must images be.
    "digits-spurious": ImageSet(
        "digits on misleading tints",
        {"data.name": "digits_spurious", "data.subset": "", "images.grey": False},
    ),
    GIVEN: _own("the given images", "folder"),
}

_IMAGENET = "imagenet2012"


def sets(config: ConfigDict) -> dict[str, ImageSet]:
    """Returns the sets of images of an experiment, by name, with all that they change.

    Raises:
        UserError: If one is unknown or named twice, if its images are others than the config says,
            or if folders are given for others than the sets.
    """
    names, folders = split_list(config[SECTION].sets), split_list(config[SECTION].folders)
    if folders and len(folders) != len(names):
        raise UserError(
            f"config.experiment.folders has {len(folders)} folders for the {len(names)} sets of "
            "config.experiment.sets; give one each"
        )
    _refuse_repeated("sets", names)
    chosen = {}
    for i, name in enumerate(names):
        if name not in SETS:
            raise unknown_name("set", name, list(SETS))
        changes = _changes_of(config, name)
        if folders:
            changes["data.folder"] = folders[i]
        chosen[name] = dataclasses.replace(SETS[name], changes=changes)
    sources = {each.changes["data.name"] for each in chosen.values()}
    if config.data.folder and not folders and len(sources) > 1 and not all(map(_by_tfds, sources)):
        raise UserError(
            f"config.data.folder is one folder for {' and '.join(sorted(sources))}: name one for "
            f"each of {config[SECTION].sets} in config.experiment.folders"
        )
    return chosen


def _changes_of(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns what a set changes of an experiment's config, whose own keys may say otherwise."""
    image_set = SETS[name]
    changes = dict(image_set.changes)
    for key in ("data.name", "data.subset"):
        said = operator.attrgetter(key)(config)
        if said is None or said == changes[key]:
            continue
        # ImageNet is read from TFDS or from its own folders.
        if name != GIVEN and (key, changes[key]) != ("data.name", _IMAGENET):
            raise UserError(
                f"config.{key} is {said}, but that of set {name} is {changes[key] or 'all classes'}"
                f": for other images, set --config.experiment.sets={GIVEN}"
            )
        changes[key] = said
    if config[SECTION].scale == PAPER_SCALE:
        for key, value in image_set.recipe.items():
            said = operator.attrgetter(key)(config)
            changes[key] = value if said is None else said
    return changes


def _by_tfds(source: str) -> bool:
    """Whether a folder is TFDS's, which holds one folder for each data set."""
    return data.get_source(source).prepared


def backbones(config: ConfigDict) -> list[str]:
    """Returns what to distil against, one at a time.

    Raises:
        UserError: If none is named, or if two would have one name in the tables.
    """
    names = split_list(config[SECTION].backbones)
    if not names:
        raise UserError(
            "the experiment needs backbones: set --config.experiment.backbones=FOLDER, or several "
            "folders, comma-separated"
        )
    _refuse_repeated("backbones", names)
    # Tables and run folders call a backbone by its name, without the folder that it lies in.
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
    """Returns what to evaluate on: `evaluate` where it is set, else what is distilled against.

    Raises:
        UserError: As `backbones`.
    """
    names = split_list(config[SECTION].evaluate)
    _refuse_repeated("evaluate", names)
    return names or backbones(config)


def _refuse_repeated(key: str, items: Sequence[str]) -> None:
    twice = next((item for item in items if items.count(item) > 1), None)
    if twice is not None:
        raise UserError(f"config.experiment.{key} names {twice} twice")


def seeds(config: ConfigDict) -> range:
    """Returns the distillation seeds, from `config.seed` on.

    Raises:
        UserError: If there are none.
    """
    count = config[SECTION].seeds
    if count < 1:
        raise UserError(f"config.experiment.seeds must be at least 1, not {count}")
    return range(config.seed, config.seed + count)


def counts(config: ConfigDict, key: str) -> list[int]:
    """Returns a list of positive whole numbers of the section `experiment`.

    Raises:
        UserError: If it is none.
    """
    return _numbers(config, key, int, "whole numbers, for example 1,5")


def scales(config: ConfigDict, key: str) -> list[float]:
    """Returns a list of positive numbers of the section `experiment`, up to a million.

    Raises:
        UserError: If it is none.
    """
    return _numbers(config, key, float, "numbers, for example 0.1,1")


def _numbers(
    config: ConfigDict, key: str, read: Callable[[str], _Number], what: str
) -> list[_Number]:
    try:
        values = [read(word) for word in split_list(config[SECTION][key])]
    except ValueError:
        values = []
    # NaN is in no order.
    if not values or not all(0 < value <= 1e6 for value in values):
        raise UserError(
            f"config.experiment.{key} must be positive {what}, not {config[SECTION][key]!r}"
        )
    return list(dict.fromkeys(values))


def label(backbone: str) -> str:
    """Returns a name that shows no folder of the machine."""
    return Path(backbone).name


def joined(backbone: str) -> str:
    """Returns the label of one backbone, or of several, comma-separated."""
    return "+".join(map(label, split_list(backbone)))
