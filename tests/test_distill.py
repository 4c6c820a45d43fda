"""Laws of the distillation step and its loop, on a tiny Vision Transformer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import distill, objectives
from lgm_jax.backbones import Backbone, load
from lgm_jax.data.sampling import batch_indices
from lgm_jax.errors import UserError
from lgm_jax.features import Rows
from lgm_jax.images import decode

KEY = jax.random.key(0)
# The pyramid of 8 px has sides 1, 2, 4, 8: it grows after 3, 6 and 9 steps.
RECIPE = distill.Recipe(
    num_classes=2, resolution=8, crop=8, copies=2, learning_rate=0.1, grow_every=3
)
STEPS = 11


@pytest.fixture(scope="module")
def backbone(write_vit, tmp_path_factory) -> Backbone:
    folder = tmp_path_factory.mktemp("distill") / "vit"
    return load(write_vit(folder, img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2))


@pytest.fixture(scope="module")
def memory() -> distill.Memory:
    """Two classes that a linear head tells apart: reddish and bluish noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 2
    images = rng.integers(0, 120, (12, 8, 8, 3))
    images[labels == 0, ..., 0] += 130
    images[labels == 1, ..., 2] += 130
    return distill.Memory(jnp.asarray(images, jnp.uint8), jnp.asarray(labels, jnp.int32))


class Program(NamedTuple):
    """A compiled run and the times its step was traced."""

    step: Any
    grow: Any
    recipe: distill.Recipe
    traces: list[int]

    def run(self, state, params, memory, steps) -> Iterator[tuple[distill.State, jax.Array]]:
        return distill.run(
            self.step, self.grow, self.recipe, state, params, lambda step: memory, steps
        )


def _compile(backbone: Backbone, recipe: distill.Recipe, **jit: Any) -> Program:
    real = distill.make_stream(backbone.apply, recipe, KEY)
    step = distill.make_step(backbone.apply, recipe, KEY, real)
    traces = []

    def counted(state, params, source):
        traces.append(1)
        return step(state, params, source)

    return Program(jax.jit(counted, **jit), jax.jit(distill.make_grow(recipe, KEY)), recipe, traces)


@pytest.fixture(scope="module")
def program(backbone) -> Program:
    return _compile(backbone, RECIPE)


@pytest.fixture(scope="module")
def history(program, backbone, memory) -> list[tuple[distill.State, float]]:
    """Every state of an uninterrupted run, the start included, with the losses."""
    state = distill.init_state(KEY, RECIPE)
    states = [(jax.device_get(state), np.nan)]
    for after, loss in program.run(state, backbone.params, memory, STEPS):
        states.append((jax.device_get(after), float(loss)))
    return states


@pytest.fixture(scope="module")
def donating(backbone) -> Program:
    """The same program compiled again, as another process would, and donating its state."""
    return _compile(backbone, RECIPE, donate_argnums=0)


def _assert_identical(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_run_through_the_whole_pyramid_compiles_its_step_once(program, history):
    assert [distill.grows_at(RECIPE, step) for step in range(STEPS)] == [
        step in (3, 6, 9) for step in range(STEPS)
    ]
    assert len(program.traces) == 1
    assert program.step._cache_size() == 1
    assert program.grow._cache_size() == 1


def test_it_makes_the_steps_it_was_asked_for(history):
    assert [int(state.step) for state, _ in history] == list(range(STEPS + 1))
    assert all(0 < loss < 2 for _, loss in history[1:])


def test_a_finished_run_makes_no_more(program, backbone, memory, history):
    state = jax.tree.map(jnp.asarray, history[5][0])
    assert list(program.run(state, backbone.params, memory, 5)) == []


def test_levels_come_into_play_one_by_one(history):
    for state, _ in history[1:]:
        # A level is drawn before the step that first uses it.
        active = RECIPE.num_active(int(state.step) - 1)
        for i, level in enumerate(state.levels):
            assert bool(np.all(level == 0)) == (i >= active)


def test_every_active_level_moves_in_every_step(history):
    for (before, _), (after, _) in itertools.pairwise(history):
        for i in range(RECIPE.num_active(int(before.step))):
            assert np.any(before.levels[i] != after.levels[i])


# Just before a growth, just after one, and in between.
@pytest.mark.parametrize("stop", [1, 3, 4, 9])
def test_an_interrupted_run_gives_the_same_images_to_the_bit(
    program, backbone, memory, history, stop
):
    state = jax.tree.map(jnp.asarray, history[stop][0])
    *_, (last, loss) = program.run(state, backbone.params, memory, STEPS)
    _assert_identical(jax.device_get(last), history[-1][0])
    assert float(loss) == history[-1][1]


def test_another_process_continues_to_the_bit(donating, backbone, memory, history):
    state = jax.tree.map(jnp.asarray, history[5][0])
    for after, loss in donating.run(state, backbone.params, memory, 8):
        expected, expected_loss = history[int(after.step)]
        _assert_identical(jax.device_get(after), expected)
        assert float(loss) == expected_loss


def test_donating_the_state_changes_nothing(donating, backbone, memory, history):
    first = distill.init_state(KEY, RECIPE)
    *_, (last, _) = donating.run(first, backbone.params, memory, STEPS)
    _assert_identical(jax.device_get(last), history[-1][0])
    assert first.levels[0].is_deleted()


def test_growing_creates_adams_state_anew(program, history):
    before = jax.tree.map(jnp.asarray, history[3][0])
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(before.opt_state))
    after = program.grow(before)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(after.opt_state))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert int(after.step) == 3
    np.testing.assert_allclose(after.levels[0], before.levels[0] / 2, rtol=1e-6)


