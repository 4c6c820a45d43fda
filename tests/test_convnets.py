"""Backbones that are no Vision Transformers: counted, planned, refused and run as others are."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from launching import refuse, start

from lgm_jax import backbones, distill, flops, memory
from lgm_jax.backbones import configs, families, network, port, specs
from lgm_jax.backbones.families.convnext import ConvNeXtSpec
from lgm_jax.backbones.families.resnet import ResNetSpec
from lgm_jax.backbones.network import Published
from lgm_jax.errors import UserError
from lgm_jax.images import Pyramid
from lgm_jax.programs import Outline
from tests.marks import slow

PAGE = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text()
RESNET = ResNetSpec(32, (1, 2, 1, 2), (8, 8, 16, 16))
CONVNEXT = ConvNeXtSpec(32, (1, 2, 1, 1), (8, 8, 16, 16))
SPECS = {
    "resnet": RESNET,
    "resnet of two convolutions": dataclasses.replace(RESNET, bottleneck=False),
    "resnet in groups": dataclasses.replace(RESNET, groups=4, group_width=16),
    "convnext": CONVNEXT,
}
FORMS = {ResNetSpec: "timm_resnet", ConvNeXtSpec: "hf_dinov3_convnext"}


def make_apply(spec, dtype=jnp.float32):
    return backbones.make_apply(spec, network.IMAGENET, dtype)


def make_params(spec):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = np.asarray(rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-1]), np.float32)
        return 1 + np.abs(values) if path[-1].key in ("scale", "variance") else values

    return jax.tree_util.tree_map_with_path(draw, backbones.abstract_params(spec))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder of each family, as it is published."""
    root = tmp_path_factory.mktemp("convnets")
    configs_of = {
        "resnet": {
            "architecture": "resnet50",
            "model_args": {"layers": RESNET.depths, "channels": RESNET.widths},
            "pretrained_cfg": {"input_size": [3, 32, 32]},
        },
        "convnext": {
            "model_type": "dinov3_convnext",
            "depths": CONVNEXT.depths,
            "hidden_sizes": CONVNEXT.widths,
            "image_size": 32,
        },
    }
    for name, config in configs_of.items():
        spec, folder = SPECS[name], root / name
        form = families.formats()[FORMS[type(spec)]]
        tensors = port.export_params(form, spec, make_params(spec))
        if name == "resnet":
            tensors["fc.weight"] = np.zeros((3, spec.feature_dim), np.float32)
            tensors["bn1.num_batches_tracked"] = np.asarray(3, np.int64)
        folder.mkdir()
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
    return root


@pytest.mark.parametrize("name", SPECS)
def test_a_gradient_has_each_product_once_more_since_weights_are_frozen(name):
    spec = SPECS[name]
    outline = Outline(spec, 32, make_apply(spec), backbones.abstract_params(spec))
    forward, backward = outline.flops
    assert forward == backward > 0


@pytest.mark.parametrize(
    ("name", "billions"),
    # Twice the multiplications that torchvision counts, 4.09 and 4.46, with a head.
    [("mocov3_resnet50", 8.2), ("dinov3_convnext_tiny", 8.9)],
)
def test_operations_are_those_that_are_published(name, billions):
    outline = Outline(*backbones.outline(name, resolution=224))
    assert outline.flops[0] == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize("name", SPECS)
