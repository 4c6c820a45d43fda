"""Weights as they are found: under prefixes, in halves, as pointers to what lies elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lgm_jax.backbones import configs, files, load, network, specs
from lgm_jax.errors import UserError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(write_vit, tmp_path) -> Path:
    """A tiny Vision Transformer to break."""
    return write_vit(tmp_path / "tiny")


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def _write(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def _refusal(source) -> str:
    with pytest.raises(UserError) as info:
        load(source)
    message = str(info.value)
    assert "\n" not in message
    assert len(message) < 1200
    return message


def _same(ours, theirs) -> None:
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 16, 16, 3)), jnp.float32)
    np.testing.assert_array_equal(
        ours.apply(ours.params, images), theirs.apply(theirs.params, images)
    )


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "backbone.", "teacher.", "encoder.", "visual."),
        *("module.backbone.", "teacher.backbone.", "state_dict.", "base_model.", "net.trunk."),
        *("_orig_mod.module.", "module._orig_mod.", "model.vision_tower.0."),
    ],
)
def test_a_prefix_is_taken_off_where_all_keys_fit(folder, capsys, prefix):
    expected, tensors = load(folder), _tensors(folder)
    assert capsys.readouterr().out == ""
    _write(folder, {prefix + key: value for key, value in tensors.items()})
    _same(load(folder), expected)
    said = capsys.readouterr().out
    assert said.startswith("note: tiny: ")
    assert said.count("\n") == 1
    assert prefix.replace("_orig_mod.", "") in said
    assert "taken off the keys" in said


def test_wrappers_within_keys_are_taken_off(folder, capsys):
    expected, tensors = load(folder), _tensors(folder)
    renamed = {
        key.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): value
        for key, value in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    _write(folder, {f"_fsdp_wrapped_module.{key}": value for key, value in renamed.items()})
    _same(load(folder), expected)
    said = capsys.readouterr().out
    assert "'_checkpoint_wrapped_module.' and '_fsdp_wrapped_module.' is taken off" in said


def test_heads_and_training_beside_the_backbone_are_left_out(folder, capsys):
    expected, tensors = load(folder), _tensors(folder)
    beside = {
        "fc.weight": np.ones((3, 32), np.float32),
        "fc.bias": np.ones(3, np.float32),
        "dino_head.mlp.0.weight": np.ones((3, 32), np.float32),
        "optimizer.state.0.exp_avg": np.ones(3, np.float32),
        "epoch": np.ones((), np.int64),
    }
    _write(folder, tensors | beside)
    _same(load(folder), expected)
    said = capsys.readouterr().out
    assert "no part of the backbone: 5 keys: dino_head.mlp.0.weight, epoch, fc.bias" in said
    # Under a prefix, and beside it.
    wrapped = {f"module.{key}": value for key, value in (tensors | beside).items()}
    _write(folder, wrapped | {"loss.center": np.ones(3, np.float32)})
    _same(load(folder), expected)
    said = capsys.readouterr().out
    assert "'module.' is taken off" in said
    assert "no part of the backbone: 6 keys: " in said


def test_of_student_and_teacher_the_teacher_is_taken(folder, capsys):
    expected, tensors = load(folder), _tensors(folder)
    both = {f"teacher.backbone.{key}": value for key, value in tensors.items()}
    both |= {f"student.backbone.{key}": value + 1 for key, value in tensors.items()}
    _write(folder, both)
    _same(load(folder), expected)
    assert "'teacher.backbone.' is taken off" in capsys.readouterr().out


def test_several_backbones_are_refused(folder):
    tensors = _tensors(folder)
    _write(folder, {f"{name}.{key}": v for key, v in tensors.items() for name in ("ema", "model")})
    message = _refusal(folder)
    assert "tiny: the weights hold several backbones, under ema., model.: write one" in message


def test_no_prefix_is_taken_off_where_a_key_is_missing(folder, capsys):
    tensors = _tensors(folder)
    del tensors["blocks.1.mlp.fc2.bias"]
    _write(folder, {f"module.{key}": value for key, value in tensors.items()})
    assert _refusal(folder).endswith("missing keys: blocks.1.mlp.fc2.bias")
    assert "note" not in capsys.readouterr().out


def test_long_lists_of_keys_are_shortened(folder):
    tensors = _tensors(folder)
    _write(folder, {f"layer_{key}": value for key, value in tensors.items()})
    message = _refusal(folder)
    more = f"and {len(tensors) - 5} more"
    assert message.count(more) == 2
    assert "missing keys: blocks.0.attn.proj.bias, " in message
    assert "left-over keys: layer_blocks.0.attn.proj.bias, " in message


def test_a_key_of_another_architecture_is_never_left_out(folder):
    tensors = _tensors(folder)
    extra = {"blocks.0.attn.q_norm.weight": np.ones(8, np.float32)}
    for prefix in ("", "module."):
        _write(folder, {prefix + key: value for key, value in (tensors | extra).items()})
        assert "left-over keys: blocks.0.attn.q_norm.weight" in _refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            ("it is a git-lfs pointer: run git lfs pull",),
        ),
        (
            b"/annex/objects/SHA256E-s5--abc.safetensors\n",
            ("it is a git-annex pointer: run git annex get",),
        ),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", ("is a web page, not the file",)),
        (b"\r\n<HTML lang=en>", ("is a web page, not the file",)),
        (b"", ("is empty",)),
        (b" \n", ("is empty",)),
        (b'{"error":"Repository not found"}', ("is a server's error", "download it again")),
        (b"PK\x03\x04archive/data.pkl", ("is a zip archive, perhaps of torch.save",)),
    ],
)
def test_what_lies_in_the_place_of_a_file_is_called_what_it_is(folder, name, content, words):
    (folder / name).write_bytes(content)
    message = _refusal(folder)
    for word in (str(folder / name), *words):
        assert word in message


def test_a_pointer_in_the_place_of_an_index_or_a_shard_is_called_one(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_bytes(pointer)
    assert f"{INDEX}: it is a git-lfs pointer" in _refusal(folder)
    shard = "model-00001-of-00001.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(_keys(folder), shard)}))
    load(folder)
    (folder / shard).write_bytes(pointer)
    assert f"{shard}: it is a git-lfs pointer" in _refusal(folder)


def test_a_config_with_a_byte_order_mark_is_read(folder):
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    load(folder)


def test_a_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").fingerprint == load(folder).fingerprint


def _keys(folder: Path) -> list[str]:
    (path,) = folder.glob("*.safetensors")
    return list(safetensors.numpy.load_file(path))


def test_a_link_to_nothing_is_called_one(folder):
    for name in ("model.safetensors", "config.json"):
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        path.symlink_to("../.git/annex/objects/aa/bb/SHA256E-s5--abc")
        message = _refusal(folder)
        assert f"{path} is a link to ../.git/annex/objects" in message
        assert "git annex get" in message
        path.unlink()
        path.symlink_to("gone")
        assert f"{path} is a link to gone, which is not there" in _refusal(folder)
        path.unlink()
        path.write_bytes(content)
    load(folder)


def test_a_whole_file_beside_an_old_index_is_loaded(folder):
    expected = load(folder)
    old = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / INDEX).write_text(json.dumps(old))
    _same(load(folder), expected)


def test_a_tensor_that_two_shards_have_is_named(folder):
    tensors = _tensors(folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    safetensors.numpy.save_file({"cls_token": tensors["cls_token"]}, folder / "b.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {"cls_token": "b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "b.safetensors has tensors of another file of its index: cls_token" in _refusal(folder)


def test_missing_shards_are_named_and_counted(folder):
    (folder / "model.safetensors").unlink()
    names = [f"model-{i:05d}-of-00140.safetensors" for i in range(1, 141)]
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: name for name in names}}))
    message = _refusal(folder)
    assert f"has no {names[0]}: of the 140 files" in message
    assert "and 135 more" in message


def test_weights_under_another_name_are_pointed_at(folder):
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    assert "rename open_clip_model.safetensors to model.safetensors" in _refusal(folder)


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("norm.bias", (31,), (32,)),
        ("norm.bias", (1, 32), (32,)),
        ("pos_embed", (5, 32), (1, 5, 32)),
        ("patch_embed.proj.weight", (32, 3, 4, 4), (32, 3, 8, 8)),
        ("blocks.0.mlp.fc1.weight", (32, 128), (128, 32)),
        ("blocks.1.attn.qkv.weight", (90, 32), (96, 32)),
    ],
)
def test_a_wrong_shape_is_named_with_the_right_one(folder, key, shape, expected):
    _write(folder, _tensors(folder) | {key: np.zeros(shape, np.float32)})
    assert f"{key} has shape {shape}, not {expected}" in _refusal(folder)


def test_a_folder_has_the_name_that_it_was_given_by(folder, tmp_path, monkeypatch):
    (tmp_path / "vit_b").symlink_to(folder)
    assert load(tmp_path / "vit_b").name == "vit_b"
    assert load(tmp_path / "vit_b").fingerprint == load(folder).fingerprint
    monkeypatch.chdir(folder)
    assert load(".").name == "tiny"


def test_a_folder_of_the_hubs_cache_has_the_repositorys_name(folder, tmp_path):
    cache, commit = tmp_path / "models--someone--vit-small", "0123456789abcdef" * 2 + "01234567"
    snapshot = cache / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        (cache / "blobs" / f"{i:064x}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{i:064x}")
    backbone = load(snapshot)
    assert backbone.name == "vit-small"
    assert backbone.provenance["source"] == "someone/vit-small"
    assert backbone.provenance["revision"] == commit
    assert "give a folder below its snapshots, or owner/name" in _refusal(cache)


def test_a_file_or_a_path_to_nothing_is_refused_as_such(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "is a file: give the folder" in _refusal("tiny/model.safetensors")
    assert "there is no folder weights/of/mine" in _refusal("weights/of/mine")
    assert f"there is no folder {tmp_path}/x" in _refusal(f"{tmp_path}/x")


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("DINOv2_ViTS14", "did you mean dinov2_vits14 or "),
        ("dinov2", "dinov2_vit"),
        ("siglip", "siglip_vitb16"),
        ("vitb16", "_vitb16"),
    ],
)
def test_an_unknown_backbone_is_answered_with_the_closest(asked, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = _refusal(asked)
    assert near in message
    assert sum(name in message for name in specs.NAMES) <= 6


def test_what_is_near_nothing_is_answered_with_a_few(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = _refusal("###")
    assert f"and {len(specs.NAMES) - 12} more" in message
    assert "`python -m lgm_jax.backbones` lists the names" in message


def test_a_list_of_thousands_is_never_printed():
    from lgm_jax.errors import unknown_name

    known = [f"name_{i}" for i in range(1500)]
    for asked in ("###", "name_7777", "x" * 5000):
        assert len(str(unknown_name("data set", asked, known))) < 400


def test_the_advised_conversion_reads_a_training_checkpoint(folder):
    torch = pytest.importorskip("torch")
    expected, tensors = load(folder), _tensors(folder)
    (folder / "model.safetensors").unlink()
    state = {f"module.{key}": torch.tensor(value) for key, value in tensors.items()}
    torch.save({"model": state, "epoch": 3, "optimizer": {"lr": 1.0}}, folder / "last.pth")
    message = _refusal(folder)
    code = message.split('`python -c "')[1].rsplit('"`')[0]
    subprocess.run([sys.executable, "-c", code], check=True)
    _same(load(folder), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_their_key(folder, value, dtype):
    tensors = {key: tensor.astype(dtype) for key, tensor in _tensors(folder).items()}
    tensors["blocks.1.mlp.fc2.bias"][3] = value
    _write(folder, tensors)
    assert "tiny: the weights' blocks.1.mlp.fc2.bias has NaN or infinite" in _refusal(folder)


def test_what_overflows_float32_is_not_finite(folder):
    tensors = _tensors(folder)
    tensors["norm.bias"] = np.full(tensors["norm.bias"].shape, 1e39)
    _write(folder, tensors)
    assert "the weights' norm.bias has NaN or infinite" in _refusal(folder)


def test_what_is_no_part_of_the_backbone_may_be_anything(folder):
    expected, tensors = load(folder), _tensors(folder)
    counters = {"queue_ptr": np.zeros(1, np.int64), "fc.bias": np.full(3, np.nan, np.float32)}
    _write(folder, tensors | counters)
    _same(load(folder), expected)


def test_statistics_of_transformers_processors():
    """A processor may leave images as they are; without one, the class's statistics hold."""

    def read(**preprocessor: Any) -> Any:
        return configs.read_config({"model_type": "siglip"}, preprocessor).preprocessing

    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 255}
    assert read(**own) == network.Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert read() == network.HALF
    assert read(do_normalize=False, **own) == network.Preprocessing((0.0,) * 3, (1.0,) * 3)
    for scaled in ({"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"rescale_factor": 1}):
        with pytest.raises(UserError, match=r"does not take images in \[0, 1\]"):
            read(**scaled)


def test_transformers_5_writes_statistics_into_another_file(vit_copy):
    (vit_copy / "config.json").write_text('{"model_type": "clip"}')
    (vit_copy / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0]}')
    assert files.from_folder(vit_copy).preprocessor == {"image_mean": [0, 0, 0]}
    # Of earlier versions, it has no statistics.
    (vit_copy / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert files.from_folder(vit_copy).preprocessor == {"image_mean": [0, 0, 0]}
    (vit_copy / "processor_config.json").write_text('{"image_processor": {"image_std": [1, 1, 1]}}')
    assert files.from_folder(vit_copy).preprocessor == {"image_std": [1, 1, 1]}
