"""Memory that does not grow with the batch, and results that do not change for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scale import (
    KEY,
    apply,
    make_feed,
    make_params,
    make_recipe,
    make_state,
    wide_heads,  # noqa: F401
)

from lgm_jax import distill, microbatch
from lgm_jax.backbones import abstract_params, abstract_vit, make_apply, specs

SIZES = (1, 2, 3, 4, 7, 9, 10, 11, None)


def two_products(tree: Any, indices: jax.Array) -> jax.Array:
    """Treats every row for itself."""
    return jnp.sin(tree["a"] * indices[:, None]) * jnp.sum(tree["b"] ** 2, axis=1)[:, None]


@pytest.fixture
def tree() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=(10, 3)), jnp.float32) for name in "ab"}


@pytest.mark.parametrize("size", SIZES)
def test_vjp_in_parts_is_vjp(tree, size):
    indices = jnp.arange(10.0)
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=(10, 3)), jnp.float32)
    expected, pullback = jax.vjp(lambda t: two_products(t, indices), tree)
    ours, in_parts = microbatch.vjp_in_parts(two_products, size, tree, indices)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    for name, theirs in pullback(gradient)[0].items():
        np.testing.assert_allclose(in_parts(gradient)[name], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_map_in_parts_is_differentiable_in_what_it_closes_over(tree, size):
    def total(scale: jax.Array, size: int | None) -> jax.Array:
        rows = microbatch.map_in_parts(lambda a, b: jnp.sin(scale * a) * b, size, *tree.values())
        return jnp.sum(rows * jnp.arange(30.0).reshape(10, 3))

    expected, slope = jax.value_and_grad(total)(jnp.float32(0.7), None)
    ours, our_slope = jax.value_and_grad(total)(jnp.float32(0.7), size)
    np.testing.assert_allclose((ours, our_slope), (expected, slope), rtol=1e-5)


def test_what_fits_in_one_part_is_computed_once(tree):
    calls = []

    def counted(tree: Any, indices: jax.Array) -> jax.Array:
        calls.append(indices.shape[0])
        return two_products(tree, indices)

    for size, expected in ((10, [10]), (None, [10]), (5, [5, 5])):
        results, pullback = microbatch.vjp_in_parts(counted, size, tree, jnp.arange(10.0))
        pullback(results)
        assert calls == expected
        calls.clear()


@pytest.mark.usefixtures("wide_heads")
@pytest.mark.parametrize(
    ("source", "objective", "changes"),
    [
        ("stream", "lgm", {}),
        ("exact", "lgm", {}),
        ("exact", "sfm", {}),
        ("cached", "clp", {}),
        ("cached", "clp", {"center_crop_copies": 1, "head_per_copy": True}),
    ],
)
def test_gradients_do_not_depend_on_microbatches(source, objective, changes):
    """Six images in three copies each, by numbers of views that divide them and that do not."""

    def compute(size: int | None) -> tuple[jax.Array, Any]:
        recipe = make_recipe(3, source, ipc=2, copies=3, objective=objective, **changes)
        real, feed, _ = make_feed(recipe, microbatch_size=size)
        gradient = distill.make_gradient(apply, recipe, KEY, real, microbatch_size=size)
        # All levels count.
        state = make_state(recipe)._replace(step=jnp.int32(recipe.grow_every * 4))
        return jax.jit(gradient)(state, make_params(), feed)

    with jax.enable_x64(True):
        loss, whole = compute(None)
        assert all(np.abs(level).max() > 1e-6 for level in whole)
        for size in (1, 2, 4, 7, 18):
            parts_loss, parts = compute(size)
            # Measured: 2e-15 of losses of up to 8, relatively.
            np.testing.assert_allclose(parts_loss, loss, rtol=5e-15, atol=1e-14)
            for ours, theirs in zip(parts, whole, strict=True):
                limit = 1e-12 * np.abs(theirs).max()
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("layers", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_memory_of_a_step_is_that_of_one_microbatch(layers):
    """ViT-B/14 at 224 px, 1,000 classes; compiled, not run."""
    entry = specs.NAMES["dinov2_vitb14"]
    spec = dataclasses.replace(entry.spec, depth=layers, resolution=224)
    definition, _ = abstract_vit(spec)
    params = abstract_params(spec)
    vit = make_apply(definition, spec, entry.preprocessing)
    recipe = distill.Recipe(num_classes=1000, resolution=256, crop=224)

    def measure(copies: int, size: int) -> int:
        changed = dataclasses.replace(recipe, copies=copies)
        step = distill.make_step(vit, changed, KEY, distill.given, microbatch_size=size)
        state = jax.eval_shape(lambda: distill.init_state(KEY, changed))
        features = jax.ShapeDtypeStruct((changed.batch, spec.feature_dim), jnp.float32)
        labels = jax.ShapeDtypeStruct((changed.batch,), jnp.int32)
        jitted = jax.jit(step, donate_argnums=0)
        compiled = jitted.lower(state, params, distill.Batch(features, labels)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    taken = [measure(copies, 30) for copies in ((1, 10) if layers == 1 else (1, 3, 10))]
    # Measured with twelve layers: 9,647, 9,638 and 9,653 MiB.
    assert max(taken) < 1.05 * min(taken)
    each = (taken[0] - measure(1, 15)) / 15
    counted = distill.view_bytes(vit, params, recipe, KEY)
    # Measured: 1.21 times with twelve layers; plans take 1.5.
    assert counted < each < (1.25 if layers == 12 else 2.5) * counted


def test_the_size_is_what_fits_in_the_memory_of_a_device():
    reported = {"bytes_limit": 1000, "bytes_in_use": 100}
    assert microbatch.free_bytes(reported, 200) == 600
    whole = jax.local_device_count() * microbatch.free_bytes(None, 200)
    assert whole == pytest.approx(0.5 * microbatch.machine_bytes(), rel=1e-6)
    assert microbatch.choose_size(view_bytes=10, free=600, views=100) == 40
    assert microbatch.choose_size(view_bytes=10, free=600, views=30) == 30
    assert microbatch.choose_size(view_bytes=10, free=-5, views=30) == 1


def test_processes_share_the_memory_of_a_machine_that_no_device_reports(monkeypatch):
    alone = microbatch.free_bytes({}, 0)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    assert microbatch.free_bytes({}, 0) == pytest.approx(alone / 4, rel=1e-6)
    # The memory of a GPU belongs to the one process that has it.
    assert microbatch.free_bytes({"bytes_limit": 1000}, 0) == 900


def test_a_container_has_the_memory_of_its_limit(tmp_path, monkeypatch):
    limit, unlimited = tmp_path / "limit", tmp_path / "unlimited"
    limit.write_text("1000000\n")
    unlimited.write_text("max\n")
    monkeypatch.setattr(microbatch, "_CONTAINER_LIMITS", (unlimited, tmp_path / "none"))
    machine = microbatch.machine_bytes()
    assert machine > 2**28
    monkeypatch.setattr(microbatch, "_CONTAINER_LIMITS", (limit, unlimited))
    assert microbatch.machine_bytes() == 1_000_000