def test_every_product_is_in_the_type_that_is_computed_in(name):
    spec = SPECS[name]
    apply = make_apply(spec, jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    gradient = jax.grad(lambda images, params: jnp.sum(apply(params, images)))
    traced = jax.make_jaxpr(gradient)(images, backbones.abstract_params(spec, jnp.bfloat16))
    kinds = flops.count_by_kind(traced)
    assert {kind.dtype for kind in kinds} == {"bfloat16"}


def test_a_resnet_keeps_a_byte_for_each_number_that_it_activates():
    apply = make_apply(RESNET, jnp.bfloat16)

    def features(images, params):
        return apply(params, images)

    kept = [
        memory.kept_bytes(
            features,
            jax.ShapeDtypeStruct((count, 32, 32, 3), jnp.float32),
            backbones.abstract_params(RESNET, jnp.bfloat16),
        )
        for count in (1, 2)
    ]
    activated = 64 * 16**2
    for stage, depth in enumerate(RESNET.depths):
        side, width = 8 >> stage, RESNET.widths[stage]
        # The first convolution of a stage still has the resolution of the one before.
        before = width * ((2 * side) ** 2 if stage else side**2)
        activated += before + width * side**2 + 4 * width * side**2
        activated += (depth - 1) * 6 * width * side**2
    # Besides, the pooling keeps what it is given, in two bytes.
    assert kept[1] - kept[0] == activated + 2 * 64 * 16**2


def test_memory_of_a_view_is_estimated():
    task = distill.Distillation(3, Pyramid(32), 32)
    for spec in (RESNET, CONVNEXT):
        network = SimpleNamespace(apply=make_apply(spec), params=backbones.abstract_params(spec))
        assert memory.view_bytes(task, network) > 4 * 3 * 32**2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "cls"}, "native features alone"),
        ({"attention": "pallas"}, "the backbone has no attention"),
        ({"resolution": 40}, "does not divide an image of 40 px"),
    ],
)
def test_what_a_convnext_has_not_is_refused(checkpoints, options, message):
    with pytest.raises(UserError, match=message):
        backbones.load(checkpoints / "convnext", **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_args": {"layers": [1, 2]}}, "four stages"),
        ({"model_args": {"layers": "3463"}}, "must be a list of numbers"),
        ({"model_args": {"act_layer": "silu"}}, "act_layer=silu is not supported"),
        ({"model_args": {"output_stride": 16}}, "output_stride is 16"),
        ({"model_args": {"aa_layer": "blurpool"}}, "aa_layer is blurpool"),
        ({"model_args": {"stem_type": "deep"}}, "stem_type is deep"),
        ({"architecture": "resnet50d"}, "is not supported"),
        ({"architecture": "resnet50_gn"}, "norm_layer=groupnorm is not supported"),
        ({"architecture": "seresnet50"}, "block_args"),
        ({"global_pool": "max"}, "global_pool=max is not supported"),
    ],
)
def test_a_resnet_of_another_kind_is_refused(changed, message):
    statistics = dataclasses.asdict(network.IMAGENET)
    with pytest.raises(UserError, match=message) as info:
        configs.read_config(
            {"architecture": "resnet50", "pretrained_cfg": statistics} | changed, {}
        )
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depths": [1]}, "are of other stages"),
        ({"depths": 3}, "must be a list of numbers"),
        ({"hidden_act": "mish"}, "activation"),
        ({"num_channels": 1}, "three channels"),
        ({"layer_norm_eps": 0.0}, "norm_eps must be above 0, not 0.0"),
    ],
)
def test_a_convnext_of_another_kind_is_refused(changed, message):
    with pytest.raises(UserError, match=message) as info:
        configs.read_config({"model_type": "dinov3_convnext"} | changed, {})
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("name", "features", "millions"),
    [
        # 25.56 and 28.59 with a classifier of 1,000 classes; running statistics are counted.
        ("mocov3_resnet50", 2048, 23.56),
        ("dino_resnet50", 2048, 23.56),
        ("dinov3_convnext_tiny", 768, 27.82),
        ("dinov3_convnext_small", 768, 49.45),
    ],
)
def test_published_ones_are_known_by_name(name, features, millions):
    spec, _, apply, params = backbones.outline(name)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(apply, params, images).shape == (1, features) == (1, spec.feature_dim)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert round(count / 1e6, 2) == millions


def test_of_a_published_pickle_it_is_said_what_to_do():
    with pytest.raises(UserError, match="published as a pickle") as info:
        backbones.load("dino_resnet50")
    assert '{"architecture": "resnet50"}' in str(info.value)
    assert specs.NAMES["dino_resnet50"].pickle in str(info.value)


