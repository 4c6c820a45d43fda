"""What the paper's recipes are called, and the accuracies to write beside them.

Not meant to be run by itself; `_recipes.py` makes configs of it, `tools/write_recipes.py` files.
What the paper says is in `lgm_jax/experiments/paper.py`, for experiments too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lgm_jax.experiments import paper
from lgm_jax.experiments.paper import IMAGES, PRESET_BACKBONES, PRESETS, SHARED

__all__ = [
    "ACCURACY",
    "COMPARED",
    "IMAGES",
    "MODELS",
    "PRESETS",
    "PRESET_BACKBONES",
    "SHARED",
    "Model",
    "accuracy",
]


class Model(NamedTuple):
    """A backbone of the paper: its registered name, and what it is called in text."""

    backbone: str
    title: str


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

_SETS = {"in1k": "imagenet-1k", "in100": "imagenet-100"}

ACCURACY: Mapping[str, Mapping[str, paper.Row]] = {
    name: paper.ACCURACY[_SETS.get(name, name)] for name, images in IMAGES.items() if images.table
}
"""By images and row: mean and std of top-1 in percent, one image per class, for each model of
`COMPARED`, and last the paper's mean over them."""


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
