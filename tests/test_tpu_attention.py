"""Our attention kernel for TPUs: its numbers, interpreted, and that TPUs' compiler takes it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import accelerators, backbones, devices, flops, opening
from lgm_jax.backbones import (
    abstract_params,
    attention,
    make_apply,
    pallas,
    rotary,
    specs,
)
from lgm_jax.errors import UserError
from tests.marks import slow

GRIDS = {197: (14, 1), 201: (14, 5), 257: (16, 1), 261: (16, 5), 577: (24, 1)}
LAYOUTS = {
    "half": rotary.Rotary("half", "centered", 100.0),
    "interleaved": rotary.Rotary("interleaved", "index", 10000.0, reference=16),
}

MISSING = importlib.util.find_spec("libtpu") is None


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run on a CPU."""
    monkeypatch.setattr(
        pallas.pl, "pallas_call", functools.partial(pallas.pl.pallas_call, interpret=True)
    )


@pytest.fixture
def on_tpu(monkeypatch):
    device = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    monkeypatch.setattr(attention, "first_device", lambda: device)


def _results(kernel, dtype, heads, tables, layout, qkv, cotangent):
    """Attention and its gradient, in float32."""

    def both(qkv, cotangent):
        attend = functools.partial(
            attention.attend, heads=heads, kernel=kernel, tables=tables, layout=layout
        )
        attended, pullback = jax.vjp(attend, qkv)
        return attended, pullback(cotangent)[0]

    found = jax.jit(both)(qkv.astype(dtype), cotangent.astype(dtype))
    assert {each.dtype for each in found} == {jnp.dtype(dtype)}
    return [each.astype(jnp.float32) for each in found]


# There are one group and two, of four heads, of two and of one.
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("tokens", "heads", "head_width", "layout"),
    [
        slow(197, 4, 32, None),
        slow(201, 4, 64, "half"),
        slow(257, 4, 64, None),
        slow(257, 2, 128, "interleaved"),
        (261, 2, 80, "half"),
        slow(261, 8, 32, "interleaved"),
        slow(577, 1, 64, None),
        slow(577, 1, 80, "interleaved"),
    ],
)
def test_it_is_jax_nn_dot_product_attention(tokens, heads, head_width, layout):
    grid, prefix = GRIDS[tokens]
    tables = layout and rotary.rotary_tables(LAYOUTS[layout], grid, head_width, prefix)
    rng = np.random.default_rng(tokens)
    images, width = 1 + (tokens == 201), heads * head_width
    qkv, cotangent = (
        jnp.asarray(rng.normal(size=(images, tokens, size)), jnp.bfloat16).astype(jnp.float32)
        for size in (3 * width, width)
    )
    arguments = heads, tables, layout or "half", qkv, cotangent
    exact = _results("xla", jnp.float32, *arguments)
    for ours, right in zip(_results("pallas", jnp.float32, *arguments), exact, strict=True):
        # Measured: 4e-7 or less.
        assert jnp.linalg.norm(ours - right) <= 1e-6 * jnp.linalg.norm(right)
    rounded = zip(
        _results("pallas", jnp.bfloat16, *arguments),
        _results("xla", jnp.bfloat16, *arguments),
        exact,
        strict=True,
    )
    for ours, theirs, right in rounded:
        # The same number of roundings, not the same numbers.
        assert jnp.linalg.norm(ours - right) <= 1.05 * jnp.linalg.norm(theirs - right)


def test_its_operations_are_counted():
    """Of every image and every head; a gradient makes the scores again."""
    images, tokens, heads, width = 3, 201, 4, 256
    qkv, cotangent = (jnp.zeros((images, tokens, n * width), jnp.bfloat16) for n in (3, 1))
    product = 2 * images * tokens**2 * width
    attend = functools.partial(pallas.attend, heads=heads)
    assert flops.count(attend, qkv) == 2 * product
    assert flops.count(lambda x, y: jax.vjp(attend, x)[1](y), qkv, cotangent) == 7 * product


@pytest.mark.slow
@pytest.mark.usefixtures("on_tpu", "interpreted")
def test_auto_takes_it_where_a_trial_finds_no_fault(vit_folder, capsys):
    backbone = backbones.load(vit_folder, dtype="bfloat16")
    assert backbone.attention == "pallas"
    assert capsys.readouterr().out == ""
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 16, 16, 3)), jnp.float32)
    traced = jax.make_jaxpr(backbone.apply)(backbone.params, images)
    assert str(traced).count("pallas_call") == 1
    by_xla = backbones.load(vit_folder, attention="xla", dtype="bfloat16")
    found, right = (jax.jit(each.apply)(each.params, images) for each in (backbone, by_xla))
    assert jnp.max(jnp.abs(found - right)) <= 0.02 * jnp.max(jnp.abs(right))


def _with_a_token_too_many(query, key):
    weights, total = SOFTMAX(query, key)
    return weights, total + 1


def _with_another_gradient(*refs, **options):
    BACKWARD(*refs, **options)
    refs[-1][...] = (refs[-1][...] * 1.1).astype(refs[-1].dtype)


SOFTMAX, BACKWARD = pallas.softmax, pallas.backward


