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
from configs import common
from configs import paper as recipes
from lgm_jax import backbones, distill, objectives, plan, settings
from lgm_jax.augment import PRESETS
from lgm_jax.data import imagenet, sources
from lgm_jax.data.sources import known_size
from lgm_jax.errors import UserError
from lgm_jax.experiments import axes, paper, published
from lgm_jax.programs import make_outlines
from tests.marks import slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "recipes.md").read_text()
COMPARED = ("clip", "dinov2", "eva02", "mocov3")
ROWS = ("distilled", "neighbors", "centroids", "random", "full")
# The models that the paper compares, and DINO for ArtBench.
RECIPES = [
    f"{model},{images}"
    for images in paper.IMAGES
    for model in recipes.MODELS
    if model in COMPARED or images == "artbench"
]


def config_of(name, *words):
    return recipes.get_config(",".join([name, *words]))


def table(title):
    """The rows of the page's table under a title, as their cells."""
    lines = PAGE.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def changed(config, other):
    config, other = settings.flatten(config), settings.flatten(other)
    return {key for key in common.KEYS if config[key] != other[key]}


@functools.cache
def feature_dim(backbone):
    """Of a backbone that is traced, and differentiated, from end to end."""
    spec, _, apply, params = backbones.outline(backbone)
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


@pytest.mark.parametrize(
    "name", [name if name.startswith("clip") else slow(name) for name in RECIPES]
)
def test_every_recipe_is_built_and_traced(name):
    model, images = name.split(",")
    config = config_of(name)
    common.check(config)
    assert set(settings.flatten(config)) == set(common.KEYS)
    assert config.backbone.name == recipes.MODELS[model].backbone
    size = known_size(config.data.name, config.data.subset)
    task = settings.make_recipe(config, size.classes, config.images.crop or 224).task
    assert task.num_views == size.classes * (3 if images == "in1k" else 10)
    shapes = trace(task, feature_dim(config.backbone.name))
    assert shapes == [(size.classes, 2**n, 2**n, 3) for n in range(9)]
    assert settings.make_protocol(config, 224, full=True).augment == "fresh"


@pytest.mark.parametrize(
    ("model", "images"),
    [
        *(("clip", "in1k"), ("dinov2", "in100")),
        *(slow("clip", "in100"), slow("dinov2", "in1k")),
        *(slow(model, images) for model in COMPARED[2:] for images in ("in1k", "in100")),
    ],
)
def test_files_of_imagenet_are_its_recipes(model, images):
    module = importlib.import_module(f"configs.{model}_{images}")
    for arg in (None, "authors_2026,cached"):
        plain = config_of(f"{model},{images}", *([arg] if arg else []))
        assert settings.flatten(module.get_config(arg)) == settings.flatten(plain)
    # What the file says of accuracy and cost is what the page says.
    for row, shown in zip(ROWS, accuracies(model, images), strict=True):
        assert f"{row} {shown}" in module.__doc__
    flops, hours, photos, probes = predict(model, images)
    text = " ".join(module.__doc__.split())
    assert f"as many real ones, {flops} TFLOP each" in text
    assert f"{hours} of arithmetic on one H100" in text
    assert f"decodes {photos} photos a second, and {probes} for the probes" in text
    assert f"The authors: {paper.IMAGES[images].took}." in text


@pytest.mark.parametrize("name", ["clip,in1k", "dinov2,waterbirds", "dino,artbench"])
def test_words_behind_the_colon_can_be_joined(name):
    plain, cached = config_of(name), config_of(name, "cached")
    assert changed(plain, cached) == {"real.source", "data.placement"}
    assert changed(plain, config_of(name, "paper")) == set()
    both = config_of(name, "quick,authors_2026,cached")
    assert changed(both, config_of(name, "authors_2026,cached")) >= {"steps", "probe.epochs"}
    assert (both.steps, both.real.source, both.images.grow_delay) == (6, "cached", 1)
    for config in (cached, both, config_of(name, "quick")):
        common.check(config)


def test_flow_matching_is_that_of_its_authors():
    """Class means of centre crops, one view of each image; the rest is the preset's."""
    plain, config = (config_of("dinov2,in1k", *word) for word in ([], ["sfm"]))
    assert changed(plain, config) == set(paper.SFM)
    assert (config.copies, plain.copies) == (1, 3)
    recipe = settings.make_recipe(config, 1000, 224)
    assert recipe.task.objective == objectives.SFM()
    assert recipe.prepares
    assert recipe.real_augmentation is None
    assert recipe.task.augmentation == settings.make_recipe(plain, 1000, 224).task.augmentation
    assert settings.make_protocol(config, 224, full=True).epochs == 10
    assert config_of("dinov2,in1k", "authors_2026,sfm").steps == 5001
    common.check(config_of("clip,cub", "sfm,quick"))
    with pytest.raises(UserError, match="sfm and cached exclude each other"):
        config_of("clip,cub", "sfm,cached")
    for key in paper.SFM:
        assert f"`{key}" in PAGE, key


