"""Laws of the distillation step, on a tiny Vision Transformer."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from distilling import (
    KEY,
    RATE,
    STEPS,
    TASK,
    Real,
    assert_close_to_largest,
    assert_identical,
    compile_step,
    restore,
    run,
    with_fusion_emitters,
)

from lgm_jax import distill, objectives, real
from lgm_jax.augment import to_float
from lgm_jax.backbones import Backbone
from lgm_jax.compilation import Program
from lgm_jax.data.dataset import ArraySplit
from lgm_jax.errors import UserError
from lgm_jax.images import Growing, Pixels, Pyramid, from_images
from tests.marks import slow

GROWTHS = (3, 6, 9)


@pytest.fixture(scope="module")
def streamed(vit, colours) -> Real:
    return real.streamed([vit], colours, TASK, KEY)


@pytest.fixture(scope="module")
def program(vit) -> Program:
    return with_fusion_emitters(compile_step(TASK, vit))


@pytest.fixture(scope="module")
def history(program, vit, streamed) -> list[tuple[distill.State, float]]:
    """Every state of an uninterrupted run, the start included, with the losses."""
    state = distill.init(TASK, KEY)
    states = [(jax.device_get(state), np.nan)]
    for after, loss in run(program, state, [vit.params], streamed, STEPS):
        states.append((jax.device_get(after), loss))
    return states


@pytest.fixture(scope="module")
def donating(vit) -> Program:
    """The same program compiled again, as another process would, and donating its state."""
    return with_fusion_emitters(distill.make_step(TASK, [vit.apply], KEY))


def _grow(state: distill.State) -> distill.State:
    """A state with one more level, and an Adam that has seen nothing."""
    key = jax.random.fold_in(jax.random.fold_in(KEY, distill.GROW), state.step)
    grown = TASK.parametrisation.grow(key, state.params["images"], state.step)
    return distill.State(state.step, {"images": grown}, {"images": TASK.optimizer.init(grown)})


@pytest.mark.slow
def test_a_run_through_the_whole_pyramid_compiles_its_step_once(program, history):
    assert isinstance(TASK.parametrisation, Growing)
    grows_at = TASK.parametrisation.grows_at
    assert [grows_at(step) for step in range(STEPS)] == [s in GROWTHS for s in range(STEPS)]
    assert program.jitted._cache_size() == 1


def test_it_makes_the_steps_it_was_asked_for(history):
    assert [int(state.step) for state, _ in history] == list(range(STEPS + 1))
    assert all(0 < loss < 2 for _, loss in history[1:])


def test_levels_come_into_play_one_by_one(history):
    for state, _ in history[1:]:
        # A level is drawn in the step that first uses it.
        active = TASK.parametrisation.num_active(int(state.step) - 1)
        for i, level in enumerate(state.params["images"]):
            assert bool(np.all(level == 0)) == (i >= active)


def test_every_active_level_moves_in_every_step(history):
    for (before, _), (after, _) in itertools.pairwise(history):
        for i in range(TASK.parametrisation.num_active(int(before.step))):
            assert np.any(before.params["images"][i] != after.params["images"][i])


# Just before a growth, just after one, and in between.
@pytest.mark.parametrize("stop", [1, 3, 4, 9])
def test_an_interrupted_run_gives_the_same_images_to_the_bit(program, vit, streamed, history, stop):
    state = restore(TASK, history[stop][0])
    *_, (last, loss) = run(program, state, [vit.params], streamed, STEPS)
    assert_identical(jax.device_get(last), history[-1][0])
    assert loss == history[-1][1]


@pytest.mark.slow
def test_another_process_continues_to_the_bit(donating, vit, colours, history):
    state = restore(TASK, history[5][0])
    streamed = real.streamed([vit], colours, TASK, KEY)
    for after, loss in run(donating, state, [vit.params], streamed, 8):
        expected, expected_loss = history[int(after.step)]
        assert_identical(jax.device_get(after), expected)
        assert loss == expected_loss


def test_donating_the_state_changes_nothing(donating, vit, streamed, history):
    first = distill.init(TASK, KEY)
    *_, (last, _) = run(donating, first, [vit.params], streamed, STEPS)
    assert_identical(jax.device_get(last), history[-1][0])
    assert first.params["images"][0].is_deleted()
    # From the start, and from a state that was restored.
    assert donating.jitted._cache_size() == 1


def test_what_a_user_hands_over_outlives_the_steps(donating, vit, streamed):
    """A step takes the place of its state, not of what that was made from, nor of what else it is
    given: images, real features and weights can be read, and handed over once more."""
    params = TASK.parametrisation.init_params(KEY, TASK.num_images)
    given = params, streamed(0), [vit.params]
    before = jax.device_get(given)
    losses = []
    for _ in range(2):
        state = distill.init(TASK, KEY, params=params)
        for _ in range(2):
            state, found = donating(state, given[2], given[1])
        losses.append(float(found["loss"]))
    assert_identical(jax.device_get(given), before)
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_an_optimiser_may_keep_the_parameters_too(vit, streamed):
    """Both are given up for the next state, so they must not be one array."""
    task = dataclasses.replace(TASK, optimizer=optax.contrib.schedule_free_sgd(0.01))
    step = distill.make_step(task, [vit.apply], KEY)
    _, found = step(distill.init(task, KEY), [vit.params], streamed(0))
    assert np.isfinite(found["loss"])


@pytest.mark.parametrize("number", [GROWTHS[0], *map(slow, GROWTHS[1:])])
@pytest.mark.slow
def test_growing_within_a_step_is_growing_by_hand(vit, streamed, history, number):
    """The level, Adam's new state, and the update that they then get."""
    before = jax.tree.map(jnp.asarray, history[number][0])
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(before.opt_state))
    grown = _grow(before)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grown.opt_state))
    count = TASK.parametrisation.num_active(number) - 1
    old, new = before.params["images"], grown.params["images"]
    for i in range(count):
        np.testing.assert_allclose(new[i], old[i] * (count / (count + 1)), rtol=1e-6)
    assert np.all(old[count] == 0)
    assert np.all(new[count] != 0)

    loss_of = jax.jit(jax.value_and_grad(distill.make_loss(TASK, [vit.apply], KEY)))
    loss, gradient = loss_of(grown.params, grown.step, [vit.params], streamed(number))
    updates, opt_state = TASK.optimizer.update(gradient["images"], grown.opt_state["images"])
    expected = optax.apply_updates(new, updates)
    after, after_loss = history[number + 1]
    np.testing.assert_allclose(after_loss, loss, rtol=1e-5)
    assert int(after.opt_state["images"][0].count) == 1
    assert_close_to_largest(
        after.opt_state["images"][0].mu[: count + 1], opt_state[0].mu[: count + 1], 1e-4
    )
    for ours, theirs in zip(after.params["images"], expected, strict=True):
        # A step of Adam's first is as long whatever the gradient: where that is all rounding, its
        # sign is too.
        assert np.mean(np.abs(ours - theirs) < 1e-4 * RATE) > 0.99


