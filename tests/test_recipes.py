"""The paper's recipes: every one is built and traced, and says what the tables say."""

import dataclasses
import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from configs import _paper, common
from lgm_jax import backbones, distill, objectives, plan, settings
from lgm_jax.augment import PRESETS
from lgm_jax.data import imagenet, sizes
from lgm_jax.data.sizes import known_size
from lgm_jax.experiments import paper
from lgm_jax.session import MEMORY_LIMIT
from tools import write_recipes

ROOT = Path(__file__).parents[1]
RECIPES = write_recipes.recipes()
NAMES = [f"{model}_{images}" for model, images in RECIPES]


def config_of(name, arg=None):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def changed(config, other):
    config, other = settings.flatten(config), settings.flatten(other)
    return {key for key in common.KEYS if config[key] != other[key]}


@functools.cache
def feature_dim(backbone):
    """Of a backbone that is traced, and differentiated, from end to end."""
    spec, apply, params = backbones.outline(backbone)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    energy = jax.grad(lambda images, params: apply(params, images).sum())
    assert jax.eval_shape(energy, images, params).shape == images.shape
    assert jax.eval_shape(apply, params, images).shape == (2, spec.feature_dim)
    return spec.feature_dim


@functools.cache
def trace(task, dim):
    """Shapes of the images after a step, with a map to so many features for the backbone."""

    def apply(params, images):
        return params[None] * images.reshape(images.shape[0], -1)[:, :dim]

    key, rows = jax.random.key(0), task.num_views
    step = distill.make_step(task, [apply], key, microbatch=10)
    state = jax.eval_shape(lambda: distill.init_state(task, key))
    index, weight = (jax.ShapeDtypeStruct((rows,), dtype) for dtype in (jnp.int32, jnp.float32))
    features = jax.ShapeDtypeStruct((rows, dim), jnp.float32)
    real = objectives.Features(features, index, weight, index, index, task.num_classes)
    params = jax.ShapeDtypeStruct((dim,), jnp.float32)
    after, found = jax.eval_shape(step.jitted, state, [params], [real])
    assert found["loss"].shape == ()
    return [level.shape for level in after.params["images"]]


@pytest.mark.parametrize(("model", "images"), RECIPES, ids=NAMES)
def test_every_recipe_is_built_and_traced(model, images):
    config = config_of(f"{model}_{images}")
    common.check(config)
    assert set(settings.flatten(config)) == set(common.KEYS)
    assert config.backbone.name == _paper.MODELS[model].backbone
    size = known_size(config.data.name, config.data.subset)
    task = settings.make_recipe(config, size.classes, config.images.crop or 224).task
    assert task.num_views == size.classes * (3 if images == "in1k" else 10)
    shapes = trace(task, feature_dim(config.backbone.name))
    assert shapes == [(size.classes, 2**n, 2**n, 3) for n in range(9)]
    # All decoded training images are in memory for new augmentations of each.
    fits = size.train * 3 * task.parametrisation.resolution**2 <= MEMORY_LIMIT
    assert config.probe.full_augment == ("fresh" if fits else "none")


@pytest.mark.parametrize("name", ["clip_in1k", "dinov2_waterbirds", "dino_artbench"])
def test_words_behind_the_colon_can_be_joined(name):
    plain, cached = config_of(name), config_of(name, "cached")
    assert changed(plain, cached) == {"real.source", "data.placement"}
    assert changed(plain, config_of(name, "paper")) == set()
    both = config_of(name, "quick,authors_2026,cached")
    assert changed(both, config_of(name, "authors_2026,cached")) >= {"steps", "probe.epochs"}
    assert (both.steps, both.real.source, both.images.grow_delay) == (6, "cached", 1)
    for config in (cached, both, config_of(name, "quick")):
        common.check(config)


@pytest.mark.parametrize("images", _paper.IMAGES)
def test_quick_embeds_little(images):
    """Ten classes at most, and no baseline that needs the features of all training images."""
    config, plain = config_of(f"clip_{images}", "quick"), config_of(f"clip_{images}")
    common.check(config)
    assert config.baselines == "random"
    size, whole = (known_size(c.data.name, c.data.subset) for c in (config, plain))
    assert size.classes == min(10, whole.classes)
    chosen = imagenet.SUBSETS.get(plain.data.subset)
    if chosen is not None and whole.classes > 10:
        assert [int(index) for index in config.data.subset.split(",")] == list(chosen[:10])


