"""Every family's forward and backward pass, as a step runs them; traced, not run."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lgm_jax import backbones, devices, distill, features, objectives
from lgm_jax.backbones import network, specs
from lgm_jax.backbones.vit_spec import PoolSpec, ViTSpec
from lgm_jax.images import Pyramid
from tests.marks import slow

KEY = jax.random.key(0)


def shrink(spec):
    """The same parts, small."""
    if not isinstance(spec, ViTSpec):
        widths = tuple(8 * width // spec.widths[0] for width in spec.widths)
        return dataclasses.replace(spec, resolution=32, depths=(1, 2, 1, 1), widths=widths)
    return dataclasses.replace(
        spec,
        resolution=4,
        embed=dataclasses.replace(spec.embed, patch=2),
        width=16,
        depth=2,
        attention=dataclasses.replace(spec.attention, heads=2),
        mlp=dataclasses.replace(spec.mlp, width=24),
        pool=dataclasses.replace(
            spec.pool,
            projection=min(spec.pool.projection, 8),
            mlp=spec.pool.mlp and dataclasses.replace(spec.pool.mlp, width=24),
        ),
    )


def families():
    """A small spec of every kind of backbone, by the first name that is one."""
    found = {}
    for name, entry in specs.NAMES.items():
        found.setdefault(shrink(entry.spec), name)
    return {name: spec for spec, name in found.items()}


FAMILIES = families()


def make_apply(spec, dtype=jnp.float32):
    return backbones.make_apply(spec, network.IMAGENET, dtype)


def trace_step(spec, microbatch=None):
    """Traces a step, and the embedding of real images, as a run has them; returns their types."""
    side = spec.resolution
    task = distill.Distillation(3, Pyramid(side), side, copies=2)
    mesh, apply = devices.make_mesh(3, 2, jax.devices()[:1]), make_apply(spec)
    params = backbones.abstract_params(spec)
    images = jax.ShapeDtypeStruct((6, side, side, 3), jnp.uint8)
    labels, weights = (jax.ShapeDtypeStruct((6,), dtype) for dtype in (jnp.int32, jnp.float32))
    values = features.embed_views.jitted.trace(
        params,
        images,
        KEY,
        jax.ShapeDtypeStruct((6, 1), jnp.int32),
        apply=apply,
        crop=side,
        augmentation=task.augmentation,
        mesh=mesh,
        size=microbatch,
    ).out_info
    real = objectives.Features(values, labels, weights, labels, labels, 3)
    step = distill.make_step(task, [apply], KEY, mesh=mesh, microbatch=microbatch).function
    state = jax.eval_shape(lambda: distill.init_state(task, KEY))
    return jax.eval_shape(step, state, [params], [real]), state, values


# One of each kind of attention, pooling and stem; the others are mixtures of these.
PLAIN = ("digits_contrastive", "eva02_vitt14", "dinov3_vits16", "mocov3_resnet50", "siglip_vitb16")


@pytest.mark.parametrize("name", [name if name in PLAIN else slow(name) for name in FAMILIES])
def test_a_step_is_traced_on_a_mesh(name):
    """JAX checks there that what varies among devices is told from what does not."""
    spec = FAMILIES[name]
    (after, metrics), state, values = trace_step(spec, microbatch=2)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in metrics.items()} == {
        "loss": ((), jnp.float32)
    }
    assert (values.shape, values.dtype) == ((6, spec.feature_dim), jnp.float32)


@pytest.mark.parametrize("pool", [PoolSpec("mean", 2), PoolSpec("cls+mean", 2)])
def test_a_step_is_traced_for_every_pooling(pool):
    spec = dataclasses.replace(FAMILIES["dinov2_vits14_reg"], pool=pool)
    (_, metrics), _, values = trace_step(spec)
    assert metrics["loss"].shape == ()
    assert values.shape == (6, spec.feature_dim)


def kept_for_mlp(spec, dtype):
    """Arrays of the hidden layer's width that a gradient in the images keeps of a block."""
    apply, images = make_apply(spec, dtype), jnp.zeros((1, spec.resolution, spec.resolution, 3))
    params = backbones.abstract_params(spec, dtype)

    def pullback(params, images):
        return jax.vjp(lambda images: apply(params, images), images)[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, params, images))
    return [leaf for leaf in kept if leaf.shape[-1] == spec.mlp.width]


@pytest.mark.parametrize("name", ["digits_contrastive", "clip_vitb32", "siglip_vitb16"])
def test_an_activation_keeps_one_array_for_its_gradient(name):
    """Memory of a step is mostly what a backbone keeps, and most of that is of MLPs."""
    spec = dataclasses.replace(FAMILIES[name], pool=PoolSpec("mean"))
    kept = [leaf for leaf in kept_for_mlp(spec, jnp.bfloat16) if leaf.ndim == 4]
    # Blocks, images, tokens, hidden layer.
    tokens = 4 + spec.embed.num_prefix
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((2, 1, tokens, 24), jnp.bfloat16)]