@pytest.mark.parametrize("images", paper.IMAGES)
def test_quick_embeds_little(images):
    """Ten classes at most, and no baseline that needs the features of all training images."""
    config, plain = config_of(f"clip,{images}", "quick"), config_of(f"clip,{images}")
    common.check(config)
    assert config.baselines == "random"
    size, whole = (known_size(c.data.name, c.data.subset) for c in (config, plain))
    assert size.classes == min(10, whole.classes)
    chosen = imagenet.SUBSETS.get(plain.data.subset)
    if chosen is not None and whole.classes > 10:
        assert [int(index) for index in config.data.subset.split(",")] == list(chosen[:10])


def test_presets_differ_where_the_page_says():
    for model in recipes.MODELS:
        plain, old, new = (config_of(f"{model},artbench", preset) for preset in paper.PRESETS)
        later = {"steps", "images.grow_delay", "probe.noise"}
        assert changed(plain, new) == later
        between = {"augment.preset"} | ({"backbone.name"} if model == "clip" else set())
        assert changed(old, new) == between
        for key in later | between:
            assert f"`{key}`" in PAGE, key
    assert config_of("clip,in1k", "authors_2025").backbone.name == "clip_vitb32"
    assert feature_dim("clip_vitb32") == 512


def test_presets_reach_images_and_probes():
    tasks = {
        preset: settings.make_recipe(config_of("clip,in100", preset), 100, 224).task
        for preset in paper.PRESETS
    }
    noise = {preset: task.augmentation.noise_mean for preset, task in tasks.items()}
    assert noise == {"paper": 0.0, "authors_2025": 0.5, "authors_2026": 0.0}
    grown = {preset: task.parametrisation.side_at(200) for preset, task in tasks.items()}
    assert grown == {"paper": 2, "authors_2025": 1, "authors_2026": 1}
    assert {task.parametrisation.side_at(201) for task in tasks.values()} == {2}

    def protocol(name, preset, *, full):
        config = config_of(name, preset)
        return settings.make_protocol(config, 224, full=full)

    few = protocol("clip,in100", "paper", full=False)
    assert (few.epochs, few.batch, few.augment, few.augmentation) == (
        *(1000, 100, "fresh"),
        dataclasses.replace(PRESETS["paper"], crops="beyond"),
    )
    assert protocol("clip,in100", "authors_2025", full=False).augmentation.noise == 0
    full = protocol("clip,in100", "paper", full=True)
    assert (full.epochs, full.batch, full.augment) == (100, 128, "fresh")
    full = protocol("clip,cub", "authors_2026", full=True)
    assert (full.batch, full.augment, full.augmentation.noise) == (128, "fresh", 0)


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("clip_in1k.py:authors", ["authors_2025", "authors_2026"]),
        ("clip_in1k.py:paper,authors_2025", ["paper and authors_2025", "exclude each other"]),
        ("paper.py", [*recipes.MODELS, *paper.IMAGES, *paper.PRESETS, "cached", "quick"]),
        ("paper.py:help", [*recipes.MODELS, *paper.IMAGES, *paper.PRESETS]),
        ("paper.py:clip,cubs", ["cubs", "cub"]),
        ("paper.py:clip", ["MODEL,IMAGES", "waterbirds"]),
        ("paper.py:clip,eva02,cub", ["clip and eva02", "exclude each other"]),
        # Files of earlier versions.
        ("dinov2_cub.py", ["configs/paper.py:dinov2,cub now"]),
        ("clip_in10_a:quick,cached", ["configs/paper.py:clip,in10_a,quick,cached now"]),
    ],
)
def test_words_that_say_nothing_are_refused(arg, words, capsys):
    arguments = [f"--config=configs/{arg}", "--workdir=x"]
    assert launch.main(["launch.py", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line


def test_page_lists_every_set_of_images():
    expected = []
    for name, images in paper.IMAGES.items():
        size = known_size(images.name, images.subset)
        about = "about " if images.subset else ""
        title = images.title[:1].upper() + images.title[1:]
        counts = f"{about}{size.train:,}, {size.test:,}"
        subset = f"`{images.subset}`" if images.subset else ""
        cells = [f"`{name}`", title, f"{size.classes:,}", counts, str(images.copies)]
        expected.append([*cells, f"`{images.name}`", subset])
    assert table("Sets of images") == expected


def test_page_has_the_papers_accuracies():
    expected = [
        [f"`{model},{images}`", *accuracies(model, images)]
        for images, chosen in paper.IMAGES.items()
        if chosen.table
        for model in COMPARED
    ]
    assert table("Accuracies in the paper") == expected


@pytest.mark.slow
def test_page_has_the_costs_that_are_planned():
    told = {}
    for sets, *cells in table("Costs"):
        names = sets.replace("`in10_a` to `in10_e`", ", ".join(f"`in10_{c}`" for c in "abcde"))
        told |= dict.fromkeys(names.replace("`", "").split(", "), cells)
    assert list(told) == sorted(paper.IMAGES, key=list(told).index)
    for images, cells in told.items():
        each = zip(predict("clip", images), predict("dinov2", images), strict=True)
        expected = [first if first == second else f"{first}, {second}" for first, second in each]
        assert cells == [*expected, paper.IMAGES[images].took], images


def accuracies(model, images):
    """The paper's accuracies, by row, as it prints them."""
    name = {"in1k": "imagenet-1k", "in100": "imagenet-100"}.get(images, images)
    backbone = paper.BACKBONES[COMPARED.index(model)]
    pairs = {row: frozenset([(backbone, backbone)]) for row in ROWS[:3]}
    pairs |= {row: frozenset([("real", backbone)]) for row in ROWS[3:]}
    numbers = [published.numbers()[name, "", row, "top-1", pairs[row]] for row in ROWS]
    return [f"{mean:.1f} ± {std:.1f}" for mean, std in numbers]


@functools.cache
def predict(model, images):
    """What a recipe takes on one H100 by `plan`, in arithmetic alone, as the page has it."""
    config = config_of(f"{model},{images}")
    size = known_size(config.data.name, config.data.subset)
    told = plan.plan_config(config, plan.Machine(tflops=790.0), size.classes, size.train)
    options = config.probe
    # Distilled, neighbours, centroids and random images, in new views every epoch; then all.
    views = 4 * options.epochs * options.runs * told.recipe.task.num_images
    views += options.full_epochs * options.runs * size.train
    # Features that images are chosen by, and that heads are tried on.
    views += size.train + size.test

    def duration(seconds):
        # Below five minutes, a run's time is that of everything that is no arithmetic.
        minutes = seconds / 60
        short = f"{minutes:.2g} min" if minutes < 60 else f"{minutes / 60:.2g} h"
        return "under 5 min" if minutes < 5 else short

    return (
        f"{sum(told.flops.values()) / 1e12:.3g}",
        duration(config.steps * told.seconds),
        f"{round(told.recipe.task.num_views / told.seconds, -2):,.0f}",
        duration(views * told.view_flops / (plan.SHARE * 790e12)),
    )


def test_accuracies_have_the_means_that_the_paper_gives():
    numbers = published.numbers()
    known = [name for name in axes.SETS if published.average(name, "", "full") is not None]
    for name in known:
        for row in ROWS:
            sources = paper.BACKBONES if row in ROWS[:3] else ["real"] * 4
            pairs = zip(sources, paper.BACKBONES, strict=True)
            each = [numbers[name, "", row, "top-1", frozenset([pair])][0] for pair in pairs]
            average = published.average(name, "", row)
            assert abs(np.mean(each) - average[0]) < 0.0501, (name, row)
    # Every number that experiments know is of a recipe, and the other way round.
    assert len(known) == sum(bool(images.table) for images in paper.IMAGES.values())
    assert [recipes.MODELS[model].backbone for model in COMPARED] == list(paper.BACKBONES)


@pytest.mark.parametrize("images", paper.IMAGES)
def test_plans_need_no_data(images, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    size = known_size(paper.IMAGES[images].name, paper.IMAGES[images].subset)
    assert launch.main(["launch.py", f"--config=configs/paper.py:clip,{images}", "--plan"]) == 0
    text = capsys.readouterr().out
    assert f"planned for {size.train} training images" in text
    assert f"{size.classes} images of 256 px" in text


def test_crops_have_224_px_whatever_side_a_backbone_was_trained_at(capsys):
    recipe = ["--config=configs/paper.py:dinov2,in100", "--config.backbone.name=digits_contrastive"]
    assert launch.main(["launch.py", *recipe, "--plan"]) == 0
    assert "digits_contrastive at 224 px, 100 images of 256 px" in capsys.readouterr().out


def test_some_classes_have_their_share_of_the_images():
    assert known_size("cifar10", "0,3") == sources.Size(2, 10_000, 2_000)
    assert known_size("imagenet", '"tench, Tinca tinca",church') == known_size("imagenet", "0,497")
    assert known_size("imagenet", "imagenet-100") == sources.Size(100, 128_116, 5_000)
    assert known_size("folder") is None
    outline = make_outlines(config_of("clip,in1k", "authors_2025"))[0]
    assert outline.spec.embed.patch == 32
