"""Objectives of distillation, and the pure functions of features behind them.

An objective is a frozen dataclass, whose fields are its options, that is called
`objective(key, synthetic, real)` with two `Features` and returns the loss. It is plain JAX on whole
arrays: the compiler divides them among devices. It honours weights, and does not depend on the
order of rows, which is that of the devices. It may have a method `prepare`, see `SFM`. A new one is
a class like those here, and a line in `OBJECTIVES` for a short name; a config names others as
`package.module:Class`.

Dimension letters: `n` images, `s` synthetic ones, `d` features, `k` classes. A head is a pytree
`{"kernel": (d, k), "bias": (k,)}`. Everything here is float32 at full product precision, whatever
the features' dtype: accelerators would otherwise round the operands of a matrix product to TF32 or
bfloat16, and head gradients and flows are small differences of large sums.

Weights are not negative. A row of weight zero counts for nothing, whatever its features are; a set
whose weights are all zero has a loss, a head gradient, flows and a ridge head of zero.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lgm_jax import checks
from lgm_jax.errors import UserError
from lgm_jax.flows import flow_matching_loss
from lgm_jax.heads import (
    Head,
    Labels,
    head_gradient,
    init_head,
    linear_probe_loss,
    logits,
    ridge_head,
    tempered,
)
from lgm_jax.numerics import cosine_distance, everywhere, nonzero

__all__ = [
    "CLP",
    "LGM",
    "OBJECTIVES",
    "SFM",
    "Features",
    "Objective",
    "closed_form_probe_loss",
    "cosine_distance",
    "flow_matching_loss",
    "gradient_matching_loss",
    "head_gradient",
    "init_head",
    "linear_probe_loss",
    "logits",
    "ridge_head",
]


# The difference that another order of sums may make.
_ROUNDING = 1e-3


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "labels", "weights", "image", "copy"],
    meta_fields=["num_classes", "copies"],
)
@dataclasses.dataclass(frozen=True)
class Features:
    """Features of views of images, one row per view, in any order.

    Attributes:
        values: (n, d).
        labels: Class indices (n,), or class probabilities (n, k).
        weights: (n,) Weight of each row; zero for padding.
        image: (n,) Number of a row's image among the synthetic ones, or in the data set. With
            `copy` it identifies a row, whatever the order: fold both into a key to draw something
            for each row.
        copy: (n,) Number of the view among those of the image.
        num_classes: Number of classes `k`.
        copies: Views of each image, with padding.
    """

    values: Any
    labels: Any
    weights: Any
    image: Any
    copy: Any
    num_classes: int
    copies: int = 1


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass that computes a loss from synthetic and real features.

    Optional class attributes, which reports show: `title`; `source`; `each_step`, a sentence about
    a step; `loss_is`, one about the loss.
    """

    def __call__(self, key: Key[Array, ""], synthetic: Features, real: Any) -> Float[Array, ""]:
        """Returns the loss, differentiable by the values and probabilities of `synthetic`.

        Args:
            synthetic: All views of all synthetic images.
            real: `Features` of real images, or the result of `prepare`.
        """


@dataclasses.dataclass(frozen=True)
class LGM:
    """Linear gradient matching: `gradient_matching_loss` under a new random head at each step.

    Attributes:
        head_std: Standard deviation of the head's kernel, at least zero.

    Raises:
        UserError: If it is out of range.
    """

    head_std: float = 0.01

    title: ClassVar[str] = "Linear Gradient Matching"
    source: ClassVar[str] = "arXiv 2511.16674"
    each_step: ClassVar[str] = (
        "Each step draws a random classifier and asks how real images would change it, if it "
        "learned from them. The pixels are then moved a little, so that the distilled images "
        "would change it in the same direction."
    )
    loss_is: ClassVar[str] = (
        "How far what a classifier learns from the distilled images is from what it learns from "
        "real ones."
    )

    def __post_init__(self) -> None:
        checks.in_range("head_std", self.head_std, 0)

    def __call__(self, key: Key[Array, ""], synthetic: Features, real: Features) -> Array:
        head = init_head(key, synthetic.values.shape[-1], synthetic.num_classes, self.head_std)
        return _compare(functools.partial(gradient_matching_loss, head), synthetic, real)


