"""Linear gradient matching as pure functions of features.

A head is a pytree `{"kernel": (d, k), "bias": (k,)}`. Dimension letters: `n` images, `d` features,
`k` classes. Everything here is float32 at full product precision: accelerators would otherwise
round the operands of a matrix product to TF32 or bfloat16, and the head gradient is a small
difference of large sums.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Int, Key

Head = dict[str, Float[Array, "..."]]
Labels = Int[Array, " n"] | Float[Array, "n k"]

# Class scores of so many rows and classes at a time: 16 MiB.
_SCORES = 2**22


def init_head(key: Key[Array, ""], feature_dim: int, num_classes: int, std: float = 0.01) -> Head:
    """Draws a random linear head: kernel N(0, std²), zero bias.

    Args:
        key: Random key; a run draws a fresh head at every step.
        feature_dim: Number of features `d`.
        num_classes: Number of classes `k`.
        std: Standard deviation of the kernel. The authors' code has 0.01, the paper's text 1.
    """
    kernel = std * jax.random.normal(key, (feature_dim, num_classes), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros((num_classes,), jnp.float32)}


def logits(head: Head, features: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Class scores of a linear head."""
    scores = jnp.dot(features, head["kernel"], precision=Precision.HIGHEST)
    return scores + head["bias"][None, :]


def linear_probe_loss(
    head: Head,
    features: Float[Array, "n d"],
    labels: Labels,
    weights: Float[Array, " n"] | None = None,
    *,
    denominator: Float[Array, ""] | float | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy of a linear head.

    Args:
        head: The linear head.
        features: One row per image.
        labels: Class indices, or class probabilities (n, k) whose rows sum to one.
        weights: Weight of each image; zero leaves it out. All one by default.
        denominator: What the weighted sum is divided by; the sum of the weights by default. A
            device that holds a part of a batch passes the whole batch's sum, so that its loss and
            head gradient are its share of the batch's.
    """
    scores = jax.nn.log_softmax(logits(head, features), axis=-1)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        losses = -jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]
    else:
        losses = -jnp.sum(labels * scores, axis=-1)
    if weights is None:
        weights = jnp.ones_like(losses)
    total = jnp.sum(weights) if denominator is None else denominator
    return jnp.sum(weights * losses) / total


head_gradient = jax.grad(linear_probe_loss)
"""Gradient of `linear_probe_loss` with respect to the head, shaped like the head."""


def head_gradient_in_parts(
    head: Head,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"] | None = None,
    *,
    denominator: Float[Array, ""] | float | None = None,
    rows: int | None = None,
) -> Head:
    """`head_gradient` of very many images, whose class scores are never in memory all at once.

    Nor are they when it is differentiated with respect to the features.

    Args:
        head: The linear head.
        features: One row per image.
        labels: Class indices.
        weights: As for `linear_probe_loss`.
        denominator: Likewise.
        rows: Images at a time; by default so many that their scores take 16 MiB.
    """
    count = features.shape[0]
    if rows is None:
        rows = max(1, _SCORES // head["bias"].shape[0])
    if count <= rows:
        return head_gradient(head, features, labels, weights, denominator=denominator)
    if weights is None:
        weights = jnp.ones((count,), features.dtype)
    if denominator is None:
        denominator = jnp.sum(weights)
    parts = -(-count // rows)
    padding = parts * rows - count
    padded = (
        jnp.pad(features, ((0, padding), (0, 0))),
        jnp.pad(labels, (0, padding)),
        jnp.pad(weights, (0, padding)),
    )
    stacked = tuple(array.reshape(parts, rows, *array.shape[1:]) for array in padded)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def share(part: tuple[Array, ...]) -> Head:
        return head_gradient(head, *part, denominator=denominator)

    def add(total: Head, part: tuple[Array, ...]) -> tuple[Head, None]:
        return jax.tree.map(jnp.add, total, share(part)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, head), stacked)[0]


def cosine_distance(tree_a: Any, tree_b: Any) -> Float[Array, ""]:
    """One minus the cosine between two pytrees, each taken as one long vector.

    Zero for trees that point the same way, two for opposite ones; one, with a zero gradient, where
    either is all zero.
    """
    dot, square_a, square_b = (
        _inner(a, b) for a, b in ((tree_a, tree_b), (tree_a,) * 2, (tree_b,) * 2)
    )
    return 1 - dot * _inverse_root(square_a) * _inverse_root(square_b)


def gradient_matching_loss(
    head: Head,
    features_syn: Float[Array, "s d"],
    labels_syn: Int[Array, " s"] | Float[Array, "s k"],
    features_real: Float[Array, "n d"],
    labels_real: Labels,
    weights_syn: Float[Array, " s"] | None = None,
    weights_real: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Cosine distance between the head gradients of a synthetic and a real batch (LGM, eq. 3).

    Differentiable with respect to `features_syn`: the outer gradient goes through the inner one.

    Args:
        head: A random linear head.
        features_syn: Features of augmented synthetic images.
        labels_syn: Their labels.
        features_real: Features of real images.
        labels_real: Their labels.
        weights_syn: Weight of each synthetic image.
        weights_real: Weight of each real image.
    """
    return cosine_distance(
        head_gradient(head, features_syn, labels_syn, weights_syn),
        head_gradient(head, features_real, labels_real, weights_real),
    )


def _inverse_root(square: Float[Array, ""]) -> Float[Array, ""]:
    """1 / sqrt(square), and a constant zero where that is not a normal number."""
    # One root for each tree: the product of two small squares would underflow.
    normal = square >= jnp.finfo(jnp.float32).tiny
    return jnp.where(normal, jax.lax.rsqrt(jnp.where(normal, square, 1)), 0)


def _inner(tree_a: Any, tree_b: Any) -> Float[Array, ""]:
    products = jax.tree.map(
        lambda a, b: jnp.dot(jnp.ravel(a), jnp.ravel(b), precision=Precision.HIGHEST),
        tree_a,
        tree_b,
    )
    return jax.tree.reduce(jnp.add, products)
