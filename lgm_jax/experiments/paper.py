"""The images and hyperparameters of the paper (arXiv 2511.16674), as literal tables.

Recipes and experiments use them. The paper's accuracies are in `paper.csv`: see `published.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Images(NamedTuple):
    """Images of the paper.

    Attributes:
        title: Their name in text.
        name: `config.data.name`.
        subset: `config.data.subset`.
        copies: Augmentations of each synthetic image in a step.
        table: The table of the paper's accuracies, if there is one.
        took: The time of the authors' distillation, where they report it.
    """

    title: str
    name: str
    subset: str = ""
    copies: int = 10
    table: str = ""
    took: str = ""


BACKBONES = ("clip_vitb16", "dinov2_vitb14", "eva02_vitb14", "mocov3_vitb16")
"""The backbones that the paper compares, in the order of its columns."""

_TEN = "about 30 minutes on one RTX 4090, for ImageNet-Birds"

IMAGES: Mapping[str, Images] = {
    "in1k": Images("ImageNet-1k", "imagenet2012", "", 3, "Table 1", "about 12 hours on four H200"),
    "in100": Images(
        "ImageNet-100",
        "imagenet2012",
        "imagenet-100",
        table="Table 1",
        took="about 3 hours on one H200",
    ),
    "birds": Images("ImageNet-Birds", "imagenet2012", "imagenet-birds", took=_TEN),
    "fruits": Images("ImageNet-Fruits", "imagenet2012", "imagenet-fruits", took=_TEN),
    "cats": Images("ImageNet-Cats", "imagenet2012", "imagenet-cats", took=_TEN),
    "imagenette": Images("Imagenette", "imagenette", took=_TEN),
    "imagewoof": Images("Imagewoof", "imagenet2012", "imagewoof", took=_TEN),
    **{
        f"in10_{letter}": Images(
            f"the ten classes of ImageNet called {letter.upper()}",
            "imagenet2012",
            f"imagenet-{letter}",
            took=_TEN,
        )
        for letter in "abcde"
    },
    "cub": Images("CUB-200-2011", "caltech_birds2011", table="Table 5"),
    "dogs": Images("Stanford Dogs", "stanford_dogs", table="Table 5"),
    "flowers": Images("Flowers-102", "oxford_flowers102", table="Table B.1"),
    "food": Images("Food-101", "food101", table="Table B.1"),
    "artbench": Images("ArtBench-10", "artbench"),
    "spawrious": Images("Spawrious (o2o hard)", "spawrious_o2o_hard", table="Table 4"),
    "waterbirds": Images("Waterbirds", "waterbirds", table="Table 4"),
}
"""By the second part of a recipe's name."""

SHARED: Mapping[str, Any] = {
    "ipc": 1,
    "objective": "lgm",
    "schedule": "constant",
    "labels": "hard",
    "augment.distill": True,
    "augment.center_crops": 0,
    "augment.real": True,
    "learning_rate": 0.002,
    "head_std": 0.01,
    "images.kind": "pyramid",
    "images.init": "noise",
    "images.decorrelate": True,
    "images.start_resolution": 1,
    # A checkpoint of DINOv2 in a folder says 518.
    "images.crop": 224,
    "augment.crops": "beyond",
    # Of 5,000 steps: a level of 256 px every 200, and 200 of 5,001.
    "images.grow_until": 0.32,
    "backbone.dtype": "bfloat16",
    "backbone.normalization": "imagenet",
    "backbone.position_offset": 0.1,
    "real.source": "stream",
    "data.placement": "host",
    "data.crop": "auto",
    "data.sampling": "shuffle",
    "probe.solver": "adam",
    "probe.epochs": 1000,
    "probe.full_epochs": 100,
    "probe.batch": 100,
    "probe.full_batch": 128,
    "probe.learning_rate": 0.001,
    "probe.decay": "epoch",
    "probe.drop_last": True,
    "probe.runs": 5,
    "probe.ddof": 0,
    "probe.augment": "fresh",
    "probe.split": "test",
}
"""Config values of all presets: the paper's text and the code agree, or the text is silent and the
code decides. The code also decides the std of the head, for which the text has 1 in one place and
PyTorch's default for a linear layer in another, the code 0.01; and the law of random crops. The
code computes in float16; bfloat16 needs no scale for the loss."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "steps": 5000,
        "augment.preset": "paper",
        "images.grow_delay": 0,
        "probe.noise": True,
    },
    "authors_2025": {
        "steps": 5001,
        "augment.preset": "authors_2025",
        "images.grow_delay": 1,
        "probe.noise": False,
    },
    "authors_2026": {
        "steps": 5001,
        "augment.preset": "paper",
        "images.grow_delay": 1,
        "probe.noise": False,
    },
}
"""Config values that differ: of the paper's text, of the code as published in November 2025 (commit
1d84ffd), and of the code since 31 March 2026 (33d004b)."""

SFM: Mapping[str, Any] = {
    "objective": "sfm",
    "copies": 1,
    "real.source": "exact",
    "augment.real": False,
    "data.placement": "auto",
    "probe.full_epochs": 10,
    "probe.runs": 3,
}
"""Config values of statistical flow matching (arXiv 2602.05391), as in its public code
(einsteinxia/SFM, cb0746a): class means of centre crops, one augmentation of each synthetic image in
a step. That code is built on the one that `PRESETS` are of, and shares the other values."""

PRESET_BACKBONES: Mapping[str, Mapping[str, str]] = {"authors_2025": {"clip_vitb16": "clip_vitb32"}}
"""Replacements of `BACKBONES`. Until 25 December 2025 (add2069) the authors' code loaded B/32 by
the name of B/16. Neither says which of the two the paper's numbers are of."""


def backbones(preset: str) -> list[str]:
    """Returns the backbones that a preset compares, in the order of the paper's columns."""
    instead = PRESET_BACKBONES.get(preset, {})
    return [instead.get(name, name) for name in BACKBONES]