@dataclasses.dataclass(frozen=True)
class SFM:
    """Statistical flow matching: `flow_matching_loss`."""

    title: ClassVar[str] = "statistical flow matching"
    source: ClassVar[str] = "arXiv 2602.05391"
    each_step: ClassVar[str] = (
        "Each step compares how the classes lie to each other in the model's features, for real "
        "images and for distilled ones, and moves the pixels a little, so that the two agree."
    )
    loss_is: ClassVar[str] = (
        "How far the way in which the distilled images' classes lie to each other, in the model's "
        "features, is from that of real ones."
    )

    def __call__(self, key: Key[Array, ""], synthetic: Features, real: Features) -> Array:
        return _compare(flow_matching_loss, synthetic, real, synthetic.num_classes)

    def prepare(self, parts: Iterable[Features]) -> Features:
        """Returns the mean features of each class: the loss depends on no more of real images.

        The method `prepare` is called once, where every step would see all real features. Its
        result, a pytree of arrays, takes the place of `real`.

        Args:
            parts: The features of real images in consecutive parts of NumPy arrays.
        """
        sums: Any = None
        for part in parts:
            if sums is None:
                counts = np.zeros(part.num_classes)
                sums = np.zeros((part.num_classes, part.values.shape[1]))
            weights, values = part.weights[:, None], part.values.astype(np.float64)
            counts += np.bincount(part.labels, part.weights, part.num_classes)
            np.add.at(sums, part.labels, weights * np.where(weights > 0, values, 0))
        classes = np.arange(len(counts), dtype=np.int32)
        return Features(
            (sums / np.where(counts > 0, counts, 1)[:, None]).astype(np.float32),
            classes,
            (counts > 0).astype(np.float32),
            classes,
            np.zeros_like(classes),
            len(classes),
        )


@dataclasses.dataclass(frozen=True)
class CLP:
    """Closed-form linear probe: `closed_form_probe_loss`.

    Attributes:
        ridge: As for `ridge_head`, independent of the number of images, copies and classes.
        temperature: The divisor of the head's scores.
        head_per_copy: Whether a head is fitted to each copy of all images, and the loss is their
            mean, rather than one head to all views.

    Raises:
        UserError: If ridge or temperature is not above zero.
    """

    ridge: float = 0.001
    temperature: float = 0.1
    head_per_copy: bool = False

    title: ClassVar[str] = "a closed-form linear probe"
    source: ClassVar[str] = "arXiv 2605.07194"
    each_step: ClassVar[str] = (
        "Each step fits a classifier to the distilled images, tries it on real ones, and moves "
        "the pixels a little, so that it does better."
    )
    loss_is: ClassVar[str] = (
        "How badly a classifier fitted to the distilled images names real ones (cross-entropy)."
    )

    def __post_init__(self) -> None:
        checks.positive("ridge", self.ridge)
        checks.positive("temperature", self.temperature)
        checks.flags(self, "head_per_copy")

    def __call__(self, key: Key[Array, ""], synthetic: Features, real: Features) -> Array:
        if self.head_per_copy or synthetic.values.shape[0] <= synthetic.values.shape[1]:
            # Fewer numbers than one sum for each copy, or than products of all pairs of views.
            synthetic = everywhere(synthetic)

        def loss(weights: Float[Array, " s"]) -> Float[Array, ""]:
            views = dataclasses.replace(synthetic, weights=weights)
            options = (views.num_classes, self.ridge, self.temperature)
            return _compare(closed_form_probe_loss, views, real, *options)

        if not self.head_per_copy:
            return loss(synthetic.weights)

        # The order of rows is not known, so those of other copies get weight zero. One copy after
        # the other: the class scores of all real images take memory.
        def of_copy(copy: Int[Array, ""]) -> tuple[Array, Array]:
            weights = jnp.where(synthetic.copy == copy, synthetic.weights, 0)
            return loss(weights), jnp.any(weights > 0)

        losses, counted = jax.lax.map(of_copy, jnp.arange(synthetic.copies, dtype=jnp.int32))
        counted = counted.astype(losses.dtype)
        return jnp.sum(losses * counted) / nonzero(jnp.sum(counted))


