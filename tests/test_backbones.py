"""Loading backbones: what comes out, and what is said when it cannot be done. Parity: parity/."""

from __future__ import annotations

import dataclasses
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

from lgm_jax import backbones
from lgm_jax.backbones import abstract_module, configs, families, load, network, port, specs
from lgm_jax.errors import UserError

ROOT = Path(__file__).parents[1]


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
    assert network.Preprocessing(imagenet.mean, imagenet.std) == network.IMAGENET
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


@pytest.mark.parametrize("pretrained", [{}, None, {"mean": [0.5] * 3}])
def test_statistics_that_timms_weights_differ_in_have_to_be_said(folder, pretrained):
    _edit_config(folder, pretrained_cfg=pretrained)
    lacking = "std" if pretrained else "mean"
    _assert_refused(folder, f"pretrained_cfg has no {lacking}", 'add "mean" and "std"')
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    backbone = load(folder)
    assert backbone.mean == ((0.5, 0.5, 0.5) if pretrained else (0.1, 0.2, 0.3))
    assert backbone.std == (0.4, 0.5, 0.6)


def test_bfloat16_features_point_the_same_way_and_are_float32(vit_folder):
    full, half = load(vit_folder), load(vit_folder, dtype="bfloat16")
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


def test_a_folders_name_is_its_base_name(folder, tmp_path):
    backbone = load(folder)
    assert backbone.name == "tiny"
    assert load(f"{folder}/../tiny/").name == "tiny"
    moved = folder.rename(tmp_path / "other")
    assert load(moved).name == "other"
    assert load(moved).fingerprint == backbone.fingerprint
    _edit_tensors(moved, add={"norm.bias": np.ones(32, np.float32)})
    assert load(moved).fingerprint != backbone.fingerprint


def test_parameters_are_an_argument(vit_folder):
    backbone = load(vit_folder)
    text = jax.jit(backbone.apply).lower(backbone.params, _images(1)).as_text()
    # The largest weight, 32 x 128, would show as a constant of 16 kB.
    assert len(text) < 60_000
    zero = jax.tree.map(jnp.zeros_like, backbone.params)
    assert jnp.all(backbone.apply(zero, _images(1)) == 0)


def test_images_that_are_not_floats_are_refused(vit_folder):
    backbone = load(vit_folder)
    # Shape checks, which are on under test, are as good.
    with pytest.raises((UserError, TypeError)):
        backbone.apply(backbone.params, jnp.zeros((1, 16, 16, 3), jnp.uint8))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_])
def test_weights_that_are_not_floats_are_refused(folder, dtype):
    _edit_tensors(folder, add={"norm.bias": np.ones(32, dtype)})
    _assert_refused(folder, "norm.bias is ", "only F64, F32, F16, BF16 are read")


def test_timms_older_flat_config_is_read(folder):
    config = json.loads((folder / "config.json").read_text())
    flat = {**config, **config.pop("pretrained_cfg")}
    del flat["pretrained_cfg"]
    (folder / "config.json").write_text(json.dumps(flat))
    assert load(folder).mean == (0.5, 0.4, 0.3)


