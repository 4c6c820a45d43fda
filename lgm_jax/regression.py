"""Ridge regression without an intercept, sound where features share a large mean."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

_product = functools.partial(jnp.einsum, precision=Precision.HIGHEST)


def ridge_kernel(
    features: Float[Array, "n d"],
    targets: Float[Array, "n k"],
    weights: Float[Array, " n"],
    strength: Float[Array, ""],
) -> Float[Array, "d k"]:
    """Returns the W that minimises |Z W - Y|² + λ |W|², with rows weighted by root weights.

    Z is the centred rows Δ plus their mean m in each, a matrix of rank one. So with
    A = Δᵀ Δ + λ I and the total weight N, W is W' = A⁻¹ ΔᵀY plus a multiple of A⁻¹ m:

        W = W' + A⁻¹ m N (ȳ - mᵀ W') / (1 + N mᵀ A⁻¹ m)

    So a mean that is large beside the differences takes no digits from them: Z Zᵀ would have an
    eigenvalue |m|² n, and its rounding errors would be as large as the other eigenvalues.

    Args:
        features: One row per image, finite also where its weight is zero.
    """
    total = jnp.sum(weights)
    share = weights / jnp.where(total > 0, total, 1)
    mean, target = (_product("n,nj->j", share, rows) for rows in (features, targets))
    scale = jnp.sqrt(weights)[:, None]
    rows, aims = scale * (features - mean[None, :]), scale * (targets - target[None, :])
    centred, across = _solve(rows, aims, mean, strength)
    missed = total * (target - _product("d,dk->k", mean, centred))
    share_of_mean = total * _product("d,d->", mean, across)
    return centred + jnp.outer(across, missed / (strength + share_of_mean))


def _solve(
    rows: Float[Array, "n d"],
    targets: Float[Array, "n k"],
    vector: Float[Array, " d"],
    strength: Float[Array, ""],
) -> tuple[Float[Array, "d k"], Float[Array, " d"]]:
    """Returns A⁻¹ ΔᵀY and λ A⁻¹ v, by Cholesky in the smaller of sample and feature space."""
    count, dim = rows.shape
    in_samples = count <= dim
    gram = _product("nd,md->nm", rows, rows) if in_samples else _product("nd,ne->de", rows, rows)
    shifted = gram + strength * jnp.eye(min(count, dim), dtype=gram.dtype)
    if in_samples:
        right = jnp.column_stack([targets, _product("nd,d->n", rows, vector)])
        solved = jax.scipy.linalg.solve(shifted, right, assume_a="pos")
        solved = _product("nd,nk->dk", rows, solved)
        return solved[:, :-1], vector - solved[:, -1]
    right = jnp.column_stack([_product("nd,nk->dk", rows, targets), strength * vector])
    solved = jax.scipy.linalg.solve(shifted, right, assume_a="pos")
    return solved[:, :-1], solved[:, -1]
