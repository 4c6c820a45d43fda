"""Pre-training of small backbones: views, losses, resuming, the masked autoencoder's last norm."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from lgm_jax.backbones.vit_spec import AttentionSpec, EmbedSpec, MlpSpec, PoolSpec, ViTSpec
from lgm_jax.errors import UserError
from tools.pretrain import methods as tool
from tools.pretrain import training, views

PATCH, GRID = 2, 4
SPEC = ViTSpec(
    resolution=PATCH * GRID,
    width=32,
    depth=1,
    embed=EmbedSpec(PATCH),
    attention=AttentionSpec(2),
    mlp=MlpSpec(32),
    pool=PoolSpec("mean"),
)


@pytest.fixture(scope="module")
def network() -> tool.MaskedNetwork:
    return tool.MaskedNetwork(SPEC, masked=0.75, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (2, SPEC.resolution, SPEC.resolution, 3))


def _touched(gradient: jax.Array) -> np.ndarray:
    """Which patches (b, n) of (b, h, w, c) have a gradient."""
    patches = rearrange(gradient, "b (h p) (w q) c -> b (h w) (p q c)", p=PATCH, q=PATCH)
    return np.asarray(jnp.any(patches != 0, axis=-1))


@pytest.mark.slow
def test_a_quarter_of_the_patches_is_seen_and_no_other(network, images):
    order = jnp.stack([jnp.arange(GRID**2), jnp.arange(GRID**2)[::-1]])
    gradient = jax.grad(lambda x: jnp.sum(network.fill_in(x, order) ** 2))(images)
    first = np.arange(GRID**2) < 4
    np.testing.assert_array_equal(_touched(gradient), [first, first[::-1]])


@pytest.mark.slow
def test_the_loss_is_of_hidden_pixels_alone(network, images):
    key = jax.random.key(1)

    def loss(scans: jax.Array) -> jax.Array:
        batch = tool.Batch((images[None],), scans[None], key)
        return tool.masked_loss(network, network, batch, jnp.zeros(()))[0]

    gradient = jax.grad(loss)(jnp.zeros(images.shape[:3]))
    order = jnp.argsort(jax.random.uniform(key, (2, GRID**2)), axis=1)
    touched = np.take_along_axis(_touched(gradient[..., None]), np.asarray(order), axis=1)
    np.testing.assert_array_equal(touched, np.tile(np.arange(GRID**2) >= 4, (2, 1)))


@pytest.mark.slow
def test_features_of_the_training_part_are_standardised(network, images):
    definition, variables = nnx.split(network)
    params = nnx.to_pure_dict(variables)
    many = jax.random.uniform(jax.random.key(2), (20, *images.shape[1:]))
    before = np.asarray(network.features(many))
    params = params | {"backbone": tool.standardize(params["backbone"], before)}
    after = nnx.merge(definition, nnx.State(params)).features(many)
    np.testing.assert_allclose(after, (before - before.mean(0)) / before.std(0), atol=2e-4)


def _photos(count: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(3), (count, 20, 20, 3))


@pytest.mark.slow
def test_views_of_photos_have_two_sizes_and_differ():
    draw = jax.jit(functools.partial(views.Photos(8, small=2, small_side=4), count=2))
    (whole, small), scans = draw(jax.random.key(0), _photos(2))
    assert (whole.shape, small.shape, scans) == ((2, 2, 8, 8, 3), (2, 2, 4, 4, 3), None)
    assert float(jnp.min(whole)) >= 0
    assert float(jnp.max(whole)) <= 1
    assert not np.allclose(whole[0], whole[1])
    assert not np.allclose(small[0], small[1])


def test_whole_views_of_photos_begin_where_small_ones_end(monkeypatch):
    areas = []

    def photo(key, image, *, side, scale):
        areas.append((side, scale))
        return image

    monkeypatch.setattr(views, "_photo", photo)
    views.Photos(8, small=2, small_side=4, most=0.15)(jax.random.key(0), _photos(2), 2)
    assert areas == [(8, (0.15, 1.0)), (4, (0.05, 0.15))]


def test_a_turn_of_colours_keeps_grey_and_brightness():
    turned = _photos(1) @ views.hue(jnp.float32(0.3))
    luma = np.asarray(views.LUMA, np.float32)
    np.testing.assert_allclose(turned @ luma, _photos(1) @ luma, atol=2e-3)
    np.testing.assert_allclose(np.ones(3) @ views.hue(jnp.float32(0.3)), 1, atol=2e-3)
    np.testing.assert_allclose(_photos(1) @ views.hue(jnp.float32(1.0)), _photos(1), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["contrastive", "distilled"])
def test_small_views_train_the_positions_of_whole_ones(method):
    spec = dataclasses.replace(SPEC, pool=PoolSpec("cls"))
    network, loss, _ = tool.make(method, spec, temperature=0.2, masked=0, rngs=nnx.Rngs(0))
    definition, variables = nnx.split(network)
    params = nnx.to_pure_dict(variables)
    drawn, _ = views.Photos(SPEC.resolution, 1, SPEC.resolution // 2)(
        jax.random.key(0), _photos(4), 2
    )

    def total(online):
        batch = tool.Batch(drawn, None, jax.random.key(1))
        other = nnx.merge(definition, nnx.State(params))
        online = nnx.merge(definition, nnx.State(online))
        return loss(online, other, batch, jnp.zeros((1, tool.PROTOTYPES)))[0]

    gradient = jax.jit(jax.grad(total))(params)["backbone"]["positions"]
    assert np.all(np.any(np.asarray(gradient) != 0, axis=-1))


@pytest.mark.slow
def test_training_goes_on_after_the_last_epoch(tmp_path):
    spec = dataclasses.replace(SPEC, pool=PoolSpec("cls"))
    network, loss, _ = tool.make("contrastive", spec, temperature=0.2, masked=0, rngs=nnx.Rngs(0))
    images = np.asarray(_photos(4) * 255).astype(np.uint8)
    draw = functools.partial(views.Photos(SPEC.resolution), count=2)
    whole = training.Training(network, loss, draw, 8, jax.random.key(0), 2, 2, 1e-3)

    def stop(epoch, loss, weights):
        if stopped and epoch == 2:
            raise KeyboardInterrupt

    stopped: list[int] = []
    expected = whole.run(images, tmp_path / "whole", stop)
    stopped.append(1)
    with pytest.raises(KeyboardInterrupt):
        whole.run(images, tmp_path / "cut", stop)
    stopped.clear()
    resumed = whole.run(images, tmp_path / "cut", stop)
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed, expected))


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    few = training.Training(None, None, None, 8, None, batch=5, epochs=2, learning_rate=1e-3)
    with pytest.raises(UserError, match="4 images fill no batch of 5: lower --batch"):
        few.run(images, tmp_path, print)


def test_a_training_does_not_go_on_with_other_flags(tmp_path):
    folder, settings = tmp_path / "s" / training.CHECKPOINTS, {"seed": 1, "crops": 0.25}
    training.keep_settings(folder, settings | {"crops": 0.15})
    training.keep_settings(folder, settings)
    (folder / "73").mkdir()
    training.keep_settings(folder, settings)
    with pytest.raises(UserError, match=r"began with --crops=0\.25: go on with that"):
        training.keep_settings(folder, settings | {"crops": 0.15})
    with pytest.raises(UserError, match="began with an earlier version"):
        training.keep_settings(folder, settings | {"depth": 4})
    (folder / training.SETTINGS).unlink()
    with pytest.raises(UserError, match="began with an earlier version"):
        training.keep_settings(folder, settings)