def test_the_first_step_is_adams_first(history):
    # lr * sign(gradient), whatever the gradient's scale.
    moved = np.abs(history[1][0].levels[0] - history[0][0].levels[0])
    np.testing.assert_allclose(moved, RECIPE.learning_rate, rtol=1e-3)


@pytest.mark.parametrize("step", [3, 9])
def test_the_step_after_a_growth_is_adams_first(program, history, step):
    grown = program.grow(jax.tree.map(jnp.asarray, history[step][0]))
    after = history[step + 1][0]
    for i in range(RECIPE.num_active(step)):
        moved = np.abs(after.levels[i] - grown.levels[i])
        assert np.max(moved) <= RECIPE.learning_rate * (1 + 1e-5)
        assert np.median(moved) > 0.9 * RECIPE.learning_rate


def test_the_loss_falls_and_the_colours_are_found(backbone, memory):
    recipe = dataclasses.replace(RECIPE, grow_every=4, copies=4, init="zero")
    program = _compile(backbone, recipe)
    start = distill.init_state(KEY, recipe)
    states, losses = zip(*program.run(start, backbone.params, memory, 40), strict=True)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:4])
    red, blue = np.asarray(decode(states[-1].levels)).mean(axis=(1, 2))
    assert red[0] - red[2] > 0.1
    assert blue[2] - blue[0] > 0.1


def test_two_images_per_class(backbone, memory):
    recipe = dataclasses.replace(RECIPE, ipc=2)
    assert recipe.num_images == 4
    assert recipe.batch == 8
    np.testing.assert_array_equal(recipe.labels(), [0, 0, 1, 1])
    program = _compile(backbone, recipe)
    start = distill.init_state(KEY, recipe)
    *_, (state, _) = program.run(start, backbone.params, memory, 2)
    images = np.asarray(decode(state.levels, recipe.num_active(1)))
    assert images.shape == (4, 8, 8, 3)
    assert np.max(np.abs(images[0] - images[1])) > 0.01


@pytest.fixture(scope="module")
def plain(backbone) -> Program:
    """Pixels from real images, seen once a step as they are."""
    recipe = dataclasses.replace(RECIPE, kind="pixels", init="real", copies=1, augmentation=None)
    return _compile(backbone, recipe)


def test_pixels_start_from_real_images(plain, backbone, memory):
    start = distill.to_float(memory.images[:2])
    state = distill.init_state(KEY, plain.recipe, start)
    np.testing.assert_allclose(decode(state.levels), start, atol=1.01e-3)
    # One level from the start: no growth, and Adam keeps its moments.
    assert not any(distill.grows_at(plain.recipe, step) for step in range(STEPS))
    *_, (last, _) = plain.run(state, backbone.params, memory, 4)
    assert int(last.opt_state[0].count) == 4
    assert len(last.levels) == 1
    assert np.max(np.abs(decode(last.levels) - start)) > 0.05


