"""Every family of backbones against upstream's own classes, through files that upstream writes."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm.models
import torch
import upstream

from lgm_jax import backbones
from lgm_jax.backbones import families, port, rotary, vit, vit_spec
from lgm_jax.backbones.families import resnet
from lgm_jax.errors import UserError

TOLERANCE = 1e-5
"""Of features, relative to the largest. Measured: at most 9e-7."""
GRADIENT_TOLERANCE = 1e-4
"""Of image gradients, relative to the largest. Measured: at most 5e-6."""

FAMILIES = upstream.tiny_families()
TASKS = upstream.task_families()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, tuple[upstream.Model, Path]]:
    """A random model of each family, and its folder."""
    root = tmp_path_factory.mktemp("upstream")
    families = {**FAMILIES, **TASKS}
    return {name: (family.build(root / name), root / name) for name, family in families.items()}


@pytest.fixture
def made_anew():
    """Networks of one shape share one function otherwise, which knows the shape's convolutions."""
    backbones.make_apply.cache_clear()
    yield
    backbones.make_apply.cache_clear()


def errors(published, name: str, count: int = 3, **options) -> tuple[float, float]:
    model, folder = published[name]
    backbone = backbones.load(folder, **options)
    family = {**FAMILIES, **TASKS}[name]
    return upstream.compare(backbone, lambda pixels: family.features(model, pixels), count)


# Three images in one test, one in the other: weights are resized before any image is seen.


@pytest.mark.parametrize("name", FAMILIES)
def test_features_and_image_gradient_are_upstreams(published, name):
    error, gradient_error = errors(published, name, 3)
    assert error <= TOLERANCE
    assert gradient_error <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_so_they_are_at_another_resolution(published, name):
    error, gradient_error = errors(published, name, 1, resolution=FAMILIES[name].other)
    assert error <= TOLERANCE
    assert gradient_error <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", TASKS)
def test_models_for_a_task_are_read_without_their_heads(published, name):
    error, gradient_error = errors(published, name)
    assert error <= TOLERANCE
    assert gradient_error <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", [*FAMILIES, *TASKS])
def test_import_is_total_and_export_is_its_inverse(published, name):
    model, folder = published[name]
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    backbone = backbones.load(folder)
    form, spec = families.formats()[backbone.published.form], backbone.published.spec
    exported = port.export_params(form, spec, jax.device_get(backbone.params))
    taken, _ = port.find(form, spec, tensors)
    for theirs, array in zip(taken, exported.values(), strict=True):
        np.testing.assert_array_equal(array, tensors[theirs])
    # What is left is no part of the backbone, and named as such.
    for key in set(tensors) - set(taken):
        ignored = ("mask", "head.bias", "text", "logit", "pooler", "decoder", "classifier")
        ignored = (*ignored, "num_batches")
        # Without registers, transformers stores an array of none.
        assert any(word in key for word in ignored) or not tensors[key].size
    count = sum(leaf.size for leaf in jax.tree.leaves(backbone.params))
    assert count == sum(tensors[key].size for key in taken)
    # Everything of upstream's model lies in the file.
    assert sum(p.numel() for p in model.state_dict().values()) == sum(
        x.size for x in tensors.values()
    )


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_folder_that_timm_saves_is_read(pool, tmp_path):
    arguments = {**upstream.TINY_TIMM, "img_size": 32, "patch_size": 8, "global_pool": pool}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **arguments)
    upstream.randomize(model)
    timm.models.save_for_hf(model, tmp_path / "vit", safe_serialization=True, model_args=arguments)
    backbone = backbones.load(tmp_path / "vit")

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return model.forward_head(model.forward_features(pixels), pre_logits=True)

    error, gradient_error = upstream.compare(backbone, features, 2)
    assert error <= TOLERANCE
    assert gradient_error <= GRADIENT_TOLERANCE


