"""What images are distilled by, as pure functions of features.

- LGM, linear gradient matching: arXiv 2511.16674, `gradient_matching_loss`.
- SFM, statistical flow matching: arXiv 2602.05391, `flow_matching_loss`.
- CLP-DD, the closed-form linear probe: arXiv 2605.07194, `closed_form_probe_loss`.

A head is a pytree `{"kernel": (d, k), "bias": (k,)}`. Dimension letters: `n` images, `s` synthetic
ones, `d` features, `k` classes. Everything here is float32 at full product precision, whatever the
features' dtype: accelerators would otherwise round the operands of a matrix product to TF32 or
bfloat16, and head gradients and flows are small differences of large sums.

Weights are not negative. A row of weight zero counts for nothing, whatever its features are; a set
whose weights are all zero has a loss, a head gradient, flows and a ridge head of zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, Int, Key

from lgm_jax import checks, regression

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
    scores = jnp.dot(_wide(features), head["kernel"], precision=Precision.HIGHEST)
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
        denominator: What the weighted sum is divided by, unless it is zero; the sum of the weights
            by default. A device that holds a part of a batch passes the whole batch's sum, so that
            its loss and head gradient are its share of the batch's.
    """
    features, weights = _weighted(features, weights)
    scores = jax.nn.log_softmax(logits(head, features), axis=-1)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        losses = -jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]
    else:
        losses = -jnp.sum(labels * scores, axis=-1)
    total = jnp.sum(weights) if denominator is None else denominator
    return jnp.sum(weights * losses) / nonzero(total)


head_gradient = jax.grad(linear_probe_loss)
"""Gradient of `linear_probe_loss` with respect to the head, shaped like the head."""

loss_and_head_gradient = jax.value_and_grad(linear_probe_loss)
"""`linear_probe_loss`, and its gradient with respect to the head."""


