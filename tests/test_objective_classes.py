"""Laws of the objectives as a step calls them: with features whose rows come in any order."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lgm_jax import distill, objectives
from lgm_jax.images import Pyramid
from lgm_jax.objectives import CLP, LGM, OBJECTIVES, SFM, Features, Objective
from tests.marks import slow

K, D, IPC, COPIES, REAL = 3, 7, 2, 4, 25
KEY = jax.random.key(1)

CASES = {
    "lgm": LGM(),
    "lgm_wide": LGM(head_std=1.0),
    "sfm": SFM(),
    "clp": CLP(0.1, 0.5),
    "clp_per_copy": CLP(0.1, 0.5, head_per_copy=True),
}
each_case = pytest.mark.parametrize("objective", CASES.values(), ids=CASES)


def _synthetic(*, soft: bool = False) -> Features:
    """All views of all images, image by image."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(K * IPC), COPIES).astype(np.int32)
    copy = np.tile(np.arange(COPIES), K * IPC).astype(np.int32)
    labels: Any = image // IPC
    if soft:
        labels = rng.dirichlet(np.ones(K), K * IPC).astype(np.float32)[image]
    values = rng.normal(size=(len(image), D)).astype(np.float32)
    weights = np.ones(len(image), np.float32)
    return jax.tree.map(jnp.asarray, Features(values, labels, weights, image, copy, K, COPIES))


def _real(count: int = REAL) -> Features:
    rng = np.random.default_rng(1)
    numbers = np.arange(count, dtype=np.int32)
    labels = (numbers % K).astype(np.int32)
    values = rng.normal(size=(count, D)) + np.random.default_rng(9).normal(size=(K, D))[labels]
    return jax.tree.map(
        jnp.asarray,
        Features(
            values.astype(np.float32),
            labels,
            np.ones(count, np.float32),
            numbers,
            np.zeros(count, np.int32),
            K,
        ),
    )


@jax.jit(static_argnums=0)
def _loss_and_slopes(objective: Objective, synthetic: Features, real: Features) -> Any:
    """The loss, and its gradient in the features and, where they are learned, in the labels."""

    def loss(values: Any, labels: Any) -> jax.Array:
        return objective(KEY, dataclasses.replace(synthetic, values=values, labels=labels), real)

    if jnp.issubdtype(synthetic.labels.dtype, jnp.integer):
        value, slope = jax.value_and_grad(loss)(synthetic.values, synthetic.labels)
        return value, (slope,)
    return jax.value_and_grad(loss, argnums=(0, 1))(synthetic.values, synthetic.labels)


def _filled_and_shuffled(rows: Features, order: np.ndarray) -> Features:
    """The rows in another order among others that have no weight, whatever these hold."""
    fill = len(order) - len(rows.values)

    def mix(array: jax.Array, filler: float) -> jax.Array:
        padding = jnp.full((fill, *array.shape[1:]), filler).astype(array.dtype)
        return jnp.concatenate([array, padding])[order]

    return dataclasses.replace(
        rows,
        values=mix(rows.values, np.nan).at[np.argmax(order)].set(jnp.inf),
        labels=mix(rows.labels, 0),
        weights=mix(rows.weights, 0),
        image=mix(rows.image, K * IPC),
        copy=mix(rows.copy, COPIES),
        copies=rows.copies + 1,
    )


def test_every_objective_that_has_a_name_is_among_the_cases():
    assert set(OBJECTIVES.values()) == {type(objective) for objective in CASES.values()}
    for objective in CASES.values():
        assert isinstance(objective, Objective)
        assert objective.title
        assert objective.source.startswith("arXiv ")
        assert objective == dataclasses.replace(objective)
        assert hash(objective) == hash(dataclasses.replace(objective))


@pytest.mark.parametrize(
    ("name", "soft"),
    [*(slow(name, False) for name in CASES), ("lgm", True), *(slow(n, True) for n in [*CASES][1:])],
)
def test_neither_the_order_of_rows_nor_rows_without_weight_count(name, soft):
    objective = CASES[name]
    synthetic, real = _synthetic(soft=soft), _real()
    expected, expected_slopes = _loss_and_slopes(objective, synthetic, real)
    rng = np.random.default_rng(2)
    rows = len(synthetic.values)
    order, order_real = rng.permutation(rows + 6), rng.permutation(REAL + 5)
    mixed = _filled_and_shuffled(synthetic, order)
    value, slopes = _loss_and_slopes(objective, mixed, _filled_and_shuffled(real, order_real))
    assert 0.01 < expected < 3
    # Measured: 6e-7.
    np.testing.assert_allclose(value, expected, rtol=5e-6)
    place = np.argsort(order)
    for ours, theirs in zip(slopes, expected_slopes, strict=True):
        largest = float(jnp.max(jnp.abs(theirs)))
        assert largest > 1e-4
        np.testing.assert_allclose(ours[place[:rows]], theirs, rtol=0, atol=1e-5 * largest)
        np.testing.assert_array_equal(ours[place[rows:]], 0)


