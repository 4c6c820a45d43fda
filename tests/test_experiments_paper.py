"""Experiments at the paper's scale: each run is its recipe's, whichever preset; whose numbers."""

import json
import re

import pytest
from etils import epath

import launch
from configs import common
from configs import paper as recipes
from lgm_jax import experiments
from lgm_jax.errors import UserError
from lgm_jax.experiments import result, runner
from tests.experimenting import PATHS, ROOT, flat_score, load, outcomes_of, tabulate

PRESETS = ("paper", "authors_2025", "authors_2026")

# Recipes of sets of images, by the second part of their names.
IMAGES = {
    "imagenet-100": "in100",
    "imagenet-1k": "in1k",
    "imagenet-fruits": "fruits",
    **{name: name for name in ("imagenette", "dogs", "cub", "flowers", "food")},
    **{name: name for name in ("spawrious", "waterbirds")},
}

# What an experiment varies, and no other may change.
VARIED = {
    "table3": {"images.decorrelate", "images.kind", "augment.distill"},
    "figure3": {"copies"},
    "ipc": {"ipc"},
    "clp": {"objective", "clp.ridge", "clp.temperature", "probe.split", "data.val_fraction"},
    "objectives": {"objective", "real.source", "labels"},
    "verify_gpu": {"probe.full_augment", "probe.views"},
}
ALWAYS = {"seed", "backbone.name", "eval_backbones", "stages", "baselines"}


def recipe_of(model, images, preset):
    return recipes.recipe(model, images, preset)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_run_is_its_recipes(path, preset):
    config = load(path.stem, f":{preset}")
    published = {
        images: common.flatten(recipe_of("dinov2", images, preset)) for images in recipes.IMAGES
    }
    planned = experiments.planned_configs(config)
    assert planned
    for run, each in planned.items():
        images = IMAGES[run.split("_")[0]]
        found = common.flatten(each)
        different = {key for key, value in published[images].items() if found[key] != value}
        assert different <= VARIED.get(path.stem, set()) | ALWAYS, run
        assert {"ipc", "copies", "probe.batch", "data.subset"} <= set(found)


@pytest.mark.parametrize("preset", PRESETS)
def test_backbones_are_the_presets(preset):
    seen = {
        each.backbone.name
        for each in experiments.planned_configs(load("table1", f":{preset}")).values()
    }
    expected = {
        recipe_of(model, "in100", preset).backbone.name
        for model in ("clip", "dinov2", "eva02", "mocov3")
    }
    assert seen == expected
    config = load("figure3", f":{preset}")
    (evaluated,) = {each.eval_backbones for each in experiments.planned_configs(config).values()}
    assert set(evaluated.split(",")) == expected


def test_no_word_is_the_papers_preset():
    plain, named = (experiments.planned_configs(load("table5", arg)) for arg in ("", ":paper"))
    assert {run: common.flatten(each) for run, each in plain.items()} == {
        run: common.flatten(each) for run, each in named.items()
    }


def test_an_unknown_word_is_answered_with_all_words():
    with pytest.raises(UserError) as refused:
        load("table1", ":authors")
    for word in (*PRESETS, "embedded", "quick", "imagenette"):
        assert word in str(refused.value)
    page = (ROOT / "docs" / "experiments.md").read_text()
    assert all(f"`:{preset}`" in page for preset in PRESETS)


def test_keys_of_the_command_line_hold_for_every_set():
    flags = (
        "--config.copies=5",
        "--config.probe.full_augment=views",
        "--config.data.name=imagenet",
    )
    planned = experiments.planned_configs(load("table1", "", *flags))
    for each in planned.values():
        assert (each.copies, each.probe.full_augment) == (5, "views")
        assert each.data.name == "imagenet"
    subsets = {run.split("_")[0]: each.data.subset for run, each in planned.items()}
    assert subsets == {"imagenet-100": "imagenet-100", "imagenet-1k": ""}


