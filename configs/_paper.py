"""What the paper (arXiv 2511.16674) says: images, models and hyperparameters, as literal tables.

Not meant to be run by itself; `_recipes.py` makes configs of it, `tools/write_recipes.py` files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lgm_jax.experiments import paper


class Model(NamedTuple):
    """A backbone of the paper: its registered name, and what it is called in text."""

    backbone: str
    title: str


class Images(NamedTuple):
    """Images of the paper.

    Attributes:
        title: What they are called in text.
        name: `config.data.name`.
        subset: `config.data.subset`.
        copies: Augmentations of each synthetic image in a step.
        table: Where the paper has accuracies, if it does.
        took: What distillation took the authors, where they say so.
        full_augment: `config.probe.full_augment`: `none` where decoded training images are more
            than memory is to hold.
    """

    title: str
    name: str
    subset: str = ""
    copies: int = 10
    table: str = ""
    took: str = ""
    full_augment: str = "fresh"


MODELS: Mapping[str, Model] = {
    "clip": Model("clip_vitb16", "CLIP ViT-B/16"),
    "dinov2": Model("dinov2_vitb14", "DINOv2 ViT-B/14"),
    "eva02": Model("eva02_vitb14", "EVA-02 ViT-B/14"),
    "mocov3": Model("mocov3_vitb16", "MoCo-v3 ViT-B/16"),
    "dino": Model("dino_vitb16", "DINO ViT-B/16"),
}
"""By the first part of a recipe's name. The paper has DINO (v1) for ArtBench alone."""

COMPARED = ("clip", "dinov2", "eva02", "mocov3")
"""The models of the paper's tables, in the order of their columns."""

_TEN = "about 30 minutes on one RTX 4090, for ImageNet-Birds"

IMAGES: Mapping[str, Images] = {
    "in1k": Images(
        "ImageNet-1k", "imagenet2012", "", 3, "Table 1", "about 12 hours on four H200", "none"
    ),
    "in100": Images(
        "ImageNet-100",
        "imagenet2012",
        "imagenet-100",
        table="Table 1",
        took="about 3 hours on one H200",
        full_augment="none",
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
    "food": Images("Food-101", "food101", table="Table B.1", full_augment="none"),
    "artbench": Images("ArtBench-10", "artbench", full_augment="none"),
    "spawrious": Images("Spawrious (o2o hard)", "spawrious_o2o_hard", table="Table 4"),
    "waterbirds": Images("Waterbirds", "waterbirds", table="Table 4"),
}
"""By the second part of a recipe's name."""

_SETS = {"in1k": "imagenet-1k", "in100": "imagenet-100"}

ACCURACY: Mapping[str, Mapping[str, paper.Row]] = {
    name: paper.ACCURACY[_SETS.get(name, name)] for name, images in IMAGES.items() if images.table
}
"""By images and row: mean and std of top-1 in percent, one image per class, for each model of
`COMPARED`, and last the paper's mean over them; the numbers are in `lgm_jax/experiments/paper.py`,
where experiments have them from too."""

SHARED: Mapping[str, Any] = {
    "ipc": 1,
    "learning_rate": 0.002,
    "head_std": 0.01,
    "images.kind": "pyramid",
    "images.init": "noise",
    "images.decorrelate": True,
    "images.start_resolution": 1,
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
    "probe.runs": 5,
    "probe.augment": "fresh",
}
"""Config keys that are the same for all: the paper's text and the code agree, or the text is silent
and the code decides. So it does of the head: the text has a std of 1 in one place and PyTorch's
default for a linear layer in another, the code 0.01. The code computes in float16; bfloat16 has no
need of a scale for the loss."""

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
"""What differs: the paper's text, the code as it was published in November 2025 (commit 1d84ffd),
and the code since 31 March 2026 (33d004b)."""

PRESET_BACKBONES: Mapping[str, Mapping[str, str]] = {"authors_2025": {"clip": "clip_vitb32"}}
"""Until 25 December 2025 (add2069) the authors' code loaded ViT-B/32 by the name of B/16. Which of
them the paper's numbers are of is not said."""


def accuracy(images: str, model: str, row: str) -> str | None:
    """Mean and std as the paper prints them; `None` where it has no number.

    Args:
        images: One of `IMAGES`.
        model: One of `MODELS`.
        row: `distilled` or a baseline, as in `ACCURACY`.
    """
    if images not in ACCURACY or model not in COMPARED:
        return None
    mean, std = ACCURACY[images][row][COMPARED.index(model)]
    return f"{mean:.1f} ± {std:.1f}"
