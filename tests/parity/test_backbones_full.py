"""Registered backbones at full size: every key and shape, and, marked slow, the numbers.

The table in `docs/backbones.md` is what `pytest -m slow -s tests/parity/test_backbones_full.py`
prints.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import transformers
import upstream
from flax import nnx
from layouts import layouts

from lgm_jax import backbones
from lgm_jax.backbones import abstract_module, configs, families, network, port, specs
from lgm_jax.backbones.families import resnet

REGISTERED = {name: entry for name, entry in specs.NAMES.items() if entry.sources or entry.pickle}
PAPERS = ("dinov2_vitb14", "clip_vitb16", "eva02_vitb14", "mocov3_vitb16")
OTHERS = (
    *("dinov2_vitb14_reg", "dinov3_vitb16", "siglip_vitb16", "dino_vits8", "pe_core_vitb16"),
    *("pe_core_vitl14", "aimv2_vitl14", "ijepa_vith14", "dinov3_convnext_tiny", "dino_resnet50"),
)
LONG = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}


def sizes(name: str) -> dict[str, int]:
    """transformers' names for a backbone's sizes, taken from the name alone."""
    letter = name.split("vit")[1][0]
    width, depth, heads = {
        "s": (384, 12, 6),
        "b": (768, 12, 12),
        "l": (1024, 24, 16),
        "h": (1280, 32, 16),
        "g": (1536, 40, 24),
    }[letter]
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}


def upstreams(name: str) -> upstream.Family:
    """The family that upstream's documentation and registry give for a name."""
    t = transformers
    if "resnet" in name:
        return upstream.timm_family("resnet50", other=160, side=224)
    if "convnext" in name:
        settings = t.DINOv3ConvNextConfig(depths=[3, 3, 27 if "small" in name else 9, 3])
        model = t.DINOv3ConvNextModel
        return upstream.hf_family(model, settings, upstream.pooled, resolution=224, other=160)
    family, size = name.split("_")[:2]
    if family == "pe":
        settings = REGISTERED[name].config
        side, patch = REGISTERED[name].resolution, REGISTERED[name].spec.embed.patch
        return upstream.timm_family(
            settings["architecture"],
            img_size=side,
            num_classes=settings["num_classes"],
            other=side - 2 * patch,
        )
    patch = int(size.lstrip("vitsblhg"))
    mlp = {} if family in ("eva02", "mocov3", "dino", "mae") else sizes(name)
    hidden = {"intermediate_size": 4 * mlp.get("hidden_size", 0)}
    long = LONG[size[3]]
    if family == "dinov2":
        giant = {"use_swiglu_ffn": True} if long == "giant" else {}
        config = {**mlp, **giant, "image_size": 518, "patch_size": 14}
        if name.endswith("_reg"):
            registers = t.Dinov2WithRegistersConfig(**config, num_register_tokens=4)
            model, settings = t.Dinov2WithRegistersModel, registers
        else:
            model, settings = t.Dinov2Model, t.Dinov2Config(**config)
        return upstream.hf_family(model, settings, upstream.cls, resolution=518, other=224)
    if family == "clip":
        side = 336 if name.endswith("336") else 224
        vision = {**mlp, **hidden, "image_size": side, "patch_size": patch}
        projected = {"projection_dim": 768 if long == "large" else 512}
        settings = t.CLIPVisionConfig(**vision, **projected)
        model = t.CLIPVisionModelWithProjection
        return upstream.hf_family(model, settings, upstream.clip, resolution=side, other=2 * side)
    if family == "dinov3":
        settings = t.DINOv3ViTConfig(**mlp, **hidden, num_register_tokens=4)
        return upstream.hf_family(
            t.DINOv3ViTModel, settings, upstream.cls, resolution=224, other=256
        )
    if family == "aimv2":
        side = 336 if name.endswith("336") else 224
        native = name.endswith("native")
        settings = t.Aimv2VisionConfig(image_size=side, use_head=False, is_native=native)
        return upstream.hf_family(
            t.Aimv2VisionModel, settings, upstream.aimv2, resolution=side, other=252
        )
    if family == "ijepa":
        # Its giant is another than DINOv2's.
        giant = {"hidden_size": 1408, "intermediate_size": 6144, "num_attention_heads": 16}
        side = 448 if name.endswith("448") else 224
        config = {**mlp, **hidden, **(giant if long == "giant" else {})}
        settings = t.IJepaConfig(**config, patch_size=patch, image_size=side, layer_norm_eps=1e-6)
        return upstream.hf_family(
            t.IJepaModel, settings, upstream.mean, resolution=side, other=18 * patch
        )
    if family in ("siglip", "siglip2"):
        settings = t.SiglipVisionConfig(**mlp, **hidden)
        return upstream.hf_family(
            t.SiglipVisionModel, settings, upstream.tower, resolution=224, other=256
        )
    if family == "eva02":
        patch, architecture, arguments = 14, f"eva02_{long}_patch14_224", {}
    else:
        architecture = f"vit_{long}_patch16_224"
        # MoCo-v3's small model has heads of 32 features.
        heads = {"num_heads": 12} if name == "mocov3_vits16" else {}
        arguments = {"patch_size": patch, **heads}
    return upstream.timm_family(architecture, other=18 * patch, img_size=224, **arguments)


