"""Bilinear and bicubic resampling as small dense matrices, equal to PyTorch's.

An image is resampled separably by one (out, in) matrix per axis. A row holds the hat function
relu(1 - |x|) around the place in the input that the output pixel's centre falls on. Two matrix
products take the place of gathers, whose gradients are scatter-adds: slow on TPUs and
non-deterministic on GPUs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def crop_matrix(
    start: Float[Array, ""], size: Float[Array, ""], in_size: int, out_size: int
) -> Float[Array, "out in"]:
    """Returns a matrix that resamples an interval of one axis, as `grid_sample` with zero padding.

    Args:
        start: Beginning of the interval, as a fraction of the axis.
        size: Its signed length, as a fraction of the axis; a negative one runs backwards (a flip).
        in_size: Pixels of the axis.
        out_size: Pixels of the result. No antialiasing, as in `grid_sample`.

    Returns:
        Rows of hat-function weights. They are not renormalised at the edges: a pixel beyond the
        first or last centre is blended with black, as PyTorch's zero padding does.
    """
    start, size = at_least_float32(jnp.asarray(start)), at_least_float32(jnp.asarray(size))
    dtype = jnp.result_type(start, size)
    centers = (jnp.arange(out_size, dtype=dtype) + 0.5) / out_size
    places = (start + size * centers) * in_size - 0.5
    return _hat(places, in_size)


def enlarge_matrix(
    in_size: int, out_size: int, dtype: DTypeLike = jnp.float32
) -> Float[Array, "out in"]:
    """Returns a matrix that enlarges an axis, as `F.interpolate(mode="bilinear")`.

    `align_corners` is False. Places beyond the first or last pixel's centre are clamped to it, so
    that every row sums to one.

    Args:
        in_size: Pixels of the axis.
        out_size: Pixels of the result.
        dtype: Type of the weights, which are computed in float32 at least.
    """
    centers = (jnp.arange(out_size, dtype=jnp.promote_types(dtype, jnp.float32)) + 0.5) / out_size
    return _hat(jnp.clip(centers * in_size - 0.5, 0, in_size - 1), in_size).astype(dtype)


def bicubic_matrix(
    in_size: int, out_size: int, *, antialias: bool = False, offset: float = 0.0
) -> Float[np.ndarray, "out in"]:
    """Returns a matrix that resizes an axis, as `F.interpolate(mode="bicubic")`.

    `align_corners` is False. Vision Transformers resize their positions so. `jax.image.resize` has
    another cubic and antialiases by default.

    Args:
        in_size: Pixels of the axis.
        out_size: Pixels of the result.
        antialias: As in `F.interpolate`: widens the filter when shrinking, takes a cubic with
            a = -0.5 in place of -0.75, and renormalises at the edges in place of clamping.
        offset: Added to `out_size` where the scale is computed, as by
            `F.interpolate(scale_factor=(out_size + offset) / in_size)`.

    Returns:
        Rows of weights, float64.
    """
    scale = in_size / (out_size + offset)
    width = max(scale, 1.0) if antialias else 1.0
    centers = (np.arange(out_size) + 0.5) * scale - 0.5
    if antialias:
        distance = (np.arange(in_size)[None, :] - centers[:, None]) / width
        weights = _cubic(distance, -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    first = np.floor(centers).astype(int) - 1
    matrix = np.zeros((out_size, in_size))
    for tap in range(4):
        column = first + tap
        weights = _cubic(column - centers, -0.75)
        np.add.at(matrix, (np.arange(out_size), np.clip(column, 0, in_size - 1)), weights)
    return matrix


def resample(
    image: Float[Array, "h w c"], rows: Float[Array, "out_h h"], columns: Float[Array, "out_w w"]
) -> Float[Array, "out_h out_w c"]:
    """Applies one matrix per axis to an image, in float32 at least."""
    arrays = map(at_least_float32, (rows, columns, image))
    return jnp.einsum("yh,xw,hwc->yxc", *arrays, precision=Precision.HIGHEST, optimize="greedy")


def at_least_float32(array: Array) -> Array:
    """Returns an array in its own precision, or in float32 if that is higher."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _hat(places: Float[Array, " out"], in_size: int) -> Float[Array, "out in"]:
    distance = jnp.abs(places[:, None] - jnp.arange(in_size, dtype=places.dtype)[None, :])
    return jax.nn.relu(1 - distance)
