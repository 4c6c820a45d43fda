"""The head gradient and the objectives without images: class means' share, optimal features."""

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
from lgm_jax.heads import head_gradient_in_parts
from lgm_jax.numerics import nonzero


class ClassMeansShare(NamedTuple):
    """The part of the head gradient that class means explain, for each random head.

    Attributes:
        cosine: Cosine of the head gradient and the one of class means.
        share: 1 - |g - m|² / |g|²: the part of the head gradient g that the one of class means, m,
            explains; below 0 where m is farther from g than zero is.
        overall: Likewise, for the gradient o of features all replaced by the mean of all images.
        rest: 1 - |g - m|² / |g - o|²: of what that leaves, the part that class means explain.
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
    """Compares the head gradient with that of class means: of the same head, on features that are
    each replaced by the mean of their class.

    With small heads the softmax is near uniform, and the gradient is linear in the features: only
    their class means count. With larger ones it is not; but then most of it may be what all images
    have in common, which a head takes for one class: hence the share of the overall mean.

    Source: the gradient of arXiv 2511.16674; that class means alone may do is what arXiv
    2602.05391 rests on.

    Args:
        key: Random key of the heads.
        features: Features of real images.
        labels: Their labels.
        num_classes: Number of classes `k`.
        head_std: Standard deviation of the random heads' kernels.
        heads: Random heads to draw.

    Returns:
        Features that are all zero have a head gradient of their biases alone, which class means
        explain; where a gradient is zero, shares are 0.
    """
    sums = class_sums(features, labels, num_classes)
    means = sums.features / jnp.maximum(sums.weights, 1)[:, None]
    overall = jnp.broadcast_to(jnp.mean(features, axis=0, keepdims=True), means.shape)

    def explained(rest: Array, whole: Array) -> Array:
        return jnp.where(whole > 0, 1 - rest / nonzero(whole), 0)

    def compare(key: Key[Array, ""]) -> tuple[Array, Array, Array, Array]:
        head = objectives.init_head(key, features.shape[1], num_classes, head_std)
        # The mean of a class counts once for each of its images.
        classes = jnp.arange(num_classes)
        whole, known, common = (
            ravel_pytree(gradient)[0]
            for gradient in (
                head_gradient_in_parts(head, features, labels),
                objectives.head_gradient(head, means, classes, sums.weights),
                objectives.head_gradient(head, overall, classes, sums.weights),
            )
        )
        size, left, left_by_overall = (
            jnp.sum(vector**2) for vector in (whole, whole - known, whole - common)
        )
        cosine = 1 - objectives.cosine_distance(whole, known)
        return (
            cosine,
            explained(left, size),
            explained(left_by_overall, size),
            explained(left, left_by_overall),
        )

    return ClassMeansShare(*jax.lax.map(compare, jax.random.split(key, heads)))


def optimal_features(
    loss: Callable[[Float[Array, "s d"]], Float[Array, ""]],
    start: Float[Array, "s d"],
    *,
    steps: int = 600,
    learning_rate: float = 0.2,
) -> tuple[Float[Array, "s d"], Float[Array, ""]]:
    """Returns the features that lower an objective most, whether or not images have them.

    What a probe makes of them is about the best that images distilled by that objective come to,
    and takes seconds to know: a way to choose, for example, ridge and temperature of the
    closed-form probe. Adam with a cosine schedule lowers the loss; rows keep their lengths, since
    the normalisation at the end of most backbones fixes those of real features.

    Args:
        loss: A differentiable function of features, a row per image.
        start: The first features, for example at class means, as long as real features are.
        steps: Updates.
        learning_rate: Adam's learning rate at the first update.

    Returns:
        The features, and their loss.

    Raises:
        UserError: If a row of `start` is zero.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
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
