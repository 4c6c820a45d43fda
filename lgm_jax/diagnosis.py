"""Why a distillation had to stop: which number of its last step was the first not to be finite."""

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

# The sigmoid of an image's parameters is black or white long before.
_GROWN = 1e3


def find_cause(
    recipe: Recipe,
    key: jax.Array,
    backbones: Sequence[Backbone],
    params: Sequence[Any],
    real: Sequence[Any],
    state: distill.State,
    *,
    mesh: Mesh | None = None,
    microbatch: int | None = None,
) -> str:
    """Computes a step anew, part by part, and says which part is not finite, and why.

    A step whose loss is not finite leaves the state as it was, so the parts are those of that step.
    Of several processes, all make the same call.

    Args:
        recipe: The recipe.
        key: The run's root key.
        backbones: What is distilled against.
        params: Their parameters, as they lie on the mesh.
        real: The step's real features, for each.
        state: The state that the step failed at, as it lies on the mesh.
        mesh: As for `distill.make_step`.
        microbatch: Likewise.

    Returns:
        A clause for a message.
    """
    size = float(_largest(state.params["images"]))
    far = f"to {size:.1e}" if math.isfinite(size) else "beyond what float32 holds"
    grown = (
        f"the images' parameters have grown {far}: "
        f"config.learning_rate={recipe.updates.learning_rate:g} is too high"
    )
    for backbone, own, features in zip(backbones, params, real, strict=True):
        if not _finite(own):
            return f"weights of {backbone.name} are not finite: load a sound file of them"
        if not _finite(features):
            return _overflow(f"features of real images by {backbone.name}")
    if not distill.is_finite(state):
        # Moments are sums of gradients alone; parameters are of learning rates too.
        if _finite(state.opt_state):
            return grown
        return _overflow("the gradient with respect to the images")
    for backbone, own in zip(backbones, params, strict=True):
        embed = distill.make_embed(
            recipe.task, backbone.apply, key, mesh=mesh, microbatch=microbatch
        )
        if not _finite(jax.jit(embed)(state.params, own, state.step).values):
            name = f"features of the distilled images by {backbone.name}"
            return f"{name} are not finite, and {grown}" if size > _GROWN else _overflow(name)
    return (
        "weights, pixels and features of real and of distilled images are finite: "
        f"config.objective={_name(recipe)} overflows on them, or a device made an error"
    )


def _name(recipe: Recipe) -> str:
    return type(recipe.task.objective).__name__.lower()


def _overflow(what: str) -> str:
    verb = "are" if what.startswith("features") else "is"
    return (
        f"{what} {verb} not finite, though weights and pixels are: its network overflows; try "
        "config.backbone.dtype=float32 and config.backbone.attention=xla"
    )


def _finite(tree: Any) -> bool:
    return bool(jnp.isfinite(_largest(tree)))


@jax.jit
def _largest(tree: Any) -> Float[Array, ""]:
    """The largest number of a tree in size; NaN if one is."""
    sizes = [jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(sizes))