def test_the_first_step_is_adams_first(history):
    # lr * sign(gradient), whatever the gradient's scale.
    moved = np.abs(history[1][0].params["images"][0] - history[0][0].params["images"][0])
    np.testing.assert_allclose(moved, RATE, rtol=1e-3)


@pytest.mark.parametrize("number", GROWTHS)
def test_the_step_after_a_growth_is_adams_first(history, number):
    grown = _grow(jax.tree.map(jnp.asarray, history[number][0]))
    after = history[number + 1][0]
    for i in range(TASK.parametrisation.num_active(number)):
        moved = np.abs(after.params["images"][i] - grown.params["images"][i])
        assert np.max(moved) <= RATE * (1 + 1e-5)
        assert np.median(moved) > 0.9 * RATE


@pytest.mark.parametrize("number", [2, 3])
def test_a_step_whose_loss_is_not_finite_leaves_the_state_as_it_was(
    program, vit, streamed, history, number
):
    """Also one that was to grow: it would grow once more when it is made again."""
    before = history[number][0]
    (features,) = streamed(number)
    spoilt = dataclasses.replace(features, values=features.values.at[0].set(jnp.nan))
    after, metrics = program(restore(TASK, before), [vit.params], [spoilt])
    assert not np.isfinite(metrics["loss"])
    assert_identical(jax.device_get(after), before)
    assert distill.is_finite(after)


