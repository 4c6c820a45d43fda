"""Where real features are from: what each source returns for a step, and what comes of it."""

from __future__ import annotations

import dataclasses
import gc
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distilling import KEY, TASK, assert_close_to_largest, compile_step, run

from lgm_jax import distill, objectives, real
from lgm_jax.augment import augment, center_crop, to_float
from lgm_jax.data.dataset import ArraySplit
from lgm_jax.data.loader import HostBatch
from lgm_jax.data.sampling import SAMPLINGS, Order
from lgm_jax.errors import UserError
from lgm_jax.features import Rows
from tests.marks import slow

REAL_KEY, VIEW_KEY = jax.random.fold_in(KEY, 3), jax.random.fold_in(KEY, 4)


@pytest.fixture(scope="module")
def kept(vit, colours) -> Rows:
    """Two views of every real image, in three shards: its features, and its mirror image's."""
    images = to_float(jnp.asarray(colours.images))
    views = [vit.apply(vit.params, x) for x in (images, images[:, :, ::-1])]
    return Rows(np.split(np.concatenate([np.asarray(view) for view in views]), [9, 18]), 2)


def _positions(step: int, task: distill.Distillation = TASK) -> np.ndarray:
    return step * task.num_views + np.arange(task.num_views)


@pytest.mark.parametrize("augmented", [True, slow(False)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_streamed_embeds_the_images_of_the_order(vit, colours, sampling, augmented):
    source = real.streamed([vit], colours, TASK, KEY, sampling=sampling, augmented=augmented)
    order = Order(sampling, REAL_KEY, colours.labels, 2)
    # In no order: any step, whatever was asked for before.
    for step in (0, 1, 7, 3):
        (found,) = source(step)
        indices = order.at(_positions(step))
        keys = jax.vmap(
            lambda i, step=step: jax.random.fold_in(jax.random.fold_in(VIEW_KEY, step), i)
        )(jnp.arange(4))
        images = to_float(jnp.asarray(colours.images[indices]))
        views = augment(keys, images, 8, TASK.augmentation if augmented else None)
        expected = vit.apply(vit.params, views)
        np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.labels, colours.labels[indices])
        np.testing.assert_array_equal(found.image, indices)
        np.testing.assert_array_equal(found.copy, np.arange(4))
        np.testing.assert_array_equal(found.weights, np.ones(4))
        assert found.num_classes == 2


@pytest.mark.parametrize("held", [False, True])
def test_streamed_images_are_let_go_of(vit, colours, held):
    split = ArraySplit(colours.images.copy(), colours.labels)
    source, kept = real.streamed([vit], split, TASK, KEY, held=held), weakref.ref(split)
    source(0)
    del split, source
    # The thread that read ahead may be about to end.
    deadline = time.monotonic() + 60
    while kept() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert kept() is None


def test_labels_that_are_no_class_of_the_task_are_refused(vit, kept, colours):
    """Their rows would count, but for no class."""
    for label in (-1, 2):
        labels = colours.labels.copy()
        labels[3] = label
        split = ArraySplit(colours.images, labels)
        for make in (
            lambda split=split: real.streamed([vit], split, TASK, KEY),
            lambda labels=labels: real.cached([kept], labels, TASK, KEY),
            lambda labels=labels: real.exact([kept], labels, TASK),
        ):
            with pytest.raises(UserError, match="labels must be from 0 to 1"):
                make()


def test_a_balanced_choice_needs_images_of_each_class(vit, kept, colours):
    """It would look for one without end."""
    labels = np.zeros_like(colours.labels)
    split = ArraySplit(colours.images, labels)
    with pytest.raises(UserError, match="1 of 2 classes have no image"):
        real.streamed([vit], split, TASK, KEY, sampling="balanced")
    with pytest.raises(UserError, match="1 of 2 classes have no image"):
        real.cached([kept], labels, TASK, KEY, sampling="balanced")
    real.cached([kept], labels, TASK, KEY)


@pytest.mark.slow
def test_images_that_lie_on_the_device_or_come_in_microbatches_or_from_elsewhere_are_the_same(
    vit, colours
):
    def read(step: int) -> HostBatch:
        numbers = np.arange(4, dtype=np.int32)
        indices = Order("shuffle", REAL_KEY, colours.labels, 2).at(_positions(step))
        return HostBatch(colours.load(indices), colours.labels[indices], numbers, indices)

    sources = [
        real.streamed([vit], colours, TASK, KEY),
        real.streamed([vit], colours, TASK, KEY, held=True),
        real.streamed([vit], colours, TASK, KEY, microbatch=3),
        real.streamed([vit], read, TASK, KEY),
    ]
    for step in (0, 2):
        expected, *others = (source(step)[0] for source in sources)
        for found in others:
            assert jax.tree.structure(found) == jax.tree.structure(expected)
            np.testing.assert_allclose(found.values, expected.values, rtol=1e-5, atol=1e-6)
            for name in ("labels", "weights", "image", "copy"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_real_images_may_stay_as_they_are(vit, colours):
    task = dataclasses.replace(TASK, copies=6)
    (found,) = real.streamed([vit], colours, task, KEY, augmented=False)(0)
    whole = vit.apply(vit.params, center_crop(to_float(jnp.asarray(colours.images)), 8))
    # All twelve images are drawn, each once.
    np.testing.assert_array_equal(np.sort(found.image), np.arange(12))
    np.testing.assert_allclose(found.values, whole[found.image], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_cached_draws_the_images_of_the_order_in_random_views(kept, colours, sampling):
    source = real.cached([kept], colours.labels, TASK, KEY, sampling=sampling)
    order = Order(sampling, REAL_KEY, colours.labels, 2, made=False)
    whole, seen = kept.whole(), []
    for step in (*range(30), 4):
        (found,) = source(step)
        np.testing.assert_array_equal(found.image, order.at(_positions(step)))
        drawn = jax.random.randint(jax.random.fold_in(VIEW_KEY, step), (4,), 0, 2)
        np.testing.assert_array_equal(found.copy, drawn)
        np.testing.assert_array_equal(found.values, whole[found.copy, found.image])
        np.testing.assert_array_equal(found.labels, colours.labels[found.image])
        np.testing.assert_array_equal(found.weights, np.ones(4))
        assert (found.num_classes, found.copies) == (2, 2)
        seen += list(zip(found.image.tolist(), found.copy.tolist(), strict=True))
    if sampling == "shuffle":
        epochs = np.asarray([image for image, _ in seen[:120]]).reshape(10, 12)
        np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(12), (10, 1)))
    assert len(set(seen)) > 20


def test_backbones_see_the_same_images_and_views(kept, colours):
    other = Rows([2 * shard[:, :5] for shard in kept.shards], 2)
    a, b = real.cached([kept, other], colours.labels, TASK, KEY)(3)
    np.testing.assert_array_equal(b.values, 2 * a.values[:, :5])
    for name in ("labels", "image", "copy"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_exact_has_every_view_of_every_image(kept, colours):
    source = real.exact([kept], colours.labels, TASK)
    (found,) = source(0)
    assert found.values.shape == (24, 16)
    np.testing.assert_array_equal(found.values, kept.whole().reshape(24, 16))
    np.testing.assert_array_equal(found.labels, np.tile(colours.labels, 2))
    np.testing.assert_array_equal(found.image, np.tile(np.arange(12), 2))
    np.testing.assert_array_equal(found.copy, np.repeat([0, 1], 12))
    np.testing.assert_array_equal(found.weights, np.ones(24))
    # The same arrays: nothing is moved in a step.
    assert source(1)[0].values is found.values


def _loss_and_gradient(task, vit, features):
    state = distill.init(task, KEY)
    loss = distill.make_loss(task, [vit.apply], KEY)
    return jax.jit(jax.value_and_grad(loss))(state.params, state.step, [vit.params], features)


@pytest.mark.slow
def test_exact_is_the_loss_over_all_features(vit, kept, colours):
    state = distill.init(TASK, KEY)
    source = real.exact([kept], colours.labels, TASK)
    embed = jax.jit(distill.make_embed(TASK, vit.apply, KEY))
    syn = embed(state.params, vit.params, state.step)
    key = jax.random.fold_in(jax.random.fold_in(KEY, 2), 0)
    head = objectives.init_head(key, 16, 2, TASK.objective.head_std)
    whole = jnp.asarray(kept.whole().reshape(24, 16))
    labels = jnp.tile(jnp.asarray(colours.labels), 2)
    expected = objectives.gradient_matching_loss(head, syn.values, syn.labels, whole, labels)
    loss, _ = _loss_and_gradient(TASK, vit, source(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    after = run(compile_step(TASK, vit), state, [vit.params], source, 30)
    losses = [loss for _, loss in after]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.slow
def test_flows_over_all_features_need_their_class_means_alone(vit, kept, colours):
    task = dataclasses.replace(TASK, objective=objectives.SFM())
    prepared = real.exact([kept], colours.labels, task)(0)
    assert prepared[0].values.shape == (2, 16)
    means = [kept.whole()[:, colours.labels == c].reshape(-1, 16).mean(0) for c in range(2)]
    np.testing.assert_allclose(prepared[0].values, means, rtol=1e-5, atol=1e-7)
    everything = real.exact([kept], colours.labels, TASK)(0)
    loss, gradient = _loss_and_gradient(task, vit, everything)
    own_loss, own_gradient = _loss_and_gradient(task, vit, prepared)
    np.testing.assert_allclose(own_loss, loss, rtol=1e-5)
    assert_close_to_largest(own_gradient["images"][0], gradient["images"][0], 1e-4)


@pytest.mark.slow
def test_one_cached_view_of_the_whole_image_is_streaming(vit, colours):
    """Without augmentation a cached step is a streamed one, where both draw the same images."""
    task = dataclasses.replace(TASK, augmentation=None)
    whole = np.asarray(vit.apply(vit.params, to_float(jnp.asarray(colours.images))))
    sources = [
        real.streamed([vit], colours, task, KEY, sampling="balanced"),
        real.cached([Rows([whole], 1)], colours.labels, task, KEY, sampling="balanced"),
    ]
    step, ends = compile_step(task, vit), []
    for source in sources:
        *_, (state, _) = run(step, distill.init(task, KEY), [vit.params], source, 3)
        ends.append(distill.render(task, state))
    np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)
