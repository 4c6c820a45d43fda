"""Backbones without their weights, for plans."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lgm_jax import backbones, distill, flops
from lgm_jax.backbones.network import Network
from lgm_jax.settings import split_list


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """A backbone, for images of `resolution` pixels, whose parameters are shapes and types."""

    spec: Network
    resolution: int
    apply: distill.Apply
    params: Any

    @property
    def feature_dim(self) -> int:
        return self.spec.feature_dim

    @functools.cached_property
    def flops(self) -> tuple[float, float]:
        """Operations of the products of an image: forward, and backward with frozen weights."""

        def total(images: Any, params: Any) -> Any:
            return jnp.sum(self.apply(params, images))

        image = jax.ShapeDtypeStruct((1, self.resolution, self.resolution, 3), jnp.float32)
        forward = flops.count(total, image, self.params)
        return forward, flops.count(jax.grad(total), image, self.params) - forward


def make_outlines(config: ConfigDict, device: Any = None) -> list[Outline]:
    """Outlines the backbones that a config distils against.

    Args:
        device: A device that they are for; by default, attention is that of every device.
    """
    crop, outlines = config.images.crop, []
    for name in split_list(config.backbone.name):
        outline = _outline(
            os.path.expanduser(name),
            dtype=config.backbone.dtype,
            params_dtype=config.backbone.params_dtype,
            pooling=config.backbone.pooling,
            attention="xla" if device is None else config.backbone.attention,
            resolution=crop,
            resize=config.backbone.resize,
            device=device,
        )
        outlines.append(outline)
        crop = outlines[0].resolution
    return outlines


@functools.lru_cache
def _outline(name: str, **options: Any) -> Outline:
    return Outline(*backbones.outline(name, **options))