def test_given_images_have_nothing_of_imagenets():
    flags = ("--config.experiment.sets=given", "--config.data.folder=photos")
    for each in experiments.planned_configs(load("table1", "", *flags)).values():
        assert (each.data.name, each.data.subset, each.copies) == ("folder", "", 10)
        assert each.probe.full_augment is None


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("table1", ["--config.data.subset=imagenette"], "experiment.sets=given"),
        ("table5", ["--config.data.name=folder"], "experiment.sets=given"),
        ("table4", ["--config.data.folder=here"], "experiment.folders"),
        ("table1", ["--config.experiment.sets=imagenet-100,imagenet-100"], "twice"),
        ("table1", ["--config.experiment.backbones=clip_vitb16,clip_vitb16"], "twice"),
        ("table2", ["--config.experiment.evaluate=a/vit,b/vit"], "rename"),
        ("table2", ["--config.experiment.evaluate=a/vit,a/vit"], "twice"),
        (
            "table2",
            ["--config.experiment.backbones=a/vit", "--config.experiment.evaluate=a/vit/"],
            "rename",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_run(name, flags, words, capsys, tmp_path):
    arguments = [f"--config={ROOT}/configs/experiments/{name}.py", f"--workdir={tmp_path / 'w'}"]
    assert launch.main(["launch.py", *arguments, *flags]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err), captured.err
    assert words in captured.err
    assert not (tmp_path / "w").exists()


def papers_in(found):
    """Cells of tables beside which a number of the paper stands, but for columns that say whose."""
    return {
        (table.title, *place)
        for table in found.tables
        for place, cell in table.cells.items()
        if cell.paper is not None and "the paper" not in place[1]
    }


@pytest.mark.parametrize(
    "flags",
    [
        ["--config.probe.epochs=10"],
        ["--config.probe.batch=64"],
        ["--config.probe.augment=none"],
        [
            "--config.probe.solver=lbfgs",
            "--config.probe.augment=views",
            "--config.probe.full_augment=none",
        ],
        ["--config.probe.split=val", "--config.data.val_fraction=0.1"],
        ["--config.augment.scale_min=0.5"],
        ["--config.augment.preset=none"],
        ["--config.images.resolution=128", "--config.images.crop=112"],
        ["--config.backbone.pooling=mean"],
        ["--config.backbone.normalization=native"],
        ["--config.ipc=2"],
        ["--config.data.name=huggingface"],
        ["--config.experiment.sets=given", "--config.data.name=imagenette"],
    ],
)
@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_no_number_of_the_paper_stands_beside_another_setting(name, flags):
    found = tabulate(load(name, "", *flags), flat_score)
    assert papers_in(found) == set()
    text = result.to_markdown(found)
    assert "are the paper's" not in text


def test_folders_are_not_the_papers_backbones():
    names = "here/clip_vitb16,dinov2_vitb14,eva02_vitb14,mocov3_vitb16"
    config = load("table1", "", f"--config.experiment.backbones={names}")
    found = tabulate(config, flat_score)
    marked = {column for _, _, column in papers_in(found)}
    assert marked == {"DINO-v2", "EVA-02", "MoCo-v3"}
    assert "Not the paper's setting" in result.to_markdown(found)
    assert "backbone clip_vitb16" in result.to_markdown(found)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_presets_numbers_are_the_papers(preset):
    config = load("table1", f":{preset}")
    found = tabulate(config, flat_score)
    assert found.tables[0].cells["distilled", "Average"].paper[0] == 87.2
    assert found.tables[2].cells["all real", "MoCo-v3"].paper[0] == 76.5
    text = result.to_markdown(found)
    assert f"Data, backbones and probe are the paper's. The recipe is `{preset}`." in text
    changed = tabulate(load("table1", f":{preset}", "--config.steps=1000"), flat_score)
    assert papers_in(changed) == papers_in(found) != set()
    assert f"The recipe is `{preset}`, but for steps=1000." in result.to_markdown(changed)


def test_a_part_of_the_images_is_not_the_papers_data(tmp_path):
    """A folder of ImageNet with too few images in it, as its runs have counted them."""
    config = load("table1", "", "--config.data.name=imagenet", "--config.data.folder=here")

    def outcomes(images):
        found = []
        for each in outcomes_of(config, flat_score):
            path = epath.Path(tmp_path / str(images) / each.planned.name)
            path.mkdir(parents=True)
            classes = 100 if each.axes["set"] == "imagenet-100" else 1000
            counts = {
                "train": {
                    "images": images * classes,
                    "classes": dict.fromkeys(range(classes), images),
                },
                "test": {"images": 50 * classes, "classes": dict.fromkeys(range(classes), 50)},
            }
            (path / "config.json").write_text(json.dumps({"data": {"counts": counts}}))
            found.append(runner.Outcome(each.planned, each.results, each.metrics, None, path))
        return found

    def written(images):
        sweep = experiments.find(config)
        return experiments.tabulate(sweep, config, sweep.studies(config, outcomes(images)))

    assert papers_in(written(1280))
    few = written(100)
    assert papers_in(few) == set()
    assert "Not the paper's setting" in result.to_markdown(few)


def test_embedded_is_said_of_what_is_embedded_alone():
    flags = ["--config.experiment.sets=given", "--config.data.name=cifar10"]
    found = tabulate(load("table1", ":embedded", *flags), flat_score)
    text = result.to_markdown(found)
    assert "Embedded data" not in text
    assert "Data and backbones are not the paper's." in text