def test_images_that_are_the_whole_real_set_have_zero_loss(plain, backbone, memory):
    start = distill.to_float(memory.images[:2])
    state = distill.init_state(KEY, plain.recipe, start)
    same, other = (
        distill.Memory(memory.images[part], memory.labels[part])
        for part in (slice(0, 2), slice(2, 4))
    )
    _, loss = plain.step(state, backbone.params, same)
    _, other_loss = plain.step(state, backbone.params, other)
    # The parameters' sigmoid keeps black and white a thousandth away.
    assert abs(float(loss)) < 1e-4 * float(other_loss)


@pytest.mark.parametrize("change", [{"kind": "pyramid"}, {"kind": "pixels"}])
def test_starting_from_real_images_needs_pixels_and_images(change):
    with pytest.raises((UserError, ValueError), match=r"needs kind=pixels|needs images"):
        distill.init_state(KEY, dataclasses.replace(RECIPE, init="real", **change))


def test_every_step_draws_other_views_and_another_head(program, backbone, memory, history):
    # The same images at another step number: everything random differs, so the loss does.
    state = jax.tree.map(jnp.asarray, history[1][0])
    losses = [
        float(program.step(state._replace(step=jnp.int32(n)), backbone.params, memory)[1])
        for n in (0, 1, 2)
    ]
    assert len(set(losses)) == 3


def test_each_kind_of_draw_has_a_stream_of_its_own(program, backbone, memory):
    wide = dataclasses.replace(RECIPE, head_std=1.0)
    a, b = distill.init_state(KEY, RECIPE), distill.init_state(KEY, wide)
    _assert_identical(a.levels, b.levels)
    # A larger real batch than synthetic: the first synthetic image keeps its start.
    more = distill.init_state(KEY, dataclasses.replace(RECIPE, num_classes=3))
    np.testing.assert_array_equal(more.levels[0][:2], a.levels[0])


def test_weights_are_an_argument_not_a_constant(program, backbone, memory):
    state = distill.init_state(KEY, RECIPE)
    _, loss = program.step(state, backbone.params, memory)
    other = jax.tree.map(lambda leaf: 1.5 * leaf, backbone.params)
    _, other_loss = program.step(state, other, memory)
    assert float(loss) != float(other_loss)
    assert program.step._cache_size() == 1


@pytest.mark.parametrize(("batch", "num_images"), [(4, 12), (5, 12), (12, 12), (7, 3), (1, 1)])
def test_every_image_is_drawn_once_per_epoch(batch, num_images):
    indices = jax.jit(lambda step: batch_indices(KEY, step, batch, num_images))
    steps = -(-3 * num_images // batch)
    drawn = np.concatenate([indices(jnp.int32(step)) for step in range(steps)])
    epochs = drawn[: 3 * num_images].reshape(3, num_images)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_images), (3, 1)))
    if num_images == 12:
        assert np.any(epochs[0] != epochs[1])


# Where real features are from.


@pytest.fixture(scope="module")
def features(backbone, memory) -> distill.FeatureMemory:
    """Two views of every real image: its features, and those of its mirror image."""
    images = distill.to_float(memory.images)
    views = [backbone.apply(backbone.params, x) for x in (images, images[:, :, ::-1])]
    return distill.FeatureMemory(jnp.stack(views), memory.labels)


def test_exact_is_the_gradient_over_all_features(backbone, features):
    recipe = dataclasses.replace(RECIPE, real="exact", real_views=2)
    found, labels = distill.exact(None, features, jnp.int32(0))
    assert found.shape == (24, 16)
    np.testing.assert_array_equal(found[:12], features.features[0])
    np.testing.assert_array_equal(labels, jnp.tile(features.labels, 2))
    step = jax.jit(distill.make_step(backbone.apply, recipe, KEY, distill.exact))
    state = distill.init_state(KEY, recipe)
    losses = []
    for _ in range(30):
        state, loss = step(state, backbone.params, features)
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_cached_draws_the_images_that_would_be_streamed(features):
    recipe = dataclasses.replace(RECIPE, real="cached", real_views=2)
    cached, rows = distill.make_cached(recipe, KEY), distill.make_rows(recipe, KEY)
    seen = []
    for number in range(30):
        found, labels = cached(None, features, jnp.int32(number))
        views, chosen = rows(number, features.labels)
        np.testing.assert_array_equal(found, features.features[views, chosen])
        np.testing.assert_array_equal(labels, features.labels[chosen])
        # Drawn on the host, the same.
        batch = distill.Batch(features.features[views, chosen], features.labels[chosen])
        np.testing.assert_array_equal(distill.given(None, batch, jnp.int32(number))[0], found)
        seen += list(zip(np.asarray(views).tolist(), np.asarray(chosen).tolist(), strict=True))
    images = [image for _, image in seen]
    stream = [batch_indices(jax.random.fold_in(KEY, 3), n, 4, 12) for n in range(30)]
    assert images == np.concatenate(stream).tolist()
    assert len(set(seen)) > 20