@pytest.mark.slow
def test_the_loss_falls_and_the_colours_are_found(vit, colours):
    task = dataclasses.replace(
        TASK, parametrisation=Pyramid(8, grow_every=4, init="zero"), copies=4
    )
    streamed = real.streamed([vit], colours, task, KEY)
    start = distill.init(task, KEY)
    states, losses = zip(
        *run(compile_step(task, vit), start, [vit.params], streamed, 40), strict=True
    )
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:4])
    red, blue = np.asarray(distill.render(task, states[-1])).mean(axis=(1, 2))
    assert red[0] - red[2] > 0.1
    assert blue[2] - blue[0] > 0.1


@pytest.mark.slow
def test_two_images_per_class(vit, colours):
    task = dataclasses.replace(TASK, ipc=2)
    assert task.num_images == 4
    assert task.num_views == 8
    np.testing.assert_array_equal(distill.hard_labels(task), [0, 0, 1, 1])
    streamed = real.streamed([vit], colours, task, KEY)
    start = distill.init(task, KEY)
    *_, (state, _) = run(compile_step(task, vit), start, [vit.params], streamed, 2)
    images = np.asarray(distill.render(task, state))
    assert images.shape == (4, 8, 8, 3)
    assert np.max(np.abs(images[0] - images[1])) > 0.01


# Pixels from real images, seen once a step as they are.
PLAIN = dataclasses.replace(
    TASK, parametrisation=Pixels(8, init="real"), copies=1, augmentation=None
)


@pytest.fixture(scope="module")
def plain(vit) -> Program:
    return compile_step(PLAIN, vit)


def _start(colours: ArraySplit) -> tuple[jax.Array, distill.State]:
    images = to_float(jnp.asarray(colours.images[:2]))
    return images, distill.init(PLAIN, KEY, params=from_images(images))


@pytest.mark.slow
def test_pixels_start_from_real_images(plain, vit, colours):
    start, state = _start(colours)
    np.testing.assert_allclose(distill.render(PLAIN, state), start, atol=1.01e-3)
    # One level from the start: no growth, and Adam keeps its moments.
    assert not isinstance(PLAIN.parametrisation, Growing)
    streamed = real.streamed([vit], colours, PLAIN, KEY)
    *_, (last, _) = run(plain, state, [vit.params], streamed, 4)
    assert int(last.opt_state["images"][0].count) == 4
    assert len(last.params["images"]) == 1
    assert np.max(np.abs(distill.render(PLAIN, last) - start)) > 0.05


@pytest.mark.parametrize(("n", "side"), [(1, 8), (3, 8), (2, 16)])
def test_images_to_start_from_are_as_many_and_as_large_as_the_task_has(n, side):
    params = from_images(jnp.full((n, side, side, 3), 0.5))
    for task, kind in ((PLAIN, "2 images of Pixels"), (TASK, "images of Pyramid")):
        with pytest.raises(UserError, match=f"{n}, {side}, {side}, 3.*{kind}"):
            distill.init(task, KEY, params=params)


def test_images_are_rendered_in_the_order_in_which_they_are_asked_for():
    values = jnp.asarray([0.25, 0.75]).reshape(2, 1, 1, 1)
    state = distill.init(PLAIN, KEY, params=from_images(values * jnp.ones((2, 8, 8, 3))))
    for rows in ([1, 0], [1, 1, 0], [1], [0, 1]):
        corners = distill.render(PLAIN, state, rows)[:, :1, :1, :1]
        np.testing.assert_allclose(corners, values[jnp.asarray(rows)], atol=1e-5)