@pytest.mark.parametrize("name", REGISTERED)
def test_the_number_of_parameters_is_upstreams(name):
    with torch.device("meta"):
        model = upstreams(name).make()
    _, shapes = abstract_module(REGISTERED[name].spec)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    # A mask token is for training only; timm adds a bias, of zeros, to the projection.
    left_out = ("embeddings.mask_token", "head.bias")
    named = dict(model.named_parameters())
    named |= {key: value for key, value in model.named_buffers() if ".running_" in f".{key}"}
    assert count == sum(value.numel() for key, value in named.items() if key not in left_out)


TIMMS = [name for name, entry in REGISTERED.items() if entry.published.form.startswith("timm")]


@pytest.mark.parametrize("name", TIMMS)
def test_every_key_and_shape_is_timms(name):
    """transformers renames keys when it saves: there, the tiny models' files show the names."""
    with torch.device("meta"):
        model = upstreams(name).make()
    form = families.formats()[REGISTERED[name].published.form]
    ours = layouts(form, REGISTERED[name].spec)
    theirs = {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if key in ours or not port.is_ignored(form, key)
    }
    assert ours == theirs


@pytest.mark.parametrize("name", [name for name in REGISTERED if name.startswith("clip")])
def test_clips_second_source_has_the_same_weights(name):
    side = 336 if name.endswith("336") else 224
    long = "large" if "vitl" in name else "base"
    patch = name.split("_")[1].lstrip("vitbl")
    spec = REGISTERED[name].spec
    with torch.device("meta"):
        model = timm.create_model(
            f"vit_{long}_patch{patch}_clip_quickgelu_{side}", num_classes=spec.pool.projection
        )
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    ours = layouts(families.formats()["timm_vit"], spec)
    # timm adds a bias, of zeros, to the projection.
    assert set(theirs) - set(ours) == {"head.bias"}
    assert ours == {key: theirs[key] for key in ours}


@pytest.mark.parametrize("name", [n for n in REGISTERED if n.startswith("aimv2")])
def test_aimv2s_second_source_is_the_same_network(name):
    for repo, form in [*REGISTERED[name].sources.items()][1:]:
        architecture, _, _ = repo.removeprefix("timm/").partition(".")
        config = {"architecture": architecture, "pretrained_cfg": upstream.STATISTICS}
        theirs = configs.read_config(config, {})
        assert (theirs.spec, theirs.form) == (REGISTERED[name].spec, form)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("name", [*PAPERS, *OTHERS])
