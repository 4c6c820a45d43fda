"""Loading backbones: what comes out. Refusals: test_backbones_refused.py. Parity: parity/."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from lgm_jax import backbones
from lgm_jax.backbones import (
    abstract_module,
    configs,
    families,
    load,
    network,
    port,
    specs,
)
from tests.backbone_folders import (
    assert_refused,
    draw_images,
    edit_model_args,
    edit_tensors,
)
from tests.marks import slow

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_features_are_float32_rows_of_the_width(write_vit, tmp_path, pool):
    backbone = load(write_vit(tmp_path / "vit", pool=pool))
    features = jax.jit(backbone.apply)(backbone.params, draw_images(3))
    assert backbone.feature_dim == 32
    assert backbone.resolution == 16
    assert features.shape == (3, 32)
    assert features.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(backbone.params))
    # Images are told apart, one by one.
    assert jnp.min(jnp.std(features, axis=0)) > 1e-3
    alone = jax.jit(backbone.apply)(backbone.params, draw_images(3)[1:2])
    np.testing.assert_allclose(alone[0], features[1], rtol=1e-4, atol=1e-5)


def test_pools_differ(write_vit, tmp_path):
    token, avg = (load(write_vit(tmp_path / pool, pool=pool)) for pool in ("token", "avg"))
    np.testing.assert_array_equal(token.params["cls"], avg.params["cls"])
    a, b = (backbone.apply(backbone.params, draw_images(1)) for backbone in (token, avg))
    assert jnp.max(jnp.abs(a - b)) > 0.1


def test_every_weight_matters(vit_folder):
    backbone = load(vit_folder)

    def energy(params):
        return jnp.sum(jnp.sin(backbone.apply(params, draw_images(2))))

    gradient = flatten_dict(jax.jit(jax.grad(energy))(backbone.params), sep="/")
    for path, leaf in gradient.items():
        assert jnp.max(jnp.abs(leaf)) > 1e-3, path


def test_normalization_is_the_weights_own_or_imagenets(vit_folder):
    native, imagenet = load(vit_folder), load(vit_folder, normalization="imagenet")
    own = native.settings.preprocessing
    assert (own.mean, own.std) == ((0.5, 0.4, 0.3), (0.3, 0.2, 0.25))
    assert imagenet.settings.preprocessing == network.IMAGENET
    # The same normalised pixels from both.
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    features = [
        backbone.apply(backbone.params, jnp.asarray(pixels * each.std + each.mean, jnp.float32))
        for backbone in (native, imagenet)
        for each in [backbone.settings.preprocessing]
    ]
    np.testing.assert_allclose(features[0], features[1], rtol=1e-4, atol=1e-5)
    raw = [backbone.apply(backbone.params, draw_images(2)) for backbone in (native, imagenet)]
    assert jnp.max(jnp.abs(raw[0] - raw[1])) > 0.01


def test_bfloat16_features_point_the_same_way_and_are_float32(vit_folder):
    full, half = load(vit_folder), load(vit_folder, dtype="bfloat16")
    a, b = (jax.jit(x.apply)(x.params, draw_images(4)) for x in (full, half))
    assert b.dtype == jnp.float32
    cosine = jnp.sum(a * b, axis=1) / jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(b, axis=1)
    # Not the float32 computation under another name, and not far from it.
    assert jnp.max(jnp.abs(a - b)) > 1e-4
    assert jnp.min(cosine) > 0.999


def test_half_precision_weights_load_as_float32(vit_copy):
    path = vit_copy / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    halves = {key: value.astype(np.float16) for key, value in tensors.items()}
    safetensors.numpy.save_file(halves, path)
    backbone = load(vit_copy)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(backbone.params))
    np.testing.assert_array_equal(backbone.params["cls"], halves["cls_token"].astype(np.float32))


def test_a_folders_name_is_its_base_name(vit_copy, tmp_path):
    backbone = load(vit_copy)
    assert backbone.name == "tiny"
    assert load(f"{vit_copy}/../tiny/").name == "tiny"
    moved = vit_copy.rename(tmp_path / "other")
    assert load(moved).name == "other"
    assert load(moved).fingerprint == backbone.fingerprint
    edit_tensors(moved, add={"norm.bias": np.ones(32, np.float32)})
    assert load(moved).fingerprint != backbone.fingerprint


def test_parameters_are_an_argument(vit_folder):
    backbone = load(vit_folder)
    text = jax.jit(backbone.apply).lower(backbone.params, draw_images(1)).as_text()
    # The largest weight, 32 x 128, would show as a constant of 16 kB.
    assert len(text) < 60_000
    zero = jax.tree.map(jnp.zeros_like, backbone.params)
    assert jnp.all(backbone.apply(zero, draw_images(1)) == 0)


def test_timms_older_flat_config_is_read(vit_copy):
    config = json.loads((vit_copy / "config.json").read_text())
    flat = {**config, **config.pop("pretrained_cfg")}
    del flat["pretrained_cfg"]
    (vit_copy / "config.json").write_text(json.dumps(flat))
    assert load(vit_copy).published.preprocessing.mean == (0.5, 0.4, 0.3)


def test_arguments_of_training_are_passed_over(vit_copy):
    expected = load(vit_copy).published
    edit_model_args(vit_copy, dynamic_img_size=True, drop_path_rate=0.1)
    assert load(vit_copy).published == expected


# Import and export.


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_import_and_export_are_inverse(write_vit, tmp_path, pool):
    folder = write_vit(tmp_path / "vit", pool=pool)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    spec = configs.read_config(json.loads((folder / "config.json").read_text()), {}).spec
    form, shapes = families.formats()["timm_vit"], abstract_module(spec)[1]
    keys, _ = port.find(form, spec, tensors)
    params = port.import_params(form.rows(spec), keys, tensors, shapes)
    assert {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()} == shapes
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


def test_a_patch_of_nothing_is_refused_whatever_the_crop(vit_copy):
    (vit_copy / "config.json").write_text('{"model_type": "dinov2", "patch_size": 0}')
    (vit_copy / "preprocessor_config.json").write_text('{"crop_size": {"height": 224}}')
    assert_refused(vit_copy, "patch must be a whole number from 1 to 65536, not 0")


@pytest.mark.parametrize(
    ("kind", "antialias"), [("dinov2", False), ("dinov2_with_registers", True)]
)
def test_the_class_says_how_positions_are_resized(kind, antialias):
    config = {"model_type": kind, "num_register_tokens": 0}
    embed = configs.read_config(config, {}).spec.embed
    assert (embed.registers, embed.antialias) == (0, antialias)


def test_a_classifier_is_left_out(vit_copy):
    features = load(vit_copy).apply(load(vit_copy).params, draw_images(1))
    head = {"head.weight": np.ones((3, 32), np.float32), "head.bias": np.ones(3, np.float32)}
    edit_tensors(vit_copy, add=head)
    edit_model_args(vit_copy, num_classes=3)
    backbone = load(vit_copy)
    np.testing.assert_array_equal(backbone.apply(backbone.params, draw_images(1)), features)


def test_what_a_patch_leaves_of_the_image_is_not_read(vit_copy):
    expected = load(vit_copy)
    edit_model_args(vit_copy, img_size=20)
    backbone = load(vit_copy)
    images = draw_images(2, 20)
    np.testing.assert_allclose(
        backbone.apply(backbone.params, images),
        expected.apply(expected.params, images[:, :16, :16]),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(("classes", "features"), [(0, 768), (1024, 1024), (10, 768)])
def test_the_projection_of_pe_core_is_told_from_a_classifier(classes, features):
    for place in ({"num_classes": classes}, {"model_args": {"num_classes": classes}}):
        config = {"architecture": "vit_pe_core_base_patch16_224", **place}
        assert configs.read_config(config, {}).spec.feature_dim == features


def test_arguments_that_timm_writes_in_full_are_read(vit_copy):
    edit_model_args(vit_copy, img_size=[16, 16], in_chans=3, num_classes=0, global_pool="token")
    assert load(vit_copy).resolution == 16


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
    features = larger.apply(larger.params, draw_images(2, 24))
    assert features.shape == (2, 32)
    assert native.fingerprint != larger.fingerprint
    assert load(vit_folder, resolution=16).fingerprint == native.fingerprint


def test_an_offset_changes_positions_of_a_dinov2_that_are_resized(vit_folder, monkeypatch):
    plain = load(vit_folder, resolution=24)
    same = load(vit_folder, resolution=24, position_offset=0.1)
    assert (same.fingerprint, same.settings.position_offset) == (plain.fingerprint, 0)
    found, published, params = backbones.read_checkpoint(vit_folder)
    embed = dataclasses.replace(published.spec.embed, antialias=False)
    spec = dataclasses.replace(published.spec, embed=embed)
    dinov2 = dataclasses.replace(published, form="hf_dinov2", spec=spec)
    monkeypatch.setattr(backbones, "read_checkpoint", lambda *_, **__: (found, dinov2, params))
    native, larger = load(vit_folder), load(vit_folder, resolution=24)
    moved = load(vit_folder, resolution=24, position_offset=0.1)
    assert [each.settings.position_offset for each in (larger, moved)] == [0, 0.1]
    assert moved.fingerprint != larger.fingerprint
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), moved.params, larger.params)
    assert [path for path, leaf in flatten_dict(changed, sep="/").items() if leaf] == ["positions"]
    assert load(vit_folder, position_offset=0.1).fingerprint == native.fingerprint


def test_dinov2_without_registers_alone_takes_an_offset():
    """As the code of `torch.hub`; timm and transformers have it nowhere."""
    taking = set()
    for name, entry in specs.NAMES.items():
        larger = dataclasses.replace(entry.spec, resolution=entry.spec.resolution * 2)
        forms = map(entry.published_as, entry.sources.values())
        if any(backbones.takes_offset(form, larger) for form in forms):
            taking.add(name)
    assert taking == {f"dinov2_vit{size}14" for size in "sblg"}


def test_no_pooling_is_native_pooling(vit_folder):
    assert load(vit_folder, pooling=None).fingerprint == load(vit_folder).fingerprint


def test_pooling_the_last_block_is_the_end_of_pooling_several(vit_folder):
    one, two = (load(vit_folder, pooling=pooling) for pooling in ("cls", "cls:2"))
    assert (one.feature_dim, two.feature_dim) == (32, 64)
    a, b = (jax.jit(x.apply)(x.params, draw_images(2)) for x in (one, two))
    np.testing.assert_allclose(a, b[:, 32:], rtol=1e-5, atol=1e-6)
    native = load(vit_folder)
    np.testing.assert_allclose(a, native.apply(native.params, draw_images(2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_parameters_are_kept_in_no_more_than_is_computed_in(given, vit_folder):
    types = dict(zip(("dtype", "params_dtype"), given, strict=True))
    full, half = load(vit_folder), load(vit_folder, **types)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half.params))
    *_, outlined = backbones.outline(str(vit_folder), **types)
    assert jax.tree.map(jnp.shape, outlined) == jax.tree.map(jnp.shape, half.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(outlined)} == {np.dtype(jnp.bfloat16)}
    assert (half.settings.dtype, half.settings.params_dtype) == given
    a, b = (jax.jit(x.apply)(x.params, draw_images(4)) for x in (full, half))
    assert b.dtype == jnp.float32
    cosine = jnp.sum(a * b, axis=1) / jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(b, axis=1)
    assert jnp.min(cosine) > 0.999
    assert full.fingerprint != half.fingerprint


def test_bfloat16_files_are_read(vit_copy):
    path = vit_copy / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    halves = {key: value.astype(jnp.bfloat16) for key, value in tensors.items()}
    safetensors.numpy.save_file(halves, path)
    params = load(vit_copy).params
    np.testing.assert_array_equal(params["cls"], halves["cls_token"].astype(np.float32))


def test_compile_time_does_not_grow_with_depth(write_vit, tmp_path):
    """Of forward and backward; measured 24 against 12 layers: 1.0 times."""

    def compiled(depth: int) -> str:
        backbone = load(write_vit(tmp_path / str(depth), depth=depth))
        energy = jax.grad(lambda x, p: jnp.sum(backbone.apply(p, x)))
        return jax.jit(energy).lower(draw_images(1), backbone.params).as_text()

    short, long = compiled(12), compiled(24)
    # The program that XLA gets has the same length; time itself is too noisy to assert.
    assert len(long.splitlines()) == len(short.splitlines())


# Sharded files, exports, the table.


def test_sharded_weights_are_one_checkpoint(vit_copy):
    whole = load(vit_copy)
    path = vit_copy / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    path.unlink()
    names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        part = {key: tensors[key] for key in tensors if names[key] == name}
        safetensors.numpy.save_file(part, vit_copy / name)
    index = vit_copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    sharded = load(vit_copy)
    assert set(sharded.provenance["sha256"]) == set(names.values())
    for ours, theirs in zip(
        jax.tree.leaves(sharded.params), jax.tree.leaves(whole.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    (vit_copy / "model-00002-of-00002.safetensors").unlink()
    assert_refused(vit_copy, "has no model-00002-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    assert_refused(vit_copy, "names a file outside its folder")
    index.write_text("{}")
    assert_refused(vit_copy, "has no weight_map")


@pytest.mark.parametrize("source", ["tiny", slow("digits_distilled")])
def test_an_export_is_read_back_identically(vit_copy, tmp_path, source):
    source = str(vit_copy) if source == "tiny" else source
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
    assert ours.resolution == theirs.resolution
    assert ours.published == theirs.published
    assert ours.provenance["exported_from"] == theirs.provenance
    assert jax.tree.structure(ours.params) == jax.tree.structure(theirs.params)
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)
    images = draw_images(2, ours.resolution)
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
        for source in entry.sources.values():
            form = entry.published_as(source).form
            rows = families.formats()[form].rows(entry.spec)
            assert sorted(row.path for row in rows) == sorted(shapes), (name, source)


@pytest.mark.slow
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