def test_images_that_are_the_whole_real_set_have_zero_loss(plain, vit, colours):
    _, state = _start(colours)
    losses = []
    for part in (slice(0, 2), slice(2, 4)):
        some = ArraySplit(colours.images[part], colours.labels[part])
        features = real.streamed([vit], some, PLAIN, KEY)(0)
        losses.append(float(plain(state, [vit.params], features)[1]["loss"]))
    # The parameters' sigmoid keeps black and white a thousandth away.
    assert abs(losses[0]) < 1e-4 * losses[1]


def test_starting_from_real_images_needs_pixels_and_images():
    with pytest.raises(UserError, match="unknown init 'real'"):
        Pyramid(8, init="real")
    with pytest.raises(UserError, match="from_images"):
        distill.init_state(PLAIN, KEY)


@pytest.mark.slow
def test_every_step_draws_other_views_and_another_head(program, vit, streamed, history):
    # The same images and real features at another step number: the rest differs, so the loss does.
    state, features = jax.tree.map(jnp.asarray, history[1][0]), streamed(0)
    losses = [
        float(program(state._replace(step=jnp.int32(n)), [vit.params], features)[1]["loss"])
        for n in (0, 1, 2)
    ]
    assert len(set(losses)) == 3


def test_each_kind_of_draw_has_a_stream_of_its_own():
    wide = dataclasses.replace(TASK, objective=objectives.LGM(head_std=1.0))
    a, b = distill.init_state(TASK, KEY), distill.init_state(wide, KEY)
    assert_identical(a.params, b.params)
    # A larger set of images: the first ones keep their start.
    more = distill.init_state(dataclasses.replace(TASK, num_classes=3), KEY)
    np.testing.assert_array_equal(more.params["images"][0][:2], a.params["images"][0])


