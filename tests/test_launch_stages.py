"""What a run writes, and what its stages do with the options of a config."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import launch
import lgm_jax
from configs import common
from lgm_jax import features
from lgm_jax import session as session_module
from lgm_jax.opening import open_session
from lgm_jax.report.vocabulary import TITLES
from lgm_jax.stages import costs
from tests.launching import (
    DIGITS,
    FOLDER,
    QUICK,
    ROOT,
    logged_steps,
    opened,
    refuse,
    start,
    write_classes,
)
from tests.marks import slow


def test_results_have_the_documented_schema(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results) == {
        *("version", "dataset", "ipc", "objective", "num_classes", "steps", "seed"),
        *("final_loss", "backbones", "seconds", "skipped_images", "probe", "clp", "labels"),
        *("pyramid", "test_images", "about_objective", "taught"),
    }
    assert results["labels"] == {"kind": "hard", "bytes": 40}
    assert (results["objective"], results["clp"]) == ("lgm", None)
    assert results["about_objective"]["title"] == "Linear Gradient Matching"
    assert results["taught"] == {}
    assert set(results["about_objective"]) == {"title", "source", "each_step", "loss_is"}
    assert (results["version"], results["dataset"], results["num_classes"]) == (1, "digits", 10)
    assert results["backbones"] == ["digits_contrastive"]
    assert (results["pyramid"], results["test_images"]) == ({"reached": 32, "finest": 32}, 360)
    assert set(results["seconds"]) == {"distill", "probe", "baselines"}
    assert 0 < results["final_loss"] < 2
    methods = results["probe"]["digits_contrastive"]
    assert set(methods) == {"distilled", "centroids", "neighbors", "random", "full"}
    for entry in methods.values():
        assert set(entry) == {
            *("top1_mean", "top1_std", "top5_mean", "top5_std", "top1_runs"),
            *("solver", "epochs", "augment", "split", "groups", "worst_group", "loss_curve"),
            *("per_class", "confusion", "against"),
        }
        # L-BFGS has no epochs.
        assert entry["loss_curve"] is None
        assert len(entry["top1_runs"]) == 2
        assert np.isclose(entry["top1_mean"], np.mean(entry["top1_runs"]))
        assert 0 <= entry["top1_mean"] <= entry["top5_mean"] <= 100
        # Every class has about as many test images.
        assert len(entry["per_class"]) == 10
        assert np.isclose(np.mean(entry["per_class"]), entry["top1_mean"], atol=0.5)
    assert {name for name in methods if methods[name]["confusion"]} == {"distilled", "full"}
    counts = methods["distilled"]["confusion"]
    assert np.isclose(sum(counts["images"]), 360, atol=0.1)
    with np.load(finished / "predictions.npz") as stored:
        assert stored["digits_contrastive/distilled"].shape == (2, 360)
        assert stored["labels/test"].shape == (360,)
    assert list(methods["distilled"]["against"]) == ["centroids", "neighbors", "random", "full"]
    difference = methods["distilled"]["top1_mean"] - methods["random"]["top1_mean"]
    found = methods["distilled"]["against"]["random"]["difference"]
    assert np.isclose(found, difference, atol=1e-3)


def test_distilled_images_load_back_and_match_their_pngs(finished):
    images, labels, names = lgm_jax.load_distilled(finished)
    assert images.shape == (10, 32, 32, 3)
    assert images.dtype == np.float32
    assert labels.tolist() == list(range(10))
    assert names[3] == "three"
    lines = (finished / "distilled" / "metadata.jsonl").read_text().splitlines()
    assert len(lines) == 10
    for image, entry in zip(images, map(json.loads, lines), strict=True):
        with Image.open(finished / "distilled" / entry["file_name"]) as file:
            png = np.asarray(file)
        # Half a grey level is what rounding to 8 bits costs.
        assert np.abs(png / 255 - image).max() <= 0.5 / 255 + 1e-6


def test_run_leaves_pictures_metrics_and_provenance(finished):
    with Image.open(finished / "grid.png") as grid:
        # Ten pairs of a distilled and a real image.
        assert grid.size[0] >= 1920
        assert grid.size[1] > 900
    assert sorted(p.name for p in (finished / "progress").iterdir()) == [
        "step_000003.png",
        "step_000006.png",
    ]
    # All of so few steps.
    assert sorted(p.name for p in (finished / "timelapse").iterdir()) == [
        f"step_{step:06d}.webp" for step in range(7)
    ]
    with Image.open(finished / "timelapse.webp") as animation:
        assert animation.n_frames == 7
    with Image.open(finished / "card.png") as card:
        assert card.size == (1600, 900)
    page = (finished / "report.html").read_text()
    assert "Still distilling" not in page
    # Thumbnails of the map, and two orders of the classes.
    assert page.count('class="card"') == 10
    assert page.count('aria-pressed="false"') == 10 + 2
    assert page.count("data-said=") == 7
    # A browser breaks lines between words alone.
    command = "python launch.py --config=configs/quickstart.py:quick --workdir=quick"
    assert "</span> <span>".join(command.split()) in page
    assert str(finished.parent) not in page
    assert logged_steps(finished) == [1, 2, 3, 4, 5, 6]
    config = json.loads((finished / "config.json").read_text())
    assert config["config"]["steps"] == 6
    assert {"steps", "data.name"} & set(config["changed"]) == {"steps"}
    assert len(config["identity"]["data.fingerprint"]) == 64
    stages = json.loads((finished / "stages.json").read_text())
    assert len(stages) == 7
    for record in stages.values():
        (process,) = record["made_by"]
        assert process["versions"]["lgm_jax"] == lgm_jax.__version__
        assert process["devices"] == ["cpu"]
        assert process["attention"] == {"digits_contrastive": "xla"}
        weights = process["weights"]["digits_contrastive"]
        assert (weights["source"], weights["revision"]) == ("digits_contrastive", None)
        assert len(weights["sha256"]["model.safetensors"]) == 64


@pytest.mark.slow
def test_adam_probes_leave_their_learning_curves(run_copy):
    changes = ("solver=adam", "epochs=3", "full_epochs=2")
    arguments = [f"--config.probe.{change}" for change in changes]
    assert start(QUICK, *arguments, "--config.baselines=full", workdir=run_copy) == 0
    results = json.loads((run_copy / "results.json").read_text())
    rows = results["probe"]["digits_contrastive"]
    assert set(rows) == {"distilled", "full"}
    for method, epochs in (("distilled", 3), ("full", 2)):
        curve = rows[method]["loss_curve"]
        assert [epoch for epoch, _ in curve] == list(range(1, epochs + 1))
        # Of ten classes, of which an untrained head knows nothing.
        assert 1 < curve[0][1] < 4
    page = (run_copy / "report.html").read_text()
    assert "Training loss by epoch of 2 classifiers on digits_contrastive" in page


@pytest.mark.slow
def test_probes_that_cannot_differ_are_trained_once_and_depend_on_what_they_use(run_copy, capsys):
    exact = (QUICK, "--config.probe.augment=none")
    assert start(*exact, workdir=run_copy) == 0
    table = capsys.readouterr().out
    methods = json.loads((run_copy / "results.json").read_text())["probe"]["digits_contrastive"]
    for method, entry in methods.items():
        spread = method == "random"
        assert len(entry["top1_runs"]) == (2 if spread else 1)
        assert (entry["top1_std"] is not None) == spread
        line = f"{TITLES[method]}: {entry['top1_mean']:.1f} % on digits_contrastive, trained once"
        assert line in table or spread
    assert methods["random"]["top1_std"] > 0
    # The authors' code divides by the number of runs; nothing is trained for that.
    assert start(*exact, "--config.probe.ddof=0", workdir=run_copy) == 0
    assert "random real: done" in capsys.readouterr().out
    again = json.loads((run_copy / "results.json").read_text())["probe"]["digits_contrastive"]
    ratio = again["random"]["top1_std"] / methods["random"]["top1_std"]
    assert np.isclose(ratio, np.sqrt(1 / 2))
    assert "± 0.0" not in table
    assert "one run, so no spread was measured" in table
    # The order of runs, views and batches is nothing to them.
    changes = ("probe.views=3", "probe.batch=7", "probe.share_views=true", "probe.full_epochs=2")
    arguments = [f"--config.{change}" for change in changes]
    assert start(*exact, *arguments, workdir=run_copy) == 0
    text = capsys.readouterr().out
    for method in ("distilled", "random", "centroids", "neighbors"):
        assert f"{TITLES[method]}: done" in text
    assert "all real: done" not in text


@pytest.mark.slow
def test_validation_images_are_not_the_test_images(run_copy):
    before = json.loads((run_copy / "results.json").read_text())
    assert start(QUICK, "--config.probe.split=val", workdir=run_copy) == 0
    after = json.loads((run_copy / "results.json").read_text())
    full = [r["probe"]["digits_contrastive"]["full"]["top1_runs"] for r in (before, after)]
    # Accuracies are whole numbers of 360 and of 288 images.
    assert all(abs(a * 3.6 - round(a * 3.6)) < 1e-3 for a in full[0])
    assert all(abs(a * 2.88 - round(a * 2.88)) < 1e-3 for a in full[1])


@pytest.mark.parametrize("source", [slow("cached"), slow("exact")])
def test_real_features_can_be_computed_once(tmp_path, capsys, source):
    arguments = (QUICK, f"--config.real.source={source}", "--config.real.views=2")
    cache = f"--config.real.cache={tmp_path / 'cache'}"
    assert start(*arguments, cache, workdir=tmp_path / "first") == 0
    assert start(*arguments, cache, "--config.stages=distill", workdir=tmp_path / "second") == 0
    printed = capsys.readouterr().out
    assert "2 of each of 1149 images, 2298 embedded once; streaming would embed 60" in printed
    assert "note: for so few steps, real.source=stream embeds fewer images" in printed
    assert not (tmp_path / "first" / "features").exists()
    first, second = (
        np.load(tmp_path / name / "distilled" / "distilled.npz")["images"]
        for name in ("first", "second")
    )
    np.testing.assert_array_equal(first, second)
    refused = refuse(capsys, QUICK, cache, workdir=tmp_path / "first")
    assert "real.source" in refused


@pytest.mark.parametrize(
    ("objective", "source", "silent", "telling"),
    [
        slow("sfm", "exact", ("--config.head_std=3", "--config.clp.ridge=1"), "--config.copies=2"),
        slow("clp", "cached", ("--config.head_std=3",), "--config.clp.ridge=1"),
    ],
)
def test_rivals_run_and_depend_on_what_they_use(
    objective, source, silent, telling, tmp_path, capsys
):
    arguments = (
        QUICK,
        *(f"--config.objective={objective}", f"--config.real.source={source}"),
        *("--config.stages=distill,report", "--config.steps=2"),
    )
    assert start(*arguments, workdir=tmp_path) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["objective"] == objective
    said = {"ridge": 0.001, "temperature": 0.1, "head_per_copy": False}
    clp = said if objective == "clp" else None
    assert results["clp"] == clp
    capsys.readouterr()
    assert start(*arguments, *silent, workdir=tmp_path) == 0
    assert "2 steps are done" in capsys.readouterr().out
    name = telling.removeprefix("--config.").split("=")[0]
    assert f"{name} is" in refuse(capsys, *arguments, telling, workdir=tmp_path)


@pytest.mark.slow
def test_images_are_distilled_against_several_backbones(finished, tmp_path, capsys):
    both = "digits_contrastive,digits_distilled"
    arguments = (
        *(QUICK, f"--config.backbone.name={both}", "--config.stages=distill,report"),
        "--config.steps=2",
    )
    assert start(*arguments, workdir=tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["backbones"] == both.split(",")
    (made,) = json.loads((tmp_path / "run" / "stages.json").read_text())["distill"]["made_by"]
    assert list(made["weights"]) == both.split(",")
    # Weights that are equal are the default, whatever their size.
    capsys.readouterr()
    assert start(*arguments, "--config.backbone.weights=2,2", workdir=tmp_path / "run") == 0
    assert "2 steps are done" in capsys.readouterr().out
    weighted = (*arguments, "--config.backbone.weights=3,1")
    refused = refuse(capsys, *weighted, workdir=tmp_path / "run")
    assert "backbone.weights is 2,2 there, not 3,1" in refused
    assert "backbone.name is" in refuse(capsys, *arguments, workdir=finished)
    exact = (*weighted, "--config.objective=sfm", "--config.real.source=exact")
    assert start(*exact, workdir=tmp_path / "exact") == 0
    assert "1149 embedded once by each of 2 backbones" in capsys.readouterr().out


@pytest.mark.slow
def test_soft_labels_are_learned_probed_and_taken_along(tmp_path, capsys):
    arguments = (QUICK, "--config.probe.augment=none")
    learned = (*arguments, "--config.labels=soft", "--config.steps=4")
    own, other = tmp_path / "own", tmp_path / "other"
    assert start(*learned, "--config.stages=distill,probe,report", workdir=own) == 0
    soft = np.load(own / "distilled" / "distilled.npz")["probabilities"]
    assert soft.shape == (10, 10)
    assert len(np.unique(soft.round(5))) > 20
    results = [json.loads((own / "results.json").read_text())]
    assert results[0]["labels"] == {"kind": "soft", "bytes": 400}
    refused = refuse(capsys, *learned, "--config.labels_learning_rate=1", workdir=own)
    assert "labels_learning_rate is 0.01 there" in refused
    # Elsewhere they are the same labels, and without them another probe is trained.
    foreign = (*arguments, f"--config.images.source={own}", "--config.stages=probe,report")
    assert start(*foreign, workdir=other) == 0
    arrays = dict(np.load(own / "distilled" / "distilled.npz"))
    del arrays["probabilities"]
    np.savez(own / "distilled" / "distilled.npz", **arrays)
    assert start(*foreign, workdir=tmp_path / "hard") == 0
    results += [
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("other", "hard")
    ]
    assert results[1]["labels"] == results[0]["labels"]
    assert results[2]["labels"] == {"kind": "hard", "bytes": 40}
    heads = [r["probe"]["digits_contrastive"]["distilled"]["top1_runs"] for r in results]
    assert heads[0] == heads[1] != heads[2]


@pytest.mark.slow
def test_no_image_is_embedded_twice(tmp_path, monkeypatch):
    """Distillation, baselines and probes share one store, under one view of one draw each."""
    embedded, sizes = [], []
    embed, embed_places = features.embed, features.embed_places

    def spy_on_splits(backbone, split, *arguments, **options):
        sizes.append(len(split.labels))
        return embed(backbone, split, *arguments, **options)

    def spy_on_places(backbone, load, places, views, *arguments, **options):
        embedded.extend((sizes[-1], views, *map(int, place)) for place in places)
        return embed_places(backbone, load, places, views, *arguments, **options)

    monkeypatch.setattr(session_module, "embed", spy_on_splits)
    monkeypatch.setattr(features, "embed_places", spy_on_places)
    shared = ("--config.real.source=exact", "--config.augment.noise=0", "--config.real.views=2")
    probes = ("--config.probe.share_views=True", "--config.probe.views=2")
    assert start(QUICK, *shared, *probes, workdir=tmp_path / "run") == 0
    assert len(embedded) == len(set(embedded))
    assert len(embedded) > 1149 + 360
    views = {views for size, views, *_ in embedded if size == 1149}
    assert {v.count for v in views} == {1, 2}, "centre crops, and views for distillation and probe"


def test_copies_and_real_images_that_stay_centre_crops(tmp_path, capsys):
    crops = ("--config.augment.center_crops=1", "--config.augment.real=False")
    arguments = (QUICK, "--config.copies=2", "--config.real.source=exact")
    session = opened(tmp_path / "run", *arguments, *crops)
    assert session.task.center_crop_copies == 1
    assert not session.recipe.real.augmented
    assert session.identity["augment.center_crops"] == 1
    assert session.identity["augment.real"] is False
    real = session.real_features(session.backbone).whole()
    np.testing.assert_array_equal(real[0], session.features(session.backbone, "train"))
    assert "augment.center_crops" in refuse(capsys, *arguments, workdir=tmp_path / "run")
    many = refuse(capsys, QUICK, "--config.augment.center_crops=9", workdir=tmp_path / "w")
    assert "config.augment.center_crops is 9, but a step has" in many
    views = ("--config.real.source=exact", "--config.real.views=2", crops[1])
    assert "real.views is 2" in refuse(capsys, QUICK, *views, workdir=tmp_path / "w")
    head = ("--config.objective=clp", "--config.clp.head_per_copy=True")
    session = opened(tmp_path / "clp", *arguments, *head)
    assert session.task.objective.head_per_copy
    assert session.identity["clp.head_per_copy"] is True


@pytest.mark.slow
def test_costs_of_objectives_are_taken_in_turns(photos, tmp_path, monkeypatch):
    """On the host, and of fewer steps than are timed."""
    monkeypatch.setattr(costs, "TIMED_STEPS", 2)
    host = ("--config.data.placement=host", "--config.data.workers=0")
    where = f"--config.data.folder={photos}"
    session = opened(tmp_path, *FOLDER, where, *host, "--config.steps=1")
    found = costs.step_costs(session, ["lgm", "sfm", "clp"])
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(session.backbone.params))
    for cost in found.values():
        assert cost.seconds > 0
        assert weights < cost.num_bytes < weights + 2**26
    assert list(found) == ["lgm", "sfm", "clp"]


@pytest.mark.parametrize(
    ("kind", "init"),
    [
        *(("pyramid", "zero"), ("pyramid", "noise")),
        *(("pixels", "real"), ("pixels", "zero"), ("pixels", "noise")),
    ],
)
@pytest.mark.slow
def test_every_parametrisation_and_start_runs(kind, init, tmp_path):
    arguments = (f"--config.images.kind={kind}", f"--config.images.init={init}")
    arguments += ("--config.stages=distill", "--config.steps=2", "--config.ipc=2")
    assert start(QUICK, *arguments, workdir=tmp_path / "run") == 0
    images, labels, _ = lgm_jax.load_distilled(tmp_path / "run")
    assert images.shape == (20, 32, 32, 3)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]


def test_the_module_runs_recipes_by_name_from_any_folder(tmp_path):
    """A folder of somebody's own configs changes nothing."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "common.py").write_text("raise AssertionError")
    done = subprocess.run(
        [sys.executable, "-m", "lgm_jax", "--config=clip_in1k:nonsense", "--workdir=w"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*'nonsense'.*authors_2025.*\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "configs"]


def test_help_names_every_key_and_ends_well(capsys):
    assert start("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in common.KEYS)


@pytest.mark.slow
def test_program_runs_from_a_shell(run_copy):
    command = [sys.executable, "launch.py", "--config", "configs/quickstart.py:quick"]
    # Another probe of images that are there.
    command += ["--workdir", str(run_copy), "--config.probe.ridge=1"]
    command.append("--config.stages=distill,probe,report")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"^distilled: [\d.]+ % on digits_contrastive$", done.stdout, re.MULTILINE)
    assert "distilled, 1 per class" in done.stdout
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        f"lgm_jax {lgm_jax.__version__}",
        "digits: 1,149 images of 10 classes -> 10 images of 32 px",
    ]
    assert re.fullmatch(rf"10 images.*: open {run_copy}/report\.html", lines[-1])
    # Nothing is in bold where nobody sees it.
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    command[-1] = "--config.seed=-1"
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: config.seed")


@pytest.mark.slow
def test_workdir_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = f"--config={ROOT}/configs/quickstart.py:quick"
    assert start(config, "--config.stages=distill", workdir="runs/here") == 0
    assert (tmp_path / "runs" / "here" / "checkpoints" / "6").is_dir()


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_classes(tmp_path / "set", DIGITS)
    shutil.copytree(ROOT / "lgm_jax/backbones/weights/digits_distilled", tmp_path / "weights")
    config, workdir, *_ = launch.parse(["launch.py", QUICK, "--workdir=~/run"])
    config.images.source, config.stages = "~/set", "probe"
    config.backbone.name = config.eval_backbones = "~/weights"
    session = open_session(config, workdir, overwrite=False)
    assert session.backbone.name == "weights"
    assert (tmp_path / "run" / "config.json").is_file()
    assert str(tmp_path) not in (tmp_path / "run" / "config.json").read_text()