def test_arguments_of_training_are_passed_over(folder):
    expected = load(folder).published
    _edit_model_args(folder, dynamic_img_size=True, drop_path_rate=0.1)
    assert load(folder).published == expected


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
    spec = configs.read_config(json.loads((folder / "config.json").read_text()), {}).spec
    form, shapes = families.formats()["timm_vit"], abstract_module(spec)[1]
    params = port.import_params(form, spec, tensors, shapes)
    assert {path: leaf.shape for path, leaf in port.flatten(params).items()} == shapes
    back = port.export_params(form, spec, params)
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
    _assert_refused("nonsense", "no such folder; `python -m lgm_jax.backbones` lists the names")


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [
        ("normalization", "imgnet", "imagenet"),
        ("dtype", "float16", "bfloat16"),
        ("dtype", jnp.float16, "bfloat16"),
        ("params_dtype", np.dtype("float16"), "bfloat16"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(vit_folder, option, value, near):
    with pytest.raises(UserError, match=f"backbone.{option} '.*': did you mean {near}"):
        load(vit_folder, **{option: value})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "must be a name, a folder or a hub id, not ''"),
        ("x" * 5000, "unknown backbone 'xxx"),
        ("nul\0nul", "unknown backbone"),
        (Path("digits_contrastive"), "there is no folder digits_contrastive"),
        (Path("owner/name"), "there is no folder owner/name"),
    ],
)
def test_what_can_be_no_backbone_is_refused(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as info:
        load(name)
    assert words in str(info.value)
    assert len(str(info.value)) < 2000


def test_a_path_is_a_folder_even_where_its_name_is_registered(write_vit, tmp_path, monkeypatch):
    write_vit(tmp_path / "digits_contrastive")
    monkeypatch.chdir(tmp_path)
    backbone = load(Path("digits_contrastive"))
    assert backbone.feature_dim == 32
    assert backbone.name == "digits_contrastive"
    assert load("digits_contrastive").feature_dim == 128


def test_types_may_be_given_as_types(vit_folder):
    by_name = load(vit_folder, dtype="bfloat16", params_dtype="bfloat16")
    by_type = load(vit_folder, dtype=jnp.bfloat16, params_dtype=np.dtype(jnp.bfloat16))
    assert by_type.fingerprint == by_name.fingerprint


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    _assert_refused(folder, "has no config.json", str(folder))


@pytest.mark.parametrize("content", [b'{"architecture": ', b"\xff\xfe\x00"])
def test_invalid_json_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    _assert_refused(folder, "config.json is not valid JSON")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no JSON object"),
        ("3", "holds no JSON object"),
        ("{}", "neither an architecture (timm) nor a model_type (transformers)"),
        ('{"model_type": "bert"}', "unknown transformers model_type 'bert'"),
        ('{"model_type": "dinov4"}', "did you mean dinov2"),
        ('{"model_type": "dinov2", "hidden_size": "wide"}', "hidden_size must be a whole number"),
        ('{"model_type": "vit", "qkv_bias": false}', "qkv_bias=false is not supported"),
        ('{"model_type": "dinov3_vit", "key_bias": true}', "other biases"),
        ('{"model_type": "vit", "hidden_act": "relu"}', "unknown activation 'relu'"),
        ('{"model_type": "vit", "patch_size": 225}', "does not fit an image of 224 px"),
        ('{"model_type": "lgm_jax"}', "unknown checkpoint format"),
        ('{"architecture": ["vit"]}', "unknown timm architecture"),
        ('{"model_type": ["vit"]}', "unknown transformers model_type"),
        (
            '{"model_type": "dinov2", "num_hidden_layers": 1000000000}',
            "num_hidden_layers must be a whole number up to 65536",
        ),
        ('{"model_type": "clip", "projection_dim": 0}', "projection_dim must be positive"),
        ('{"model_type": "clip", "vision_config": {"hidden_size": 1e400}}', "hidden_size must"),
        (
            '{"model_type": "vit", "layer_norm_eps": NaN}',
            "layer_norm_eps must be a number, not nan",
        ),
        ('{"model_type": "vit", "image_size": [224, 112]}', "image_size must be square"),
        ('{"model_type": "dinov3_vit", "rope_theta": 0.0}', "base must be a positive number"),
        (
            '{"model_type": "dinov3_vit", "num_register_tokens": -1}',
            "registers must be a whole number from 0",
        ),
        ('{"architecture": "vit_tiny_patch16_224", "global_pool": ["a"]}', "timm pooling"),
    ],
)
def test_a_config_of_nothing_we_know_is_refused(folder, content, words):
    (folder / "config.json").write_text(content)
    _assert_refused(folder, "config.json", words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": "16"}, "img_size must be a whole number up to 65536, not '16'"),
        ({"img_size": None}, "img_size must be a whole number"),
        ({"patch_size": 0}, "patch must be a whole number from 1 to 65536, not 0"),
        ({"embed_dim": -32}, "width must be a whole number from 1"),
        ({"depth": True}, "depth must be a whole number"),
        ({"num_heads": 10**9}, "num_heads must be a whole number up to 65536"),
        ({"embed_dim": 10**400}, "embed_dim must be a whole number"),
        ({"pre_norm": 1}, "pre_norm must be true or false, not 1"),
        ({"fc_norm": True}, "global_pool=token with fc_norm=True is not supported"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be a number"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a number"),
        ({"act_layer": ["gelu"]}, "unknown timm activation"),
        ({"reg_tokens": -1, "no_embed_class": True}, "registers must be"),
        ({"reg_tokens": 2}, "missing keys: reg_token"),
        ({"act_layer": "relu"}, "unknown timm activation 'relu'"),
    ],
)
def test_model_arguments_that_make_no_sense_are_named(folder, change, words):
    _edit_model_args(folder, **change)
    _assert_refused(folder, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": [0.5, 0.5]}, "mean must be three numbers"),
        ({"mean": 0.5}, "mean must be three numbers"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, "std must be positive"),
        ({"mean": [0.5] * 3, "std": ["a", "b", "c"]}, "std must be three numbers"),
        ({"input_size": 16}, "input_size must be three numbers"),
        ({"input_size": [3, 16, 24]}, "input_size must be square"),
        ({"mean": [True, True, True]}, "mean must be three numbers"),
    ],
)
def test_statistics_that_make_no_sense_are_named(folder, change, words):
    _edit_config(folder, pretrained_cfg=change)
    _assert_refused(folder, words)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "embed", "positions"), "foo"),
        (("spec", "mlp", "activation"), "relu"),
        (("spec", "pool", "blocks"), 99),
        (("spec", "pool", "blocks"), None),
        (("spec", "norm_eps"), "x"),
        (("spec", "norm_eps"), 10**400),
        (("spec", "embed", "class_token"), "no"),
        (("spec", "embed", "class_token"), False),
        (("spec", "mlp", "gated"), 0),
        (("spec",), 3),
        (("form",), "timm"),
        (("resolution",), "x"),
        (("preprocessing",), None),
    ],
)
def test_an_export_that_was_changed_is_refused(folder, path, value):
    published = configs.read_config(json.loads((folder / "config.json").read_text()), {})
    written = json.loads(json.dumps(configs.to_ours(published)))
    inner = written
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(written))
    _assert_refused(folder, "config.json")


