"""What tests of microbatches and of many devices share: recipes, a backbone of two products."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lgm_jax import distill, objectives, sharding

KEY = jax.random.key(0)
SIDE, FEATURES, REAL = 4, 6, 25


def make_recipe(num_classes: int, source: str, **changes: Any) -> distill.Recipe:
    """Images of 4 px, augmented; the pyramid grows after 2 steps."""
    recipe = distill.Recipe(
        num_classes=num_classes,
        resolution=SIDE,
        crop=SIDE,
        copies=2,
        real=source,
        real_views=2,
        learning_rate=0.05,
        start_resolution=2,
        grow_every=2,
    )
    return dataclasses.replace(recipe, **changes)


def apply(params: tuple[jax.Array, jax.Array], images: jax.Array) -> jax.Array:
    """Two products and a tanh."""
    return jnp.tanh(images.reshape(len(images), -1) @ params[0]) @ params[1]


def make_params() -> tuple[jax.Array, jax.Array]:
    """Parameters of `apply`."""
    rng = np.random.default_rng(1)
    inputs = SIDE**2 * 3
    first = rng.normal(size=(inputs, 16)) * 3 / inputs**0.5
    return jnp.asarray(first), jnp.asarray(rng.normal(size=(16, FEATURES)))


def make_state(recipe: distill.Recipe) -> distill.State:
    """The first state, in float64 where that is on: Adam blows up roundings of small numbers."""

    def widen(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.result_type(float)) if leaf.dtype == jnp.float32 else leaf

    return jax.tree.map(widen, distill.init_state(KEY, recipe))


@pytest.fixture
def wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads, and so their gradients, in float64 where that is on."""
    init_head = objectives.init_head

    def init_wide_head(*arguments: Any) -> objectives.Head:
        head = init_head(*arguments)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), head)

    monkeypatch.setattr(objectives, "init_head", init_wide_head)


def make_feed(
    recipe: distill.Recipe, mesh: Mesh | None = None, microbatch_size: int | None = None
) -> tuple[distill.Real, Any, Any]:
    """Real function, what it draws from, and how that is laid out, for any source."""
    rng = np.random.default_rng(2)
    # Some of every class.
    labels = np.arange(max(REAL, recipe.num_classes + 3), dtype=np.int32) % recipe.num_classes
    if recipe.real == "stream":
        # Not uint8, which becomes float32 and is rounded as it is augmented.
        pixels = rng.uniform(size=(len(labels), SIDE, SIDE, 3))
        real = distill.make_stream(apply, recipe, KEY, mesh=mesh, microbatch_size=microbatch_size)
        return real, distill.Memory(jnp.asarray(pixels), jnp.asarray(labels)), PartitionSpec()
    features = rng.normal(size=(2, len(labels), FEATURES))
    memory = distill.FeatureMemory(jnp.asarray(features), jnp.asarray(labels))
    if recipe.real == "cached":
        return distill.make_cached(recipe, KEY, mesh=mesh), memory, PartitionSpec()
    if mesh is None:
        return distill.exact, memory, PartitionSpec()
    divided = distill.FeatureMemory(
        sharding.divide(mesh, features, axis=1),
        sharding.divide(mesh, labels, fill=sharding.PADDING),
    )
    specs = distill.FeatureMemory(PartitionSpec(None, "data"), PartitionSpec("data"))
    return distill.exact, divided, specs
