"""The names we know, and how a checkpoint's own `config.json` becomes a spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgm_jax.backbones.vit import Pool, ViTSpec
from lgm_jax.errors import UserError, unknown_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_WEIGHTS = Path(__file__).parent / "weights"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A backbone that can be loaded by name.

    Attributes:
        folder: Where its `config.json` and `model.safetensors` lie.
        summary: What it is, in one line.
    """

    folder: Path
    summary: str


NAMES: Mapping[str, Entry] = {
    "digits_contrastive": Entry(
        _WEIGHTS / "digits_contrastive",
        "0.8 M parameters, 32 px, trained on handwritten digits in the manner of MoCo-v3",
    ),
    "digits_distilled": Entry(
        _WEIGHTS / "digits_distilled",
        "0.8 M parameters, 32 px, trained on handwritten digits in the manner of DINO",
    ),
}


def _sizes(patch_size: int, embed_dim: int, depth: int, num_heads: int) -> Mapping[str, int]:
    return {
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
    }


# Keyword arguments of timm.create_model that describe a plain ViT; values as in timm's registry.
_TIMM_ARCHITECTURES: Mapping[str, Mapping[str, int]] = {
    "vit_tiny_patch16_224": _sizes(16, 192, 12, 3),
    "vit_small_patch16_224": _sizes(16, 384, 12, 6),
    "vit_base_patch16_224": _sizes(16, 768, 12, 12),
    "vit_large_patch16_224": _sizes(16, 1024, 24, 16),
}
_TIMM_POOLS: Mapping[str, Pool] = {"token": "cls", "avg": "mean"}
_TIMM_ARGUMENTS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Per-channel statistics that a backbone subtracts from and divides images in [0, 1] by."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def from_timm(config: Mapping[str, Any]) -> tuple[ViTSpec, Preprocessing]:
    """Reads timm's `config.json` (`architecture`, `model_args`, `pretrained_cfg`).

    Returns:
        The spec, and the mean and std the weights were trained with (ImageNet's if unsaid).

    Raises:
        UserError: For an architecture or a model argument that is not supported.
    """
    architecture = config["architecture"]
    if architecture not in _TIMM_ARCHITECTURES:
        raise unknown_name("timm architecture", architecture, list(_TIMM_ARCHITECTURES))
    pretrained = config.get("pretrained_cfg", {})
    arguments = {"img_size": pretrained.get("input_size", (3, 224, 224))[-1], "mlp_ratio": 4}
    arguments |= _TIMM_ARCHITECTURES[architecture]
    extra = dict(config.get("model_args", {}))
    pool = extra.pop("global_pool", config.get("global_pool", "token"))
    extra.pop("num_classes", None)
    # timm itself writes these two in full: 3, and (height, width).
    if extra.pop("in_chans", 3) != 3:
        raise UserError("a backbone that does not take three channels is not supported")
    if isinstance(extra.get("img_size"), list):
        height, width = extra["img_size"]
        if height != width:
            raise UserError(f"a backbone for images of {height} x {width} px is not supported")
        extra["img_size"] = height
    for name, value in extra.items():
        if name not in _TIMM_ARGUMENTS:
            raise unknown_name("timm model argument", name, list(_TIMM_ARGUMENTS), "supported")
        arguments[name] = value
    if pool not in _TIMM_POOLS:
        raise unknown_name("timm pooling", str(pool), list(_TIMM_POOLS), "supported")
    if arguments["img_size"] % arguments["patch_size"]:
        raise UserError(
            f"a patch of {arguments['patch_size']} px does not divide an image of "
            f"{arguments['img_size']} px"
        )
    if arguments["embed_dim"] % arguments["num_heads"]:
        raise UserError(
            f"{arguments['num_heads']} heads do not divide a width of {arguments['embed_dim']}"
        )
    spec = ViTSpec(
        resolution=arguments["img_size"],
        patch=arguments["patch_size"],
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        heads=arguments["num_heads"],
        mlp_width=int(arguments["embed_dim"] * arguments["mlp_ratio"]),
        pool=_TIMM_POOLS[pool],
    )
    mean = tuple(pretrained.get("mean", IMAGENET_MEAN))
    std = tuple(pretrained.get("std", IMAGENET_STD))
    return spec, Preprocessing(mean, std)