@pytest.mark.usefixtures("on_tpu")
@pytest.mark.parametrize(
    ("place", "wrong", "told"),
    [
        slow("softmax", _with_a_token_too_many, "features are"),
        slow("backward", _with_another_gradient, "gradients are"),
        # As it is, no CPU runs it.
        ("backward", BACKWARD, "Only interpret mode is supported on CPU backend"),
    ],
)
def test_what_fails_a_trial_is_left_to_xla(
    request, monkeypatch, vit_folder, capsys, place, wrong, told
):
    if wrong is not BACKWARD:
        request.getfixturevalue("interpreted")
    monkeypatch.setattr(pallas, place, wrong)
    backbone = backbones.load(vit_folder)
    assert backbone.attention == "xla"
    note = capsys.readouterr().out
    assert note.startswith(f"note: backbone.attention=pallas fails on this device: {told}")
    assert note.endswith("; attention is computed by XLA\n")
    assert note.count("\n") == 1
    with pytest.raises(UserError, match=f"fails on this device: {told}"):
        backbones.load(vit_folder, attention="pallas")
    assert backbones.load(vit_folder, attention="xla").attention == "xla"


def _spec(tokens, head_width=64, heads=12):
    grid, prefix = tokens
    spec = specs.NAMES["dinov2_vitb14_reg"].spec
    return dataclasses.replace(
        spec,
        resolution=14 * grid,
        width=heads * head_width,
        attention=dataclasses.replace(spec.attention, heads=heads),
        embed=dataclasses.replace(spec.embed, registers=prefix - 1),
    )


@pytest.mark.parametrize(
    ("kind", "spec", "lacking"),
    [
        (
            "TPU v5 lite",
            _spec((37, 1)),
            "images of at most 640 tokens, not 1370, 98 MiB of vector memory, where 48 are there",
        ),
        ("TPU v5 lite", _spec((16, 1), 44), "a head width divisible by 8"),
        ("TPU v4", _spec((24, 1)), "28 MiB of vector memory, where 12 are there"),
        ("TPU v4", _spec((16, 1)), None),
        ("TPU v6 lite", _spec((24, 1)), None),
        ("cpu", _spec((16, 1)), "a TPU"),
    ],
)
def test_where_it_does_not_fit_auto_takes_xla(kind, spec, lacking):
    platform = "cpu" if kind == "cpu" else "tpu"
    device = types.SimpleNamespace(platform=platform, device_kind=kind)
    kernel = attention.choose_kernel("auto", spec, "bfloat16", device)
    assert kernel == ("pallas" if lacking is None else "xla")
    if lacking is None:
        assert attention.choose_kernel("pallas", spec, "bfloat16", device) == "pallas"
    else:
        with pytest.raises(UserError) as refused:
            attention.choose_kernel("pallas", spec, "bfloat16", device)
        told = f"backbone.attention=pallas needs {lacking}; set it to auto"
        assert str(refused.value) == told


def test_processes_compute_attention_by_the_same_kernel(monkeypatch):
    opening.check_kernels(["pallas", "xla"])
    monkeypatch.setattr(opening.hosts, "first_says", lambda kernels: ["xla", "xla"])
    with pytest.raises(UserError, match=r"by pallas, xla in process 0, and by xla, xla in process"):
        opening.check_kernels(["pallas", "xla"])


@pytest.mark.skipif(MISSING, reason="needs libtpu: pip install 'lgm_jax[tpu]'")
@pytest.mark.parametrize(
    ("topology", "name"), [("v5e:2x4", "dinov2_vitb14"), ("v6e:2x2", "dinov3_vitb16")]
)
def test_tpus_compiler_takes_it_within_the_step(topology, name):
    """Of every device its images, blocks scanned, products kept; nothing of tokens by tokens."""
    accelerators.on_cpu()
    chips = accelerators.find(topology).devices
    mesh, entry = devices.make_mesh(devices=chips), specs.NAMES[name]
    spec = dataclasses.replace(
        entry.spec,
        resolution=224,
        width=4 * 64,
        depth=2,
        attention=dataclasses.replace(entry.spec.attention, heads=4),
        mlp=dataclasses.replace(entry.spec.mlp, width=256),
    )
    assert attention.choose_kernel("auto", spec, "bfloat16", chips[0]) == "pallas"
    apply = make_apply(spec, entry.published.preprocessing, "bfloat16", "pallas")

    def gradient(params, images):
        def of_device(params, images):
            own = devices.varying(params)
            return jax.grad(lambda images: jnp.sum(apply(own, images, "products")))(images)

        layout = (devices.EVERYWHERE, devices.ROWS)
        mapped = jax.shard_map(of_device, mesh=mesh, in_specs=layout, out_specs=devices.ROWS)
        return mapped(params, images)

    def laid(leaf, rows):
        sharding = jax.sharding.NamedSharding(mesh, rows)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(lambda leaf: laid(leaf, devices.EVERYWHERE), abstract_params(spec))
    images = jax.ShapeDtypeStruct((2 * len(chips), 224, 224, 3), jnp.float32)
    lowered = jax.jit(gradient).lower(params, laid(images, devices.ROWS))
    text = lowered.compile().as_text()
    kernel = re.compile(r"= (\S+) custom-call\(.*custom_call_target=\"tpu_custom_call\"")
    returned = sorted(found.split("{")[0] for found in kernel.findall(text))
    # Forward and backward, once each.
    assert returned == [f"bf16[2,{spec.tokens},{width}]" for width in (256, 3 * 256)]
    assert f"{spec.tokens},{spec.tokens}" not in text
    assert "all-reduce" not in text
