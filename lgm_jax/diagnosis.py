"""Why a distillation had to stop: which number of its last step was the first not to be finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from lgm_jax import distill, sharding
from lgm_jax.backbones import Backbone

# The sigmoid of an image's parameters is black or white long before.
_GROWN = 1e3


def find_cause(
    recipe: distill.Recipe,
    key: jax.Array,
    backbones: Sequence[Backbone],
    reals: Sequence[distill.Real],
    sources: Sequence[distill.Source],
    state: distill.AnyState,
    *,
    mesh: Mesh | None = None,
    specs: Sequence[Any] | None = None,
) -> str:
    """Computes a step anew, part by part, and says which part is not finite, and why.

    A step whose loss is not finite leaves the state as it was, so the parts are those of that step.
    Of several processes, all make the same call.

    Args:
        recipe: The recipe.
        key: The run's root key.
        backbones: What is distilled against.
        reals: Where real features are from, for each, as for `distill.make_gradient`.
        sources: What they draw from at this step.
        state: The state that the step failed at, as it lies on the mesh.
        mesh: The devices; `None` for one.
        specs: How sources are laid out on the mesh.

    Returns:
        A clause for a message.
    """
    size = float(_largest(state.levels))
    far = f"to {size:.1e}" if math.isfinite(size) else "beyond what float32 holds"
    grown = (
        f"the images' parameters have grown {far}: config.learning_rate={recipe.learning_rate:g} "
        "is too high"
    )
    for number, backbone in enumerate(backbones):
        if not _finite(backbone.params):
            return f"weights of {backbone.name} are not finite: load a sound file of them"
        spec = sharding.EVERYWHERE if specs is None else specs[number]
        real = _parts_are_finite(_real_features(reals[number]), mesh, sharding.EVERYWHERE, spec)
        if not real(state.step, backbone.params, sources[number]):
            return _overflow(f"features of real images by {backbone.name}")
    if not distill.is_finite(state):
        # Moments are sums of gradients alone; parameters are of learning rates too.
        if _finite(state.opt_state):
            return grown
        return _overflow("the gradient with respect to the images")
    for backbone in backbones:
        views = _view_features(distill.make_embed(backbone.apply, recipe, key), recipe, mesh)
        syn = _parts_are_finite(views, mesh, sharding.specs(state), sharding.EVERYWHERE)
        if not syn(state, backbone.params, None):
            name = f"features of the distilled images by {backbone.name}"
            return f"{name} are not finite, and {grown}" if size > _GROWN else _overflow(name)
    return (
        "weights, pixels and features of real and of distilled images are finite: "
        f"config.objective={recipe.objective} overflows on them, or a device made an error"
    )


def _overflow(what: str) -> str:
    verb = "are" if what.startswith("features") else "is"
    return (
        f"{what} {verb} not finite, though weights and pixels are: its network overflows; try "
        "config.backbone.dtype=float32 and config.backbone.attention=xla"
    )


def _real_features(real: distill.Real) -> Callable[..., Array]:
    return lambda step, params, source: real(params, source, step)[0]


def _view_features(
    embed: distill.Embed, recipe: distill.Recipe, mesh: Mesh | None
) -> Callable[..., Array]:
    def features(state: distill.AnyState, params: Any, _: None) -> Array:
        indices = sharding.own_positions(state.levels[0].shape[0], mesh)

        def of_copy(copy: Array) -> Array:
            found = embed(params, state.levels, indices, copy[None], state.step)
            # Images that fill up are of zero.
            return jnp.where((indices < recipe.num_images)[:, None, None], found, 0)

        return jax.lax.map(of_copy, jnp.arange(recipe.copies, dtype=jnp.int32))

    return features


def _parts_are_finite(
    function: Callable[..., Array], mesh: Mesh | None, first_spec: Any, source_spec: Any
) -> Callable[..., bool]:
    """Whether what a function makes of its arguments is finite on all devices."""

    def part(first: Any, params: Any, source: Any) -> Bool[Array, " 1"]:
        return jnp.all(jnp.isfinite(function(first, params, source)))[None]

    layout = (first_spec, sharding.EVERYWHERE, source_spec)
    divided = sharding.over_devices(part, mesh, layout, sharding.DIVIDED, checked=False)

    @jax.jit
    def whole(*arguments: Any) -> Bool[Array, ""]:
        return sharding.replicated(jnp.all(divided(*arguments)), mesh)

    return lambda *arguments: bool(whole(*arguments))


def _finite(tree: Any) -> bool:
    return bool(jnp.isfinite(_largest(tree)))


@jax.jit
def _largest(tree: Any) -> Float[Array, ""]:
    """The largest number of a tree in size; NaN if one is."""
    sizes = [jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(sizes))