def test_numbers_at_full_size_are_upstreams(name, tmp_path):
    family = upstreams(name)
    model = family.build(tmp_path / name)
    run, rows = functools.partial(family.features, model), []
    for resolution in dict.fromkeys((family.resolution, family.other)):
        backbone = backbones.load(tmp_path / name, resolution=resolution)
        for count in (1, 3):
            error, gradient_error = upstream.compare(
                # ConvNeXt's features are a mean over the image.
                *(backbone, run, count, 112 if "convnext" in name else 1),
            )
            if "resnet" in name:
                gradient_error = _error_in_float64(backbone, family, model, count)
            rows.append((resolution, count, error, gradient_error))
    full = backbones.load(tmp_path / name, resolution=224)
    half = backbones.load(tmp_path / name, resolution=224, dtype="bfloat16")
    images = jnp.asarray(upstream.draw(4, 224))
    a, b = (jax.jit(x.apply)(x.params, images) for x in (full, half))
    cosines = jnp.sum(a * b, axis=1) / jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(b, axis=1)
    for resolution, count, error, gradient_error in rows:
        print(f"| {name} | {resolution} | {count} | {error:.1e} | {gradient_error:.1e} | ", end="")
        print(f"{jnp.min(cosines):.5f} |")
    assert max(row[2] for row in rows) <= 1e-5
    assert max(row[3] for row in rows) <= 1e-4
    assert jnp.min(cosines) >= 0.999


def _error_in_float64(
    backbone: backbones.Backbone, family: upstream.Family, model: upstream.Model, count: int
) -> float:
    """The error of the image gradient, both in float64.

    In float32 rounding decides the sign of the few activations near zero, where a ReLU's gradient
    jumps: PyTorch's own in float32 is 3e-3 of the largest away from its own in float64.
    """
    wide = types.SimpleNamespace(**{**vars(jnp), "float32": jnp.float64})
    images = upstream.draw(count, backbone.resolution).astype(np.float64)
    weights = np.random.default_rng(9).normal(size=(count, backbone.feature_dim))
    statistics = np.asarray(dataclasses.astuple(backbone.settings.preprocessing))
    mean, std = statistics.reshape(2, 1, 1, 1, 3)
    with jax.enable_x64(True), mock.patch.object(resnet, "jnp", wide):
        definition, _ = abstract_module(backbone.spec, "float64", "xla")
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), backbone.params)

        @jax.jit
        @jax.grad
        def ours(x: jax.Array) -> jax.Array:
            module = nnx.merge(definition, nnx.State(params))
            return jnp.sum(module((x - mean) / std) * weights)

        gradient = np.asarray(ours(images))
    leaf = torch.from_numpy(images).requires_grad_()
    pixels = (leaf - torch.from_numpy(mean)) / torch.from_numpy(std)
    features = family.features(copy.deepcopy(model).double(), pixels.permute(0, 3, 1, 2))
    (expected,) = torch.autograd.grad((features * torch.from_numpy(weights)).sum(), leaf)
    assert gradient.dtype == np.float64
    return upstream.relative_error(gradient, expected)


@pytest.mark.slow
@pytest.mark.heavy
def test_compile_time_does_not_grow_with_depth():
    """Forward and backward of a ViT-S of 12 and of 24 layers, alternately, best of three."""

    def compile_seconds(depth: int) -> float:
        spec = dataclasses.replace(specs.NAMES["dino_vits16"].spec, depth=depth)
        _, shapes = abstract_module(spec)
        apply = backbones.make_apply(spec, network.IMAGENET)
        params: port.Params = {}
        for path, shape in shapes.items():
            *parents, leaf = path.split("/")
            inner = params
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[leaf] = jax.ShapeDtypeStruct(shape, jnp.float32)
        images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
        gradient = jax.jit(jax.grad(lambda x, p: jnp.sum(apply(p, x))))
        started = time.perf_counter()
        gradient.lower(images, params).compile()
        return time.perf_counter() - started

    compile_seconds(1)
    pairs = [(compile_seconds(12), compile_seconds(24)) for _ in range(3)]
    short, long = (min(times) for times in zip(*pairs, strict=True))
    print(f"compile: 12 layers {short:.2f} s, 24 layers {long:.2f} s, {long / short:.2f} times")
    assert long <= 1.3 * short
