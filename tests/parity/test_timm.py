"""Vision Transformers against timm, through the files that timm's users publish."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import timm.models
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lgm_jax import backbones, objectives
from lgm_jax.backbones import specs

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25]}
TOLERANCE = 1e-5
"""Of features, relative to the largest. Measured: 5e-7."""
GRADIENT_TOLERANCE = 1e-4
"""Of image gradients, relative to the largest. Measured: 2e-6."""


def publish(folder: Path, pool: str, seed: int = 0) -> torch.nn.Module:
    """A random model of timm's, and its folder.

    What writes to the residual stream is small, so that an epsilon counts beside its variance;
    what reads from it is large, so that the MLP works where exact and tanh GELU differ.
    """
    arguments = MODEL_ARGS | {"num_classes": 0, "global_pool": pool}
    model = timm.create_model(ARCHITECTURE, **arguments).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:
                is_scale = "norm" in name and name.endswith("weight")
                value.copy_(1 + 0.3 * noise if is_scale else 0.03 * noise)
            else:
                gain = 2.0 if "qkv" in name or "fc1" in name else 0.03
                value.copy_(gain * noise / (value[0].numel() ** 0.5 if "." in name else 1))
    config = {"architecture": ARCHITECTURE, "model_args": arguments, "pretrained_cfg": STATISTICS}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


def republished(folder: Path) -> torch.nn.Module:
    """timm's model of a folder."""
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], **config["model_args"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def draw(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(count).uniform(size=(count, side, side, 3)).astype(np.float32)


def run_timm(model: torch.nn.Module, images: torch.Tensor, folder: Path) -> torch.Tensor:
    """Features of channels-last images in [0, 1]."""
    statistics = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    mean, std = (torch.tensor(statistics[name]) for name in ("mean", "std"))
    return model(((images - mean) / std).permute(0, 3, 1, 2))


def relative_error(ours, theirs: torch.Tensor) -> float:
    theirs = theirs.detach().numpy()
    assert np.asarray(ours).shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def compare(folder: Path, model: torch.nn.Module, count: int) -> tuple[float, float]:
    """Relative errors of the features, and of the image gradient under random cotangents."""
    backbone = backbones.load(folder)
    images = draw(count, backbone.resolution)
    weights = np.random.default_rng(9).normal(size=(count, backbone.feature_dim)).astype("f4")

    def ours(x):
        features = backbone.apply(backbone.params, x)
        return jnp.sum(features * weights), features

    gradient, features = jax.grad(ours, has_aux=True)(jnp.asarray(images))
    leaf = torch.from_numpy(images).requires_grad_()
    expected = run_timm(model, leaf, folder)
    (expected_gradient,) = torch.autograd.grad((expected * torch.from_numpy(weights)).sum(), leaf)
    # Images are told apart.
    assert count == 1 or expected.std(dim=0).min() > 1e-3
    return relative_error(features, expected), relative_error(gradient, expected_gradient)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_features_and_image_gradient_are_timms(pool, count, tmp_path):
    folder = tmp_path / "vit"
    error, gradient_error = compare(folder, publish(folder, pool), count)
    assert error <= TOLERANCE
    assert gradient_error <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_folder_that_timm_saves_is_read(pool, tmp_path):
    model = publish(tmp_path / "ours", pool)
    timm.models.save_for_hf(model, tmp_path / "theirs", safe_serialization=True)
    error, gradient_error = compare(tmp_path / "theirs", model, 1)
    assert error <= TOLERANCE
    assert gradient_error <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", specs.NAMES)
@pytest.mark.parametrize("count", [1, 3])
def test_embedded_backbone_is_timms(name, count):
    folder = specs.NAMES[name].folder
    error, gradient_error = compare(folder, republished(folder), count)
    assert error <= TOLERANCE
    assert gradient_error <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_tanh_gelu_would_be_seen(pool, tmp_path, monkeypatch):
    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate=True: gelu(x, approximate=True))
    errors = compare(tmp_path / "vit", publish(tmp_path / "vit", pool), 3)
    assert errors[0] > TOLERANCE  # measured: at least 6.8e-5
    assert errors[1] > GRADIENT_TOLERANCE  # 2.9e-4


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_larger_epsilon_would_be_seen(pool, tmp_path, monkeypatch):
    from_timm = specs.from_timm

    def changed(config):
        spec, preprocessing = from_timm(config)
        return dataclasses.replace(spec, norm_eps=1e-5), preprocessing

    monkeypatch.setattr(specs, "from_timm", changed)
    errors = compare(tmp_path / "vit", publish(tmp_path / "vit", pool), 3)
    assert errors[0] > TOLERANCE  # measured: at least 1.5e-3
    assert errors[1] > GRADIENT_TOLERANCE  # 4.3e-3


@pytest.mark.parametrize("soft", [False, True], ids=["int", "soft"])
def test_gradient_matching_through_a_vit_is_double_backwards(soft, tmp_path):
    folder, classes = tmp_path / "vit", 3
    model = publish(folder, "token")
    backbone = backbones.load(folder)
    images_syn, images_real = draw(3, 16), draw(6, 16)
    rng = np.random.default_rng(0)
    labels_syn, labels_real = (
        rng.dirichlet(np.ones(classes), size=count).astype(np.float32)
        if soft
        else (np.arange(count) % classes).astype(np.int32)
        for count in (3, 6)
    )
    head = objectives.init_head(jax.random.key(0), backbone.feature_dim, classes)

    @jax.jit
    @jax.value_and_grad
    def ours(images):
        features = (backbone.apply(backbone.params, x) for x in (images, jnp.asarray(images_real)))
        labels = map(jnp.asarray, (labels_syn, labels_real))
        pairs = zip(features, labels, strict=True)
        return objectives.gradient_matching_loss(head, *(x for pair in pairs for x in pair))

    loss, gradient = ours(jnp.asarray(images_syn))

    leaf = torch.from_numpy(images_syn).requires_grad_()
    head_gradients = []
    for images, labels in ((leaf, labels_syn), (torch.from_numpy(images_real), labels_real)):
        linear = torch.nn.Linear(backbone.feature_dim, classes)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.asarray(head["kernel"])).T)
            linear.bias.zero_()
        target = torch.from_numpy(labels if soft else labels.astype(np.int64))
        inner = F.cross_entropy(linear(run_timm(model, images, folder)), target)
        parts = torch.autograd.grad(inner, (linear.weight, linear.bias), create_graph=True)
        head_gradients.append(torch.cat([part.flatten() for part in parts]))
    theirs = 1 - F.cosine_similarity(head_gradients[0], head_gradients[1].detach(), dim=0)
    (expected,) = torch.autograd.grad(theirs, leaf)

    assert 0.01 < theirs.item() < 1.99
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)  # measured: 8e-8
    assert relative_error(gradient, expected) <= 1e-4  # measured: 9.9e-7