@each_case
def test_the_loss_is_that_of_the_pure_function(objective):
    synthetic, real = _synthetic(), _real()
    sets = synthetic.values, synthetic.labels, real.values, real.labels
    if isinstance(objective, LGM):
        head = objectives.init_head(KEY, D, K, objective.head_std)
        expected = objectives.gradient_matching_loss(head, *sets)
    elif isinstance(objective, SFM):
        expected = objectives.flow_matching_loss(*sets, K)
    elif objective.head_per_copy:
        losses = []
        for copy in range(COPIES):
            own = np.arange(K * IPC) * COPIES + copy
            some = sets[0][own], sets[1][own], *sets[2:]
            losses.append(objectives.closed_form_probe_loss(*some, K, 0.1, 0.5))
        assert np.std(losses) > 1e-3
        expected = np.mean(losses)
    else:
        expected = objectives.closed_form_probe_loss(*sets, K, 0.1, 0.5)
    np.testing.assert_allclose(_loss_and_slopes(objective, synthetic, real)[0], expected, rtol=2e-6)


@each_case
def test_the_key_decides_what_is_random_and_nothing_else(objective):
    synthetic, real = _synthetic(), _real()
    losses = [float(objective(jax.random.key(seed), synthetic, real)) for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert (losses[0] != losses[2]) == isinstance(objective, LGM)


def test_a_head_for_each_copy_is_no_head_of_all():
    synthetic, real = _synthetic(), _real()
    together = CASES["clp"](KEY, synthetic, real)
    apart = CASES["clp_per_copy"](KEY, synthetic, real)
    assert abs(float(together - apart)) > 1e-3


@pytest.mark.parametrize(("lacking", "scale"), [(None, 1.0), (1, 1.0), (None, 0.01)])
def test_what_is_prepared_stands_for_all_rows(lacking, scale):
    """Of as many parts as there are, and where the real set lacks a class, or has little weight."""
    real = _real()
    weights = scale * np.random.default_rng(3).uniform(0.1, 2, REAL).astype(np.float32)
    weights[np.asarray(real.labels) == lacking] = 0
    weights[7] = 0
    real = dataclasses.replace(
        real, weights=jnp.asarray(weights), values=real.values.at[7].set(jnp.inf)
    )
    kept = jax.tree.map(np.asarray, real)
    cuts = (0, 1, 9, 9, REAL)
    parts = (
        jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], kept) for a, b in itertools.pairwise(cuts)
    )
    prepared = SFM().prepare(parts)
    assert prepared.values.shape == (K, D)
    assert prepared.values.dtype == np.float32
    prepared = jax.tree.map(jnp.asarray, prepared)
    expected, slopes = _loss_and_slopes(SFM(), _synthetic(), real)
    value, own_slopes = _loss_and_slopes(SFM(), _synthetic(), prepared)
    np.testing.assert_allclose(value, expected, rtol=5e-6)
    largest = float(jnp.max(jnp.abs(slopes[0])))
    np.testing.assert_allclose(own_slopes[0], slopes[0], rtol=0, atol=1e-5 * largest)


@dataclasses.dataclass(frozen=True)
class Mean:
    """An objective of somebody else's: distance between the means of all features."""

    power: int = 2

    title = "mean matching"
    source = "this test"

    def __call__(self, key, synthetic: Features, real: Features) -> jax.Array:
        means = [
            jnp.sum(rows.weights[:, None] * rows.values, axis=0) / jnp.sum(rows.weights)
            for rows in (synthetic, real)
        ]
        return jnp.sum(jnp.abs(means[0] - means[1]) ** self.power)


def test_an_objective_of_ones_own_is_one_class():
    task = distill.Distillation(
        K, Pyramid(4, grow_every=0), 4, Mean(), IPC, COPIES, None, optimizer=optax.adam(0.1)
    )
    weights = jnp.asarray(np.random.default_rng(4).normal(size=(4 * 4 * 3, D)), jnp.float32)

    def apply(params, images):
        return jnp.tanh(images.reshape(len(images), -1) @ params)

    step = distill.make_step(task, [apply], KEY, microbatch=3)
    state, losses = distill.init(task, KEY), []
    for _ in range(20):
        state, metrics = step(state, [weights], [_real()])
        losses.append(float(metrics["loss"]))
    assert np.all(np.isfinite(losses))
    assert losses[-1] < 0.9 * losses[0]
