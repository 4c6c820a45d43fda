"""Class probabilities that are learned along with the images."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from distilling import KEY, STEPS, TASK, Real, assert_identical, compile_step, restore, run

from lgm_jax import distill, objectives, real
from lgm_jax.compilation import Program

RATE = 0.03
SOFT = dataclasses.replace(TASK, labels="soft", labels_optimizer=optax.adam(RATE))


@pytest.fixture(scope="module")
def streamed(vit, colours) -> Real:
    return real.streamed([vit], colours, SOFT, KEY)


@pytest.fixture(scope="module")
def program(vit) -> Program:
    return compile_step(SOFT, vit)


@pytest.fixture(scope="module")
def history(program, vit, streamed) -> list[distill.State]:
    state = distill.init(SOFT, KEY)
    after = run(program, state, [vit.params], streamed, STEPS)
    return [jax.device_get(s) for s in (state, *(state for state, _ in after))]


@pytest.mark.slow
def test_soft_labels_start_near_the_hard_ones_and_images_as_with_them(history):
    first, hard = history[0], distill.init_state(TASK, KEY)
    probabilities = distill.probabilities(SOFT, first)
    np.testing.assert_allclose(probabilities, [[0.9, 0.1], [0.1, 0.9]], rtol=1e-5)
    assert_identical(first.params["images"], hard.params["images"])
    assert distill.probabilities(TASK, hard) is None
    assert set(hard.params) == set(hard.opt_state) == {"images"}


@pytest.mark.slow
def test_soft_labels_have_an_adam_of_their_own_that_growing_leaves_alone(program, history):
    moved = np.abs(history[1].params["logits"] - history[0].params["logits"])
    np.testing.assert_allclose(moved, RATE, rtol=1e-3)
    # The pyramid grows before the updates of number 3, 6 and 9.
    counts = {
        name: [int(state.opt_state[name][0].count) for state in history]
        for name in ("images", "logits")
    }
    assert counts["logits"] == list(range(STEPS + 1))
    assert counts["images"] == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]
    assert program.jitted._cache_size() == 1


@pytest.mark.slow
def test_logits_get_the_update_of_an_adam_that_never_began_anew(vit, streamed, history):
    """Across a growth: of the gradients of each step, in optax by hand."""
    loss = distill.make_loss(SOFT, [vit.apply], KEY)
    slope = jax.jit(
        jax.grad(
            lambda logits, images, step, features: loss(
                {"images": images, "logits": logits}, step, [vit.params], features
            )
        )
    )
    logits, own = history[0].params["logits"], optax.adam(RATE)
    state = own.init(logits)
    for number in range(5):
        # The levels that the step saw; after a growth, those that it has drawn.
        before = history[number]
        images = before.params["images"]
        if SOFT.parametrisation.grows_at(number):
            key = jax.random.fold_in(jax.random.fold_in(KEY, distill.GROW), number)
            images = SOFT.parametrisation.grow(key, jax.tree.map(jnp.asarray, images), number)
        gradient = slope(before.params["logits"], images, before.step, streamed(number))
        updates, state = own.update(gradient, state)
        logits = optax.apply_updates(logits, updates)
        np.testing.assert_allclose(history[number + 1].params["logits"], logits, rtol=0, atol=1e-4)


def test_an_interrupted_run_gives_the_same_soft_labels_to_the_bit(program, vit, streamed, history):
    state = restore(SOFT, history[4])
    *_, (last, _) = run(program, state, [vit.params], streamed, STEPS)
    assert_identical(jax.device_get(last), history[-1])


def test_gradient_in_soft_labels_is_that_of_the_objective(vit, streamed):
    state, (features,) = distill.init(SOFT, KEY), streamed(0)
    loss_of = distill.make_loss(SOFT, [vit.apply], KEY)

    def of_logits(logits, params):
        given = {**state.params, "logits": logits}
        return loss_of(given, state.step, [params], [features])

    logits = state.params["logits"]
    loss, gradient = jax.jit(jax.value_and_grad(of_logits))(logits, vit.params)
    syn = jax.jit(distill.make_embed(SOFT, vit.apply, KEY))(state.params, vit.params, state.step)
    key = jax.random.fold_in(jax.random.fold_in(KEY, distill.OBJECTIVE), 0)
    head = objectives.init_head(key, features.values.shape[-1], 2)

    def by_hand(logits):
        soft = jax.nn.softmax(logits)[syn.image]
        return objectives.gradient_matching_loss(
            head, syn.values, soft, features.values, features.labels
        )

    expected_loss, expected = jax.jit(jax.value_and_grad(by_hand))(logits)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)