def _compare(
    loss: Callable[..., Array], synthetic: Features, real: Features, *options: Any
) -> Array:
    """Calls a loss of two sets of features, with options between their labels and weights."""
    sets = synthetic.values, synthetic.labels, real.values, real.labels
    return loss(*sets, *options, synthetic.weights, real.weights)


OBJECTIVES: Mapping[str, type[Objective]] = {"lgm": LGM, "sfm": SFM, "clp": CLP}
"""Objectives by their names in configs."""


def gradient_matching_loss(
    head: Head,
    features_syn: Float[Array, "s d"],
    labels_syn: Int[Array, " s"] | Float[Array, "s k"],
    features_real: Float[Array, "n d"],
    labels_real: Labels,
    weights_syn: Float[Array, " s"] | None = None,
    weights_real: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Returns the cosine distance of the head gradients of two sets of images (LGM, eq. 3).

    Source: linear gradient matching, arXiv 2511.16674.

    Differentiable with respect to `features_syn`: the outer gradient goes through the inner one.
    """
    return cosine_distance(
        head_gradient(head, features_syn, labels_syn, weights_syn, parts=None),
        head_gradient(head, features_real, labels_real, weights_real, parts=None),
    )


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
    """Returns the cross-entropy on real images of the ridge head of synthetic ones (CLP-DD).

    softmax(Z_R W / τ) with W of `ridge_head`. Scaling or rotating all features together changes
    nothing; shifting them does, for the head has no bias.

    Source: closed-form linear-probe dataset distillation, arXiv 2605.07194, whose λ is absolute.

    Args:
        ridge: As for `ridge_head`.

    Raises:
        UserError: If ridge or temperature is not above zero.
    """
    head = ridge_head(features_syn, labels_syn, num_classes, ridge, weights_syn)
    scaled = tempered(head, temperature)
    return linear_probe_loss(scaled, features_real, labels_real, weights_real, parts=None)


def about(objective: Objective | type[Objective]) -> dict[str, str]:
    """Returns the description of an objective for reports: `title`, and its other attributes."""
    kind = objective if isinstance(objective, type) else type(objective)
    names = ("title", "source", "each_step", "loss_is")
    own = {name: getattr(kind, name) for name in names if hasattr(kind, name)}
    return {"title": kind.__name__} | own


def try_objective(objective: Objective, num_classes: int, dim: int) -> None:
    """Checks that an objective depends neither on the order of rows nor on rows of weight zero.

    It is called with random features, and with the same ones shuffled and padded, as by devices.

    Raises:
        UserError: If the loss is no finite number, or another one for the same features.
    """
    count = 2 * num_classes

    def draw(seed: int) -> Features:
        values = jax.random.normal(jax.random.key(seed), (count, dim))
        rows, weights = jnp.arange(count, dtype=jnp.int32), jnp.ones(count)
        image, copy = rows % num_classes, rows // num_classes
        return Features(values, image, weights, image, copy, num_classes, 2)

    def fill(features: Features) -> Features:
        order = np.random.default_rng(0).permutation(count)
        filled = jax.tree.map(lambda leaf: leaf[np.resize(order, count + 3)], features)
        return dataclasses.replace(filled, weights=filled.weights.at[count:].set(0))

    key, (synthetic, real) = jax.random.key(2), (draw(0), draw(1))
    name = about(objective)["title"]
    loss = objective(key, synthetic, real)
    if jnp.shape(loss) != () or not jnp.isfinite(loss):
        raise UserError(f"objective {name} returns {loss!r:.80}, which is no finite number")
    for other, kind in (
        (objective(key, fill(synthetic), real), "synthetic"),
        (objective(key, synthetic, fill(real)), "real"),
    ):
        if not jnp.abs(other - loss) <= _ROUNDING * jnp.maximum(1, jnp.abs(loss)):
            raise UserError(
                f"objective {name} returns {float(loss):g} for {kind} features, and "
                f"{float(other):g} for the same in another order and with rows of no weight: it "
                "must honour Features.weights and not the order of rows"
            )
