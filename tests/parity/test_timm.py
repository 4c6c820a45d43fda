"""The embedded backbones against timm, and gradient matching through a timm model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import upstream
from safetensors.torch import load_file

from lgm_jax import backbones, objectives
from lgm_jax.backbones import specs

EMBEDDED = [name for name, entry in specs.NAMES.items() if entry.folder is not None]
MODEL_ARGS = {**upstream.TINY_TIMM, "img_size": 16, "patch_size": 8}


def republished(folder: Path) -> torch.nn.Module:
    """timm's model of a folder."""
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], **config["model_args"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("count", [1, 3])
def test_embedded_backbone_is_timms(name, count):
    backbone = backbones.load(name)
    model = republished(specs.NAMES[name].folder)
    error, gradient_error = upstream.compare(backbone, model, count)
    assert error <= 1e-5  # measured: 5e-7
    assert gradient_error <= 1e-4  # measured: 2e-6


@pytest.mark.parametrize("soft", [False, True], ids=["int", "soft"])
def test_gradient_matching_through_a_vit_is_double_backwards(soft, tmp_path):
    classes = 3
    family = upstream.timm_family("vit_tiny_patch16_224", other=24, **MODEL_ARGS)
    model = family.build(tmp_path / "vit")
    backbone = backbones.load(tmp_path / "vit")
    images_syn, images_real = upstream.draw(3, 16), upstream.draw(6, 16)
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
    mean, std = map(torch.tensor, dataclasses.astuple(backbone.settings.preprocessing))
    head_gradients = []
    for images, labels in ((leaf, labels_syn), (torch.from_numpy(images_real), labels_real)):
        linear = torch.nn.Linear(backbone.feature_dim, classes)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.asarray(head["kernel"])).T)
            linear.bias.zero_()
        target = torch.from_numpy(labels if soft else labels.astype(np.int64))
        features = model(((images - mean) / std).permute(0, 3, 1, 2))
        inner = F.cross_entropy(linear(features), target)
        parts = torch.autograd.grad(inner, (linear.weight, linear.bias), create_graph=True)
        head_gradients.append(torch.cat([part.flatten() for part in parts]))
    theirs = 1 - F.cosine_similarity(head_gradients[0], head_gradients[1].detach(), dim=0)
    (expected,) = torch.autograd.grad(theirs, leaf)

    assert 0.01 < theirs.item() < 1.99
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)  # measured: 8e-8
    assert upstream.relative_error(gradient, expected) <= 1e-4  # measured: 9.9e-7