def test_statistics_are_the_familys_where_all_of_its_weights_agree():
    for architecture, expected in (
        ("eva02_base_patch14_224", network.CLIP),
        ("vit_base_patch16_clip_224", network.CLIP),
        ("vit_base_patch14_dinov2", network.IMAGENET),
        ("vit_base_patch16_siglip_224", network.HALF),
    ):
        found = configs.read_config({"architecture": architecture}, {})
        assert found.preprocessing == expected


def test_openais_weights_have_quick_gelu_whatever_their_name_says():
    def activation(tag: str) -> str:
        pretrained = {"tag": tag}
        config = {"architecture": "vit_base_patch16_clip_224", "pretrained_cfg": pretrained}
        return configs.read_config(config, {}).spec.mlp.activation

    assert activation("openai") == "quick_gelu"
    assert activation("laion2b") == "gelu"


@pytest.mark.parametrize("form", ["transformers", "timm"])
def test_numbers_of_hundreds_of_digits_are_refused(folder, form):
    huge = "1" + "0" * 400
    config = f'{{"model_type": "dinov2", "mlp_ratio": {huge}}}'
    if form == "timm":
        config = f'{{"architecture": "vit_tiny_patch16_224", "model_args": {{"depth": {huge}}}}}'
    (folder / "config.json").write_text(config)
    _assert_refused(folder, "config.json")


def test_a_patch_of_nothing_is_refused_whatever_the_crop(folder):
    (folder / "config.json").write_text('{"model_type": "dinov2", "patch_size": 0}')
    (folder / "preprocessor_config.json").write_text('{"crop_size": {"height": 224}}')
    _assert_refused(folder, "patch must be a whole number from 1 to 65536, not 0")


@pytest.mark.parametrize(
    ("kind", "antialias"), [("dinov2", False), ("dinov2_with_registers", True)]
)
def test_the_class_says_how_positions_are_resized(kind, antialias):
    config = {"model_type": kind, "num_register_tokens": 0}
    embed = configs.read_config(config, {}).spec.embed
    assert (embed.registers, embed.antialias) == (0, antialias)


def test_sections_that_are_no_objects_are_refused(folder):
    _edit_config(folder, model_args="small")
    _assert_refused(folder, "model_args must be an object")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "model.pth"])