def test_center_crop_copies_are_centre_crops_and_leave_the_others_alone(backbone):
    recipe = dataclasses.replace(RECIPE, resolution=10, copies=3)
    state, indices = distill.init_state(KEY, recipe), jnp.arange(2)

    def embed(center_crop_copies: int, copies: jax.Array) -> jax.Array:
        changed = dataclasses.replace(recipe, center_crop_copies=center_crop_copies)
        function = distill.make_embed(backbone.apply, changed, KEY)
        return function(backbone.params, state.levels, indices, copies, state.step)

    every = jnp.arange(3)
    augmented, mixed = embed(0, every), embed(2, every)
    images = distill.render(recipe, state.levels, recipe.num_active(state.step))
    plain = backbone.apply(backbone.params, images[:, 1:9, 1:9])
    for copy in (0, 1):
        np.testing.assert_allclose(mixed[:, copy], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mixed[:, 2], augmented[:, 2])
    assert float(jnp.max(jnp.abs(augmented[:, 1] - plain))) > 1e-3
    # In a microbatch of its own a copy is what it is among all.
    last = embed(2, every[2:])
    np.testing.assert_allclose(last[:, 0], mixed[:, 2], rtol=1e-5, atol=1e-6)


def test_real_images_may_stay_as_they_are(backbone, memory):
    recipe = dataclasses.replace(RECIPE, copies=6, augment_real=False)
    step = jnp.int32(0)
    features, _ = distill.make_stream(backbone.apply, recipe, KEY)(backbone.params, memory, step)
    whole = backbone.apply(backbone.params, distill.to_float(memory.images))
    # All twelve images are drawn, each once.
    order = jnp.argsort(features[:, 0])
    np.testing.assert_allclose(
        features[order], whole[jnp.argsort(whole[:, 0])], rtol=1e-5, atol=1e-6
    )
    batch = distill.ImageBatch(memory.images, memory.labels, jnp.arange(12))
    given, _ = distill.make_given_images(backbone.apply, recipe, KEY)(backbone.params, batch, step)
    np.testing.assert_allclose(given, whole, rtol=1e-5, atol=1e-6)


def test_one_cached_view_of_the_whole_image_is_streaming(backbone, memory):
    """Without augmentation a cached step is a streamed one."""
    base = dataclasses.replace(RECIPE, augmentation=None)
    apply, params = backbone.apply, backbone.params
    whole = apply(params, distill.to_float(memory.images))[None]
    sources = {
        "stream": (distill.make_stream(apply, base, KEY), memory),
        "cached": (
            distill.make_cached(dataclasses.replace(base, real="cached"), KEY),
            distill.FeatureMemory(whole, memory.labels),
        ),
    }
    ends = []
    for real, source in sources.values():
        state = distill.init_state(KEY, base)
        step = jax.jit(distill.make_step(apply, base, KEY, real))
        for _ in range(3):
            state, _ = step(state, params, source)
        ends.append(decode(state.levels, 1))
    np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)


def test_cosine_schedule_ends_at_rest_and_starts_as_the_constant_one(backbone, memory):
    """Adam's updates are bounded by its learning rate, so their size shows it."""
    recipe = dataclasses.replace(RECIPE, schedule="cosine", steps=STEPS)
    ends = {}
    for name, settings in (("constant", RECIPE), ("cosine", recipe)):
        program = _compile(backbone, settings)
        start = distill.init_state(KEY, settings)
        states = [start.levels] + [
            state.levels for state, _ in program.run(start, backbone.params, memory, STEPS)
        ]
        ends[name] = states
        assert len(program.traces) == 1
    for a, b in zip(ends["constant"][1], ends["cosine"][1], strict=True):
        # Two programs, in one of which XLA may round once less.
        np.testing.assert_array_max_ulp(np.asarray(a), np.asarray(b), maxulp=1)

    def largest(name: str, step: int) -> float:
        pairs = zip(ends[name][step], ends[name][step + 1], strict=True)
        return max(float(jnp.max(jnp.abs(b - a))) for a, b in pairs)

    factor = 0.5 * (1 + np.cos(np.pi * (STEPS - 1) / STEPS))
    assert largest("cosine", STEPS - 1) <= 1.01 * factor * recipe.learning_rate
    assert largest("constant", STEPS - 1) > 10 * largest("cosine", STEPS - 1)


