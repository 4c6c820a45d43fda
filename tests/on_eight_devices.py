"""Laws of many devices, in float64; `test_sharding.py` runs them in a process of eight CPU devices.

Gradients are compared, not images alone: Adam hides a wrong scale of the first, the cosine one of
head gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding
from scale import (
    FEATURES,
    KEY,
    SIDE,
    apply,
    make_backbone,
    make_params,
    make_real,
    make_state,
    make_task,
    wide_heads,  # noqa: F401
)

from lgm_jax import devices, distill, features, objectives, probe, solvers
from lgm_jax import heads as linear
from lgm_jax.augment import Augmentation
from lgm_jax.checkpoints import Checkpoints
from lgm_jax.data.dataset import ArraySplit
from lgm_jax.images import Pixels
from tests.marks import slow

jax.config.update("jax_enable_x64", True)

pytestmark = pytest.mark.usefixtures("wide_heads")

# What compiles in seconds: no pyramid, no augmentation. Two laws below have both.
PLAIN = {"parametrisation": Pixels(SIDE), "augmentation": None}


def test_weights_lie_once_on_each_device():
    """Whatever they are put on, in whatever order of the devices."""

    def buffers(array):
        return {each.device: each.data.unsafe_buffer_pointer() for each in array.addressable_shards}

    weights = jnp.arange(1000.0)
    placed = devices.put(devices.make_mesh(10, 10), weights)
    assert len(buffers(placed)) == 8
    assert buffers(weights).items() <= buffers(placed).items()
    for on in (jax.devices(), jax.devices()[::-1], jax.devices()[2:4]):
        for shape in ((10, 10), (1, 1)):
            mesh = devices.make_mesh(*shape, on)
            again = devices.put(mesh, placed)
            assert again.sharding == devices.layout(mesh, devices.EVERYWHERE)
            assert buffers(again).items() <= buffers(placed).items()
            np.testing.assert_array_equal(again, weights)


class Program:
    """A compiled step on some devices: one for all tests of the same task."""

    def __init__(self, task: distill.Distillation, count: int, source: str, size: int | None):
        self.task = task
        self.mesh = devices.make_mesh(task.num_images, task.copies, jax.devices()[:count])
        self.step = distill.make_step(task, [apply], KEY, mesh=self.mesh, microbatch=size)
        self.real = make_real(task, source, self.mesh, size)

    def start(self) -> distill.State:
        return devices.place(self.mesh, make_state(self.task), self.task.num_images)

    def run(self, state: distill.State, steps: int) -> Iterator[tuple[distill.State, float]]:
        for step in range(int(state.step), steps):
            state, metrics = self.step(state, [make_params()], self.real(step))
            # The next step takes the state's place.
            yield jax.tree.map(np.array, state), float(metrics["loss"])
            assert self.step.jitted._cache_size() == 1

    def collect(self, state: distill.State) -> Any:
        return jax.device_get(devices.collect(self.mesh, state, self.task.num_images))


@functools.cache
def make_program(
    task: distill.Distillation, count: int, source: str = "cached", size: int | None = None
) -> Program:
    return Program(task, count, source, size)


@functools.cache
def run(
    task: distill.Distillation, count: int, source: str = "cached", size: int | None = None
) -> Any:
    """The raw gradient of the first step, its loss, and the state after three.

    Adam's first moment is a tenth of the gradient after one step.
    """
    program = make_program(task, count, source, size)
    (first, loss), *_, (last, _) = program.run(program.start(), 3)
    assert int(last.step) == 3
    return jax.tree.map(lambda moment: 10 * moment, moments(first)), loss, last


def moments(state: distill.State) -> Any:
    return {name: each[0].mu for name, each in state.opt_state.items()}


def assert_close(actual: Any, expected: Any, count: int) -> None:
    """Equal up to rounding, relative to the largest number, in all but the padding."""
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        # Measured: 7e-16 of gradients, 1e-13 of states.
        np.testing.assert_allclose(
            ours[:count] if ours.ndim else ours,
            theirs[:count] if theirs.ndim else theirs,
            rtol=0,
            atol=1e-10 * np.abs(theirs).max(),
        )


def assert_same(ours: Any, theirs: Any, task: distill.Distillation) -> None:
    """The same gradient, loss and last state."""
    gradient, loss, last = theirs
    # A level that does not count yet has none.
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-6
    assert abs(ours[1] - loss) < 1e-12
    assert_close(ours[0], gradient, task.num_images)
    assert_close(ours[2], last, task.num_images)
    for leaf in jax.tree.leaves(ours[0]):
        assert not np.any(leaf[task.num_images :])


@pytest.mark.parametrize(
    ("source", "num_classes", "changes", "counts"),
    [
        # With a pyramid that grows and augmented views, as in microbatches below.
        slow("stream", 10, {}, [2, 4, 8]),
        # Copies that no number of devices divides, and more classes than features.
        ("stream", 4, {"copies": 3} | PLAIN, [8]),
        slow("cached", 1000, {"copies": 1} | PLAIN, [8]),
        slow("exact", 10, PLAIN, [8]),
        slow("exact", 10, PLAIN, [2, 4]),
        slow("exact", 10, {"objective": objectives.SFM()} | PLAIN, [8]),
        slow("cached", 10, {"objective": objectives.SFM()} | PLAIN, [8]),
        # More synthetic views than features, and fewer; a head for each copy.
        slow("cached", 10, {"objective": objectives.CLP()} | PLAIN, [8]),
        slow("exact", 5, {"objective": objectives.CLP(), "copies": 1} | PLAIN, [3]),
        slow("cached", 5, {"objective": objectives.CLP(head_per_copy=True)} | PLAIN, [4]),
        slow(
            "exact",
            10,
            {"objective": objectives.CLP(head_per_copy=True), "center_crop_copies": 1},
            [8],
        ),
        slow("cached", 5, {"labels": "soft"} | PLAIN, [3]),
    ],
)
def test_gradients_and_images_do_not_depend_on_devices(source, num_classes, changes, counts):
    task = make_task(num_classes, **changes)
    for count in counts:
        assert_same(run(task, count, source), run(task, 1, source), task)


@pytest.mark.parametrize(
    ("count", "size", "changes"),
    [(8, 2, PLAIN), slow(8, 2, {}), slow(3, 4, {}), slow(8, 1, {})],
)
def test_microbatches_and_devices_together(count, size, changes):
    """Two images a class in three copies: on 8 devices, 3 images in 3 copies; on 3, 7 in 3."""
    task = make_task(10, copies=3, ipc=2, center_crop_copies=1, **changes)
    assert_same(run(task, count, "stream", size), run(task, 1, "stream"), task)


@pytest.mark.parametrize("source", [slow("stream"), slow("cached"), "exact"])
def test_real_features_lie_on_the_devices_that_the_step_takes_them_from(source):
    """Ten classes in two copies on eight devices: each has as many rows, some of which fill up."""
    program = make_program(make_task(10, **PLAIN), 8, source)
    (found,) = program.real(0)
    count = 50 if source == "exact" else 20
    layout = NamedSharding(program.mesh, devices.ROWS)
    for leaf in jax.tree.leaves(found):
        assert leaf.shape[0] == -(-count // 8) * 8
        assert leaf.sharding.is_equivalent_to(layout, leaf.ndim)
    assert sum(found.weights) == count


@pytest.mark.slow
@pytest.mark.parametrize("source", ["stream", "exact"])
def test_several_backbones_on_several_devices(source):
    """Each its own weights and its own features of the same real images."""
    task, (first, second) = make_task(5, **PLAIN), make_params()
    params = [(first, second), (first, second[:, ::-1] ** 3)]

    def compute(count: int) -> Any:
        mesh = devices.make_mesh(task.num_images, task.copies, jax.devices()[:count])
        step = distill.make_step(task, [apply] * 2, KEY, weights=(0.9, 0.1), mesh=mesh)
        state = devices.place(mesh, make_state(task), task.num_images)
        (real,) = make_real(task, source, mesh)(0)
        after, metrics = step(state, params, [real, real])
        return jax.device_get(moments(after)), float(metrics["loss"])

    (found, loss), (expected, expected_loss) = compute(3), compute(1)
    assert abs(loss - expected_loss) < 1e-12
    assert_close(found, expected, task.num_images)


def test_states_are_padded_and_cut_to_what_they_were():
    task = make_task(10, labels="soft")
    state = make_state(task)
    for count in (1, 3, 5, 8):
        mesh = devices.make_mesh(task.num_images, task.copies, jax.devices()[:count])
        placed = devices.place(mesh, state, task.num_images)
        parts = {shard.data.shape[0] for shard in placed.params["logits"].addressable_shards}
        assert parts == {-(-task.num_images // mesh.shape[devices.IMAGE])}
        back = devices.collect(mesh, placed, task.num_images)
        jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize(("before", "after"), [slow(8, 1), slow(1, 8)])
def test_checkpoints_go_on_on_another_number_of_devices(before, after, tmp_path):
    task = make_task(10, **PLAIN)
    first, second = (make_program(task, count, "exact") for count in (before, after))
    ((state, _),) = first.run(first.start(), 1)
    with Checkpoints(epath.Path(tmp_path), 1) as checkpoints:
        placed = jax.tree.map(jax.numpy.asarray, first.collect(state))
        checkpoints.save(1, placed)
    with Checkpoints(epath.Path(tmp_path), 1) as checkpoints:
        restored = checkpoints.restore(make_state(task))
    assert restored.params["images"][0].shape[0] == task.num_images
    *_, (last, _) = second.run(devices.place(second.mesh, restored, task.num_images), 3)
    assert_close(last, run(task, 1, "exact")[2], task.num_images)


@pytest.mark.usefixtures("compiled_anew")
def test_donated_states_are_reused_in_place():
    program = Program(make_task(10, **PLAIN), 8, "cached", None)
    state, real = program.start(), program.real(0)
    lowered = program.step.jitted.lower(state, [make_params()], real)
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert lowered.compile().memory_analysis().alias_size_in_bytes >= own
    program.step(state, [make_params()], real)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def make_split(count: int) -> ArraySplit:
    """Random images of five classes, a little larger than crops."""
    pixels = np.random.default_rng(2).integers(0, 256, (count, SIDE + 2, SIDE + 2, 3))
    return ArraySplit(pixels.astype(np.uint8), np.arange(count, dtype=np.int32) % 5)


def test_features_do_not_depend_on_devices(monkeypatch):
    """Twenty views: batches of 3, of 9, and one of 20 that 8 devices fill up."""
    monkeypatch.setattr(features, "BATCH", 3)
    views = features.Views(SIDE, Augmentation(), 2)
    split, expected = make_split(10), None
    for count in (1, 3, 8):
        mesh = devices.make_mesh(devices=jax.devices()[:count])
        before = features.embed_views.jitted._cache_size()
        rows = features.embed(make_backbone(), split, views, KEY, mesh=mesh).whole()
        assert features.embed_views.jitted._cache_size() == before + 1
        assert rows.shape == (2, 10, FEATURES)
        expected = rows if expected is None else expected
        # Measured: no difference in float64, of which features keep float32.
        np.testing.assert_allclose(rows, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("solver", "augment", "numbers"),
    [
        slow("adam", "fresh", [8]),
        slow("adam", "views", [3]),
        slow("adam", "views", [8]),
        slow("adam", "none", [8]),
        slow("lbfgs", "views", [8]),
    ],
)
def test_probes_do_not_depend_on_devices(solver, augment, numbers, monkeypatch):
    """Three runs on ten images, four an update: neither divides."""
    monkeypatch.setattr(features, "BATCH", 7)
    monkeypatch.setattr(solvers, "EPOCHS_PER_CALL", 1)
    monkeypatch.setattr(linear, "init_head", objectives.init_head)
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
    rows = np.asarray([np.arange(10) + start for start in first], np.int32)
    labels, expected = split.labels[rows], None
    # Of other parameters, programs of the same shapes.
    solvers.train_epochs.jitted.clear_cache()
    for count in (1, *numbers):
        mesh = devices.make_mesh(devices=jax.devices()[:count])
        before = solvers.train_epochs.jitted._cache_size()
        heads, losses = probe.train(
            KEY, make_backbone(), split.images, labels, rows, 5, protocol, mesh=mesh
        )
        assert solvers.train_epochs.jitted._cache_size() == before + (solver == "adam")
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
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    expected = probe.evaluate(heads, rows, labels, groups, mesh=mesh)
    assert 0 < expected["top5"].min() < 100
    for count in (3, 8):
        mesh = devices.make_mesh(devices=jax.devices()[:count])
        scores = probe.evaluate(heads, rows, labels, groups, mesh=mesh)
        for name, values in expected.items():
            np.testing.assert_array_equal(scores[name], values)
