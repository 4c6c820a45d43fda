"""Crops and enlargements against `grid_sample` and `interpolate`."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lgm_jax.augment import crop_and_flip
from lgm_jax.resample import bicubic_matrix, enlarge_matrix, resample

# Largest error over values of size ~1; measured errors beside each tolerance.
TOLERANCES = {
    "float64": 1e-10,  # enlargements 2.7e-15, crops 6.7e-15
    "float32": 5e-5,  # enlargements 1.7e-6, crops 3.1e-6
}


@pytest.fixture(params=TOLERANCES)
def precision(request):
    """The name of a dtype, inside a context in which JAX has it."""
    wide = jax.enable_x64(True) if request.param == "float64" else contextlib.nullcontext()
    with wide:
        yield request.param


def assert_near(ours: jax.Array, theirs: torch.Tensor, precision: str) -> None:
    """Channels-last ours, one channels-first image of theirs; both really of that precision."""
    assert ours.dtype == np.dtype(precision)
    assert theirs.dtype == getattr(torch, precision)
    expected = theirs[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCES[precision])


def to_torch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("small", "large"), [(1, 8), (2, 224), (128, 256), (7, 30)])
def test_enlarging_is_interpolate(small, large, precision):
    image = np.random.default_rng(small).normal(size=(small, small, 3)).astype(precision)
    matrix = enlarge_matrix(small, large, precision)
    ours = resample(jnp.asarray(image), matrix, matrix)
    theirs = F.interpolate(
        to_torch(image), size=(large, large), mode="bilinear", align_corners=False
    )
    assert_near(ours, theirs, precision)


@pytest.mark.parametrize("side", [(16, 16, 16), (32, 32, 20), (13, 21, 24)])
def test_crop_and_flip_is_grid_sample(side, precision):
    height, width, out = side
    rng = np.random.default_rng(out)
    run = jax.jit(crop_and_flip, static_argnums=3)
    for number in range(24):
        image = rng.uniform(size=(height, width, 3)).astype(precision)
        size = rng.uniform(0.2, 1, size=2) if number else np.ones(2)
        box = np.concatenate([rng.uniform(size=2) * (1 - size), size]).astype(precision)
        flip = number % 2
        ours = run(jnp.asarray(image), jnp.asarray(box), jnp.asarray(flip, precision), out)

        # Their coordinates run from -1 to 1 from edge to edge, x before y.
        top, left, tall, wide = (float(value) for value in box)
        sign = -1 if flip else 1
        theta = [[sign * wide, 0, 2 * left + wide - 1], [0, tall, 2 * top + tall - 1]]
        theta = torch.tensor([theta], dtype=getattr(torch, precision))
        grid = F.affine_grid(theta, [1, 3, out, out], align_corners=False)
        theirs = F.grid_sample(
            to_torch(image), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        assert_near(ours, theirs, precision)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [(37, 16), (16, 37), (14, 24), (5, 3), (3, 10), (7, 7)])
def test_bicubic_is_interpolates(old, new, antialias):
    grid = np.random.default_rng(0).normal(size=(old, old))
    expected = F.interpolate(
        torch.tensor(grid)[None, None],
        size=(new, new),
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )[0, 0]
    matrix = bicubic_matrix(old, new, antialias=antialias)
    # Measured: 4e-15.
    np.testing.assert_allclose(matrix @ grid @ matrix.T, expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(37, 16), (16, 37), (5, 3)])
def test_an_offset_is_interpolates_scale_factor(old, new):
    """As DINOv2's own code resizes its positions; sizes are rounded down."""
    grid = np.random.default_rng(0).normal(size=(old, old))
    expected = F.interpolate(
        torch.tensor(grid)[None, None],
        scale_factor=(new + 0.1) / old,
        mode="bicubic",
        align_corners=False,
    )[0, 0]
    matrix = bicubic_matrix(old, new, offset=0.1)
    # Measured: 4e-15.
    np.testing.assert_allclose(matrix @ grid @ matrix.T, expected.numpy(), rtol=0, atol=1e-12)
