"""Backbones without their weights: what plans know of them."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

from ml_collections import ConfigDict

from lgm_jax import backbones, distill
from lgm_jax.backbones.network import Network
from lgm_jax.settings import split_list


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """A backbone without its weights: of its parameters only shapes and types are known."""

    spec: Network
    apply: distill.Apply
    params: Any

    @property
    def feature_dim(self) -> int:
        return self.spec.feature_dim


def make_outlines(config: ConfigDict, device: Any = None) -> list[Outline]:
    """The backbones that a config distils against, without their weights.

    Args:
        config: A checked config.
        device: One of those that they are for; by default attention is computed as on any.

    Raises:
        UserError: If one is not known well enough.
    """
    crop, outlines = config.images.crop, []
    for name in split_list(config.backbone.name):
        outlines.append(
            _outline(
                os.path.expanduser(name),
                config.backbone.dtype,
                config.backbone.params_dtype,
                config.backbone.pooling,
                crop,
                "xla" if device is None else config.backbone.attention,
                device,
            )
        )
        crop = outlines[0].spec.resolution
    return outlines


@functools.lru_cache
def _outline(
    name: str, dtype: str, params_dtype: str, pooling: str, crop: int | None, kernel: str, on: Any
) -> Outline:
    found = backbones.outline(
        name,
        dtype=dtype,
        params_dtype=params_dtype,
        attention=kernel,
        pooling=pooling,
        resolution=crop,
        device=on,
    )
    return Outline(*found)
