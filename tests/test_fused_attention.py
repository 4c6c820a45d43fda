"""What a run computes on other devices than this one's, traced and lowered for them.

Nothing here needs a GPU: the choice of the kernel is made for a device that says it is one, and
JAX asks for the version of cuDNN alone.
"""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from scale import KEY, make_params, make_real, make_state, make_task
from scale import apply as toy_apply

from lgm_jax import backbones, devices, distill, objectives
from lgm_jax.backbones import (
    abstract_params,
    attention,
    make_apply,
    specs,
)
from lgm_jax.errors import UserError
from lgm_jax.features import embed_views
from lgm_jax.images import Pyramid
from tests.marks import slow

FORWARD, BACKWARD = "@__cudnn$fmhaSoftmax(", "@__cudnn$fmhaSoftmaxBackward("
VIEWS = 2


@pytest.fixture
def on_gpu(monkeypatch):
    """An A100, and a cuDNN of its time."""
    device = types.SimpleNamespace(platform="gpu", compute_capability="8.0")
    monkeypatch.setattr(attention, "first_device", lambda: device)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 90100)


def _chosen(spec, dtype="bfloat16"):
    """The kernel that `auto` takes on this device."""
    return attention.choose_kernel("auto", spec, dtype)


def _families():
    """One name for each kind of network that attends.

    Sizes and patches only change numbers of a program.
    """
    families = {}
    for name, entry in specs.NAMES.items():
        spec = entry.spec
        if not spec.heads:
            continue
        heads = dataclasses.replace(spec.attention, heads=spec.width // spec.attention.heads)
        embed = dataclasses.replace(spec.embed, patch=1)
        kind = (heads, embed, dataclasses.replace(spec.mlp, width=1), spec.pool.kind)
        families.setdefault(kind, name)
    return list(families.values())


def _network(name, side, dtype="bfloat16"):
    """`apply` with the kernel that `auto` takes, in full depth and width, and its parameters."""
    entry = specs.NAMES[name]
    spec = dataclasses.replace(entry.spec, resolution=side)
    apply = make_apply(spec, entry.published.preprocessing, dtype, _chosen(spec, dtype))
    return spec, apply, abstract_params(spec)


def _mesh():
    return devices.make_mesh(devices=jax.devices()[:1])


def _lowered(function, *arguments, platform="cuda"):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("times", [1, slow(2)])
@pytest.mark.parametrize("name", _families())
def test_every_family_is_differentiated_by_the_kernel_that_auto_takes(name, times):
    """At the resolution it is used at and at twice that, under `shard_map` as in the step."""
    side = times * specs.NAMES[name].resolution
    mesh = _mesh()
    spec, apply, params = _network(name, side)
    assert _chosen(spec) == "cudnn"

    def gradient(params, images):
        def of_device(params, images):
            common = devices.varying(params)
            return jax.grad(lambda images: jnp.sum(apply(common, images) ** 2))(images)

        layout = (devices.EVERYWHERE, devices.ROWS)
        mapped = jax.shard_map(of_device, mesh=mesh, in_specs=layout, out_specs=devices.ROWS)
        return mapped(params, images)

    text = _lowered(gradient, params, jax.ShapeDtypeStruct((VIEWS, side, side, 3), jnp.float32))
    assert (text.count(FORWARD), text.count(BACKWARD)) == (1, 1)
    tokens = spec.embed.num_prefix + spec.grid**2
    even = tokens + tokens % 2
    heads, width = spec.attention.heads, spec.width // spec.attention.heads
    assert f"tensor<{VIEWS}x{even}x{heads}x{width}xbf16>" in text


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("size", [None, 1])
def test_a_whole_step_lowers_for_a_gpu(size):
    """Real and synthetic images in the backbone, whole and in microbatches, the state donated."""
    mesh, side = _mesh(), 28
    _, apply, params = _network("dinov2_vits14", side)
    task = make_task(2, parametrisation=Pyramid(side, start_resolution=4), crop=side)
    images = jax.ShapeDtypeStruct((4, side, side, 3), jnp.uint8)
    traced = embed_views.jitted.trace(
        params,
        images,
        KEY,
        jax.ShapeDtypeStruct((4, 1), jnp.int32),
        apply=apply,
        crop=side,
        augmentation=task.augmentation,
        mesh=mesh,
        size=size,
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert (text.count(FORWARD), text.count(BACKWARD)) == (1, 0)

    values = traced.out_info
    labels, weights = (jax.ShapeDtypeStruct((4,), dtype) for dtype in (jnp.int32, jnp.float32))
    real = objectives.Features(values, labels, weights, labels, labels, 2)
    step = distill.make_step(task, [apply], KEY, mesh=mesh, microbatch=size)
    donating = step.jitted.trace(distill.init(task, KEY, mesh=mesh), [params], [real])
    text = donating.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(BACKWARD) == 1
    assert text.count(FORWARD) >= 1
    assert "jax.buffer_donor" in text or "tf.aliasing_output" in text


@pytest.mark.parametrize("platform", ["cuda", slow("rocm"), slow("tpu")])
@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("stream", {}),
        ("exact", {"objective": objectives.SFM()}),
        ("cached", {"objective": objectives.CLP()}),
        ("cached", {"objective": objectives.CLP(head_per_copy=True)}),
        ("cached", {"labels": "soft"}),
    ],
)
def test_every_objective_lowers_for_every_kind_of_device(source, changes, platform):
    """With a pyramid that grows within the step."""
    mesh, task = _mesh(), make_task(3, **changes)
    features = make_real(task, source, mesh)(0)
    step = distill.make_step(task, [toy_apply], KEY, mesh=mesh, microbatch=3).function
    arguments = make_state(task), [make_params()], features
    assert "func.func public @main" in _lowered(step, *arguments, platform=platform)


