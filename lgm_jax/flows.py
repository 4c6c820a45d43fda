"""Statistical flows between the means of classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from lgm_jax.heads import Labels, probabilities
from lgm_jax.numerics import cosine_distance, nonzero, num_parts, sum_of_parts, weighted


class ClassSums(NamedTuple):
    """Weighted sums of the features of each class, and sums of the weights."""

    features: Float[Array, "k d"]
    weights: Float[Array, " k"]


def class_sums(
    features: Float[Array, "n d"],
    labels: Labels,
    num_classes: int,
    weights: Float[Array, " n"] | None = None,
    *,
    parts: int | None = None,
) -> ClassSums:
    """Adds up features by class, without a scatter, so that the sum is deterministic.

    Args:
        labels: Class indices, or probabilities as the shares of an image in each class.
        weights: Weight of each image; zero leaves it out. All one by default.
        parts: As for `linear_probe_loss`; `None` by default.
    """
    features, weights = weighted(features, weights)

    def share(_: None, features: Array, labels: Array, weights: Array) -> ClassSums:
        table = probabilities(labels, num_classes, features.dtype) * weights[:, None]
        summed = jnp.einsum("nk,nd->kd", table, features, precision=Precision.HIGHEST)
        return ClassSums(summed, jnp.sum(table, axis=0))

    parts = parts or num_parts(len(features), num_classes)
    return sum_of_parts(share, parts, None, features, labels, weights)


def class_flows(sums: ClassSums, present: Float[Array, " k"]) -> Float[Array, "k d"]:
    """Returns the flow of every class: the mean of the other classes' means, minus its own.

    Args:
        sums: The class sums of a set.
        present: One for each class that counts, which must have images, and zero for the others,
            whose flow is zero.
    """
    means = sums.features / jnp.where(present > 0, sums.weights, 1)[:, None] * present[:, None]
    count = jnp.sum(present)
    # Over a common denominator; a single class has a flow of zero.
    flows = (jnp.sum(means, axis=0, keepdims=True) - count * means) / jnp.maximum(count - 1, 1)
    return flows * present[:, None]


def flow_matching_loss(
    features_syn: Float[Array, "s d"],
    labels_syn: Int[Array, " s"] | Float[Array, "s k"],
    features_real: Float[Array, "n d"],
    labels_real: Int[Array, " n"],
    num_classes: int,
    weights_syn: Float[Array, " s"] | None = None,
    weights_real: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Returns the cosine distance between the class flows of a synthetic and a real set (SFM).

    A flow is k / (k - 1) times the mean of all class means minus the class's own. So the loss
    compares centred class means: shifting or scaling either set changes nothing, nor does rotating
    both together.

    Source: statistical flow matching, arXiv 2602.05391.

    Args:
        labels_real: Their labels. Classes that either set lacks are left out of both; with fewer
            than two left, the distance is one.
    """

    def centred_sums(features: Array, labels: Labels, weights: Any) -> ClassSums:
        # The mean does not change a flow, but if it is large, it takes digits from the differences.
        features, weights = weighted(features, weights)
        total = jax.lax.stop_gradient(jnp.sum(weights[:, None] * features, axis=0))
        shifted = features - (total / nonzero(jnp.sum(weights)))[None, :]
        return class_sums(shifted, labels, num_classes, weights)

    sums_syn = centred_sums(features_syn, labels_syn, weights_syn)
    sums_real = centred_sums(features_real, labels_real, weights_real)
    both = (sums_syn.weights > 0) & (sums_real.weights > 0)
    present = both.astype(sums_syn.features.dtype)
    return cosine_distance(class_flows(sums_syn, present), class_flows(sums_real, present))