# Rivals: the same step with another loss of features.


def _by_hand(backbone, recipe, state, memory) -> jax.Array:
    """The loss of a state, by the pure functions: features of all views, and of the real batch."""
    indices, copies = jnp.arange(recipe.num_images), jnp.arange(recipe.copies)
    embed = distill.make_embed(backbone.apply, recipe, KEY)
    syn = embed(backbone.params, state.levels, indices, copies, state.step)
    syn = syn.reshape(-1, syn.shape[-1])
    real, labels_real = distill.make_stream(backbone.apply, recipe, KEY)(
        backbone.params, memory, state.step
    )
    sets = syn, jnp.repeat(recipe.labels(), recipe.copies), real, labels_real
    if recipe.objective == "sfm":
        return objectives.flow_matching_loss(*sets, recipe.num_classes)
    return objectives.closed_form_probe_loss(
        *sets, recipe.num_classes, recipe.ridge, recipe.temperature
    )


@pytest.mark.parametrize("objective", ["sfm", "clp"])
def test_rivals_lower_the_loss_they_are_named_after(backbone, memory, objective):
    recipe = dataclasses.replace(
        RECIPE, objective=objective, copies=4, sampling="balanced", init="zero", grow_every=0
    )
    program = _compile(backbone, recipe)
    start = distill.init_state(KEY, recipe)
    states, losses = zip(*program.run(start, backbone.params, memory, 40), strict=True)
    np.testing.assert_allclose(losses[0], _by_hand(backbone, recipe, start, memory), rtol=1e-4)
    assert len(program.traces) == 1
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:4])
    red, blue = np.asarray(decode(states[-1].levels)).mean(axis=(1, 2))
    assert red[0] - red[2] > 0.1
    assert blue[2] - blue[0] > 0.1


def test_each_copy_may_give_a_head_of_its_own(backbone, memory):
    recipe = dataclasses.replace(RECIPE, objective="clp", copies=3, ipc=2, head_per_copy=True)
    state = distill.init_state(KEY, recipe)
    real = distill.make_stream(backbone.apply, recipe, KEY)
    loss, _ = distill.make_gradient(backbone.apply, recipe, KEY, real)(
        state, backbone.params, memory
    )
    embed = distill.make_embed(backbone.apply, recipe, KEY)
    syn = embed(backbone.params, state.levels, jnp.arange(4), jnp.arange(3), state.step)
    losses = [
        objectives.closed_form_probe_loss(
            syn[:, copy],
            recipe.labels(),
            *real(backbone.params, memory, state.step),
            recipe.num_classes,
            recipe.ridge,
            recipe.temperature,
        )
        for copy in range(3)
    ]
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-4)
    together = dataclasses.replace(recipe, head_per_copy=False)
    other, _ = distill.make_gradient(backbone.apply, together, KEY, real)(
        state, backbone.params, memory
    )
    assert abs(float(other - loss)) > 1e-3


def test_flows_over_all_features_need_their_class_means_alone(backbone, features):
    recipe = dataclasses.replace(RECIPE, real="exact", real_views=2, objective="sfm")
    assert recipe.needs_means_alone
    rows = Rows([np.asarray(features.features[0]), np.asarray(features.features[1])], 2)
    means = rows.class_means(np.asarray(features.labels))
    short = distill.FeatureMemory(jnp.asarray(means)[None], jnp.arange(2, dtype=jnp.int32))
    step = jax.jit(distill.make_step(backbone.apply, recipe, KEY, distill.exact))
    state = distill.init_state(KEY, recipe)
    (whole, loss), (ours, our_loss) = (
        step(state, backbone.params, source) for source in (features, short)
    )
    np.testing.assert_allclose(our_loss, loss, rtol=1e-5)
    for a, b in zip(ours.opt_state[0].mu, whole.opt_state[0].mu, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(jnp.max(jnp.abs(b))))


