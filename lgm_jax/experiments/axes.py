"""What experiments range over: sets of images, backbones, seeds; and the runs along these axes."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lgm_jax import data
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.experiments import paper
from lgm_jax.experiments.result import Cell, summarize
from lgm_jax.experiments.runner import SECTION, Measure, Outcome, Planned, label
from lgm_jax.settings import split_list

# As the paper names them.
TITLES: Mapping[str, str] = {
    "clip_vitb16": "CLIP",
    "clip_vitb32": "CLIP ViT-B/32",
    "dinov2_vitb14": "DINO-v2",
    "eva02_vitb14": "EVA-02",
    "mocov3_vitb16": "MoCo-v3",
}

METHODS: Mapping[str, str] = {
    "distilled": "Distilled",
    "neighbors": "Neighbors",
    "centroids": "Centroids",
    "random": "Random",
    "full": "Full",
}

AVERAGE = "Average"

# Beside numbers of other data and backbones, to compare orders, not numbers.
PAPERS_AVERAGE = "the paper's average, ImageNet-100"

PAPER_SCALE = "paper"

# What is meant by images of one's own, where nothing is said of them.
GIVEN = "given"


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


def _digits(title: str, subset: str = "") -> ImageSet:
    return ImageSet(title, {"data.name": "digits", "data.subset": subset})


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
    "digits": _digits("digits"),
    # Digits that are taken for each other: of round strokes, and of straight ones.
    "digits-round": _digits("digits 3, 5, 8, 9", "three,five,eight,nine"),
    "digits-straight": _digits("digits 1, 4, 7", "one,four,seven"),
    # Tints are colours, and so must images be.
    "digits-spurious": ImageSet(
        "digits on misleading tints",
        {"data.name": "digits_spurious", "data.subset": "", "images.grey": False},
    ),
    GIVEN: ImageSet("the given images", {"data.name": "folder", "data.subset": ""}),
}

_IMAGENET = "imagenet2012"


def sets(config: ConfigDict) -> dict[str, ImageSet]:
    """The sets of images of an experiment, by name, with all that they change of its config.

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
    found = {}
    for i, name in enumerate(names):
        if name not in SETS:
            raise unknown_name("set", name, list(SETS))
        changes = _chosen(config, name)
        if folders:
            changes["data.folder"] = folders[i]
        found[name] = dataclasses.replace(SETS[name], changes=changes)
    sources = {each.changes["data.name"] for each in found.values()}
    if config.data.folder and not folders and len(sources) > 1 and not all(map(_by_tfds, sources)):
        raise UserError(
            f"config.data.folder is one folder for {' and '.join(sorted(sources))}: name one for "
            f"each of {config[SECTION].sets} in config.experiment.folders"
        )
    return found


def _chosen(config: ConfigDict, name: str) -> dict[str, Any]:
    """What a set changes of an experiment's config, where keys of its own may say otherwise."""
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


def _refuse_repeated(key: str, items: Sequence[str]) -> None:
    twice = next((item for item in items if items.count(item) > 1), None)
    if twice is not None:
        raise UserError(f"config.experiment.{key} names {twice} twice")


def backbones(config: ConfigDict) -> list[str]:
    """What to distil against, one at a time.

    Raises:
        UserError: If none is named, or if two would have one name in the tables.
    """
    names = split_list(config[SECTION].backbones)
    if not names:
        raise UserError(
            "the experiment needs backbones: set --config.experiment.backbones=FOLDER, or several "
            "folders, comma-separated"
        )
    _refuse_alike("backbones", names)
    _refuse_alike("evaluate", list(dict.fromkeys([*names, *split_list(config[SECTION].evaluate)])))
    return names


def evaluated(config: ConfigDict) -> list[str]:
    """What to evaluate on: `evaluate` where it is set, and else what is distilled against.

    Raises:
        UserError: As `backbones`.
    """
    names = split_list(config[SECTION].evaluate)
    _refuse_repeated("evaluate", names)
    return names or backbones(config)


def _refuse_alike(key: str, names: Sequence[str]) -> None:
    """Tables and run folders call a backbone by its name, without the folder that it lies in."""
    _refuse_repeated(key, names)
    owners: dict[str, str] = {}
    for name in names:
        other = owners.setdefault(label(name), name)
        if other != name:
            raise UserError(
                f"{other} and {name} are two backbones of one name, {label(name)}, in the tables "
                "of the experiment: rename a folder, or link to it by another name"
            )


def seeds(config: ConfigDict) -> range:
    """Distillation seeds, from `config.seed` on.

    Raises:
        UserError: If there are none.
    """
    count = config[SECTION].seeds
    if count < 1:
        raise UserError(f"config.experiment.seeds must be at least 1, not {count}")
    return range(config.seed, config.seed + count)


def title_of(backbone: str) -> str:
    """A backbone's name in a table."""
    return TITLES.get(backbone, label(backbone))


def distilled_run(
    config: ConfigDict,
    name: str,
    image_set: ImageSet,
    backbone: str,
    seed: int,
    *,
    evaluate: Iterable[str],
    baselines: Sequence[str] = (),
    variant: str = "",
    changes: Mapping[str, Any] | None = None,
    measure: Measure | None = None,
) -> Planned:
    """A run that distils images and probes them.

    Args:
        config: The experiment's config.
        name: Of the set of images.
        image_set: The set.
        backbone: What to distil against; several, comma-separated, are distilled against at once.
        seed: The distillation seed.
        evaluate: What to evaluate on.
        baselines: Rows of real images to evaluate beside.
        variant: What is special about it, in few words.
        changes: Of the config, by dotted key, for that.
        measure: What else to find out.
    """
    stages = ["distill", "probe", *(["baselines"] if baselines else []), "report"]
    return Planned(
        {"set": name, "backbone": _joined(backbone), "variant": variant, "seed": seed},
        {
            **image_set.changes,
            "backbone.name": backbone,
            "eval_backbones": ",".join(evaluate),
            "seed": seed,
            "stages": ",".join(stages),
            **({"baselines": ",".join(baselines)} if baselines else {}),
            **(changes or {}),
        },
        measure,
    )


def real_run(
    config: ConfigDict,
    name: str,
    image_set: ImageSet,
    evaluate: Sequence[str],
    methods: Sequence[str],
    *,
    variant: str = "",
    changes: Mapping[str, Any] | None = None,
) -> Planned:
    """A run that distils nothing and probes real images; see `distilled_run`."""
    return Planned(
        {"set": name, "backbone": "real", "variant": variant},
        {
            **image_set.changes,
            "backbone.name": evaluate[0],
            "eval_backbones": ",".join(evaluate),
            "stages": "baselines,report",
            "baselines": ",".join(methods),
            **(changes or {}),
        },
    )


def select(outcomes: Iterable[Outcome], **axes: Any) -> list[Outcome]:
    """The outcomes that stand where the axes say, in order; a backbone is named as planned."""
    if "backbone" in axes:
        axes["backbone"] = _joined(axes["backbone"])
    return [
        outcome
        for outcome in outcomes
        if all(outcome.axes.get(axis) == value for axis, value in axes.items())
    ]


def cell(outcomes: Sequence[Outcome], method: str, *evaluate: str) -> Cell:
    """The accuracy of a method over seeds, on one backbone or on the average over several."""
    by_seed = [[outcome.accuracy(method, name) for name in evaluate] for outcome in outcomes]
    return summarize(by_seed, distilled=method in ("distilled", "neighbors"))


def _joined(backbone: str) -> str:
    return "+".join(label(name) for name in split_list(backbone))