def test_mocov3s_encoder_is_found_in_its_checkpoint(checkpoints, tmp_path, capsys):
    tensors = safetensors.numpy.load_file(checkpoints / "resnet" / "model.safetensors")
    # In place of a classifier, what projects.
    del tensors["fc.weight"]
    tensors |= {"fc.0.weight": np.zeros((2, 2), np.float32)}
    both = {
        f"module.{name}.{key}": np.asarray(value + change)
        for name, change in (("base_encoder", 0), ("momentum_encoder", 1))
        for key, value in tensors.items()
    }
    both["module.predictor.0.weight"] = np.zeros((2, 2), np.float32)
    safetensors.numpy.save_file(both, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((checkpoints / "resnet" / "config.json").read_bytes())
    found = backbones.load(tmp_path)
    assert "'module.base_encoder.' is taken off the keys" in capsys.readouterr().out
    plain = backbones.load(checkpoints / "resnet")
    for ours, theirs in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(plain.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", [slow("mocov3_resnet50"), "dinov3_convnext_tiny"])
def test_they_are_planned_without_a_download(name, capsys):
    arguments = ("--config=configs/quickstart.py:quick", f"--config.backbone.name={name}")
    sides = ("--config.images.crop=64", "--config.images.resolution=64")
    assert start(*arguments, *sides, "--plan") == 0
    assert f"{name} at 64 px" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_a_run_is_made_of_them_from_images_to_the_report(checkpoints, name, tmp_path):
    workdir = tmp_path / "run"
    arguments = (
        "--config=configs/quickstart.py:quick",
        f"--config.backbone.name={checkpoints / name}",
        "--config.images.crop=32",
        "--config.images.resolution=32",
        "--config.steps=5",
        "--config.stages=distill,probe,report",
    )
    assert start(*arguments, workdir=workdir) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert 0 <= results["probe"][name]["distilled"]["top1_mean"] <= 100
    assert name in (workdir / "report.html").read_text()


# One's own.


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The page's example in a folder, as it stands, with weights as PyTorch has them."""
    section = PAGE[PAGE.index("## Adding a family") :]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (config,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 40
    folder = tmp_path / "weights" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "mine.py").write_text(program)
    (folder / "config.json").write_text(config)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16, 3, 4, 4)).astype(np.float32)
    tensors = {"features.0.weight": kernel, "features.0.bias": np.zeros(16, np.float32)}
    tensors["classifier.weight"] = np.zeros((10, 16), np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(families, "FAMILIES", [*families.FAMILIES])
    yield tensors
    sys.modules.pop("mine")


def test_the_pages_family_is_loaded_by_name(own):
    backbone = backbones.load("mine:NET")
    images = np.random.default_rng(1).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    patches = (2 * images - 1).reshape(2, 8, 4, 8, 4, 3)
    expected = np.einsum("bypxqc,dcpq->byxd", patches, own["features.0.weight"])
    expected = np.maximum(expected, 0).mean(axis=(1, 2))
    found = backbone.apply(backbone.params, jnp.asarray(images))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert backbone.name == "mine:NET"


def test_the_pages_family_is_exported_and_read_back(own, tmp_path):
    backbones.export("mine:NET", tmp_path / "exported")
    again, first = backbones.load(tmp_path / "exported"), backbones.load("mine:NET")
    np.testing.assert_array_equal(again.params["conv"]["kernel"], first.params["conv"]["kernel"])
    assert configs.to_ours(again.published) == configs.to_ours(first.published)
    assert isinstance(first.published, Published)


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_the_pages_family_runs_and_is_planned(tmp_path, capsys):
    arguments = (
        "--config=quickstart:quick",
        "--config.backbone.name=mine:NET",
        "--config.images.resolution=32",
        "--config.steps=5",
        "--config.stages=distill,probe,report",
    )
    assert start(*arguments, "--plan") == 0
    assert "mine:NET at 32 px" in capsys.readouterr().out
    assert start(*arguments, workdir=tmp_path / "run") == 0
    assert "mine:NET" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere:NET", "cannot be imported"), ("math:pi", "is a float, not a specs.Entry")],
)
def test_what_is_no_backbone_is_refused_in_a_line(name, message, tmp_path, capsys):
    arguments = ("--config=configs/quickstart.py:quick", f"--config.backbone.name={name}")
    assert message in refuse(capsys, *arguments, workdir=tmp_path / "run")