def test_durations_are_no_more_exact_than_they_can_be():
    shown = [write_recipes._duration(hours) for hours in (0.01, 4.9 / 60, 0.55, 1.7)]
    assert shown == ["under 5 min", "under 5 min", "33 min", "1.7 h"]
    assert write_recipes._rate(2504.3) == "2,500"
    assert "| arithmetic alone | photos/s to decode |" in write_recipes.table()


def test_presets_differ_where_the_page_says():
    page = (ROOT / "docs" / "recipes.md").read_text()
    for model in _paper.MODELS:
        name = f"{model}_artbench"
        paper, old, new = (config_of(name, preset) for preset in _paper.PRESETS)
        later = {"steps", "images.grow_delay", "probe.noise"}
        assert changed(paper, new) == later
        between = {"augment.preset"} | ({"backbone.name"} if model == "clip" else set())
        assert changed(old, new) == between
        for key in later | between:
            assert f"`{key}`" in page, key
    assert config_of("clip_in1k", "authors_2025").backbone.name == "clip_vitb32"
    assert feature_dim("clip_vitb32") == 512


def test_presets_reach_images_and_probes():
    tasks = {
        preset: settings.make_recipe(config_of("clip_in100", preset), 100, 224).task
        for preset in _paper.PRESETS
    }
    noise = {preset: task.augmentation.noise_mean for preset, task in tasks.items()}
    assert noise == {"paper": 0.0, "authors_2025": 0.5, "authors_2026": 0.0}
    grown = {preset: task.parametrisation.side_at(200) for preset, task in tasks.items()}
    assert grown == {"paper": 2, "authors_2025": 1, "authors_2026": 1}
    assert {task.parametrisation.side_at(201) for task in tasks.values()} == {2}

    def protocol(name, preset, *, full):
        config = config_of(name, preset)
        return settings.make_protocol(config, 224, full=full)

    few = protocol("clip_in100", "paper", full=False)
    assert (few.epochs, few.batch, few.augment, few.augmentation) == (
        *(1000, 100, "fresh"),
        dataclasses.replace(PRESETS["paper"], crops="beyond"),
    )
    assert protocol("clip_in100", "authors_2025", full=False).augmentation.noise == 0
    full = protocol("clip_in100", "paper", full=True)
    assert (full.epochs, full.batch, full.augment) == (100, 128, "none")
    full = protocol("clip_cub", "authors_2026", full=True)
    assert (full.batch, full.augment, full.augmentation.noise) == (128, "fresh", 0)


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("authors", ["authors_2025", "authors_2026"]),
        ("paper,authors_2025", ["paper and authors_2025", "exclude each other"]),
    ],
)
def test_words_that_say_nothing_are_refused(arg, words, capsys):
    arguments = [f"--config={ROOT}/configs/clip_in1k.py:{arg}", "--workdir=x"]
    assert launch.main(["launch.py", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line


def test_files_and_tables_agree():
    """Else `python -m tools.write_recipes` was forgotten."""
    assert write_recipes.main(["--check"]) == 0


def test_accuracies_have_the_means_that_the_paper_gives():
    for images, rows in _paper.ACCURACY.items():
        for row, columns in rows.items():
            found = np.mean([mean for mean, _ in columns[:-1]])
            assert abs(found - columns[-1][0]) < 0.0501, (images, row, found)
    # Every number that experiments know is of a recipe, and the other way round.
    assert len(_paper.ACCURACY) == len(paper.ACCURACY)
    assert [_paper.MODELS[model].backbone for model in _paper.COMPARED] == list(paper.BACKBONES)


def test_predictions_are_the_plans(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    cost = write_recipes.predict("clip", "in100")
    arguments = ["--config=configs/clip_in100.py", "--plan"]
    assert launch.main(["launch.py", *arguments, "--plan_tflops=790"]) == 0
    assert f"5000 steps in {cost.hours:.2g} h" in capsys.readouterr().out


@pytest.mark.parametrize("images", _paper.IMAGES)
def test_plans_need_no_data(images, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    size = known_size(_paper.IMAGES[images].name, _paper.IMAGES[images].subset)
    assert launch.main(["launch.py", f"--config=configs/clip_{images}.py", "--plan"]) == 0
    text = capsys.readouterr().out
    assert f"planned for {size.train} training images" in text
    assert f"{size.classes} images of 256 px" in text


def test_some_classes_have_their_share_of_the_images():
    assert known_size("cifar10", "0,3") == sizes.Size(2, 10_000, 2_000)
    assert known_size("imagenet", "imagenet-100") == sizes.Size(100, 128_116, 5_000)
    assert known_size("folder") is None
    outline = plan.make_outlines(config_of("clip_in1k", "authors_2025"))[0]
    assert outline.spec.embed.patch == 32
