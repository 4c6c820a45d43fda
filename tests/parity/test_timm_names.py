"""Every Vision Transformer of timm's registry: what its name alone means, or why it is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import transformers
import upstream
from layouts import layouts

from lgm_jax.backbones import (
    abstract_module,
    configs,
    families,
    make_apply,
    network,
    port,
    vit_spec,
)
from lgm_jax.errors import UserError
from tools import write_upstream

PATTERNS = (
    "vit*",
    "test_vit*",
    "deit*",
    "eva*",
    "flexivit*",
    "beit*",
    "aimv2*",
    "samvit*",
    "naflexvit*",
)
NAMES = sorted({name for pattern in PATTERNS for name in timm.list_models(pattern)})


def config(name: str, **model_args: Any) -> dict[str, Any]:
    return {
        "architecture": name,
        "model_args": model_args,
        "pretrained_cfg": upstream.STATISTICS,
    }


def accepted(name: str) -> bool:
    try:
        configs.read_config(config(name), {})
    except UserError:
        return False
    return True


ACCEPTED = [name for name in NAMES if accepted(name)]


def test_what_is_refused_is_refused_for_a_reason():
    refused = [name for name in NAMES if name not in ACCEPTED]
    # Measured with timm 1.0.31: 195 of 310 are accepted.
    assert len(ACCEPTED) > 100
    for name in refused:
        with pytest.raises(UserError, match="not supported"):
            configs.read_config(config(name), {})


def test_the_file_is_what_the_installed_libraries_say():
    """`python tools/write_upstream.py` writes it anew, with timm 1.0.31 and transformers 5.24."""
    versions = timm.__version__, transformers.__version__.rpartition(".")[0]
    if versions != ("1.0.31", "5.24"):
        pytest.skip(f"written with other versions than {versions}")
    assert write_upstream.OUT.read_text() == write_upstream.render()


def _read(name: str, **model_args: Any) -> tuple[vit_spec.ViTSpec, str]:
    published = configs.read_config(config(name, **model_args), {})
    return published.spec, published.form


@functools.cache
def _ours(spec: vit_spec.ViTSpec) -> tuple[Callable[..., jax.Array], dict[str, tuple[int, ...]]]:
    _, shapes = abstract_module(spec)
    return jax.jit(make_apply(spec, network.HALF)), shapes


def _import(spec: vit_spec.ViTSpec, form: str, tensors: Any, shapes: Any) -> Any:
    found = families.formats()[form]
    keys, _ = port.find(found, spec, tensors)
    return port.import_params(found.rows(spec), keys, tensors, shapes)


TINY = {**upstream.TINY_TIMM, "img_size": 24, "patch_size": 8}


@pytest.mark.parametrize("name", ACCEPTED)
def test_keys_shapes_and_features_are_timms(name):
    """With the name's own parts, but small: many names then share one computation of ours."""
    model = upstream.randomize(timm.create_model(name, num_classes=0, **TINY))
    spec, form = _read(name, **TINY)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    shapes = {key: value.shape for key, value in tensors.items()}
    assert layouts(families.formats()[form], spec) == shapes
    apply, shapes_ours = _ours(spec)
    params = _import(spec, form, tensors, shapes_ours)
    exported = port.export_params(families.formats()[form], spec, params)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(exported[key], tensor)
    images = upstream.draw(2, spec.resolution)
    ours = apply(params, jnp.asarray(images))
    with torch.no_grad():
        theirs = model(torch.from_numpy(2 * images - 1).permute(0, 3, 1, 2))
    assert upstream.relative_error(ours, theirs) <= 1e-5  # measured: at most 1.2e-6


RESNETS = [name for name, made in configs.upstream()["timm"].items() if made["class"] == "ResNet"]


@pytest.mark.parametrize("name", [name for name in RESNETS if accepted(name)])
def test_keys_and_features_of_resnets_are_timms(name):
    model = upstream.randomize(timm.create_model(name, num_classes=0, **upstream.RESNET))
    spec, form = _read(name, **upstream.RESNET)
    spec = spec.at(32)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    apply, shapes = _ours(spec)
    params = _import(spec, form, tensors, shapes)
    images = upstream.draw(2, 32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(2 * images - 1).permute(0, 3, 1, 2))
    assert upstream.relative_error(apply(params, jnp.asarray(images)), theirs) <= 1e-5


def test_other_resnets_are_refused_for_a_reason():
    refused = [name for name in RESNETS if not accepted(name)]
    # Measured with timm 1.0.31: 15 of 103 are read.
    assert len(RESNETS) - len(refused) > 10
    for name in refused:
        with pytest.raises(UserError, match="not supported"):
            configs.read_config(config(name), {})


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("name", ACCEPTED)
def test_every_key_and_shape_at_full_size_is_timms(name):
    spec, form = _read(name)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, img_size=spec.resolution)
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert layouts(families.formats()[form], spec) == theirs


PRETRAINED = frozenset(timm.list_pretrained())


@pytest.mark.parametrize("name", ACCEPTED)
def test_statistics_are_taken_for_granted_only_where_all_of_timms_weights_agree(name):
    if "mean" not in configs.upstream()["timm"][name]:
        with pytest.raises(UserError, match=r'pretrained_cfg has no mean.*add "mean" and "std"'):
            configs.read_config({"architecture": name}, {})
        return
    ours = configs.read_config({"architecture": name}, {}).preprocessing
    tags = [tag for tag in PRETRAINED if tag.split(".")[0] == name]
    known = [timm.get_pretrained_cfg(tag) for tag in [name, *tags]]
    assert {(tuple(cfg.mean), tuple(cfg.std)) for cfg in known} == {(ours.mean, ours.std)}


CLIPS = sorted(tag for tag in PRETRAINED if tag.startswith("vit_") and "_clip_" in tag)


@pytest.mark.parametrize("tag", CLIPS)
def test_quick_gelu_is_taken_where_timm_says_that_weights_were_trained_with_it(tag):
    name, _, rest = tag.partition(".")
    quick = name.replace("_clip_", "_clip_quickgelu_")
    native = "quickgelu" in name or f"{quick}.{rest}" in PRETRAINED
    published = timm.get_pretrained_cfg(tag)
    for notes in ({}, {"notes": published.notes}):
        pretrained = upstream.STATISTICS | {"tag": rest} | notes
        found = configs.read_config({"architecture": name, "pretrained_cfg": pretrained}, {})
        assert (found.spec.mlp.activation == "quick_gelu") == native
    stated = {
        "architecture": name,
        "pretrained_cfg": pretrained,
        "model_args": {"act_layer": "gelu"},
    }
    assert configs.read_config(stated, {}).spec.mlp.activation == "gelu"
