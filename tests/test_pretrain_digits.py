"""The masked autoencoder that trains an embedded backbone: what it sees, and its last norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from lgm_jax.backbones.vit_spec import AttentionSpec, EmbedSpec, MlpSpec, PoolSpec, ViTSpec
from tools import pretrain_digits as tool

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


def test_the_loss_is_of_hidden_pixels_alone(network, images):
    key = jax.random.key(1)

    def loss(scans: jax.Array) -> jax.Array:
        batch = tool.Batch(images[None], scans[None], key)
        return tool.masked_loss(network, network, batch, jnp.zeros(()))[0]

    gradient = jax.grad(loss)(jnp.zeros(images.shape[:3]))
    order = jnp.argsort(jax.random.uniform(key, (2, GRID**2)), axis=1)
    touched = np.take_along_axis(_touched(gradient[..., None]), np.asarray(order), axis=1)
    np.testing.assert_array_equal(touched, np.tile(np.arange(GRID**2) >= 4, (2, 1)))


def test_features_of_the_training_part_are_standardised(network, images):
    definition, variables = nnx.split(network)
    params = nnx.to_pure_dict(variables)
    many = jax.random.uniform(jax.random.key(2), (20, *images.shape[1:]))
    before = np.asarray(network.features(many))
    params = params | {"backbone": tool.standardize(params["backbone"], before)}
    after = nnx.merge(definition, nnx.State(params)).features(many)
    np.testing.assert_allclose(after, (before - before.mean(0)) / before.std(0), atol=2e-4)
