"""Positions of patches that are computed: rotary ones, EVA-02's and DINOv3's, and AIMv2's sines.

Half of a head's dimensions turn with a patch's row, half with its column. The conventions differ in
how a patch's place is counted and in which two dimensions turn together.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lgm_jax.backbones.network import Checked

Layout = Literal["interleaved", "half"]
Grid = Literal["index", "centered"]
Tables = tuple[Float[Array, "n e"], Float[Array, "n e"]]


@dataclasses.dataclass(frozen=True)
class Rotary(Checked):
    """A convention.

    Attributes:
        layout: Dimensions that turn together: neighbours (`interleaved`, timm's EVA), or one from
            each half of the head (`half`, DINOv3).
        grid: A patch's place: its index, scaled to the `reference` grid (`index`, timm's EVA), or
            its centre between -1 and 1, times 2 pi (`centered`, DINOv3).
        base: The slowest turn takes about `base` times as long as the fastest.
        reference: For `index`: patches along one side in pre-training; 0 for as many as there are.
        columns_first: Whether the first half of a head turns with the column, as in PE-Core.
    """

    layout: Layout
    grid: Grid
    base: float
    reference: int = 0
    offset: int = 0
    columns_first: bool = False


def rotary_tables(rotary: Rotary, grid: int, head_width: int, num_prefix: int) -> Tables:
    """Cosines and sines for each token and each dimension of a head; its width is divisible by 4.

    The tokens before the first patch do not turn.

    Source: timm's `RotaryEmbeddingCat`, transformers' `DINOv3ViTRopePositionEmbedding`.
    """
    quarter = head_width // 4
    frequencies = rotary.base ** -(np.arange(quarter) / quarter)
    if rotary.grid == "index":
        places = (np.arange(grid) + rotary.offset) * ((rotary.reference or grid) / grid)
    else:
        places = 2 * math.pi * (2 * (np.arange(grid) + 0.5) / grid - 1)
    rows, columns = np.meshgrid(places, places, indexing="ij")
    axes = (columns, rows) if rotary.columns_first else (rows, columns)
    turns = [np.outer(axis.ravel(), frequencies) for axis in axes]
    angles = np.concatenate(turns, axis=-1)
    interleaved = rotary.layout == "interleaved"
    angles = np.repeat(angles, 2, axis=-1) if interleaved else np.tile(angles, 2)
    angles = np.concatenate([np.zeros((num_prefix, head_width)), angles])
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def sines(grid: int, width: int) -> Float[Array, "1 n d"]:
    """Returns AIMv2's sine positions of patches, row by row: the column's part, then the row's.

    Source: transformers' `Aimv2VisionEmbeddings`.
    """
    quarter = width // 4
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    frequencies = 10000.0 ** -(np.arange(quarter) / quarter)
    angles = [np.outer(axis.ravel(), frequencies) for axis in (columns, rows)]
    parts = [turn(axis) for axis in angles for turn in (np.sin, np.cos)]
    return jnp.asarray(np.concatenate(parts, axis=-1)[None], jnp.float32)


def rotate(
    x: Float[Array, "b n heads e"],
    cosines: Float[Array, "n e"],
    sines: Float[Array, "n e"],
    layout: Layout,
) -> Float[Array, "b n heads e"]:
    """Turns each pair of dimensions of queries or keys by their token's angles."""
    if layout == "interleaved":
        turned = jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    else:
        first, second = jnp.split(x, 2, axis=-1)
        turned = jnp.concatenate([-second, first], axis=-1)
    cosines, sines = cosines[None, :, None, :], sines[None, :, None, :]
    # In float32: angles in bfloat16 would be off by whole percents of a turn.
    return (x * cosines + turned * sines).astype(x.dtype)