def _through_xla(monkeypatch):
    """cuDNN's place is taken by XLA, with the same padding and the same lengths."""
    original, lengths = jax.nn.dot_product_attention, []

    def by_xla(*arguments, implementation, **named):
        if implementation == "cudnn":
            lengths.append(arguments[0].shape[1])
        return original(*arguments, implementation="xla", **named)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    return lengths


def _loud(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2 + 0.1, jnp.float32), shapes
    )


@pytest.mark.parametrize("name", ["eva02_vits14", slow("siglip_vitb16")])
def test_padding_changes_neither_features_nor_gradients(monkeypatch, name):
    """Of a whole network with few of everything: 5 tokens, rotary; 9 tokens, a pooling head."""
    entry = specs.NAMES[name]
    side, tokens, heads = {"eva02_vits14": (28, 5, 2), "siglip_vitb16": (48, 9, 2)}[name]
    spec = dataclasses.replace(
        entry.spec,
        resolution=side,
        width=16 * heads,
        depth=1,
        attention=dataclasses.replace(entry.spec.attention, heads=heads),
        mlp=dataclasses.replace(entry.spec.mlp, width=24),
    )
    seen = _through_xla(monkeypatch)
    params = _loud(abstract_params(spec))
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(3, side, side, 3)), jnp.float32)
    found = {}
    for kernel in ("xla", "cudnn"):
        apply = make_apply(spec, entry.published.preprocessing, "float32", kernel)

        def energy(params, images, apply=apply):
            features = apply(params, images)
            return jnp.sum(jnp.sin(3 * features)), features

        results = jax.jit(jax.grad(energy, argnums=(0, 1), has_aux=True))(params, images)
        found[kernel] = jax.tree.leaves(results)
    assert set(seen) == {tokens + 1}
    for ours, theirs in zip(found["cudnn"], found["xla"], strict=True):
        # Measured: 3e-7.
        _assert_close(ours, theirs, 3e-6)


def _assert_close(ours, theirs, tolerance):
    """Relative to the largest number."""
    largest = jnp.max(jnp.abs(theirs))
    assert largest > 0
    assert jnp.max(jnp.abs(ours - theirs)) <= tolerance * largest


# Measured: 2e-7 in float32, nothing in bfloat16; 1e-3 or more where the token is not masked.
@pytest.mark.parametrize(
    ("tokens", "dtype", "tolerance"),
    [(1, jnp.float32, 1e-6), (197, jnp.float32, 1e-6), (257, jnp.bfloat16, 5e-4)],
)
def test_attention_that_is_padded_is_the_same(monkeypatch, tokens, dtype, tolerance):
    seen = _through_xla(monkeypatch)
    rng = np.random.default_rng(tokens)
    qkv, cotangent = (jnp.asarray(rng.normal(size=(2, tokens, 16 * n)), dtype) for n in (3, 1))

    def pull(kernel):
        def results(qkv, cotangent):
            attend = functools.partial(attention.attend, heads=2, kernel=kernel)
            attended, pullback = jax.vjp(attend, qkv)
            return attended, *jnp.split(pullback(cotangent)[0], 3, axis=-1)

        return jax.jit(results)(qkv, cotangent)

    for ours, theirs in zip(pull("cudnn"), pull("xla"), strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype == dtype
        # One token attends to itself, whatever its query and key.
        if tokens > 1 or jnp.any(theirs):
            _assert_close(ours.astype(jnp.float32), theirs.astype(jnp.float32), tolerance)
    assert seen == [tokens + tokens % 2]


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "head_width", "kernel"),
    [
        ("cpu", "", "bfloat16", 64, "xla"),
        ("gpu", "8.0", "bfloat16", 64, "cudnn"),
        ("gpu", "10.3", "bfloat16", 32, "cudnn"),
        ("gpu", "7.5", "bfloat16", 64, "xla"),
        ("gpu", "gfx942", "bfloat16", 64, "xla"),
        # cuDNN's kernel takes neither float32 nor other widths of a head.
        ("gpu", "9.0", "float32", 64, "xla"),
        ("gpu", "9.0", "bfloat16", 136, "xla"),
        ("gpu", "9.0", "bfloat16", 12, "xla"),
        ("gpu", "9.0", "bfloat16", 88, "cudnn"),
        ("tpu", "", "bfloat16", 64, "pallas"),
        ("tpu", "", "float32", 80, "pallas"),
        ("tpu", "", "bfloat16", 12, "xla"),
    ],
)
def test_auto_takes_the_fused_kernel_where_it_runs(
    monkeypatch, platform, capability, dtype, head_width, kernel
):
    device = types.SimpleNamespace(
        platform=platform, compute_capability=capability, device_kind="TPU v5 lite"
    )
    monkeypatch.setattr(attention, "first_device", lambda: device)
    spec = specs.NAMES["dinov2_vitb14"].spec
    spec = dataclasses.replace(spec, width=12 * head_width, resolution=224)
    assert _chosen(spec, dtype) == kernel


def test_the_fused_kernel_is_refused_where_it_cannot_run(vit_folder):
    with pytest.raises(UserError, match="needs an NVIDIA GPU") as info:
        backbones.load(vit_folder, attention="cudnn")
    assert "dtype=bfloat16" in str(info.value)
    backbones.load(vit_folder, attention="xla")
