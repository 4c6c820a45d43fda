"""The paper's recipes: one of its backbones, one of its sets of images.

    python launch.py --config=configs/paper.py:MODEL,IMAGES --workdir=runs/NAME
    python launch.py --config=configs/paper.py:dinov2,cub,authors_2026,cached --workdir=runs/NAME

`MODEL` is one of `MODELS`; `IMAGES` one of `IMAGES` of `lgm_jax/experiments/paper.py`, which has
what the paper says of each. Behind them, in any order: a preset (`paper` where none is named,
`authors_2025`, `authors_2026`); `cached`, to compute features of one view of each real image once
in place of reading new images at every step, or `sfm`, for statistical flow matching as its own
authors do it; `quick`, to see that it runs: a few steps, on ten classes at most, beside random real
images alone, since the other baselines embed all.

docs/recipes.md has a table of the sets, with their data, cost and accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import common
from lgm_jax.data import imagenet
from lgm_jax.data.sources import known_size
from lgm_jax.errors import UserError
from lgm_jax.experiments.paper import IMAGES, PRESET_BACKBONES, PRESETS, SHARED
from lgm_jax.experiments.paper import SFM as SFM_VALUES

CACHED, SFM, QUICK = "cached", "sfm", "quick"

# Of a quick test, whose time is that of embedding images.
_QUICK_CLASSES = 10


class Model(NamedTuple):
    """A backbone of the paper: its registered name, and its title in text."""

    backbone: str
    title: str


MODELS: Mapping[str, Model] = {
    "clip": Model("clip_vitb16", "CLIP ViT-B/16"),
    "dinov2": Model("dinov2_vitb14", "DINOv2 ViT-B/14"),
    "eva02": Model("eva02_vitb14", "EVA-02 ViT-B/14"),
    "mocov3": Model("mocov3_vitb16", "MoCo-v3 ViT-B/16"),
    "dino": Model("dino_vitb16", "DINO ViT-B/16"),
}
"""The paper compares all but DINO (v1), of which it shows images of ArtBench."""


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe of a model and a set of images.

    Raises:
        UserError: If one of the two is missing, a word is unknown, or two exclude each other.
    """
    groups = (tuple(MODELS), tuple(IMAGES), tuple(PRESETS), (CACHED, SFM), (QUICK,))
    model, images, *words = common.parse_args(None if arg == "help" else arg, *groups)
    if not (model and images):
        raise UserError(
            f"configs/paper.py:MODEL,IMAGES takes a model of {', '.join(MODELS)}; images of "
            f"{', '.join(IMAGES)}; and, if you like, a preset of {', '.join(PRESETS)}, {CACHED} "
            f"or {SFM}, and {QUICK}: see docs/recipes.md"
        )
    return recipe(model, images, ",".join(filter(None, words)))


def recipe(model: str, images: str, arg: str | None = None) -> ConfigDict:
    """The recipe of one of `MODELS` and one of `IMAGES`.

    Raises:
        UserError: If a word of `arg` is unknown, or two are presets.
    """
    preset, real, quick = common.parse_args(arg, tuple(PRESETS), (CACHED, SFM), (QUICK,))
    chosen, backbone = IMAGES[images], MODELS[model].backbone
    config = shared(preset or "paper")
    config.copies = chosen.copies
    config.data.update(name=chosen.name, subset=chosen.subset)
    config.backbone.name = PRESET_BACKBONES.get(preset, {}).get(backbone, backbone)
    if real == CACHED:
        config.real.source = "cached"
        config.data.placement = "auto"
    if real == SFM:
        config.update_from_flattened_dict(dict(SFM_VALUES))
    if quick:
        config.baselines = "random"
        size = known_size(chosen.name, chosen.subset)
        if size is not None and size.classes > _QUICK_CLASSES:
            classes = imagenet.SUBSETS.get(chosen.subset, range(size.classes))
            config.data.subset = ",".join(map(str, classes[:_QUICK_CLASSES]))
        common.shrink(config)
    return config


def shared(preset: str) -> ConfigDict:
    """Returns the config that all recipes of a preset share."""
    config = common.get_config()
    config.update_from_flattened_dict(dict(SHARED) | dict(PRESETS[preset]))
    return config
