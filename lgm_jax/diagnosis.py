"""Diagnose a distillation that diverged: find the first value of a step that is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lgm_jax import distill
from lgm_jax.backbones import Backbone
from lgm_jax.settings import Recipe

# Beyond, the sigmoid of an image's parameters has long been black or white.
_GROWN = 1e3


def find_cause(
    recipe: Recipe,
    key: jax.Array,
    backbones: Sequence[Backbone],
    real: Sequence[Any],
    failed: int,
    state: distill.State,
    *,
    mesh: Mesh,
    microbatch: int | None,
) -> str:
    """Computes a step again, part by part; returns a clause on what is not finite, and its cause.

    A step whose loss is not finite does not change the state, so its parts are computed from the
    same images, or from those that a later step has changed. All processes make the same call.

    Args:
        failed: Number of the step, from 1.
        state: The newest state, as it lies on the mesh.
    """
    for backbone, features in zip(backbones, real, strict=True):
        if not distill.is_finite(backbone.params):
            return f"weights of {backbone.name} are not finite: load a sound file of them"
        if not distill.is_finite(features):
            return _overflow(f"features of real images by {backbone.name}")
    size = float(_largest(state.params["images"]))
    far = f"to {size:.1e}" if math.isfinite(size) else "beyond what float32 holds"
    grown = (
        f"the images' parameters have grown {far}: "
        f"config.learning_rate={recipe.updates.learning_rate:g} is too high"
    )
    if not distill.is_finite(state):
        # Moments are sums of gradients; parameters depend on the learning rate, too.
        if distill.is_finite(state.opt_state):
            return grown
        return _overflow("the gradient with respect to the images")
    for backbone in backbones:
        embed = distill.make_embed(
            recipe.task, backbone.apply, key, mesh=mesh, microbatch=microbatch
        )
        seen = jax.jit(embed)(state.params, backbone.params, jnp.int32(failed - 1))
        if not distill.is_finite(seen.values):
            name = f"features of the distilled images by {backbone.name}"
            return f"{name} are not finite, and {grown}" if size > _GROWN else _overflow(name)
    name = type(recipe.task.objective).__name__.lower()
    return (
        "weights, pixels and features of real and of distilled images are finite: "
        f"config.objective={name} overflows on them, or a device made an error"
    )


def _overflow(what: str) -> str:
    verb = "are" if what.startswith("features") else "is"
    return (
        f"{what} {verb} not finite, though weights and pixels are: its network overflows; try "
        "config.backbone.dtype=float32 and config.backbone.attention=xla"
    )


@jax.jit
def _largest(tree: Any) -> Float[Array, ""]:
    """Returns the largest absolute value of a tree; NaN if one is."""
    sizes = [jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(sizes))
