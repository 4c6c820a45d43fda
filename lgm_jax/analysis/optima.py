"""Objectives on features alone: the share of class means in head gradients, optimal features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from lgm_jax import objectives
from lgm_jax.errors import UserError
from lgm_jax.flows import class_sums
from lgm_jax.numerics import nonzero, wide


class ClassMeansShare(NamedTuple):
    """The share of the head gradient that class means explain, for each random head.

    Attributes:
        cosine: Cosine of the head gradient g and that of class means, m.
        share: 1 - |g - m|² / |g|², the share of g that m explains; below 0 where m is farther from
            g than zero is.
        overall: 1 - |g - o|² / |g|², the share of the gradient o of the mean of all images.
        rest: 1 - |g - m|² / |g - o|², the share of the remainder that m explains.
    """

    cosine: Float[Array, " heads"]
    share: Float[Array, " heads"]
    overall: Float[Array, " heads"]
    rest: Float[Array, " heads"]


def class_means_share(
    key: Key[Array, ""],
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    num_classes: int,
    *,
    head_std: float,
    heads: int,
) -> ClassMeansShare:
    """Compares the head gradient with that of class means, which replace each image's features.

    With small heads the softmax is near uniform, and the gradient is linear in the features: only
    their class means count. With larger ones it is not; but then most of it may be common to all
    images, which a head takes for one class: hence the share of the overall mean.

    Source: the gradient of arXiv 2511.16674; arXiv 2602.05391 rests on class means alone.

    Args:
        head_std: Standard deviation of the random heads' kernels.

    Returns:
        The shares. Features of zero have a head gradient of their biases alone, which class means
        explain; where a gradient is zero, shares are 0.
    """
    features = wide(features)
    sums = class_sums(features, labels, num_classes)
    means = sums.features / jnp.maximum(sums.weights, 1)[:, None]
    overall = jnp.broadcast_to(jnp.mean(features, axis=0, keepdims=True), means.shape)
    classes = jnp.arange(num_classes)

    def compare(key: Key[Array, ""]) -> tuple[Array, Array, Array, Array]:
        head = objectives.init_head(key, features.shape[1], num_classes, head_std)
        # The mean of a class counts once for each of its images.
        whole, of_means, of_overall = (
            ravel_pytree(gradient)[0]
            for gradient in (
                objectives.head_gradient(head, features, labels, parts=None),
                objectives.head_gradient(head, means, classes, sums.weights),
                objectives.head_gradient(head, overall, classes, sums.weights),
            )
        )
        size, left, left_by_overall = (
            jnp.sum(vector**2) for vector in (whole, whole - of_means, whole - of_overall)
        )
        return (
            1 - objectives.cosine_distance(whole, of_means),
            _explained(left, size),
            _explained(left_by_overall, size),
            _explained(left, left_by_overall),
        )

    return ClassMeansShare(*jax.lax.map(compare, jax.random.split(key, heads)))


def _explained(rest: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, 1 - rest / nonzero(whole), 0)


def optimal_features(
    loss: Callable[[Float[Array, "s d"]], Float[Array, ""]],
    start: Float[Array, "s d"],
    *,
    steps: int = 600,
) -> tuple[Float[Array, "s d"], Float[Array, ""]]:
    """Returns the features that minimise an objective, whether or not images have them.

    A probe of them is about as good as one of images distilled by that objective can be, and takes
    seconds: a way to choose, for example, ridge and temperature of the closed-form probe. Adam with
    a cosine schedule lowers the loss; rows keep their lengths, since the normalisation at the end
    of most backbones fixes those of real features.

    Args:
        loss: A differentiable function of features, a row per image.
        start: The first features, for example at class means, as long as real features are.

    Returns:
        The features, and their loss.

    Raises:
        UserError: If a row of `start` is zero.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(0.2, steps))
    lengths = jnp.linalg.norm(start, axis=1, keepdims=True)
    if not bool(jnp.all(lengths > 0)):
        raise UserError("a row to start from is zero: it has no length to keep")

    def scale(free: Float[Array, "s d"]) -> Float[Array, "s d"]:
        return free * lengths / jnp.linalg.norm(free, axis=1, keepdims=True)

    def update(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        free, state = carry
        gradient = jax.grad(lambda rows: loss(scale(rows)))(free)
        changes, state = optimizer.update(gradient, state)
        return (optax.apply_updates(free, changes), state), None

    @jax.jit
    def run(free: Float[Array, "s d"]) -> Float[Array, "s d"]:
        (free, _), _ = jax.lax.scan(update, (free, optimizer.init(free)), length=steps)
        return scale(free)

    best = run(start)
    return best, loss(best)