# Several backbones at once.


@pytest.fixture(scope="module")
def other_backbone(write_vit, tmp_path_factory) -> Backbone:
    """Another one, with fewer features."""
    folder = tmp_path_factory.mktemp("other") / "vit"
    return load(
        write_vit(folder, seed=1, img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    )


def test_several_backbones_have_the_weighted_sum_of_gradients(backbone, other_backbone, memory):
    both, weights = (backbone, other_backbone), (0.75, 0.25)
    reals = [distill.make_stream(one.apply, RECIPE, KEY) for one in both]
    gradients = [
        distill.make_gradient(one.apply, RECIPE, KEY, real, microbatch_size=3)
        for one, real in zip(both, reals, strict=True)
    ]
    state = distill.init_state(KEY, RECIPE)
    params = tuple(one.params for one in both)
    loss, gradient = jax.jit(distill.weigh_gradients(gradients, weights))(
        state, params, (memory,) * 2
    )
    parts = [jax.jit(one)(state, own, memory) for one, own in zip(gradients, params, strict=True)]
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, *parts)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    for ours, theirs in zip(gradient, expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    assert float(parts[0][0]) != float(parts[1][0])


# Soft labels, learned along.

SOFT = dataclasses.replace(RECIPE, label_kind="soft", labels_learning_rate=0.03)


@pytest.fixture(scope="module")
def soft_program(backbone) -> Program:
    return _compile(backbone, SOFT)


@pytest.fixture(scope="module")
def soft_history(soft_program, backbone, memory) -> list[distill.SoftState]:
    state = distill.init_state(KEY, SOFT)
    after = soft_program.run(state, backbone.params, memory, STEPS)
    return [jax.device_get(s) for s in (state, *(state for state, _ in after))]


def test_soft_labels_start_near_the_hard_ones_and_images_as_with_them(soft_history, history):
    first = soft_history[0]
    assert isinstance(first, distill.SoftState)
    np.testing.assert_allclose(jax.nn.softmax(first.logits), [[0.9, 0.1], [0.1, 0.9]], rtol=1e-5)
    _assert_identical(first.levels, history[0][0].levels)
    assert isinstance(history[0][0], distill.State)


def test_soft_labels_have_an_adam_of_their_own_that_growing_leaves_alone(
    soft_program, soft_history
):
    moved = np.abs(soft_history[1].logits - soft_history[0].logits)
    np.testing.assert_allclose(moved, SOFT.labels_learning_rate, rtol=1e-3)
    assert int(soft_history[-1].labels_opt_state[0].count) == STEPS
    assert int(soft_history[-1].opt_state[0].count) < STEPS
    before = jax.tree.map(jnp.asarray, soft_history[3])
    grown = soft_program.grow(before)
    _assert_identical(grown.labels_opt_state, before.labels_opt_state)
    _assert_identical(grown.logits, before.logits)
    assert soft_program.step._cache_size() == 1


def test_an_interrupted_run_gives_the_same_soft_labels_to_the_bit(
    soft_program, backbone, memory, soft_history
):
    state = jax.tree.map(jnp.asarray, soft_history[4])
    *_, (last, _) = soft_program.run(state, backbone.params, memory, STEPS)
    _assert_identical(jax.device_get(last), soft_history[-1])


def test_gradient_in_soft_labels_is_that_of_the_objective(backbone, memory):
    real = distill.make_stream(backbone.apply, SOFT, KEY)
    state = distill.init_state(KEY, SOFT)
    loss, (_, gradient) = jax.jit(distill.make_gradient(backbone.apply, SOFT, KEY, real))(
        state, backbone.params, memory
    )
    features, labels = real(backbone.params, memory, state.step)
    embed = distill.make_embed(backbone.apply, SOFT, KEY)
    syn = embed(
        backbone.params, state.levels, jnp.arange(2), jnp.arange(SOFT.copies), state.step
    ).reshape(-1, features.shape[-1])
    head = objectives.init_head(
        jax.random.fold_in(jax.random.fold_in(KEY, distill._HEAD), 0), features.shape[-1], 2
    )

    def by_hand(logits):
        soft = jnp.repeat(jax.nn.softmax(logits), SOFT.copies, axis=0)
        return objectives.gradient_matching_loss(head, syn, soft, features, labels)

    expected_loss, expected = jax.value_and_grad(by_hand)(state.logits)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)
