"""Laws of many devices, in float64; `test_sharding.py` runs them in a process of eight CPU devices.

Gradients are compared, not images alone: Adam hides a wrong scale of the first, the cosine one of
head gradients.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from scale import (
    FEATURES,
    KEY,
    SIDE,
    apply,
    make_feed,
    make_params,
    make_recipe,
    make_state,
    wide_heads,  # noqa: F401
)

from lgm_jax import distill, features, probe, sharding
from lgm_jax.augment import Augmentation
from lgm_jax.backbones import Backbone
from lgm_jax.checkpoints import Checkpoints
from lgm_jax.data.dataset import ArraySplit

jax.config.update("jax_enable_x64", True)

pytestmark = pytest.mark.usefixtures("wide_heads")

BYTES = {"f32": 4, "f64": 8, "s32": 4, "pred": 1}
COLLECTIVE = re.compile(r"= (.*?) (all-\w+|reduce-scatter|collective-\w+)(-start)?\(")


def make_program(recipe: distill.Recipe, devices: int | None, size: int | None = None) -> Any:
    """Some devices or no mesh, and on them a jitted step and growth, the start, and the source."""
    mesh = devices and sharding.make_mesh(jax.devices()[:devices])
    real, source, specs = make_feed(recipe, mesh, size)
    step = distill.make_step(
        apply, recipe, KEY, real, mesh=mesh, source_specs=specs, microbatch_size=size
    )
    state = make_state(recipe)
    if mesh is not None:
        state = sharding.place(mesh, state)
    grow = jax.jit(distill.make_grow(recipe, KEY, mesh=mesh))
    return mesh, jax.jit(step), grow, state, source


def run(recipe: distill.Recipe, devices: int | None, size: int | None = None) -> Any:
    """The raw gradient of the first step, its loss, and the state after three, one growth between.

    Adam's first moment is a tenth of the gradient after one step.
    """
    _, step, grow, state, source = make_program(recipe, devices, size)
    states = distill.run(step, grow, recipe, state, make_params(), lambda _: source, 3)
    first, loss = next(states)
    gradient = jax.tree.map(lambda moment: 10 * np.asarray(moment), first.opt_state[0].mu)
    *_, (last, _) = states
    assert step._cache_size() == 1
    assert grow._cache_size() == 1
    return gradient, float(loss), jax.device_get(last)


@functools.cache
def expect(recipe: distill.Recipe) -> Any:
    """The same on one device without a mesh."""
    return run(recipe, None)


def assert_close(actual: Any, expected: Any, count: int) -> None:
    """Equal up to rounding, relative to the largest number, in all but the padding."""
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        # Measured: 7e-16 of gradients, 1e-13 of states.
        np.testing.assert_allclose(
            ours[:count] if ours.ndim else ours, theirs, rtol=0, atol=1e-10 * np.abs(theirs).max()
        )


@pytest.mark.parametrize(
    ("source", "num_classes", "changes", "devices"),
    [
        ("stream", 10, {}, [2, 8]),
        pytest.param("stream", 10, {}, [1, 4], marks=pytest.mark.slow),
        ("stream", 4, {"copies": 3}, [8]),
        # Two images of each class are below too, in microbatches.
        pytest.param("stream", 8, {"ipc": 2}, [8], marks=pytest.mark.slow),
        pytest.param("cached", 10, {}, [8], marks=pytest.mark.slow),
        ("cached", 1000, {"copies": 1}, [8]),
        ("exact", 10, {}, [8]),
        pytest.param("exact", 10, {}, [4], marks=pytest.mark.slow),
        ("stream", 10, {"objective": "sfm", "sampling": "balanced"}, [8]),
        # More synthetic views than features, and fewer.
        ("cached", 10, {"objective": "clp"}, [8]),
        ("exact", 5, {"objective": "clp", "copies": 1}, [3]),
        pytest.param(
            "exact",
            10,
            {"objective": "clp", "head_per_copy": True, "center_crop_copies": 1},
            [8],
            marks=pytest.mark.slow,
        ),
        ("cached", 5, {"label_kind": "soft"}, [3]),
    ],
)
def test_gradients_and_images_do_not_depend_on_devices(source, num_classes, changes, devices):
    recipe = make_recipe(num_classes, source, **changes)
    gradient, loss, last = expect(recipe)
    largest = max(np.abs(leaf).max() for leaf in gradient)
    assert largest > 1e-6
    for number in devices:
        ours, our_loss, our_last = run(recipe, number)
        assert abs(our_loss - loss) < 1e-12
        assert_close(ours, gradient, recipe.num_images)
        assert_close(our_last, last, recipe.num_images)
        for leaf in ours:
            assert leaf.shape[0] == recipe.images_on(number) * number
            assert not np.any(leaf[recipe.num_images :])


@pytest.mark.parametrize("source", ["stream", "exact"])
def test_several_backbones_on_several_devices(source):
    """Each its own weights and, where they are known beforehand, its own features."""
    recipe, weights = make_recipe(5, source), (0.9, 0.1)
    first, second = make_params()
    params = (first, second), (first, second[:, ::-1] ** 3)

    def compute(devices: int | None) -> Any:
        mesh = devices and sharding.make_mesh(jax.devices()[:devices])
        real, feed, specs = make_feed(recipe, mesh)
        gradient = distill.make_gradient(apply, recipe, KEY, real, mesh=mesh)
        step = distill.make_step_along(
            distill.weigh_gradients([gradient] * 2, weights),
            recipe,
            mesh=mesh,
            source_specs=(specs,) * 2,
        )
        state = make_state(recipe)
        state = sharding.place(mesh, state) if mesh else state
        return jax.jit(step)(state, params, (feed,) * 2)

    (after, loss), (expected, expected_loss) = compute(3), compute(None)
    assert abs(float(loss) - float(expected_loss)) < 1e-12
    assert_close(after.opt_state[0].mu, expected.opt_state[0].mu, recipe.num_images)


def test_microbatches_and_devices_together():
    recipe = make_recipe(10, "stream", copies=3, ipc=2)
    gradient, loss, last = expect(recipe)
    for size in (2, 7):
        ours, our_loss, our_last = run(recipe, 8, size)
        assert abs(our_loss - loss) < 1e-12
        assert_close(ours, gradient, recipe.num_images)
        assert_close(our_last, last, recipe.num_images)


def test_a_real_function_that_knows_no_devices_gives_the_same():
    recipe = make_recipe(4, "stream")
    whole, memory, _ = make_feed(recipe)
    losses = []
    for number in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:number])
        step = jax.jit(distill.make_step(apply, recipe, KEY, whole, mesh=mesh))
        state = sharding.place(mesh, make_state(recipe))
        after, loss = step(state, make_params(), memory)
        losses.append((float(loss), np.asarray(after.opt_state[0].mu[0])[:4]))
    np.testing.assert_allclose(losses[0][0], losses[1][0], atol=1e-12)
    np.testing.assert_allclose(losses[0][1], losses[1][1], atol=1e-12)


def test_batches_drawn_on_the_host_are_divided_and_padded():
    recipe = make_recipe(10, "cached")
    mesh, step, _, state, memory = make_program(recipe, 8)
    views, chosen = distill.make_rows(recipe, KEY)(0, memory.labels)
    batch = distill.Batch(
        sharding.divide(mesh, memory.features[views, chosen]),
        sharding.divide(mesh, memory.labels[chosen], fill=sharding.PADDING),
    )
    assert batch.labels.shape == (24,)
    given = jax.jit(
        distill.make_step(
            apply, recipe, KEY, distill.given, mesh=mesh, source_specs=sharding.DIVIDED
        )
    )
    after, loss = given(state, make_params(), batch)
    expected, expected_loss = step(state, make_params(), memory)
    assert abs(float(loss) - float(expected_loss)) < 1e-12
    assert_close(after, jax.device_get(expected), recipe.images_on(8) * 8)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize(
    ("source", "objective"),
    [
        ("stream", "lgm"),
        pytest.param("cached", "lgm", marks=pytest.mark.slow),
        pytest.param("exact", "lgm", marks=pytest.mark.slow),
        ("exact", "sfm"),
    ],
)
def test_devices_exchange_two_sums_and_nothing_else(source, objective):
    recipe = make_recipe(10, source, objective=objective)
    sent = []
    for devices in (2, 8):
        _, step, _, state, memory = make_program(recipe, devices)
        compiled = step.lower(state, make_params(), memory).compile().as_text()
        found = COLLECTIVE.findall(compiled)
        assert {kind for _, kind, _ in found} == {"all-reduce"}
        arrays = [a for shapes, *_ in found for a in re.findall(r"(\w+)\[([\d,]*)\]", shapes)]
        numbers = sum(int(np.prod([int(n) for n in dims.split(",") if n])) for _, dims in arrays)
        assert all(kind in BYTES for kind, _ in arrays)
        sent.append(numbers)
    gradients = 2 * 10 * (FEATURES + 1)
    assert gradients <= sent[0] == sent[1] <= gradients + 1024 // 8


@pytest.mark.usefixtures("compiled_anew")
def test_a_closed_form_probe_exchanges_synthetic_features_alone():
    recipe = make_recipe(10, "exact", objective="clp")
    _, step, _, state, memory = make_program(recipe, 8)
    compiled = step.lower(state, make_params(), memory).compile().as_text()
    sizes = {}
    for shapes, kind, _ in COLLECTIVE.findall(compiled):
        found = [dims for _, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)]
        count = sum(int(np.prod([int(n) for n in dims.split(",") if n])) for dims in found)
        sizes[kind] = sizes.get(kind, 0) + count
    views = 2 * 8 * recipe.images_on(8)
    # Features, labels and weights of all; a device's part of the features' gradient, the loss and
    # a count.
    assert sizes.pop("all-gather") == views * (FEATURES + 2)
    assert sum(sizes.values()) <= views * FEATURES + 2


def test_states_are_padded_and_cut_to_what_they_were():
    recipe = make_recipe(10, "stream")
    state = make_state(recipe)
    for devices in (1, 3, 5, 8):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        placed = sharding.place(mesh, state)
        parts = {shard.data.shape[0] for shard in placed.levels[0].addressable_shards}
        assert parts == {recipe.images_on(devices)}
        back = sharding.collect(mesh, placed, recipe.num_images)
        jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize(
    ("before", "after"),
    [(8, 1), (1, 8), pytest.param(5, 2, marks=pytest.mark.slow)],
)
def test_checkpoints_go_on_on_another_number_of_devices(before, after, tmp_path):
    recipe = make_recipe(10, "exact")
    expected = expect(recipe)[2]
    mesh, step, grow, state, source = make_program(recipe, before)
    *_, (state, _) = distill.run(step, grow, recipe, state, make_params(), lambda _: source, 1)
    with Checkpoints(epath.Path(tmp_path), 1) as checkpoints:
        checkpoints.save(1, sharding.collect(mesh, state, recipe.num_images))
    with Checkpoints(epath.Path(tmp_path), 1) as checkpoints:
        restored = checkpoints.restore(make_state(recipe))
    assert restored.levels[0].shape[0] == recipe.num_images
    mesh, step, grow, _, source = make_program(recipe, after)
    state = sharding.place(mesh, restored)
    *_, (last, _) = distill.run(step, grow, recipe, state, make_params(), lambda _: source, 3)
    assert int(last.step) == 3
    assert_close(jax.device_get(last), expected, recipe.num_images)


@pytest.mark.usefixtures("compiled_anew")
def test_donated_states_are_reused_in_place():
    recipe = make_recipe(10, "cached")
    _, step, _, state, source = make_program(recipe, 8)
    donating = jax.jit(step.__wrapped__, donate_argnums=0)
    compiled = donating.lower(state, make_params(), source).compile().memory_analysis()
    own = sum(leaf.nbytes // 8 for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert compiled.alias_size_in_bytes >= own
    donating(state, make_params(), source)
    assert all(level.is_deleted() for level in state.levels)


def make_backbone() -> Backbone:
    zeros, ones = (0.0,) * 3, (1.0,) * 3
    return Backbone("toy", apply, make_params(), FEATURES, SIDE, zeros, ones, "0" * 64, "toy")


def make_split(count: int) -> ArraySplit:
    """Random images of five classes, a little larger than crops."""
    pixels = np.random.default_rng(2).integers(0, 256, (count, SIDE + 2, SIDE + 2, 3))
    return ArraySplit(pixels.astype(np.uint8), np.arange(count, dtype=np.int32) % 5)


def test_features_do_not_depend_on_devices(monkeypatch):
    """Twenty views: batches of 3, of 9, and one of 20 that 8 devices fill up."""
    monkeypatch.setattr(features, "_BATCH", 3)
    views = features.Views(SIDE, Augmentation(), 2)
    split, expected = make_split(10), None
    for devices in (1, 3, 8):
        mesh = sharding.mesh_of_several(jax.devices()[:devices])
        before = features._features.jitted._cache_size()
        rows = features.embed(make_backbone(), split, views, KEY, mesh=mesh).whole()
        assert features._features.jitted._cache_size() == before + 1
        assert rows.shape == (2, 10, FEATURES)
        expected = rows if expected is None else expected
        # Measured: no difference in float64, of which features keep float32.
        np.testing.assert_allclose(rows, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("solver", "augment", "numbers"),
    [
        ("adam", "fresh", [8]),
        ("adam", "views", [3]),
        pytest.param("adam", "views", [8], marks=pytest.mark.slow),
        pytest.param("adam", "none", [8], marks=pytest.mark.slow),
        ("lbfgs", "views", [8]),
    ],
)
def test_probes_do_not_depend_on_devices(solver, augment, numbers, monkeypatch):
    """Three runs on ten images, four an update: neither divides."""
    monkeypatch.setattr(probe, "_EMBED_BATCH", 7)
    monkeypatch.setattr(probe, "_EPOCHS_PER_CALL", 1)
    protocol = probe.Protocol(
        epochs=3,
        batch=4,
        runs=3,
        crop=SIDE,
        augment=augment,
        augmentation=Augmentation(),
        views=2,
        solver=solver,
        learning_rate=0.5,
    )
    split = make_split(12)
    # Without augmentation all runs see the same, and so have one table.
    first = [0, 0, 0] if augment == "none" else [0, 1, 2]
    rows = jax.numpy.asarray([np.arange(10) + start for start in first], "int32")
    labels, expected = jax.numpy.asarray(split.labels)[rows], None
    for devices in (1, *numbers):
        mesh = sharding.mesh_of_several(jax.devices()[:devices])
        images, before = jax.numpy.asarray(split.images), probe._epochs.jitted._cache_size()
        heads, losses = probe.train(
            KEY, make_backbone(), images, labels, rows, 5, protocol, label="", mesh=mesh
        )
        assert probe._epochs.jitted._cache_size() == before + (solver == "adam")
        assert heads["kernel"].shape == (3, FEATURES, 5)
        found = heads if losses is None else {**heads, "losses": losses}
        expected = found if expected is None else expected
        for name, leaf in found.items():
            scale = np.abs(expected[name]).max()
            assert scale > 1e-3
            # Measured: 3e-16 with Adam, 3e-7 with lbfgs, which works in float32.
            tolerance = 1e-10 if solver == "adam" else 1e-5
            np.testing.assert_allclose(leaf, expected[name], rtol=0, atol=tolerance * scale)


def test_evaluation_does_not_depend_on_devices():
    rng = np.random.default_rng(3)
    heads = {"kernel": rng.normal(size=(3, FEATURES, 7)), "bias": rng.normal(size=(3, 7))}
    heads = jax.tree.map(jax.numpy.asarray, heads)
    rows, labels = rng.normal(size=(10, FEATURES)), np.arange(10, dtype=np.int32) % 7
    groups = np.arange(10) % 3
    expected = probe.evaluate(heads, rows, labels, groups)
    assert 0 < expected["top5"].min() < 100
    for devices in (3, 8):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        scores = probe.evaluate(heads, rows, labels, groups, mesh=mesh)
        for name, values in expected.items():
            np.testing.assert_array_equal(scores[name], values)
