"""What a probe learns from: labels alone, or a teacher too.

A teacher is another backbone, as a rule the one that images were distilled against, with the head
that a probe on all real images trained there. It sees the same views. A head of `kd` learns its
soft labels beside the labels; a head of `ci` is the teacher's own, behind a linear map from the
probe's features to the teacher's.

Source: the ways of evaluation of statistical flow matching, arXiv 2602.05391, as in its public
code. The paper calls `ci` classifier inheritance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Key

from lgm_jax import checks
from lgm_jax.heads import Head, Labels, init_head, linear_probe_loss, logits
from lgm_jax.numerics import nonzero, weighted


class Teacher(NamedTuple):
    """A backbone and its heads, which other probes learn from.

    Attributes:
        sees: The backbone; for `probe.fit`, its features of the views that the probe's features
            are of, shaped like these but for the number of features.
        heads: `{"kernel": (runs, d, k), "bias": (runs, k)}` of the probe on all real images, one
            for each run or one for all.
    """

    sees: Any
    heads: Mapping[str, Any]


class Seen(NamedTuple):
    """Features of the same views.

    Attributes:
        features: The probe's, (..., n, d).
        taught: The teacher's, (..., n, e), if there is one.
    """

    features: Any
    taught: Any = None


def distillation_loss(
    head: Head,
    features: Float[Array, "n d"],
    labels: Labels,
    scores: Float[Array, "n k"],
    weights: Float[Array, " n"] | None = None,
    *,
    temperature: float = 4.0,
    share: float = 0.5,
) -> Float[Array, ""]:
    """Returns the loss of knowledge distillation: share T² KL(q || p) + (1 - share) cross-entropy.

    q are the probabilities of the teacher's scores over T, p those of the head's scores over T.

    Args:
        weights: Weight of each image; zero leaves it out. All one by default.
        temperature: T; 4 in the public code of arXiv 2602.05391.
        share: The share of the teacher; 0.5 there.

    Raises:
        UserError: If the temperature is not above zero.
    """
    checks.positive("temperature", temperature)
    features, weights = weighted(features, weights)
    soft = jax.nn.log_softmax(scores / temperature, axis=-1)
    own = jax.nn.log_softmax(logits(head, features) / temperature, axis=-1)
    divergences = jnp.sum(jnp.exp(soft) * (soft - own), axis=-1)
    divergence = jnp.sum(weights * divergences) / nonzero(jnp.sum(weights))
    hard = linear_probe_loss(head, features, labels, weights)
    return share * temperature**2 * divergence + (1 - share) * hard


def projection_loss(
    projection: Head,
    features: Float[Array, "n d"],
    targets: Float[Array, "n e"],
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Returns the mean squared error of a linear map, over images and the features it predicts.

    Args:
        projection: `{"kernel": (d, e), "bias": (e,)}`.
        targets: The teacher's features of the same views.
        weights: As for `distillation_loss`.
    """
    features, weights = weighted(features, weights)
    errors = jnp.mean(jnp.square(logits(projection, features) - targets), axis=-1)
    return jnp.sum(weights * errors) / nonzero(jnp.sum(weights))


def init_projection(key: Key[Array, ""], dim: int, dim_teacher: int) -> Head:
    """Draws a linear map to `e` features as PyTorch does: kernel and bias of U(-1/√d, 1/√d)."""
    bound, (key_kernel, key_bias) = 1 / math.sqrt(dim), jax.random.split(key)
    shapes = {"kernel": (key_kernel, (dim, dim_teacher)), "bias": (key_bias, (dim_teacher,))}
    return {
        name: jax.random.uniform(each, shape, jnp.float32, -bound, bound)
        for name, (each, shape) in shapes.items()
    }


def inherit(projection: Head, head: Head) -> Head:
    """Returns the linear head that projects features and applies a teacher's head to the result."""

    def times(rows: Array) -> Array:
        return jnp.dot(rows, head["kernel"], precision=Precision.HIGHEST)

    return {
        "kernel": times(projection["kernel"]),
        "bias": times(projection["bias"]) + head["bias"],
    }


TARGETS = ("labels", "kd", "ci")
"""What a probe may learn, `probe.Protocol.targets`."""

TAUGHT = ("kd", "ci")
"""Those with a teacher."""


def init_params(
    targets: str, key: Key[Array, ""], dim: int, dim_teacher: int, num_classes: int
) -> Head:
    """Draws what is trained: a projection to the teacher's features for `ci`, or else a head."""
    if targets == "ci":
        return init_projection(key, dim, dim_teacher)
    return init_head(key, dim, num_classes)


def learning_loss(
    targets: str, params: Head, seen: Seen, labels: Labels, weights: Any, head: Any
) -> Float[Array, ""]:
    """Returns the loss of what is trained, where `head` is the teacher's."""
    if targets == "labels":
        return linear_probe_loss(params, seen.features, labels, weights)
    if targets == "kd":
        return distillation_loss(params, seen.features, labels, logits(head, seen.taught), weights)
    return projection_loss(params, seen.features, seen.taught, weights)