def head_gradient_in_parts(
    head: Head,
    features: Float[Array, "n d"],
    labels: Labels,
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
        labels: Class indices or probabilities.
        weights: As for `linear_probe_loss`.
        denominator: Likewise.
        rows: Images at a time; by default so many that their scores take 16 MiB.
    """
    count = features.shape[0]
    rows = rows or _rows(head["bias"].shape[0])
    if count <= rows:
        return head_gradient(head, features, labels, weights, denominator=denominator)
    features, weights = _weighted(features, weights)
    if denominator is None:
        denominator = jnp.sum(weights)

    def share(features: Array, labels: Array, weights: Array) -> Head:
        return head_gradient(head, features, labels, weights, denominator=denominator)

    start = jax.tree.map(jnp.zeros_like, head)
    return _sum_of_parts(share, start, rows, features, labels, weights)


def linear_probe_loss_in_parts(
    head: Head,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    *,
    denominator: Float[Array, ""] | float,
    rows: int | None = None,
) -> Float[Array, ""]:
    """`linear_probe_loss` in the memory of `head_gradient_in_parts`; arguments are the same."""
    rows = rows or _rows(head["bias"].shape[0])
    if features.shape[0] <= rows:
        return linear_probe_loss(head, features, labels, weights, denominator=denominator)

    def share(features: Array, labels: Array, weights: Array) -> Array:
        return linear_probe_loss(head, features, labels, weights, denominator=denominator)

    start = jnp.zeros_like(_wide(features), shape=())
    return _sum_of_parts(share, start, rows, features, labels, weights)


class ClassSums(NamedTuple):
    """Of the features of each class, the weighted sum and the weight: what a flow needs to know.

    Those of parts of a set add up to those of the set.

    Attributes:
        features: (k, d).
        weights: (k,).
    """

    features: Float[Array, "k d"]
    weights: Float[Array, " k"]


def class_sums(
    features: Float[Array, "n d"],
    labels: Labels,
    num_classes: int,
    weights: Float[Array, " n"] | None = None,
    *,
    rows: int | None = None,
) -> ClassSums:
    """Adds up features by class, without scattering, so that the sum is the same every time.

    Args:
        features: One row per image.
        labels: Class indices, or probabilities, by which an image counts for each class.
        num_classes: Number of classes `k`.
        weights: Weight of each image; zero leaves it out. All one by default.
        rows: Images at a time; by default so many that their table of classes takes 16 MiB.
    """
    features, weights = _weighted(features, weights)
    rows = rows or _rows(num_classes)

    def share(features: Array, labels: Array, weights: Array) -> ClassSums:
        table = _probabilities(labels, num_classes, features.dtype) * weights[:, None]
        summed = jnp.einsum("nk,nd->kd", table, features, precision=Precision.HIGHEST)
        return ClassSums(summed, jnp.sum(table, axis=0))

    if features.shape[0] <= rows:
        return share(features, labels, weights)
    start = ClassSums(
        jnp.zeros_like(features, shape=(num_classes, features.shape[1])),
        jnp.zeros_like(features, shape=(num_classes,)),
    )
    return _sum_of_parts(share, start, rows, features, labels, weights)


def shifted_class_sums(
    features: Float[Array, "n d"],
    labels: Labels,
    num_classes: int,
    weights: Float[Array, " n"] | None = None,
    *,
    total: Callable[[Any], Any] = lambda sums: sums,
) -> ClassSums:
    """`class_sums` of features less their mean, which is nothing to a flow.

    A mean that is large beside the differences between classes would take digits from them.

    Args:
        features: One row per image.
        labels: As for `class_sums`.
        num_classes: Number of classes `k`.
        weights: As for `class_sums`.
        total: Adds up sums over all devices, where each has a part of the set.
    """
    features, weights = _weighted(features, weights)
    own = jnp.sum(weights[:, None] * features, axis=0), jnp.sum(weights)
    summed, weight = total(jax.lax.stop_gradient(own))
    shifted = features - (summed / nonzero(weight))[None, :]
    return total(class_sums(shifted, labels, num_classes, weights))


def class_flows(sums: ClassSums, present: Float[Array, " k"]) -> Float[Array, "k d"]:
    """The flow of every class: the mean of the other classes' means, minus its own.

    Args:
        sums: Of a set.
        present: One for each class that counts, zero for the others, whose flow is zero. Those
            that count have images in the set.
    """
    means = sums.features / jnp.where(present > 0, sums.weights, 1)[:, None] * present[:, None]
    count = jnp.sum(present)
    # The mean of the others less the own one, over a common denominator: none flows alone.
    flows = (jnp.sum(means, axis=0, keepdims=True) - count * means) / jnp.maximum(count - 1, 1)
    return flows * present[:, None]


def flow_distance(sums_syn: ClassSums, sums_real: ClassSums) -> Float[Array, ""]:
    """`flow_matching_loss` of sets of which the sums are known.

    Classes that either set lacks are left out of both; of less than two, the distance is one.
    """
    both = (sums_syn.weights > 0) & (sums_real.weights > 0)
    present = both.astype(sums_syn.features.dtype)
    return cosine_distance(class_flows(sums_syn, present), class_flows(sums_real, present))


def flow_matching_loss(
    features_syn: Float[Array, "s d"],
    labels_syn: Int[Array, " s"] | Float[Array, "s k"],
    features_real: Float[Array, "n d"],
    labels_real: Int[Array, " n"],
    num_classes: int,
    weights_syn: Float[Array, " s"] | None = None,
    weights_real: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Cosine distance between the class flows of a synthetic and a real set (SFM).

    A flow is k / (k - 1) times the mean of all class means minus the class's own. So the loss is
    that of centred class means: it is the same when either set is shifted, or scaled, or when both
    are rotated together.

    Source: statistical flow matching, arXiv 2602.05391.

    Args:
        features_syn: Features of augmented synthetic images.
        labels_syn: Their labels.
        features_real: Features of real images.
        labels_real: Their labels; classes without an image are left out of both sets.
        num_classes: Number of classes `k`.
        weights_syn: Weight of each synthetic image.
        weights_real: Weight of each real image.
    """
    return flow_distance(
        shifted_class_sums(features_syn, labels_syn, num_classes, weights_syn),
        shifted_class_sums(features_real, labels_real, num_classes, weights_real),
    )


def ridge_head(
    features: Float[Array, "s d"],
    labels: Int[Array, " s"] | Float[Array, "s k"],
    num_classes: int,
    ridge: float,
    weights: Float[Array, " s"] | None = None,
) -> Head:
    """The head of kernel ridge regression to the labels: W = Zᵀ (Z Zᵀ + λ I)⁻¹ Y, no bias.

    λ is `ridge` times the square norms of the features of a class, added up: tr(Z Zᵀ) / k. So the
    same number means the same regression for every backbone (features times a give W / a, and the
    same scores), and however often each image is seen: all rows twice, or all weights times two,
    give the same head. With one row per class, λ is `ridge` times the mean square norm.

    Solved in the smaller of sample and feature space, W = (Zᵀ Z + λ I)⁻¹ Zᵀ Y, and around the mean
    of the features, which may be large beside their differences. Features that are all zero have a
    head of zero.

    Args:
        features: One row per image, Z.
        labels: Class indices or probabilities, of which Y has a row each.
        num_classes: Number of classes `k`.
        ridge: Above zero.
        weights: Weight of each image, of which the regression sees the square root times the row;
            zero leaves it out. All one by default.

    Raises:
        UserError: If the ridge is a number that is not above zero.
    """
    checks.positive("ridge", ridge)
    features, weights = _weighted(features, weights)
    targets = _probabilities(labels, num_classes, features.dtype)
    # Squares of features of any size fit; the head is scaled back.
    size = nonzero(jax.lax.stop_gradient(jnp.max(jnp.abs(features))))
    features = features / size
    squares = jnp.sum(weights[:, None] * jnp.square(features))
    strength = nonzero(squares * (ridge / num_classes))
    kernel = regression.ridge_kernel(features, targets, weights, strength) / size
    return {"kernel": kernel, "bias": jnp.zeros_like(kernel, shape=(num_classes,))}


def closed_form_probe_loss(
    features_syn: Float[Array, "s d"],
    labels_syn: Int[Array, " s"] | Float[Array, "s k"],
    features_real: Float[Array, "n d"],
    labels_real: Int[Array, " n"],
    num_classes: int,
    ridge: float = 0.01,
    temperature: float = 0.1,
    weights_syn: Float[Array, " s"] | None = None,
    weights_real: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy on real images of the head that the synthetic ones give (CLP-DD).

    softmax(Z_R W / τ) with W of `ridge_head`. It is the same when all features are scaled, or
    rotated, together; not when they are shifted, for the head has no bias.

    Source: closed-form linear-probe dataset distillation, arXiv 2605.07194, whose λ is absolute.

    Args:
        features_syn: Features of augmented synthetic images.
        labels_syn: Their labels.
        features_real: Features of real images.
        labels_real: Their labels.
        num_classes: Number of classes `k`.
        ridge: As for `ridge_head`.
        temperature: What scores are divided by, τ.
        weights_syn: Weight of each synthetic image.
        weights_real: Weight of each real image.

    Raises:
        UserError: If ridge or temperature is a number that is not above zero.
    """
    head = ridge_head(features_syn, labels_syn, num_classes, ridge, weights_syn)
    return linear_probe_loss(tempered(head, temperature), features_real, labels_real, weights_real)


def tempered(head: Head, temperature: float) -> Head:
    """The head whose scores are those of another divided by a temperature, less their mean.

    What all classes have in common says nothing of any, and would take digits from the scores.

    Raises:
        UserError: If the temperature is a number that is not above zero.
    """
    checks.positive("temperature", temperature)
    return jax.tree.map(
        lambda leaf: (leaf - jnp.mean(leaf, axis=-1, keepdims=True)) / temperature, head
    )


def cosine_distance(tree_a: Any, tree_b: Any) -> Float[Array, ""]:
    """One minus the cosine between two pytrees, each taken as one long vector.

    Zero for trees that point the same way, two for opposite ones; one, with a zero gradient, where
    either is all zero. Nearly parallel ones, whose cosine rounds to one, lose no digits.
    """
    (a, exists_a), (b, exists_b) = _unit(tree_a), _unit(tree_b)
    cosine, apart = _inner(a, b), jax.tree.map(jnp.subtract, a, b)
    distance = jnp.where(cosine > 0.5, _inner(apart, apart) / 2, 1 - cosine)
    return jnp.where(exists_a & exists_b, distance, 1)


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


def nonzero(total: Any) -> Any:
    """What to divide by in place of a sum that may be zero: then one, for all it divides is."""
    return jnp.where(total == 0, 1, total)


def _unit(tree: Any) -> tuple[Any, Bool[Array, ""]]:
    """A tree scaled to a norm of one, and whether it is not zero, which stays as it is."""
    largest = functools.reduce(jnp.maximum, map(jnp.max, map(jnp.abs, jax.tree.leaves(tree))))
    largest = jax.lax.stop_gradient(largest)
    # Below, reciprocals are not finite. Squares of the scaled numbers neither overflow nor vanish.
    exists = ~(largest < jnp.finfo(jnp.float32).tiny)
    scaled = jax.tree.map(lambda leaf: leaf / jnp.where(exists, largest, 1), tree)
    inverse = jax.lax.rsqrt(jnp.where(exists, _inner(scaled, scaled), 1))
    return jax.tree.map(lambda leaf: leaf * inverse, scaled), exists


def _inner(tree_a: Any, tree_b: Any) -> Float[Array, ""]:
    products = jax.tree.map(
        lambda a, b: jnp.dot(jnp.ravel(a), jnp.ravel(b), precision=Precision.HIGHEST),
        tree_a,
        tree_b,
    )
    return jax.tree.reduce(jnp.add, products)


def _wide(features: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """In float32 at least."""
    return features.astype(jnp.promote_types(features.dtype, jnp.float32))


def _weighted(
    features: Float[Array, "n d"], weights: Float[Array, " n"] | None
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """Features and weights in float32 at least; rows of no weight are zero."""
    features = _wide(features)
    if weights is None:
        return features, jnp.ones_like(features, shape=features.shape[:1])
    weights = weights.astype(features.dtype)
    return jnp.where(weights[:, None] > 0, features, 0), weights


def _probabilities(labels: Labels, num_classes: int, dtype: Any) -> Float[Array, "n k"]:
    """Of class indices, all zero for an index below zero; those that are given as they are."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, num_classes, dtype=dtype)
    return labels


def _rows(num_classes: int) -> int:
    """Images whose class scores take 16 MiB."""
    return max(1, _SCORES // num_classes)


def _sum_of_parts(share: Callable[..., Any], start: Any, rows: int, *arrays: Array) -> Any:
    """Adds up what a function gives of so many rows at a time, in the memory of one such part.

    Missing rows of the last part are zero, weights included.
    """
    count = arrays[0].shape[0]
    parts = -(-count // rows)
    padding = [(0, parts * rows - count)]
    padded = (jnp.pad(array, padding + [(0, 0)] * (array.ndim - 1)) for array in arrays)
    stacked = tuple(array.reshape(parts, rows, *array.shape[1:]) for array in padded)
    once = jax.checkpoint(share, prevent_cse=False)

    def add(total: Any, part: tuple[Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, once(*part)), None

    return jax.lax.scan(add, start, stacked)[0]