def test_weights_as_they_left_masked_pretraining_are_read(published, tmp_path):
    _, folder = published["eva02_split"]
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    renamed = {key.replace("fc_norm", "norm"): value for key, value in tensors.items()}
    renamed |= {"mask_token": np.zeros((1, 1, 32), np.float32)}
    safetensors.numpy.save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for ours, theirs in zip(
        jax.tree.leaves(backbones.load(tmp_path).params),
        jax.tree.leaves(backbones.load(folder).params),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def _renamed(folder: Path, out: Path, rename: Callable[[str], str]) -> Path:
    """A copy of a folder with other keys."""
    out.mkdir()
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    renamed = {rename(key): value for key, value in tensors.items()}
    safetensors.numpy.save_file(renamed, out / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            (out / name).write_bytes((folder / name).read_bytes())
    return out


def _evas_authors(key: str) -> str:
    """timm's renaming (`checkpoint_filter_fn` of its `eva.py`), the other way round."""
    for theirs, ours in (
        ("mlp.fc1_g", "mlp.w1"),
        ("mlp.fc1_x", "mlp.w2"),
        ("mlp.fc2", "mlp.w3"),
        ("mlp.norm", "mlp.ffn_ln"),
        ("q_proj.bias", "q_bias"),
        ("v_proj.bias", "v_bias"),
    ):
        key = key.replace(theirs, ours)
    return key


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("eva02_split", _evas_authors),
        # As the class holds them in memory.
        ("dinov3", lambda key: f"model.{key}" if key.startswith("layer.") else key),
    ],
)
def test_other_names_of_the_same_keys_are_read(published, tmp_path, name, rename):
    _, folder = published[name]
    renamed = backbones.load(_renamed(folder, tmp_path / name, rename))
    for ours, theirs in zip(
        jax.tree.leaves(renamed.params), jax.tree.leaves(backbones.load(folder).params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_the_names_of_dinov3_in_memory_are_those(published):
    model, folder = published["dinov3"]
    saved = safetensors.numpy.load_file(folder / "model.safetensors")
    rename = {f"model.{key}" if key.startswith("layer.") else key for key in saved}
    assert rename == set(model.state_dict())


@pytest.mark.parametrize(
    ("name", "key", "renamed"),
    [
        ("eva02_fused", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.w1.weight"),
        ("timm_registers", "reg_token", "register_tokens"),
        ("timm_dinov3", "reg_token", "storage_tokens"),
        ("dinov3", "embeddings.register_tokens", "storage_tokens"),
        (
            "vit",
            "encoder.layer.0.attention.attention.key.bias",
            "layers.0.attention.k_proj.bias",
        ),
    ],
)
def test_the_authors_names_are_refused_with_what_is_expected(
    published, tmp_path, name, key, renamed
):
    _, folder = published[name]
    folder = _renamed(folder, tmp_path / name, lambda k: renamed if k == key else k)
    with pytest.raises(UserError, match="names are expected") as info:
        backbones.load(folder)
    assert f"missing keys: {key}" in str(info.value)
    assert f"left-over keys: {renamed}" in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["timm_cls", "vit"])
def test_a_pickle_is_converted_by_the_command_that_is_advised(published, tmp_path, name):
    _, folder = published[name]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    # Under the names of published files, which transformers changes in memory.
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle") as info:
        backbones.load(tmp_path)
    _, command, _ = str(info.value).split("`")
    program = shlex.split(command)[2]
    subprocess.run([sys.executable, "-c", program], check=True)
    for ours, theirs in zip(
        jax.tree.leaves(backbones.load(tmp_path).params),
        jax.tree.leaves(backbones.load(folder).params),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "pooling", "layers"),
    [("dinov2_registers", "cls+mean:2", 2), ("clip", "mean", 1), ("timm_mean", "cls:2", 2)],
)
def test_other_pooling_takes_upstreams_tokens(published, name, pooling, layers):
    model, folder = published[name]
    backbone = backbones.load(folder, pooling=pooling)
    assert backbone.feature_dim == 32 * (3 if pooling == "cls+mean:2" else layers)

    def features(pixels: torch.Tensor) -> torch.Tensor:
        if name == "timm_mean":
            outputs = model.forward_intermediates(
                pixels,
                indices=[0, 1],
                return_prefix_tokens=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
            return torch.cat([model.fc_norm(prefix[:, 0]) for _, prefix in outputs], dim=-1)
        if name == "clip":
            tokens = model.vision_model(pixels).last_hidden_state
            return model.vision_model.post_layernorm(tokens)[:, 1:].mean(dim=1)
        hidden = model(pixels, output_hidden_states=True).hidden_states[-2:]
        normed = [model.layernorm(layer) for layer in hidden]
        mean = normed[-1][:, 3:].mean(dim=1)
        return torch.cat([*(tokens[:, 0] for tokens in normed), mean], dim=-1)

    error, gradient_error = upstream.compare(backbone, features, 2)
    assert error <= TOLERANCE
    assert gradient_error <= GRADIENT_TOLERANCE


# Each of these mistakes would be seen.


def _replace(spec: vit_spec.ViTSpec, part: str, **changes) -> vit_spec.ViTSpec:
    return dataclasses.replace(spec, **{part: dataclasses.replace(getattr(spec, part), **changes)})


def _rotary(spec: vit_spec.ViTSpec, **changes) -> vit_spec.ViTSpec:
    turned = dataclasses.replace(spec.attention.rotary, **changes)
    return _replace(spec, "attention", rotary=turned)


MISTAKES = {
    "tanh GELU": ("dinov2", lambda s: _replace(s, "mlp", activation="gelu_tanh"), {}),
    "exact GELU for SigLIP's": ("siglip", lambda s: _replace(s, "mlp", activation="gelu"), {}),
    "exact GELU for CLIP's": ("clip", lambda s: _replace(s, "mlp", activation="gelu"), {}),
    "GELU for SwiGLU's": ("eva02_split", lambda s: _replace(s, "mlp", activation="gelu"), {}),
    "larger epsilon": ("dinov2", lambda s: dataclasses.replace(s, norm_eps=1e-5), {}),
    "smaller epsilon": ("clip", lambda s: dataclasses.replace(s, norm_eps=1e-6), {}),
    "epsilon of the first digits": (
        "vit",
        lambda s: dataclasses.replace(s, norm_eps=3e-12),
        {},
    ),
    "no epsilon": ("vit_mae", lambda s: dataclasses.replace(s, norm_eps=1e-14), {}),
    "rotary of halves": ("eva02_fused", lambda s: _rotary(s, layout="half"), {}),
    "rotary of neighbours": ("dinov3", lambda s: _rotary(s, layout="interleaved"), {}),
    "rotary grid": ("dinov3", lambda s: _rotary(s, grid="index", reference=4), {}),
    "rotary base": ("dinov3", lambda s: _rotary(s, base=10000.0), {}),
    "rotary reference": ("eva02_split", lambda s: _rotary(s, reference=4), {}),
    "norm after the mean": ("ijepa", lambda s: _replace(s, "pool", kind="mean_norm"), {}),
    "headless, too": ("siglip_headless", lambda s: _replace(s, "pool", kind="mean_norm"), {}),
    "antialiased I-JEPA": (
        "ijepa",
        lambda s: _replace(s, "embed", antialias=True),
        {"resolution": 24},
    ),
    "smaller epsilon of RMSNorm": (
        "aimv2",
        lambda s: dataclasses.replace(s, norm_eps=1e-6),
        {},
    ),
    "GELU for AIMv2's": ("timm_aimv2", lambda s: _replace(s, "mlp", activation="gelu"), {}),
    "other heads of AIMv2's query": ("aimv2", lambda s: _replace(s, "attention", heads=2), {}),
    "AIMv2 without antialias": (
        "aimv2_headless",
        lambda s: _replace(s, "embed", antialias=False),
        {"resolution": 24},
    ),
    "PE-Core's rows before columns": ("pe_core", lambda s: _rotary(s, columns_first=False), {}),
    "PE-Core's first patch at none": ("pe_core", lambda s: _rotary(s, offset=0), {}),
    "PE-Core's unscaled grid": ("pe_core", lambda s: _rotary(s, reference=0), {}),
    "heads of blocks for the pool's": ("pe_core", lambda s: _replace(s, "pool", heads=4), {}),
    "pool of patches alone": ("pe_core", lambda s: _replace(s, "pool", prefix=False), {}),
    "other heads": ("timm_cls", lambda s: _replace(s, "attention", heads=2), {}),
    "tanh GELU of a ConvNeXt": (
        "dinov3_convnext",
        lambda s: dataclasses.replace(s, activation="gelu_tanh"),
        {},
    ),
    "larger epsilon of a ConvNeXt": (
        "dinov3_convnext",
        lambda s: dataclasses.replace(s, norm_eps=1e-5),
        {},
    ),
    "antialias": ("dinov2", lambda s: _replace(s, "embed", antialias=True), {"resolution": 42}),
    "no antialias": (
        "timm_dinov2",
        lambda s: _replace(s, "embed", antialias=False),
        {"resolution": 42},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_be_seen(published, mistake, monkeypatch):
    name, change, options = MISTAKES[mistake]
    read = backbones.configs.read_config

    def wrong(config, preprocessor):
        found = read(config, preprocessor)
        return dataclasses.replace(found, spec=change(found.spec))

    monkeypatch.setattr(backbones.configs, "read_config", wrong)
    error, _ = errors(published, name, **options)
    # No mistake hides near the tolerance. Measured: at least 9 times it, for SigLIP's GELU.
    assert error > 5 * TOLERANCE


def test_a_larger_epsilon_of_a_resnet_would_be_seen(published, monkeypatch):
    monkeypatch.setattr(resnet, "_EPSILON", 1e-4)
    error, _ = errors(published, "resnet")
    assert error > 10 * TOLERANCE


def test_a_stride_in_the_first_convolution_would_be_seen(published, monkeypatch, made_anew):
    """Where the first ResNets have it."""
    block = resnet.ResNetSpec.block

    def other(self, stage, *, first):
        one, two, three = block(self, stage, first=first)
        return [one._replace(stride=two.stride), two._replace(stride=1), three]

    monkeypatch.setattr(resnet.ResNetSpec, "block", other)
    error, _ = errors(published, "resnet")
    assert error > 10 * TOLERANCE


def test_torchvisions_resnet_is_read(tmp_path):
    models = pytest.importorskip("torchvision.models")
    if not isinstance(models.ResNet, type):
        pytest.skip("torchvision is not installed")
    model = upstream.randomize(models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1]))
    upstream.save_timm(model, tmp_path / "net", "resnet50", {"layers": [1, 2, 1, 1]}, side=64)
    model.fc = torch.nn.Identity()
    error, gradient_error = upstream.compare(backbones.load(tmp_path / "net"), model, 2)
    assert error <= TOLERANCE
    assert gradient_error <= GRADIENT_TOLERANCE


def test_a_norm_before_the_mean_would_be_seen(published):
    error, _ = errors(published, "eva02_split", pooling="mean")
    assert error > 10 * TOLERANCE


def test_jax_s_own_bicubic_would_be_seen(published, monkeypatch):
    def other(in_size, out_size, *, antialias=False, offset=0.0):
        eye = jnp.eye(in_size)
        shape = (out_size, in_size)
        return np.asarray(jax.image.resize(eye, shape, "cubic", antialias=antialias))

    monkeypatch.setattr(vit_spec, "bicubic_matrix", other)
    error, _ = errors(published, "dinov2", resolution=84)
    assert error > 10 * TOLERANCE


@pytest.fixture
def swapped_axes(monkeypatch) -> None:
    tables = rotary.rotary_tables

    def transposed(convention, grid, head_width, num_prefix):
        def swap(table):
            patches = table[num_prefix:].reshape(grid, grid, -1).swapaxes(0, 1)
            return jnp.concatenate([table[:num_prefix], patches.reshape(grid**2, -1)])

        return tuple(map(swap, tables(convention, grid, head_width, num_prefix)))

    monkeypatch.setattr(vit, "rotary_tables", transposed)


@pytest.mark.usefixtures("swapped_axes")
@pytest.mark.parametrize("name", ["eva02_split", "dinov3"])
def test_rows_taken_for_columns_would_be_seen(published, name):
    error, _ = errors(published, name)
    assert error > 10 * TOLERANCE


def test_rows_of_sines_taken_for_columns_would_be_seen(published, monkeypatch):
    transposed = {16: np.arange(16).reshape(4, 4).T.ravel()}
    sines = rotary.sines
    monkeypatch.setattr(vit, "sines", lambda g, width: sines(g, width)[:, transposed[g**2]])
    error, _ = errors(published, "aimv2_native")
    assert error > 10 * TOLERANCE


def test_configs_that_leave_out_defaults_mean_upstreams(published, tmp_path):
    """Older versions of transformers wrote only what differs from the default."""
    _, folder = published["vit"]
    config = json.loads((folder / "config.json").read_text())
    kept = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = ("intermediate_size", "image_size", "patch_size")
    short = {key: config[key] for key in (*kept, *sizes)}
    assert len(short) < len(config)
    (tmp_path / "config.json").write_text(json.dumps(short))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert backbones.load(tmp_path).published.spec == backbones.load(folder).published.spec