def test_pickles_are_not_read(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    _assert_refused(folder, "has no model.safetensors", "safetensors only")


@pytest.mark.parametrize("length", [5, 100, -1])
def test_truncated_weights_are_refused(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    _assert_refused(folder, "model.safetensors is truncated or not a safetensors file")


def test_missing_and_left_over_keys_are_all_named(folder):
    _edit_tensors(
        folder,
        remove=("cls_token", "blocks.1.mlp.fc2.bias"),
        add={"extra.weight": np.zeros((3, 32), np.float32), "blocks.2.norm1.bias": np.zeros(32)},
    )
    _assert_refused(
        folder,
        "missing keys: blocks.1.mlp.fc2.bias, cls_token",
        "left-over keys: blocks.2.norm1.bias, extra.weight",
    )


def test_a_classifier_is_left_out(folder):
    features = load(folder).apply(load(folder).params, _images(1))
    head = {"head.weight": np.ones((3, 32), np.float32), "head.bias": np.ones(3, np.float32)}
    _edit_tensors(folder, add=head)
    _edit_model_args(folder, num_classes=3)
    backbone = load(folder)
    np.testing.assert_array_equal(backbone.apply(backbone.params, _images(1)), features)


def test_a_deeper_config_names_missing_keys(folder):
    _edit_model_args(folder, depth=3)
    spec = configs.read_config(json.loads((folder / "config.json").read_text()), {}).spec
    rows = families.formats()["timm_vit"].rows(spec)
    keys = {key.format(2) for row in rows for key in row.keys if "{}" in key}
    assert len(keys) == 12
    _assert_refused(folder, *sorted(keys)[:5], "and 7 more")


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


def test_what_a_patch_leaves_of_the_image_is_not_read(folder):
    expected = load(folder)
    _edit_model_args(folder, img_size=20)
    backbone = load(folder)
    images = _images(2, 20)
    np.testing.assert_allclose(
        backbone.apply(backbone.params, images),
        expected.apply(expected.params, images[:, :16, :16]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_heads_that_do_not_divide_the_width_are_refused(folder):
    _edit_model_args(folder, num_heads=5)
    _assert_refused(folder, "5 heads do not divide a width of 32")


def test_an_unknown_architecture_is_answered_with_the_nearest(folder):
    _edit_config(folder, architecture="vit_bas_patch16_224")
    _assert_refused(folder, "did you mean vit_base_patch16_224")
    _edit_config(folder, architecture="resnet50")
    _assert_refused(folder, "timm's resnet50 is not supported: its class is ResNet")


def test_an_unsupported_model_argument_is_named(folder):
    _edit_model_args(folder, window_size=7)
    _assert_refused(folder, "unknown timm model argument 'window_size'")
    _edit_config(folder, model_args={"qk_norm": True})
    _assert_refused(folder, "not supported: its qk_norm is True")


def test_arguments_that_timm_writes_in_full_are_read(folder):
    _edit_model_args(folder, img_size=[16, 16], in_chans=3, num_classes=0, global_pool="token")
    assert load(folder).resolution == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": [16, 24]}, "img_size must be square, not 16 x 24"),
        ({"in_chans": 1}, "its in_chans is 1"),
        ({"class_token": False}, "there is no class token to pool"),
    ],
)
def test_backbones_for_other_images_are_refused(folder, change, words):
    _edit_model_args(folder, **change)
    _assert_refused(folder, words)


def test_an_unsupported_pooling_is_named(folder):
    _edit_config(folder, global_pool="max")
    _assert_refused(folder, "unknown timm pooling 'max'")


def test_the_package_imports_no_other_framework():
    code = (
        "import sys; import lgm_jax, lgm_jax.backbones, lgm_jax.distill; "
        "print([m for m in ('torch', 'tensorflow', 'transformers', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Other resolutions, poolings and precisions.


def test_another_resolution_resizes_the_positions_only(vit_folder):
    native, larger = load(vit_folder), load(vit_folder, resolution=24)
    assert (native.resolution, larger.resolution) == (16, 24)
    assert larger.params["positions"].shape == (1, 1 + 3 * 3, 32)
    np.testing.assert_array_equal(
        larger.params["positions"][:, 0], native.params["positions"][:, 0]
    )
    features = larger.apply(larger.params, _images(2, 24))
    assert features.shape == (2, 32)
    assert native.fingerprint != larger.fingerprint
    assert load(vit_folder, resolution=16).fingerprint == native.fingerprint


def test_an_offset_changes_positions_of_a_dinov2_that_are_resized(vit_folder, monkeypatch):
    plain = load(vit_folder, resolution=24)
    same = load(vit_folder, resolution=24, position_offset=0.1)
    assert (same.fingerprint, same.position_offset) == (plain.fingerprint, 0)
    found, published, params = backbones.read_checkpoint(vit_folder)
    embed = dataclasses.replace(published.spec.embed, antialias=False)
    spec = dataclasses.replace(published.spec, embed=embed)
    dinov2 = dataclasses.replace(published, form="hf_dinov2", spec=spec)
    monkeypatch.setattr(backbones, "read_checkpoint", lambda *_, **__: (found, dinov2, params))
    native, larger = load(vit_folder), load(vit_folder, resolution=24)
    moved = load(vit_folder, resolution=24, position_offset=0.1)
    assert (larger.position_offset, moved.position_offset) == (0, 0.1)
    assert moved.fingerprint != larger.fingerprint
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), moved.params, larger.params)
    assert [path for path, leaf in port.flatten(changed).items() if leaf] == ["positions"]
    assert load(vit_folder, position_offset=0.1).fingerprint == native.fingerprint


def test_dinov2_without_registers_alone_takes_an_offset():
    """As the code of `torch.hub`; timm and transformers have it nowhere."""
    taking = set()
    for name, entry in specs.NAMES.items():
        larger = dataclasses.replace(entry.spec, resolution=entry.spec.resolution * 2)
        forms = {source.form for source in entry.sources}
        if any(backbones._takes_offset(entry.published_as(form), larger) for form in forms):
            taking.add(name)
    assert taking == {f"dinov2_vit{size}14" for size in "sblg"}


@pytest.mark.parametrize("resolution", [20, 4])
def test_a_resolution_that_the_patch_does_not_divide_is_refused(vit_folder, resolution):
    with pytest.raises(backbones.IndivisibleError, match=r"does not divide an image"):
        load(vit_folder, resolution=resolution)


@pytest.mark.parametrize("resolution", [-8, "16", 16.0, True])
def test_a_resolution_that_is_no_number_of_pixels_is_refused(vit_folder, resolution):
    # The annotation, which is checked under test, may refuse it first.
    with pytest.raises((UserError, TypeError), match=r"positive whole number|resolution"):
        load(vit_folder, resolution=resolution)


@pytest.mark.parametrize("pooling", ["map", "cls:0", "cls:", "cls+cls", "", "mean:x"])
def test_an_unknown_pooling_is_answered(vit_folder, pooling):
    with pytest.raises(UserError, match=re.escape("for example: native, cls, mean, cls+mean")):
        load(vit_folder, pooling=pooling)


def test_no_pooling_is_native_pooling(vit_folder):
    assert load(vit_folder, pooling=None).fingerprint == load(vit_folder).fingerprint


def test_more_blocks_than_there_are_are_refused(vit_folder):
    with pytest.raises(UserError, match="the backbone has 2 blocks"):
        load(vit_folder, pooling="cls:3")


def test_pooling_the_last_block_is_the_end_of_pooling_several(vit_folder):
    one, two = (load(vit_folder, pooling=pooling) for pooling in ("cls", "cls:2"))
    assert (one.feature_dim, two.feature_dim) == (32, 64)
    a, b = (jax.jit(x.apply)(x.params, _images(2)) for x in (one, two))
    np.testing.assert_allclose(a, b[:, 32:], rtol=1e-5, atol=1e-6)
    native = load(vit_folder)
    np.testing.assert_allclose(a, native.apply(native.params, _images(2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_parameters_are_kept_in_no_more_than_is_computed_in(given, vit_folder):
    types = dict(zip(("dtype", "params_dtype"), given, strict=True))
    full, half = load(vit_folder), load(vit_folder, **types)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half.params))
    *_, outlined = backbones.outline(str(vit_folder), **types)
    assert jax.tree.map(jnp.shape, outlined) == jax.tree.map(jnp.shape, half.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(outlined)} == {np.dtype(jnp.bfloat16)}
    assert (half.settings.dtype, half.settings.params_dtype) == given
    a, b = (jax.jit(x.apply)(x.params, _images(4)) for x in (full, half))
    assert b.dtype == jnp.float32
    cosine = jnp.sum(a * b, axis=1) / jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(b, axis=1)
    assert jnp.min(cosine) > 0.999
    assert full.fingerprint != half.fingerprint


def test_bfloat16_files_are_read(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    halves = {key: value.astype(jnp.bfloat16) for key, value in tensors.items()}
    safetensors.numpy.save_file(halves, path)
    params = load(folder).params
    np.testing.assert_array_equal(params["cls"], halves["cls_token"].astype(np.float32))


def test_compile_time_does_not_grow_with_depth(write_vit, tmp_path):
    """Of forward and backward; measured 24 against 12 layers: 1.0 times."""

    def compiled(depth: int) -> str:
        backbone = load(write_vit(tmp_path / str(depth), depth=depth))
        energy = jax.grad(lambda x, p: jnp.sum(backbone.apply(p, x)))
        return jax.jit(energy).lower(_images(1), backbone.params).as_text()

    short, long = compiled(12), compiled(24)
    # The program that XLA gets has the same length; time itself is too noisy to assert.
    assert len(long.splitlines()) == len(short.splitlines())


# Sharded files, exports, the table.


def test_sharded_weights_are_one_checkpoint(folder):
    whole = load(folder)
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    path.unlink()
    names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        part = {key: tensors[key] for key in tensors if names[key] == name}
        safetensors.numpy.save_file(part, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    sharded = load(folder)
    assert set(sharded.provenance["sha256"]) == set(names.values())
    for ours, theirs in zip(
        jax.tree.leaves(sharded.params), jax.tree.leaves(whole.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    (folder / "model-00002-of-00002.safetensors").unlink()
    _assert_refused(folder, "has no model-00002-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    _assert_refused(folder, "names a file outside its folder")
    index.write_text("{}")
    _assert_refused(folder, "has no weight_map")


@pytest.mark.parametrize("source", ["tiny", "digits_distilled"])
def test_an_export_is_read_back_identically(folder, tmp_path, source):
    source = str(folder) if source == "tiny" else source
    run = subprocess.run(
        [
            sys.executable,
            "tools/export_backbone.py",
            f"--backbone={source}",
            f"--out={tmp_path}/out",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    ours, theirs = load(tmp_path / "out"), load(source)
    assert (ours.mean, ours.std, ours.resolution) == (theirs.mean, theirs.std, theirs.resolution)
    assert ours.published == theirs.published
    assert ours.provenance["exported_from"] == theirs.provenance
    assert jax.tree.structure(ours.params) == jax.tree.structure(theirs.params)
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)
    images = _images(2, ours.resolution)
    np.testing.assert_array_equal(
        ours.apply(ours.params, images), theirs.apply(theirs.params, images)
    )
    again = subprocess.run(run.args, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "exists already" in again.stderr


def test_every_spec_survives_an_export_s_config():
    for name, entry in specs.NAMES.items():
        written = json.loads(json.dumps(configs.to_ours(entry.published)))
        assert configs.read_config(written, {}) == entry.published, name


def test_every_entry_has_a_key_map_for_all_its_parameters():
    for name, entry in specs.NAMES.items():
        assert entry.resolution % entry.spec.stride == 0
        _, shapes = abstract_module(entry.spec)
        for source in entry.sources:
            form = entry.published_as(source.form).form
            rows = families.formats()[form].rows(entry.spec)
            assert sorted(row.path for row in rows) == sorted(shapes), (name, source)


def test_the_table_names_every_backbone():
    done = subprocess.run(
        [sys.executable, "-m", "lgm_jax.backbones"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    lines = done.stdout.splitlines()
    for name in specs.NAMES:
        assert any(line.startswith(f"{name} ") for line in lines)
    (line,) = (line for line in lines if line.startswith("dinov2_vitb14 "))
    assert line.split()[1:7] == ["86.6", "M", "768", "224", "14", "Apache-2.0"]
