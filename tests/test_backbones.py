"""Loading backbones: what comes out, and what is said when it cannot be done. Parity: parity/."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lgm_jax.backbones import abstract_vit, load, port, specs
from lgm_jax.errors import UserError


def _images(n: int, resolution: int = 16) -> jax.Array:
    shape = (n, resolution, resolution, 3)
    return jnp.asarray(np.random.default_rng(0).uniform(size=shape), jnp.float32)


@pytest.fixture
def folder(write_vit, tmp_path) -> Path:
    """A tiny Vision Transformer to break."""
    return write_vit(tmp_path / "tiny")


def _edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_model_args(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    _edit_config(folder, model_args=config["model_args"] | changes)


def _edit_tensors(folder: Path, remove=(), add=None) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    kept = {key: value for key, value in tensors.items() if key not in remove}
    safetensors.numpy.save_file(kept | (add or {}), path)


def _assert_refused(folder: Path | str, *words: str) -> None:
    """One line that holds every word."""
    with pytest.raises(UserError) as info:
        load(folder)
    message = str(info.value)
    for word in words:
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_features_are_float32_rows_of_the_width(write_vit, tmp_path, pool):
    backbone = load(write_vit(tmp_path / "vit", pool=pool))
    features = jax.jit(backbone.apply)(backbone.params, _images(3))
    assert backbone.feature_dim == 32
    assert backbone.resolution == 16
    assert features.shape == (3, 32)
    assert features.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(backbone.params))
    # Images are told apart, one by one.
    assert jnp.min(jnp.std(features, axis=0)) > 1e-3
    alone = jax.jit(backbone.apply)(backbone.params, _images(3)[1:2])
    np.testing.assert_allclose(alone[0], features[1], rtol=1e-4, atol=1e-5)


def test_pools_differ(write_vit, tmp_path):
    token, avg = (load(write_vit(tmp_path / pool, pool=pool)) for pool in ("token", "avg"))
    np.testing.assert_array_equal(token.params["cls"], avg.params["cls"])
    a, b = (backbone.apply(backbone.params, _images(1)) for backbone in (token, avg))
    assert jnp.max(jnp.abs(a - b)) > 0.1


def test_every_weight_matters(vit_folder):
    backbone = load(vit_folder)

    def energy(params):
        return jnp.sum(jnp.sin(backbone.apply(params, _images(2))))

    gradient = port.flatten(jax.jit(jax.grad(energy))(backbone.params))
    for path, leaf in gradient.items():
        assert jnp.max(jnp.abs(leaf)) > 1e-3, path


def test_normalization_is_the_weights_own_or_imagenets(vit_folder):
    native, imagenet = load(vit_folder), load(vit_folder, normalization="imagenet")
    assert native.mean == (0.5, 0.4, 0.3)
    assert native.std == (0.3, 0.2, 0.25)
    assert (imagenet.mean, imagenet.std) == (specs.IMAGENET_MEAN, specs.IMAGENET_STD)
    # The same normalised pixels from both.
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    features = [
        backbone.apply(
            backbone.params, jnp.asarray(pixels * backbone.std + backbone.mean, jnp.float32)
        )
        for backbone in (native, imagenet)
    ]
    np.testing.assert_allclose(features[0], features[1], rtol=1e-4, atol=1e-5)
    raw = [backbone.apply(backbone.params, _images(2)) for backbone in (native, imagenet)]
    assert jnp.max(jnp.abs(raw[0] - raw[1])) > 0.01


def test_normalization_is_imagenets_where_the_config_says_nothing(folder):
    _edit_config(folder, pretrained_cfg={})
    backbone = load(folder)
    assert (backbone.mean, backbone.std) == (specs.IMAGENET_MEAN, specs.IMAGENET_STD)


def test_bfloat16_features_point_the_same_way_and_are_float32(vit_folder):
    full, half = load(vit_folder), load(vit_folder, dtype="bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.params))
    a, b = (jax.jit(x.apply)(x.params, _images(4)) for x in (full, half))
    assert b.dtype == jnp.float32
    cosine = jnp.sum(a * b, axis=1) / jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(b, axis=1)
    # Not the float32 computation under another name, and not far from it.
    assert jnp.max(jnp.abs(a - b)) > 1e-4
    assert jnp.min(cosine) > 0.999


def test_half_precision_weights_load_as_float32(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    halves = {key: value.astype(np.float16) for key, value in tensors.items()}
    safetensors.numpy.save_file(halves, path)
    backbone = load(folder)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(backbone.params))
    np.testing.assert_array_equal(backbone.params["cls"], halves["cls_token"].astype(np.float32))


def test_a_folders_name_is_its_base_name_and_its_weights_hash(folder, tmp_path):
    backbone = load(folder)
    assert re.fullmatch(r"tiny_[0-9a-f]{8}", backbone.name)
    assert backbone.name.endswith(backbone.sha256[:8])
    assert load(f"{folder}/../tiny/").name == backbone.name
    moved = folder.rename(tmp_path / "other")
    assert load(moved).name == backbone.name.replace("tiny", "other")
    _edit_tensors(moved, add={"norm.bias": np.ones(32, np.float32)})
    assert load(moved).name not in (backbone.name, backbone.name.replace("tiny", "other"))


def test_parameters_are_an_argument(vit_folder):
    backbone = load(vit_folder)
    text = jax.jit(backbone.apply).lower(backbone.params, _images(1)).as_text()
    # The largest weight, 32 x 128, would show as a constant of 16 kB.
    assert len(text) < 60_000
    zero = jax.tree.map(jnp.zeros_like, backbone.params)
    assert jnp.all(backbone.apply(zero, _images(1)) == 0)


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (1, 16, 24, 3)])
def test_images_of_another_size_are_refused(vit_folder, shape):
    backbone = load(vit_folder)
    with pytest.raises(UserError, match="takes images of 16 x 16 x 3"):
        backbone.apply(backbone.params, jnp.zeros(shape))


# Import and export.


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_import_and_export_are_inverse(write_vit, tmp_path, pool):
    folder = write_vit(tmp_path / "vit", pool=pool)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    spec, _ = specs.from_timm(json.loads((folder / "config.json").read_text()))
    rows, shapes = port.timm_vit(spec), abstract_vit(spec)[1]
    params = port.import_params(rows, tensors, spec.depth, shapes)
    assert {path: leaf.shape for path, leaf in port.flatten(params).items()} == shapes
    back = port.export_params(rows, params, spec)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(
        tensor.size for tensor in tensors.values()
    )


def test_layers_are_stacked_in_order(vit_folder):
    tensors = safetensors.numpy.load_file(vit_folder / "model.safetensors")
    kernel = load(vit_folder).params["blocks"]["mlp"]["up"]["kernel"]
    for layer in range(2):
        np.testing.assert_array_equal(kernel[layer], tensors[f"blocks.{layer}.mlp.fc1.weight"].T)


# Refusals.


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _assert_refused("digit_contrastive", "'digit_contrastive'", "did you mean digits_contrastive")
    _assert_refused("nonsense", "no such folder; known names: ", *specs.NAMES)


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [("normalization", "imgnet", "imagenet"), ("dtype", "float16", "bfloat16")],
)
def test_an_unknown_option_is_answered_with_the_nearest(vit_folder, option, value, near):
    with pytest.raises(UserError, match=f"backbone.{option} '{value}': did you mean {near}"):
        load(vit_folder, **{option: value})


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    _assert_refused(folder, "has no config.json", str(folder))


@pytest.mark.parametrize("content", [b'{"architecture": ', b"", b"\xff\xfe\x00"])
def test_invalid_json_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    _assert_refused(folder, "config.json is not valid JSON")


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_type": "vit"}', "3"])
def test_a_config_without_architecture_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    _assert_refused(folder, "names no architecture: only timm's format is supported")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "model.pth"])
def test_pickles_are_not_read(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    _assert_refused(folder, "has no model.safetensors", "safetensors only")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_weights_are_refused(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    _assert_refused(folder, "model.safetensors is truncated or not a safetensors file")


def test_missing_and_left_over_keys_are_all_named(folder):
    _edit_tensors(
        folder,
        remove=("cls_token", "blocks.1.mlp.fc2.bias"),
        add={"head.weight": np.zeros((3, 32), np.float32), "blocks.2.norm1.bias": np.zeros(32)},
    )
    _assert_refused(
        folder,
        "missing keys: blocks.1.mlp.fc2.bias, cls_token",
        "left-over keys: blocks.2.norm1.bias, head.weight",
    )


def test_a_deeper_config_names_every_missing_key(folder):
    _edit_model_args(folder, depth=3)
    spec, _ = specs.from_timm(json.loads((folder / "config.json").read_text()))
    keys = {row.key.format(2) for row in port.timm_vit(spec) if "{}" in row.key}
    assert len(keys) == 12
    _assert_refused(folder, *keys)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("norm.bias", (31,)),
        ("norm.bias", (1, 32)),
        ("blocks.0.mlp.fc1.weight", (32, 128)),
        ("blocks.1.norm1.bias", (31,)),
        ("patch_embed.proj.weight", (32, 3, 4, 4)),
    ],
)
def test_a_wrong_shape_is_named(folder, key, shape):
    _edit_tensors(folder, add={key: np.zeros(shape, np.float32)})
    _assert_refused(folder, f"{key} has shape {shape}")


def test_another_resolution_than_the_positions_is_refused(folder):
    _edit_model_args(folder, img_size=32)
    _assert_refused(folder, "pos_embed has shape (1, 5, 32)", "(1, 17, 32)")


def test_a_patch_that_does_not_divide_the_image_is_refused(folder):
    _edit_model_args(folder, img_size=20)
    _assert_refused(folder, "a patch of 8 px does not divide an image of 20 px")


def test_heads_that_do_not_divide_the_width_are_refused(folder):
    _edit_model_args(folder, num_heads=5)
    _assert_refused(folder, "5 heads do not divide a width of 32")


def test_an_unknown_architecture_is_answered_with_the_nearest(folder):
    _edit_config(folder, architecture="vit_tiny_patch16_244")
    _assert_refused(folder, "did you mean vit_tiny_patch16_224")


@pytest.mark.parametrize("change", [{"qk_norm": True}, {"init_values": 1e-5}, {"class_token": 0}])
def test_an_unsupported_model_argument_is_named(folder, change):
    _edit_model_args(folder, **change)
    _assert_refused(folder, f"unknown timm model argument {next(iter(change))!r}")


def test_arguments_that_timm_writes_in_full_are_read(folder):
    _edit_model_args(folder, img_size=[16, 16], in_chans=3, num_classes=0, global_pool="token")
    assert load(folder).resolution == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [({"img_size": [16, 24]}, "images of 16 x 24 px"), ({"in_chans": 1}, "three channels")],
)
def test_backbones_for_other_images_are_refused(folder, change, words):
    _edit_model_args(folder, **change)
    _assert_refused(folder, words)


def test_an_unsupported_pooling_is_named(folder):
    _edit_config(folder, global_pool="map")
    _assert_refused(folder, "unknown timm pooling 'map'")


def test_the_package_imports_no_other_framework():
    code = (
        "import sys; import lgm_jax, lgm_jax.backbones, lgm_jax.distill; "
        "print([m for m in ('torch', 'tensorflow', 'transformers', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
