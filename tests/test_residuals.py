"""What a backbone keeps for its gradient: the same result, counted bytes and products."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from lgm_jax import backbones, devices, distill, flops, memory
from lgm_jax.backbones import network, residuals
from lgm_jax.backbones.rotary import Rotary
from lgm_jax.backbones.vit_spec import AttentionSpec, EmbedSpec, MlpSpec, PoolSpec, ViTSpec
from lgm_jax.compilation import Program
from lgm_jax.images import Pyramid
from tests.marks import slow

SPEC = ViTSpec(16, 32, 3, EmbedSpec(4), AttentionSpec(2), MlpSpec(64))
SPECS = {
    "plain": SPEC,
    "scaled, several blocks": dataclasses.replace(
        SPEC, layer_scale=True, pool=PoolSpec("cls+mean", blocks=2)
    ),
    "rotary, gated": dataclasses.replace(
        SPEC,
        attention=AttentionSpec(2, "qv", Rotary("half", "centered", 100.0)),
        mlp=MlpSpec(48, "silu", gated=True, norm=True),
        pool=PoolSpec("mean_norm"),
    ),
    "attention pool": dataclasses.replace(SPEC, pool=PoolSpec("map")),
}
TASK = distill.Distillation(4, Pyramid(16, start_resolution=4), 16, copies=2)
KEY = jax.random.key(0)


def make_apply(spec, dtype=jnp.float32, kernel="xla"):
    return backbones.make_apply(spec, network.IMAGENET, dtype, kernel)


def make_params(spec):
    rng = np.random.default_rng(0)
    shapes = backbones.abstract_params(spec)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 4, x.dtype), shapes)


def make_total(spec, kept, size, mesh=None):
    """Of the features of all views, a number that depends on each in its own way."""
    mesh = devices.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    apply = functools.partial(make_apply(spec), residuals=kept)
    embed = distill.make_embed(TASK, apply, KEY, mesh=mesh, microbatch=size)

    def total(images, params):
        values = embed({"images": images}, params, jnp.int32(3)).values
        return jnp.sum(jnp.sin(values) * jnp.arange(1.0, 1 + values.size).reshape(values.shape))

    return total


@pytest.mark.parametrize(("name", "size"), [*(slow(name, None) for name in SPECS), ("plain", 3)])
@pytest.mark.slow
def test_features_and_gradients_are_the_same(name, size):
    spec = SPECS[name]
    params = make_params(spec)
    images = TASK.parametrisation.init_params(KEY, TASK.num_images)
    found = [
        jax.jit(jax.value_and_grad(make_total(spec, kept, size)))(images, params)
        for kept in residuals.RESIDUALS
    ]
    (value, gradient), (lean_value, lean_gradient) = found
    np.testing.assert_allclose(lean_value, value, rtol=1e-6)
    flat, lean_flat = (jax.flatten_util.ravel_pytree(each)[0] for each in (gradient, lean_gradient))
    largest = float(jnp.abs(flat).max())
    assert largest > 0
    np.testing.assert_allclose(lean_flat, flat, rtol=0, atol=1e-6 * largest)


@pytest.mark.slow
def test_attention_pooling_has_a_gradient_in_bfloat16_as_runs_compile_it():
    """XLA for CPUs may refuse one that `jax.jit` with its own options compiles."""
    spec = SPECS["attention pool"]
    params = make_params(spec)
    images = jax.random.uniform(KEY, (3, 16, 16, 3))
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        apply = make_apply(spec, dtype)
        weights = jax.random.normal(KEY, jax.eval_shape(apply, params, images).shape)

        def total(images, params, apply=apply, weights=weights):
            return jnp.sum(weights * apply(params, images))

        own = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        gradient = Program(jax.grad(total))(images, own)
        found.append(gradient / jnp.linalg.norm(gradient))
    # Measured: a cosine of 0.99996.
    assert float(jnp.sum(found[0] * found[1])) > 0.999


@pytest.mark.parametrize("kept", residuals.RESIDUALS)
@pytest.mark.parametrize("size", [slow(None), 4, slow(2)])
def test_no_product_with_weights_is_computed_a_third_time(kept, size):
    """In parts, the forward pass a second time; of products alone, the scores once more."""
    tokens, width, hidden, depth = SPEC.tokens, SPEC.width, SPEC.mlp.width, SPEC.depth
    layers = 2 * tokens * (4 * width**2 + 2 * width * hidden)
    weights = 2 * SPEC.grid**2 * 3 * SPEC.embed.patch**2 * width + depth * layers
    attention = depth * 4 * tokens**2 * width
    images, params = distill.abstract_params(TASK, TASK.num_images), make_params(SPEC)
    views = TASK.num_views
    forward = flops.count(make_total(SPEC, "all", None), images, params)
    gradient = functools.partial(make_total, SPEC)
    once = flops.count(jax.grad(gradient("all", None)), images, params)
    # With weights frozen, the backward pass has each product with them once, and those of
    # attention for both of their operands. What is left makes views of images.
    assert forward > views * (weights + attention)
    assert once - forward > views * (weights + 2 * attention)
    found = flops.count(jax.grad(gradient(kept, size)), images, params)
    again = 0 if size is None else forward
    scores = views * attention / 2 if kept == "products" else 0
    assert found == once + again + scores


def test_of_a_block_its_input_and_products_with_weights_are_kept():
    """But not the last product, of which the gradient needs nothing."""
    tokens, width = 17, SPEC.width
    each = {}
    for depth in (3, 4):
        spec = dataclasses.replace(SPEC, depth=depth)
        apply = functools.partial(make_apply(spec, jnp.bfloat16), residuals="products")
        params = backbones.abstract_params(spec)
        views = [
            memory.kept_bytes(
                lambda images, params, apply=apply: apply(params, images),
                jax.ShapeDtypeStruct((count, 16, 16, 3), jnp.float32),
                params,
            )
            for count in (1, 2)
        ]
        each[depth] = views[1] - views[0]
    kept = width + 3 * width + width + SPEC.mlp.width
    assert each[4] - each[3] == 2 * tokens * kept


@pytest.mark.parametrize(
    "spec",
    [SPECS["plain"], *map(slow, [SPECS[name] for name in SPECS if name != "plain"])],
)
def test_weights_in_the_type_that_layers_compute_in_give_the_same_features(spec):
    """To the bit, of every part: so nothing wider is kept."""
    apply, params = jax.jit(make_apply(spec, jnp.bfloat16)), make_params(spec)
    images = jnp.asarray(np.random.default_rng(1).random((2, 16, 16, 3)), jnp.float32)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    np.testing.assert_array_equal(apply(narrow, images), apply(params, images))


@pytest.mark.parametrize("kept", residuals.RESIDUALS)
def test_the_forward_pass_of_cudnn_is_not_repeated(kept, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 90100)
    apply = functools.partial(make_apply(SPEC, jnp.bfloat16, "cudnn"), residuals=kept)
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    gradient = jax.grad(lambda images, params: jnp.sum(apply(params, images)))
    text = str(jax.make_jaxpr(gradient)(images, backbones.abstract_params(SPEC)))
    # Each once, in a scan over blocks.
    assert text.count("dot_product_attention_fwd_wrapper[") == 1
    assert text.count("dot_product_attention_bwd_wrapper[") == 1
