"""Linear heads on features: their loss, its gradient, and ridge regression to labels.

A head is a pytree `{"kernel": (d, k), "bias": (k,)}`. See `objectives` for letters and precision.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Int, Key

from lgm_jax import checks
from lgm_jax.numerics import nonzero, num_parts, sum_of_parts, weighted, wide

Head = dict[str, Float[Array, "..."]]
Labels = Int[Array, " n"] | Float[Array, "n k"]

_product = functools.partial(jnp.einsum, precision=Precision.HIGHEST)


def init_head(key: Key[Array, ""], feature_dim: int, num_classes: int, std: float = 0.01) -> Head:
    """Draws a random linear head: kernel N(0, std²), zero bias.

    Args:
        key: Random key; a run draws a fresh head at every step.
        std: Standard deviation of the kernel. The authors' code has 0.01, the paper's text 1.
    """
    kernel = std * jax.random.normal(key, (feature_dim, num_classes), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros((num_classes,), jnp.float32)}


def logits(head: Head, features: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Returns the class scores of a linear head."""
    scores = jnp.dot(wide(features), head["kernel"], precision=Precision.HIGHEST)
    return scores + head["bias"][None, :]


def linear_probe_loss(
    head: Head,
    features: Float[Array, "n d"],
    labels: Labels,
    weights: Float[Array, " n"] | None = None,
    *,
    parts: int | None = 1,
) -> Float[Array, ""]:
    """Returns the mean cross-entropy of a linear head.

    Args:
        labels: Class indices, or class probabilities (n, k) whose rows sum to one.
        weights: Weight of each image; zero leaves it out. All one by default.
        parts: Number of parts of the images whose class scores are in memory at a time, in the
            derivative too; with `None`, those of a part take 64 MiB.
    """
    return _mean(_summed_loss, head, features, labels, weights, parts)


def head_gradient(
    head: Head,
    features: Float[Array, "n d"],
    labels: Labels,
    weights: Float[Array, " n"] | None = None,
    *,
    parts: int | None = 1,
) -> Head:
    """Returns the gradient of `linear_probe_loss`, with its arguments, with respect to the head."""
    return _mean(jax.grad(_summed_loss), head, features, labels, weights, parts)


def _mean(
    function: Any, head: Head, features: Array, labels: Labels, weights: Any, parts: int | None
) -> Any:
    features, weights = weighted(features, weights)
    parts = parts or num_parts(len(features), head["bias"].shape[0])
    total = nonzero(jnp.sum(weights))
    sums = sum_of_parts(function, parts, head, features, labels, weights)
    return jax.tree.map(lambda leaf: leaf / total, sums)


def _summed_loss(head: Head, features: Array, labels: Labels, weights: Array) -> Array:
    scores = jax.nn.log_softmax(logits(head, features), axis=-1)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        # Not by index, whose gradient is a scatter.
        own = labels[:, None] == jnp.arange(scores.shape[-1], dtype=labels.dtype)[None, :]
        losses = -jnp.sum(jnp.where(own, scores, 0), axis=-1)
    else:
        losses = -jnp.sum(labels * scores, axis=-1)
    return jnp.sum(weights * losses)


def ridge_head(
    features: Float[Array, "s d"],
    labels: Int[Array, " s"] | Float[Array, "s k"],
    num_classes: int,
    ridge: float,
    weights: Float[Array, " s"] | None = None,
) -> Head:
    """Returns the head of kernel ridge regression to the labels: W = Zᵀ (Z Zᵀ + λ I)⁻¹ Y, no bias.

    λ is `ridge` times the summed square norms of a class's features: tr(Z Zᵀ) / k. So one number
    means the same regression for every backbone (features times a result in W / a, and the same
    scores), and for any number of views: all rows twice, or all weights times two, result in the
    same head. With one row per class, λ is `ridge` times the mean square norm.

    Solved in the smaller of sample and feature space, W = (Zᵀ Z + λ I)⁻¹ Zᵀ Y, and around the mean
    of the features, which may be large beside their differences. Features of zero have a head of
    zero.

    Args:
        labels: Class indices or probabilities, one row of Y each.
        ridge: The strength of the ridge, above zero.
        weights: Weight of each image, whose row is multiplied by its square root; zero leaves it
            out. All one by default.

    Raises:
        UserError: If the ridge is not above zero.
    """
    checks.positive("ridge", ridge)
    features, weights = weighted(features, weights)
    targets = probabilities(labels, num_classes, features.dtype)
    # Squares of features of any size fit; the head is scaled back.
    size = nonzero(jax.lax.stop_gradient(jnp.max(jnp.abs(features))))
    features = features / size
    squares = jnp.sum(weights[:, None] * jnp.square(features))
    strength = nonzero(squares * (ridge / num_classes))
    kernel = _ridge_kernel(features, targets, weights, strength) / size
    return {"kernel": kernel, "bias": jnp.zeros_like(kernel, shape=(num_classes,))}


def tempered(head: Head, temperature: float) -> Head:
    """Returns a head with the scores of another, centred and divided by a temperature.

    The mean over classes changes no probability, but would take digits from the scores.

    Raises:
        UserError: If the temperature is not above zero.
    """
    checks.positive("temperature", temperature)
    return jax.tree.map(
        lambda leaf: (leaf - jnp.mean(leaf, axis=-1, keepdims=True)) / temperature, head
    )


def probabilities(labels: Labels, num_classes: int, dtype: Any) -> Float[Array, "n k"]:
    """Returns class probabilities, one-hot for class indices, and zero for an index below zero."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, num_classes, dtype=dtype)
    return labels


def _ridge_kernel(
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
