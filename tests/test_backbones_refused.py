"""What is no backbone that we can read is refused, and said why."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import backbones
from lgm_jax.backbones import configs, families, load
from lgm_jax.errors import UserError
from tests.backbone_folders import (
    assert_refused,
    edit_config,
    edit_model_args,
    edit_tensors,
)


@pytest.mark.parametrize("pretrained", [{}, None, {"mean": [0.5] * 3}])
def test_statistics_that_timms_weights_differ_in_have_to_be_said(vit_copy, pretrained):
    edit_config(vit_copy, pretrained_cfg=pretrained)
    lacking = "std" if pretrained else "mean"
    assert_refused(vit_copy, f"pretrained_cfg has no {lacking}", 'add "mean" and "std"')
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (vit_copy / "preprocessor_config.json").write_text(json.dumps(statistics))
    found = load(vit_copy).published.preprocessing
    assert found.mean == ((0.5, 0.5, 0.5) if pretrained else (0.1, 0.2, 0.3))
    assert found.std == (0.4, 0.5, 0.6)


def test_images_that_are_not_floats_are_refused(vit_folder):
    backbone = load(vit_folder)
    # Shape checks, which are on under test, are as good.
    with pytest.raises((UserError, TypeError)):
        backbone.apply(backbone.params, jnp.zeros((1, 16, 16, 3), jnp.uint8))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_])
def test_weights_that_are_not_floats_are_refused(vit_copy, dtype):
    edit_tensors(vit_copy, add={"norm.bias": np.ones(32, dtype)})
    assert_refused(vit_copy, "norm.bias is ", "only F64, F32, F16, BF16 are read")


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (1, 16, 24, 3)])
def test_images_of_another_size_are_refused(vit_folder, shape):
    backbone = load(vit_folder)
    with pytest.raises(UserError, match="takes images of 16 x 16 x 3"):
        backbone.apply(backbone.params, jnp.zeros(shape))


# Refusals.


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused("digit_contrastive", "'digit_contrastive'", "did you mean digits_contrastive")
    assert_refused("nonsense", "no such folder; `python -m lgm_jax.backbones` lists the names")


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


def test_a_folder_without_config_is_refused(vit_copy):
    (vit_copy / "config.json").unlink()
    assert_refused(vit_copy, "has no config.json", str(vit_copy))


@pytest.mark.parametrize("content", [b'{"architecture": ', b"\xff\xfe\x00"])
def test_invalid_json_is_refused(vit_copy, content):
    (vit_copy / "config.json").write_bytes(content)
    assert_refused(vit_copy, "config.json is not valid JSON")


def _pe_core(arguments: str) -> str:
    return f'{{"architecture": "vit_pe_core_base_patch16_224", "model_args": {{{arguments}}}}}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no JSON object"),
        ("3", "holds no JSON object"),
        ("{}", "neither an architecture (timm) nor a model_type (transformers)"),
        ('{"model_type": "bert"}', "unknown transformers model_type 'bert'"),
        ('{"model_type": "dinov4"}', "did you mean dinov2"),
        ('{"model_type": "dinov2", "hidden_size": "wide"}', "hidden_size must be a whole number"),
        ('{"model_type": "dinov3_vit", "key_bias": true}', "other biases"),
        ('{"model_type": "vit", "hidden_act": "relu"}', "unknown activation 'relu'"),
        ('{"model_type": "vit", "patch_size": 225}', "does not fit an image of 224 px"),
        ('{"model_type": "lgm_jax"}', "unknown checkpoint format"),
        ('{"architecture": ["vit"]}', "unknown timm architecture"),
        ('{"model_type": ["vit"]}', "unknown transformers model_type"),
        (
            '{"model_type": "dinov2", "num_hidden_layers": 1000000000}',
            "num_hidden_layers must be a whole number from -65536 to 65536",
        ),
        ('{"model_type": "clip", "architectures": true}', "architectures must be a list of names"),
        ('{"model_type": "clip", "projection_dim": 0}', "projection_dim must be positive"),
        ('{"model_type": "clip", "vision_config": {"hidden_size": 1e400}}', "hidden_size must"),
        (
            '{"model_type": "vit", "layer_norm_eps": NaN}',
            "layer_norm_eps must be a number from -1e+12 to 1e+12, not nan",
        ),
        ('{"model_type": "vit", "image_size": [224, 112]}', "image_size must be square"),
        ('{"model_type": "dinov3_vit", "rope_theta": 0.0}', "base must be above 0, not 0.0"),
        (
            '{"model_type": "dinov3_vit", "num_register_tokens": -1}',
            "registers must be a whole number from 0",
        ),
        (
            '{"architecture": "vit_tiny_patch16_224", "global_pool": ["a"]}',
            "global_pool=['a'] is not",
        ),
        (_pe_core('"attn_pool_mlp_ratio": "4"'), "attn_pool_mlp_ratio must be a number"),
        (_pe_core('"attn_pool_num_heads": 7'), "7 heads do not divide a width of 768"),
        (_pe_core('"attn_type": "mla"'), "attn_type=mla is not supported"),
        (_pe_core('"rope_grid_offset": 0.5'), "rope_grid_offset=0.5 is not supported"),
        (
            '{"model_type": "aimv2_vision_model", "is_native": true, "hidden_size": 1026, '
            '"num_attention_heads": 2}',
            "sines need a width divisible by 4",
        ),
        ('{"model_type": "aimv2", "projection_dim": -1}', "projection must be a whole number"),
    ],
)
def test_a_config_of_nothing_we_know_is_refused(vit_copy, content, words):
    (vit_copy / "config.json").write_text(content)
    assert_refused(vit_copy, "config.json", words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": "16"}, "img_size must be a whole number from -65536 to 65536, not '16'"),
        ({"img_size": None}, "img_size must be a whole number"),
        ({"patch_size": 0}, "patch must be a whole number from 1 to 65536, not 0"),
        ({"embed_dim": -32}, "width must be a whole number from 1"),
        ({"depth": True}, "depth must be a whole number"),
        ({"num_heads": 10**9}, "num_heads must be a whole number from -65536 to 65536"),
        ({"embed_dim": 10**400}, "embed_dim must be a whole number"),
        ({"pre_norm": 1}, "pre_norm must be true or false, not 1"),
        ({"fc_norm": True}, "fc_norm=True is not supported"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be a number"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a number"),
        ({"act_layer": ["gelu"]}, "unknown activation"),
        ({"reg_tokens": -1, "no_embed_class": True}, "registers must be"),
        ({"reg_tokens": 2}, "missing keys: reg_token"),
        ({"act_layer": "relu"}, "unknown activation 'relu'"),
        ({"norm_layer": ["LayerNorm"]}, "norm_layer=['LayerNorm'] is not supported"),
        ({"embed_norm_layer": "RmsNorm"}, "embed_norm_layer other than its norm_layer"),
        ({"mlp_layer": "GluMlp"}, "mlp_layer=GluMlp is not supported"),
        # For other images.
        ({"img_size": [16, 24]}, "img_size must be square, not 16 x 24"),
        ({"in_chans": 1}, "its in_chans is 1"),
        ({"class_token": False}, "there is no class token to pool"),
    ],
)
def test_model_arguments_that_make_no_sense_are_named(vit_copy, change, words):
    edit_model_args(vit_copy, **change)
    assert_refused(vit_copy, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": [0.5, 0.5], "std": [0.5] * 3}, "mean must be three numbers"),
        ({"mean": 0.5, "std": [0.5] * 3}, "mean must be three numbers"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, "std must be positive"),
        ({"mean": [0.5] * 3, "std": ["a", "b", "c"]}, "std must be three numbers"),
        ({"input_size": 16}, "input_size must be three numbers"),
        ({"input_size": [3, 16, 24]}, "input_size must be square"),
        ({"mean": [True, True, True], "std": [0.5] * 3}, "mean must be three numbers"),
    ],
)
def test_statistics_that_make_no_sense_are_named(vit_copy, change, words):
    edit_config(vit_copy, pretrained_cfg=change)
    assert_refused(vit_copy, words)


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
def test_an_export_that_was_changed_is_refused(vit_copy, path, value):
    published = configs.read_config(json.loads((vit_copy / "config.json").read_text()), {})
    written = json.loads(json.dumps(configs.to_ours(published)))
    inner = written
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (vit_copy / "config.json").write_text(json.dumps(written))
    assert_refused(vit_copy, "config.json")


@pytest.mark.parametrize("form", ["transformers", "timm"])
def test_numbers_of_hundreds_of_digits_are_refused(vit_copy, form):
    huge = "1" + "0" * 400
    config = f'{{"model_type": "dinov2", "mlp_ratio": {huge}}}'
    if form == "timm":
        config = f'{{"architecture": "vit_tiny_patch16_224", "model_args": {{"depth": {huge}}}}}'
    (vit_copy / "config.json").write_text(config)
    assert_refused(vit_copy, "config.json")


def test_sections_that_are_no_objects_are_refused(vit_copy):
    edit_config(vit_copy, model_args="small")
    assert_refused(vit_copy, "model_args must be an object")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "model.pth"])
def test_pickles_are_not_read(vit_copy, name):
    (vit_copy / "model.safetensors").rename(vit_copy / name)
    words = ("has no model.safetensors", "safetensors only", f"{name} is a pickle", "weights_only=")
    assert_refused(vit_copy, *words)


@pytest.mark.parametrize("length", [5, 100, -1])
def test_truncated_weights_are_refused(vit_copy, length):
    path = vit_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert_refused(vit_copy, "model.safetensors is truncated or not a safetensors file")


def test_missing_and_left_over_keys_are_all_named(vit_copy):
    edit_tensors(
        vit_copy,
        remove=("cls_token", "blocks.1.mlp.fc2.bias"),
        add={"extra.weight": np.zeros((3, 32), np.float32), "blocks.2.norm1.bias": np.zeros(32)},
    )
    assert_refused(
        vit_copy,
        "missing keys: blocks.1.mlp.fc2.bias, cls_token",
        "left-over keys: blocks.2.norm1.bias, extra.weight",
    )


def test_a_deeper_config_names_missing_keys(vit_copy):
    edit_model_args(vit_copy, depth=3)
    spec = configs.read_config(json.loads((vit_copy / "config.json").read_text()), {}).spec
    rows = families.formats()["timm_vit"].rows(spec)
    keys = {key.format(2) for row in rows for key in row.keys if "{}" in key}
    assert len(keys) == 12
    assert_refused(vit_copy, *sorted(keys)[:5], "and 7 more")


def test_another_resolution_than_the_positions_is_refused(vit_copy):
    edit_model_args(vit_copy, img_size=32)
    assert_refused(vit_copy, "pos_embed has shape (1, 5, 32)", "(1, 17, 32)")


def test_heads_that_do_not_divide_the_width_are_refused(vit_copy):
    edit_model_args(vit_copy, num_heads=5)
    assert_refused(vit_copy, "5 heads do not divide a width of 32")


def test_an_unknown_architecture_is_answered_with_the_nearest(vit_copy):
    edit_config(vit_copy, architecture="vit_bas_patch16_224")
    assert_refused(vit_copy, "did you mean vit_base_patch16_224")
    edit_config(vit_copy, architecture="regnety_002")
    assert_refused(vit_copy, "timm's regnety_002 is not supported: its class is RegNet")


def test_an_unsupported_model_argument_is_named(vit_copy):
    edit_model_args(vit_copy, window_size=7)
    assert_refused(vit_copy, "unknown timm model argument 'window_size'")
    edit_config(vit_copy, model_args={"qk_norm": True})
    assert_refused(vit_copy, "not supported: its qk_norm is True")


def test_an_unsupported_pooling_is_named(vit_copy):
    edit_config(vit_copy, global_pool="max")
    assert_refused(vit_copy, "global_pool=max is not supported")


@pytest.mark.parametrize("resolution", [20, 4])
def test_a_resolution_that_the_patch_does_not_divide_is_refused(vit_folder, resolution):
    with pytest.raises(backbones.IndivisibleError, match=r"does not divide an image"):
        load(vit_folder, resolution=resolution)


@pytest.mark.parametrize("resolution", [-8, "16", 16.0, True])
def test_a_resolution_that_is_no_number_of_pixels_is_refused(vit_folder, resolution):
    # The annotation, which is checked under test, may refuse it first.
    with pytest.raises((UserError, TypeError), match="resolution"):
        load(vit_folder, resolution=resolution)


@pytest.mark.parametrize("offset", [-16.0, float("nan"), 1.0])
def test_an_offset_that_is_no_part_of_a_patch_is_refused(vit_folder, offset):
    with pytest.raises(UserError, match=r"position_offset must be a number from 0 to 0\.9"):
        load(vit_folder, position_offset=offset)


@pytest.mark.parametrize("pooling", ["map", "cls:0", "cls:", "cls+cls", "", "mean:x"])
def test_an_unknown_pooling_is_answered(vit_folder, pooling):
    with pytest.raises(UserError, match=re.escape("for example: native, cls, mean, cls+mean")):
        load(vit_folder, pooling=pooling)


def test_more_blocks_than_there_are_are_refused(vit_folder):
    with pytest.raises(UserError, match="the backbone has 2 blocks"):
        load(vit_folder, pooling="cls:3")