def test_weights_are_an_argument_not_a_constant(program, vit, streamed):
    state, features, losses, sizes = distill.init(TASK, KEY), streamed(0), [], []
    for params in (vit.params, jax.tree.map(lambda leaf: 1.5 * leaf, vit.params)):
        losses.append(float(program(state, [params], features)[1]["loss"]))
        sizes.append(program.jitted._cache_size())
    assert losses[0] != losses[1]
    assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_center_crop_copies_are_centre_crops_and_leave_the_others_alone(vit):
    task = dataclasses.replace(TASK, parametrisation=Pyramid(10, grow_every=3), copies=3)
    state = distill.init(task, KEY)

    def embed(center_crop_copies: int, microbatch: int | None = None) -> np.ndarray:
        changed = dataclasses.replace(task, center_crop_copies=center_crop_copies)
        function = distill.make_embed(changed, vit.apply, KEY, microbatch=microbatch)
        found = jax.jit(function)(state.params, vit.params, state.step)
        views = np.asarray(found.image) * 3 + np.asarray(found.copy)
        np.testing.assert_array_equal(np.sort(views), np.arange(6))
        np.testing.assert_array_equal(found.weights, np.ones(6))
        np.testing.assert_array_equal(found.labels, found.image)
        return np.asarray(found.values)[np.argsort(views)].reshape(2, 3, -1)

    augmented, mixed = embed(0), embed(2)
    images = distill.render(task, state)
    plain = vit.apply(vit.params, images[:, 1:9, 1:9])
    for copy in (0, 1):
        np.testing.assert_allclose(mixed[:, copy], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[:, 2], augmented[:, 2], rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(augmented[:, 1] - plain)) > 1e-3
    # In a microbatch of its own a copy is what it is among all.
    for size in (1, 2, 4):
        np.testing.assert_allclose(embed(2, size), mixed, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_cosine_schedule_ends_at_rest_and_starts_as_the_constant_one(vit, streamed, history):
    """Adam's updates are bounded by its learning rate, so their size shows it."""
    task = dataclasses.replace(TASK, schedule=optax.cosine_decay_schedule(1.0, STEPS))
    program, start = compile_step(task, vit), distill.init(task, KEY)
    after = run(program, start, [vit.params], streamed, STEPS)
    ends = {
        "cosine": [start.params["images"], *(state.params["images"] for state, _ in after)],
        "constant": [state.params["images"] for state, _ in history],
    }
    assert program.jitted._cache_size() == 1
    for a, b in zip(ends["constant"][1], ends["cosine"][1], strict=True):
        # Two programs, in one of which XLA may round once less.
        np.testing.assert_array_max_ulp(np.asarray(a), np.asarray(b), maxulp=1)

    def largest(name: str, step: int) -> float:
        pairs = zip(ends[name][step], ends[name][step + 1], strict=True)
        return max(float(jnp.max(jnp.abs(b - a))) for a, b in pairs)

    factor = 0.5 * (1 + np.cos(np.pi * (STEPS - 1) / STEPS))
    assert largest("cosine", STEPS - 1) <= 1.01 * factor * RATE
    assert largest("constant", STEPS - 1) > 10 * largest("cosine", STEPS - 1)


# Rivals: the same step with another loss of features.


def _by_hand(vit: Backbone, task: distill.Distillation, state: distill.State, features):
    """The loss of a state, by the pure functions: features of all views, and of the real batch."""
    embed = jax.jit(distill.make_embed(task, vit.apply, KEY))
    syn = embed(state.params, vit.params, state.step)
    sets = syn.values, syn.labels, features.values, features.labels
    if isinstance(task.objective, objectives.SFM):
        return objectives.flow_matching_loss(*sets, task.num_classes)
    own = task.objective
    if not own.head_per_copy:
        return objectives.closed_form_probe_loss(*sets, 2, own.ridge, own.temperature)
    losses = [
        objectives.closed_form_probe_loss(
            syn.values[syn.copy == copy],
            syn.labels[syn.copy == copy],
            *sets[2:],
            2,
            own.ridge,
            own.temperature,
        )
        for copy in range(task.copies)
    ]
    return np.mean(losses)


@pytest.mark.parametrize("name", ["sfm", slow("clp")])
@pytest.mark.slow
def test_rivals_lower_the_loss_they_are_named_after(vit, colours, name):
    task = dataclasses.replace(
        TASK,
        objective=objectives.OBJECTIVES[name](),
        copies=4,
        parametrisation=Pyramid(8, init="zero", grow_every=0),
    )
    streamed = real.streamed([vit], colours, task, KEY, sampling="balanced")
    program, start = compile_step(task, vit), distill.init(task, KEY)
    states, losses = zip(*run(program, start, [vit.params], streamed, 40), strict=True)
    expected = _by_hand(vit, task, start, streamed(0)[0])
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4)
    assert program.jitted._cache_size() == 1
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:4])
    red, blue = np.asarray(distill.render(task, states[-1])).mean(axis=(1, 2))
    assert red[0] - red[2] > 0.1
    assert blue[2] - blue[0] > 0.1


@pytest.mark.slow
def test_each_copy_may_give_a_head_of_its_own(vit, colours):
    task = dataclasses.replace(TASK, objective=objectives.CLP(head_per_copy=True), copies=3, ipc=2)
    state = distill.init(task, KEY)
    features = real.streamed([vit], colours, task, KEY)(0)

    def loss_of(task: distill.Distillation) -> jax.Array:
        loss = jax.jit(distill.make_loss(task, [vit.apply], KEY))
        return loss(state.params, state.step, [vit.params], features)

    loss = loss_of(task)
    np.testing.assert_allclose(loss, _by_hand(vit, task, state, features[0]), rtol=1e-4)
    together = dataclasses.replace(task, objective=objectives.CLP())
    assert abs(float(loss_of(together) - loss)) > 1e-3


# Several backbones at once.
