"""What experiments range over: sets of images, backbones, seeds; and the runs along these axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lgm_jax.errors import UserError, unknown_name
from lgm_jax.experiments.result import Cell, summarize
from lgm_jax.experiments.runner import SECTION, Measure, Outcome, Planned, label
from lgm_jax.session import split_list

# As the paper names them.
TITLES: Mapping[str, str] = {
    "clip_vitb16": "CLIP",
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

_PAPER, _EMBEDDED = "paper", ("embedded", "quick")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of images that experiments know by name.

    Attributes:
        title: As the paper writes it.
        changes: Of the config, by dotted key.
        most_copies: Augmentations of each synthetic image, at most.
    """

    title: str
    changes: Mapping[str, Any]
    most_copies: int | None = None


SETS: Mapping[str, ImageSet] = {
    # From TFDS or from ImageNet's folders, as `data.name` says.
    "imagenet-100": ImageSet("ImageNet-100", {"data.subset": "imagenet-100"}),
    "imagenet-1k": ImageSet("ImageNet-1k", {"data.subset": ""}, most_copies=3),
    "imagenet-fruits": ImageSet("ImageNet-Fruits", {"data.subset": "imagenet-fruits"}),
    "dogs": ImageSet("Stanford Dogs", {"data.name": "stanford_dogs"}),
    "cub": ImageSet("CUB-200-2011", {"data.name": "caltech_birds2011"}),
    "flowers": ImageSet("Flowers-102", {"data.name": "oxford_flowers102"}),
    "food": ImageSet("Food-101", {"data.name": "food101"}),
    "spawrious": ImageSet("Spawrious", {"data.name": "spawrious_o2o_hard"}),
    "waterbirds": ImageSet("Waterbirds", {"data.name": "waterbirds"}),
    "digits": ImageSet("digits", {"data.name": "digits"}),
    # Digits that are taken for each other: of round strokes, and of straight ones.
    "digits-round": ImageSet(
        "digits 3, 5, 8, 9", {"data.name": "digits", "data.subset": "three,five,eight,nine"}
    ),
    "digits-straight": ImageSet(
        "digits 1, 4, 7", {"data.name": "digits", "data.subset": "one,four,seven"}
    ),
    # Tints are colours, and so must images be.
    "digits-spurious": ImageSet(
        "digits on misleading tints", {"data.name": "digits_spurious", "images.grey": False}
    ),
    "given": ImageSet("the given images", {}),
}


def sets(config: ConfigDict) -> dict[str, ImageSet]:
    """The sets of images of an experiment, by name.

    Raises:
        UserError: If one is unknown, or if folders are given for others than the sets.
    """
    names, folders = split_list(config[SECTION].sets), split_list(config[SECTION].folders)
    if folders and len(folders) != len(names):
        raise UserError(
            f"config.experiment.folders has {len(folders)} folders for the {len(names)} sets of "
            "config.experiment.sets; give one each"
        )
    found = {}
    for i, name in enumerate(names):
        if name not in SETS:
            raise unknown_name("set", name, list(SETS))
        found[name] = SETS[name]
        if folders:
            changes = {**SETS[name].changes, "data.folder": folders[i]}
            found[name] = dataclasses.replace(SETS[name], changes=changes)
    return found


def backbones(config: ConfigDict) -> list[str]:
    """What to distil against, one at a time.

    Raises:
        UserError: If none is named.
    """
    names = split_list(config[SECTION].backbones)
    if not names:
        raise UserError(
            "the experiment needs backbones: set --config.experiment.backbones=FOLDER, or several "
            "folders, comma-separated"
        )
    return names


def evaluated(config: ConfigDict) -> list[str]:
    """What to evaluate on: `evaluate` where it is set, and else what is distilled against."""
    return split_list(config[SECTION].evaluate) or backbones(config)


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


def is_papers(config: ConfigDict) -> bool:
    """Whether our numbers and the paper's are of the same data and backbones."""
    return config[SECTION].scale == _PAPER


def note_of(config: ConfigDict) -> str:
    """What a reader must know of the data."""
    scale = config[SECTION].scale
    if scale in _EMBEDDED:
        quick = (
            "A quick test of everything, whose numbers mean nothing. " if scale == "quick" else ""
        )
        return (
            f"{quick}Embedded data and backbones, not the paper's: handwritten digits at 32 px and "
            "small Vision Transformers that were trained on them."
        )
    if not is_papers(config):
        return "Data and backbones are not the paper's."
    return "Data and backbones are the paper's."


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
    copies = image_set.most_copies
    return Planned(
        {"set": name, "backbone": _joined(backbone), "variant": variant, "seed": seed},
        {
            **image_set.changes,
            **({"copies": min(copies, config.copies)} if copies else {}),
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
