"""What tests of microbatches and of many devices share: tasks, a backbone of two products."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from lgm_jax import distill, objectives, real
from lgm_jax.backbones import Backbone
from lgm_jax.data.loader import HostBatch
from lgm_jax.features import Rows
from lgm_jax.images import Pyramid

KEY = jax.random.key(0)
SIDE, FEATURES, REAL = 4, 6, 25


def make_task(num_classes: int, **changes: Any) -> distill.Distillation:
    """Images of 4 px, augmented; the pyramid grows after 2 steps."""
    given: dict[str, Any] = {
        "parametrisation": Pyramid(SIDE, start_resolution=2, grow_every=2),
        "crop": SIDE,
        "copies": 2,
        "optimizer": optax.adam(0.05),
    }
    return distill.Distillation(num_classes, **given | changes)


def apply(params: tuple[jax.Array, jax.Array], images: jax.Array) -> jax.Array:
    """Two products and a tanh."""
    return jnp.tanh(images.reshape(len(images), -1) @ params[0]) @ params[1]


def make_params() -> tuple[jax.Array, jax.Array]:
    """Parameters of `apply`."""
    rng = np.random.default_rng(1)
    inputs = SIDE**2 * 3
    first = rng.normal(size=(inputs, 16)) * 3 / inputs**0.5
    return jnp.asarray(first), jnp.asarray(rng.normal(size=(16, FEATURES)))


def make_backbone() -> Backbone:
    """`apply` and its parameters."""
    return Backbone("toy", apply, make_params(), FEATURES, SIDE, "toy")


def widen(tree: Any) -> Any:
    """Floats in float64 where that is on: Adam blows up roundings of small numbers."""

    def wide(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.result_type(float)) if leaf.dtype == jnp.float32 else leaf

    return jax.tree.map(wide, tree)


def make_state(task: distill.Distillation) -> distill.State:
    """The first state."""
    return widen(distill.init_state(task, KEY))


@pytest.fixture
def wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads, and so their gradients, in float64 where that is on."""
    init_head = objectives.init_head
    monkeypatch.setattr(objectives, "init_head", lambda *given: widen(init_head(*given)))


def make_real(
    task: distill.Distillation, source: str, mesh: Mesh, microbatch: int | None = None
) -> real.Real:
    """Real features from any source, for one backbone."""
    rng = np.random.default_rng(2)
    # Some of every class.
    labels = np.arange(max(REAL, task.num_classes + 3), dtype=np.int32) % task.num_classes
    if source == "stream":
        # Not uint8, which becomes float32 and is rounded as it is augmented.
        pixels = rng.uniform(size=(len(labels), SIDE, SIDE, 3))

        def read(step: int) -> HostBatch:
            numbers = np.arange(task.num_views, dtype=np.int32)
            chosen = ((7 * step + numbers) % len(labels)).astype(np.int32)
            return HostBatch(pixels[chosen], labels[chosen], numbers, chosen)

        made = real.streamed([make_backbone()], read, task, KEY, mesh=mesh, microbatch=microbatch)
    else:
        kept = Rows([rng.normal(size=(2 * len(labels), FEATURES)).astype(np.float32)], 2)
        if source == "cached":
            made = real.cached([kept], labels, task, KEY, mesh=mesh)
        else:
            made = real.exact([kept], labels, task, mesh=mesh)
    return lambda step: widen(made(step))
