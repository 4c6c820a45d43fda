"""The program as a person starts it: what it writes, what it skips, what it refuses."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import launch
import lgm_jax
from configs import common
from lgm_jax import checkpoints, distill, features, locks, runs, stages
from lgm_jax import session as session_module
from lgm_jax.report import gallery
from lgm_jax.session import open_session

QUICK = "--config=configs/quickstart.py:quick"
ROOT = Path(__file__).parents[1]


def start(*arguments, workdir=None):
    """Runs the program in this process; gives its exit code."""
    where = [f"--workdir={workdir}"] if workdir else []
    return launch.main(["launch.py", *map(str, arguments), *where])


def refuse(capsys, *arguments, workdir=None):
    """Runs the program, which must refuse with one line and exit code 2; gives the line."""
    capsys.readouterr()
    assert start(*arguments, workdir=workdir) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err), captured.err
    return captured.err


def snapshot(folder):
    """Content and modification time of every file."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def logged_steps(workdir):
    """The step of each line of metrics.jsonl."""
    return [
        json.loads(line)["step"]
        for line in (workdir / "metrics.jsonl").read_text().split("\n")
        if line
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished quick run."""
    workdir = tmp_path_factory.mktemp("run") / "quick"
    assert start(QUICK, workdir=workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """The images of the same distillation with two more steps, made in one go."""
    workdir = tmp_path_factory.mktemp("run") / "longer"
    assert start(QUICK, "--config.steps=8", "--config.stages=distill", workdir=workdir) == 0
    return lgm_jax.load_distilled(workdir)[0]


@pytest.fixture
def run_copy(finished, tmp_path):
    """A finished quick run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of random photos, 6 of each of 2 classes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 255, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")
    return folder


def test_results_have_the_documented_schema(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results) == {
        *("version", "dataset", "ipc", "objective", "num_classes", "steps", "seed"),
        *("final_loss", "backbones", "seconds", "skipped_images", "probe", "clp", "labels"),
        *("pyramid", "test_images"),
    }
    assert results["labels"] == {"kind": "hard", "bytes": 40}
    assert (results["objective"], results["clp"]) == ("lgm", None)
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
        }
        # L-BFGS has no epochs.
        assert entry["loss_curve"] is None
        assert len(entry["top1_runs"]) == 2
        assert np.isclose(entry["top1_mean"], np.mean(entry["top1_runs"]))
        assert 0 <= entry["top1_mean"] <= entry["top5_mean"] <= 100


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
        assert grid.size[0] > 4 * 128
        assert grid.size[1] > 5 * 128
    assert sorted(p.name for p in (finished / "progress").iterdir()) == [
        "step_000003.png",
        "step_000006.png",
    ]
    assert sorted(p.name for p in (finished / "timelapse").iterdir()) == [
        "step_000000.webp",
        "step_000003.webp",
        "step_000006.webp",
    ]
    with Image.open(finished / "timelapse.webp") as animation:
        assert animation.n_frames == 3
    page = (finished / "report.html").read_text()
    assert "Still distilling" not in page
    assert page.count('class="card"') == page.count('aria-pressed="false"') == 10
    assert page.count("data-said=") == 3
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
        weights = process["weights"]["digits_contrastive"]
        assert (weights["source"], weights["revision"]) == ("digits_contrastive", None)
        assert len(weights["sha256"]["model.safetensors"]) == 64


@pytest.fixture
def later(monkeypatch):
    """Pretends to be a later process on another machine."""
    monkeypatch.setattr(runs, "provenance", lambda: {"commit": "later"})


def commits(workdir, stage):
    """The steps from which processes contributed to a stage, with their commits."""
    made_by = json.loads((workdir / "stages.json").read_text())[stage]["made_by"]
    return [(made.get("from_step"), made["commit"]) for made in made_by]


@pytest.mark.usefixtures("later")
def test_second_start_repeats_nothing(run_copy, capsys, monkeypatch):
    def made():
        pages = [run_copy / name for name in ("report.html", "gallery.npz", "results.json")]
        written = {page.name: page.stat().st_mtime_ns for page in pages}
        return snapshot(run_copy / "distilled") | snapshot(run_copy / "checkpoints") | written

    before = made()
    stages = json.loads((run_copy / "stages.json").read_text())
    assert start(QUICK, workdir=run_copy) == 0
    assert "6 steps are done" in capsys.readouterr().out
    assert made() == before
    assert json.loads((run_copy / "stages.json").read_text()) == stages
    # What is gone of the report is made again.
    for name in ("report.html", "timelapse.webp"):
        (run_copy / name).unlink()
        assert start(QUICK, workdir=run_copy) == 0
        assert (run_copy / name).exists()
    assert "10 images in place of 1,149" in (run_copy / "report.html").read_text()
    # So is the folder of the pictures, where they do not fit the page.
    monkeypatch.setattr(gallery, "_MOST_CLASSES", 5)
    assert start(QUICK, workdir=run_copy) == 0
    assert 'src="report/distilled/00000.webp"' in (run_copy / "report.html").read_text()
    assert (run_copy / "report" / "distilled" / "00000.webp").is_file()


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.usefixtures("later")
def test_finished_run_that_went_on_and_was_killed_is_finished_still(run_copy, monkeypatch):
    results, made_by = (run_copy / "results.json").read_bytes(), commits(run_copy, "distill")
    write_page = stages.write_unfinished_page

    def write_and_die(*arguments):
        write_page(*arguments)
        raise Killed

    monkeypatch.setattr(stages, "write_unfinished_page", write_and_die)
    with pytest.raises(Killed):
        start(QUICK, "--config.steps=9", workdir=run_copy)
    assert "Still distilling: step 9 of 9" in (run_copy / "report.html").read_text()
    assert start(QUICK, workdir=run_copy) == 0
    page = (run_copy / "report.html").read_text()
    assert "Still distilling" not in page
    assert "at step 6." in page
    assert json.loads((run_copy / "results.json").read_bytes()) == json.loads(results)
    assert commits(run_copy, "distill") == made_by


@pytest.mark.usefixtures("later")
def test_changed_probe_key_keeps_the_distillation_and_who_made_it(run_copy):
    before, made_by = snapshot(run_copy / "distilled"), commits(run_copy, "distill")
    assert start(QUICK, "--config.probe.epochs=3", workdir=run_copy) == 0
    assert snapshot(run_copy / "distilled") == before
    assert commits(run_copy, "distill") == made_by
    assert commits(run_copy, "probe/distilled/digits_contrastive") == [(None, "later")]
    assert commits(run_copy, "report") == [(None, "later")]
    # Its epochs are of their own.
    assert commits(run_copy, "baselines/full/digits_contrastive") != [(None, "later")]
    results = json.loads((run_copy / "results.json").read_text())
    assert results["probe"]["digits_contrastive"]["distilled"]["epochs"] == 3


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


@pytest.mark.usefixtures("later")
def test_more_steps_continue_as_if_never_stopped(finished, run_copy, longer):
    ((_, first),) = commits(run_copy, "distill")
    assert start(QUICK, "--config.steps=8", "--config.stages=distill", workdir=run_copy) == 0
    continued, shorter = (lgm_jax.load_distilled(folder)[0] for folder in (run_copy, finished))
    np.testing.assert_array_equal(continued, longer)
    assert not np.array_equal(continued, shorter)
    assert logged_steps(run_copy) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert commits(run_copy, "distill") == [(0, first), (6, "later")]


def test_microbatches_are_chosen_recorded_and_used_again(run_copy, finished, capsys):
    def begun():
        made_by = json.loads((run_copy / "stages.json").read_text())["distill"]["made_by"]
        return [(made["from_step"], made["microbatch"]) for made in made_by]

    # Ten images in one copy each: all of them.
    assert begun() == [(0, 10)]
    stages = run_copy / "stages.json"
    stages.write_text(stages.read_text().replace('"microbatch": 10', '"microbatch": 3'))
    capsys.readouterr()
    assert start(QUICK, "--config.steps=7", "--config.stages=distill", workdir=run_copy) == 0
    assert "steps 6 to 7, 3 views at a time" in capsys.readouterr().out
    more = ("--config.steps=8", "--config.microbatch=4", "--config.stages=distill")
    assert start(QUICK, *more, workdir=run_copy) == 0
    assert begun() == [(0, 3), (6, 3), (7, 4)]


def test_lost_output_is_made_again(run_copy, finished):
    (run_copy / "stages.json").unlink()
    shutil.rmtree(run_copy / "distilled")
    shutil.rmtree(run_copy / "checkpoints" / "6")
    assert start(QUICK, "--config.stages=distill,report", workdir=run_copy) == 0
    np.testing.assert_array_equal(
        lgm_jax.load_distilled(run_copy)[0], lgm_jax.load_distilled(finished)[0]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["--config="]),
        (("--config=configs/quickstrat.py",), ["configs/quickstrat.py", "configs/quickstart.py"]),
        (("--config=README.md",), ["README.md", "get_config"]),
        (("--config=configs/quickstart.py:fast",), ["fast", "quick"]),
        ((QUICK,), ["--workdir"]),
        ((QUICK, "--config.stepz=1", "--workdir=w"), ["stepz", "steps"]),
        ((QUICK, "--config.images=1", "--workdir=w"), ["images"]),
        ((QUICK, "--config.steps=many", "--workdir=w"), ["config.steps", "many"]),
        ((QUICK, "--config.steps=1.5", "--workdir=w"), ["config.steps", "1.5"]),
        ((QUICK, "--config.steps=-1", "--workdir=w"), ["config.steps", "-1"]),
        ((QUICK, "--config.steps=" + "9" * 30, "--workdir=w"), ["config.steps"]),
        ((QUICK, "--config.ipc=0", "--workdir=w"), ["config.ipc", "0"]),
        ((QUICK, "--config.ipc=5000", "--workdir=w"), ["config.ipc", "5000", "smallest class"]),
        ((QUICK, "--config.microbatch=0", "--workdir=w"), ["config.microbatch", "0"]),
        ((QUICK, "--config.learning_rate=nan", "--workdir=w"), ["learning_rate", "nan"]),
        ((QUICK, "--config.objective=lgmm", "--workdir=w"), ["lgmm", "lgm"]),
        ((QUICK, "--config.backbone.name=digits_contrastive,digits_contrastive", "--workdir=w"),
         ["names digits_contrastive twice"]),
        ((QUICK, "--config.backbone.weights=1,2", "--workdir=w"),
         ["2 numbers", "1 backbones"]),
        ((QUICK, "--config.backbone.weights=much", "--workdir=w"), ["backbone.weights", "much"]),
        ((QUICK, "--config.backbone.weights=0", "--workdir=w"), ["backbone.weights", "above 0"]),
        ((QUICK, "--config.backbone.name=digits_contrastive,digits_distilled",
          "--config.backbone.revision=main", "--workdir=w"), ["revision is for one backbone"]),
        ((QUICK, "--config.backbone.name=digits_contrastive,nope", "--workdir=w"), ["nope"]),
        ((QUICK, "--config.labels=softer", "--workdir=w"), ["softer", "soft"]),
        ((QUICK, "--config.clp.ridge=0", "--workdir=w"), ["config.clp.ridge", "1e-06"]),
        ((QUICK, "--config.clp.temperature=nan", "--workdir=w"), ["clp.temperature", "nan"]),
        ((QUICK, "--config.images.init=real", "--workdir=w"), ["images.kind=pixels"]),
        ((QUICK, "--config.images.resolution=16", "--workdir=w"), ["images.resolution", "crop"]),
        ((QUICK, "--config.images.crop=20", "--workdir=w"), ["images.crop=20", "a patch of 8 px"]),
        ((QUICK, "--config.augment.scale_min=1", "--config.augment.scale_max=0.5", "--workdir=w"),
         ["scale_min", "scale_max"]),
        ((QUICK, "--config.backbone.name=digit_contrastive", "--workdir=w"),
         ["digit_contrastive", "did you mean digits_contrastive"]),
        ((QUICK, "--config.eval_backbones=nope", "--workdir=w"), ["nope", "digits_contrastive"]),
        ((QUICK, "--config.probe.augment=fresh", "--workdir=w"), ["lbfgs", "probe.augment"]),
        ((QUICK, "--config.probe.full_augment=fresh", "--workdir=w"), ["lbfgs", "full_augment"]),
        ((QUICK, "--config.backbone.name=", "--workdir=w"), ["config.backbone.name is empty"]),
        ((QUICK, "--config.backbone.name=~/nope", "--workdir=w"), ["nope", "there is no folder"]),
        ((QUICK, "--config.objective=a\nb", "--workdir=w"), ["objective"]),
        ((QUICK, "--config.probe.runs=1000000", "--workdir=w"), ["probe.runs", "1000"]),
        ((QUICK, "--config.seed", "-1", "--workdir=w"), ["config.seed", "-1"]),
        ((QUICK, "--config.seed=1", "-1", "--workdir=w"), ["'1'"]),
        ((QUICK, "--flagfile=nowhere", "--workdir=w"), ["--flagfile", "--workdir"]),
        (("--config=configs", "--workdir=w"), ["configs/quickstart.py"]),
        (("--config=configs/common.py:quick", "--workdir=w"), ["cannot be loaded", "get_config()"]),
        ((QUICK, "--config.stages=distil", "--workdir=w"), ["distil", "distill"]),
        ((QUICK, "--config.stages=,", "--workdir=w"), ["config.stages", "empty"]),
        ((QUICK, "--config.data.name=folder", "--workdir=w"), ["--config.data.folder"]),
        ((QUICK, "--config.data.name=folder", "--config.data.folder=nowhere", "--workdir=w"),
         ["nowhere"]),
        ((QUICK, "--workdri=w"), ["--workdri", "--workdir"]),
        ((QUICK, "extra", "--workdir=w"), ["extra"]),
        ((QUICK, "--workdir"), ["workdir"]),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_one_line_and_leaves_no_trace(
    arguments, words, capsys, tmp_path, monkeypatch
):
    for name in ("configs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    line = refuse(capsys, *arguments)
    assert all(word in line for word in words), line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "configs"]


def test_workdir_of_another_distillation_is_refused_by_key(run_copy, capsys):
    before = snapshot(run_copy)
    line = refuse(capsys, QUICK, "--config.seed=1", "--config.copies=2", workdir=run_copy)
    assert "seed is 0 there, not 1" in line
    assert "copies is 1 there, not 2" in line
    assert "--overwrite" in line
    assert snapshot(run_copy) == before


def test_a_run_too_short_to_grow_goes_on_as_it_began(tmp_path, capsys):
    command = ["launch.py", "--config=configs/quickstart.py:quick", "--config.stages=distill"]
    for steps in (3, 5):
        arguments = [*command, f"--workdir={tmp_path / 'run'}", f"--config.steps={steps}"]
        assert launch.main(arguments) == 0
    said = capsys.readouterr().out
    assert "goes on with images.grow_every=0, as it began" in said
    assert "steps 3 to 5" in said


def test_fewer_steps_than_were_made_are_refused(run_copy, capsys):
    before = snapshot(run_copy / "distilled") | snapshot(run_copy / "checkpoints")
    line = refuse(capsys, QUICK, "--config.steps=2", workdir=run_copy)
    assert "6 steps" in line
    assert snapshot(run_copy / "distilled") | snapshot(run_copy / "checkpoints") == before


def test_overwrite_starts_anew_and_keeps_what_is_not_ours(run_copy, finished):
    (run_copy / "notes.txt").write_text("mine")
    arguments = (QUICK, "--config.seed=1", "--overwrite", "--config.stages=distill")
    assert start(*arguments, workdir=run_copy) == 0
    assert (run_copy / "notes.txt").read_text() == "mine"
    new, old = (lgm_jax.load_distilled(folder)[0] for folder in (run_copy, finished))
    assert not np.array_equal(new, old)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('one\\ntwo')", "ValueError: one two"),
        ("return 1 / 0", "ZeroDivisionError"),
        ("return 3", "ConfigDict"),
        ("return common.missing", "AttributeError"),
        ("config = common.get_config(); config.ipc = 'three'; return config", "ipc"),
        ("config = common.get_config(); config.images = 3; return config", "images"),
        ("config = common.get_config().unlock(); config.foo = 3; return config", "foo"),
        ("config = common.get_config().unlock(); del config.ipc; return config", "no ipc"),
        ("return )", "SyntaxError"),
    ],
)
def test_bad_config_file_is_refused(body, words, tmp_path, capsys):
    file = tmp_path / "recipe.py"
    file.write_text(f"from configs import common\ndef get_config(): {body}\n")
    assert words in refuse(capsys, f"--config={file}", workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overwrite_keeps_the_same_distillation(run_copy, capsys):
    assert start(QUICK, "--overwrite", workdir=run_copy) == 0
    assert "6 steps are done" in capsys.readouterr().out


def test_workdir_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refuse(capsys, QUICK, workdir=tmp_path / "file")
    assert "Not a directory" in refuse(capsys, QUICK, workdir=tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_workdir_with_foreign_files_of_our_names_is_refused(tmp_path, capsys):
    (tmp_path / "grid.png").write_text("mine")
    assert "grid.png" in refuse(capsys, QUICK, workdir=tmp_path)
    assert (tmp_path / "grid.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("stages.json", "steps=8", "stages.json is damaged"),
        ("config.json", "steps=8", "config.json is damaged"),
        ("metrics.jsonl", "steps=8", "metrics.jsonl is damaged"),
        ("checkpoints/*/state/manifest.ocdbt", "steps=8", "checkpoints is sound: delete it"),
        ("distilled/distilled.npz", "probe.ridge=1", "distilled.npz is damaged"),
    ],
)
def test_damaged_file_of_a_run_is_named(run_copy, capsys, name, change, words):
    files = list(run_copy.glob(name))
    assert files
    for file in files:
        file.write_bytes(b"{")
    assert words in refuse(capsys, QUICK, f"--config.{change}", workdir=run_copy)


@pytest.mark.parametrize("damage", ["truncated", "bits", "emptied", "other numbers"])
def test_damaged_checkpoint_gives_way_to_the_one_before(run_copy, longer, capsys, damage):
    """The steps since then are made again, and the images are those of a run without the fault."""
    newest = run_copy / "checkpoints" / "6"
    if damage == "other numbers":
        (metadata,) = newest.glob("check/metadata")
        metadata.write_text('{"checksum": 1}')
    for path in (newest / "state").glob("**/d/*"):
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(
            {
                "truncated": whole[:middle],
                "bits": whole[:middle] + bytes(b ^ 1 for b in whole[middle:]),
                "emptied": b"",
                "other numbers": whole,
            }[damage]
        )
    arguments = (QUICK, "--config.steps=8", "--config.stages=distill")
    assert start(*arguments, workdir=run_copy) == 0
    assert "note: the checkpoint of step 6 is damaged and not used" in capsys.readouterr().out
    np.testing.assert_array_equal(lgm_jax.load_distilled(run_copy)[0], longer)
    assert [begun for begun, _ in commits(run_copy, "distill")] == [0, 3]
    assert sorted(path.name for path in (run_copy / "checkpoints").iterdir()) == ["6", "8"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_saves_and_the_next_start_goes_on(number, finished, tmp_path, capsys, monkeypatch):
    class Signalled(stages.StepProgress):
        def advance(self):
            if self._start == 0:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(stages, "StepProgress", Signalled)
    expected = 130 if number == signal.SIGINT else 75
    assert start(QUICK, "--config.stages=distill", workdir=tmp_path / "run") == expected
    assert capsys.readouterr().err == (f"interrupted by {number.name}: start again to go on\n")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]
    assert start(QUICK, "--config.stages=distill", workdir=tmp_path / "run") == 0
    np.testing.assert_array_equal(
        lgm_jax.load_distilled(tmp_path / "run")[0], lgm_jax.load_distilled(finished)[0]
    )


def test_second_launch_into_one_workdir_is_refused(run_copy, capsys):
    with (run_copy / locks.NAME).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = snapshot(run_copy)
        assert "another process is using workdir" in refuse(capsys, QUICK, workdir=run_copy)
        assert snapshot(run_copy) == before
    assert start(QUICK, workdir=run_copy) == 0


def test_full_disk_is_one_line(run_copy, capsys):
    """Writing to this device fails as writing to a full disk does."""
    (run_copy / "metrics.jsonl.tmp").symlink_to("/dev/full")
    line = refuse(capsys, QUICK, "--config.steps=8", workdir=run_copy)
    assert "no space is left for workdir" in line
    (run_copy / "metrics.jsonl.tmp").unlink()
    assert start(QUICK, "--config.steps=8", "--config.stages=distill", workdir=run_copy) == 0
    assert logged_steps(run_copy) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_checkpoint_without_space_is_one_line(run_copy, longer, capsys):
    """No file may grow as large as a checkpoint's; Orbax would tell of it at length."""
    arguments = (QUICK, "--config.steps=8", "--config.stages=distill")
    limited = (
        "import resource, sys, launch; limits = resource.getrlimit(resource.RLIMIT_FSIZE); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1])); "
        "sys.exit(launch.main(sys.argv))"
    )
    command = [sys.executable, "-c", limited, *arguments, "--config.checkpoint_every=1"]
    # JAX would warn that it cannot keep what it compiled: it is to try never.
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
    process = subprocess.run(
        [*command, f"--workdir={run_copy}"], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: no space is left for workdir")
    assert "go on from the last checkpoint" in line
    assert start(*arguments, workdir=run_copy) == 0
    assert "steps 6 to 8" in capsys.readouterr().out
    np.testing.assert_array_equal(lgm_jax.load_distilled(run_copy)[0], longer)


def test_writes_that_nobody_waits_for_are_not_told_of(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    for _ in range(2):
        checkpoints.quiet_storage()
    late, other = (
        types.SimpleNamespace(exc_value=RuntimeError(said))
        for said in ("Event loop is closed", "another")
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert told == [other]


def test_damaged_features_are_computed_again(run_copy, capsys):
    shards = sorted(run_copy.glob("features/**/*.npy"))
    before = [shard.read_bytes() for shard in shards]
    assert shards
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    launch.main(["launch.py", QUICK, f"--workdir={run_copy}", "--config.probe.ridge=1"])
    assert "is damaged; its features are computed again" in capsys.readouterr().out
    assert [shard.read_bytes() for shard in shards] == before


@pytest.mark.parametrize("source", ["cached", "exact"])
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
        ("sfm", "exact", ("--config.head_std=3", "--config.clp.ridge=1"), "--config.copies=2"),
        ("clp", "cached", ("--config.head_std=3",), "--config.clp.ridge=1"),
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


def test_a_run_is_named_by_what_is_not_the_default_and_decides_its_images(finished):
    identity = json.loads((finished / "config.json").read_text())["identity"]
    assert len(identity.pop("backbone.fingerprint")) == len(identity.pop("data.fingerprint")) == 64
    assert identity == {
        "seed": 0,
        "num_classes": 10,
        "images.resolution": 32,
        "images.crop": 32,
        "copies": 1,
        "learning_rate": 0.03,
        "images.init": "zero",
        "images.grey": True,
        "images.start_resolution": 4,
        "images.grow_every": 1,
        "augment.flip": 0,
        "augment.scale": [0.6, 1],
    }


def test_command_is_recorded_without_what_is_about_one_start():
    argv = ["launch.py", "--config=../c.py:quick", "--overwrite", "--config.stages=probe,report"]
    argv += ["--distributed", "10.0.0.1:9876", "--num_processes=2", "-process_id=1"]
    argv += ["--config.stages", "report", "--nooverwrite", "--config.seed", "-1", "--workdir=w"]
    argv += ["--config.backbone.name=../../me/w,a..b", "--config.data.folder", "/home/me/photos"]
    assert launch.recorded_command(argv) == (
        "python launch.py --config=../c.py:quick --config.seed -1 --workdir=w "
        "--config.backbone.name=../../me/w,a..b --config.data.folder=/home/me/photos"
    )


def test_an_offset_of_positions_that_matters_is_named(finished, capsys, monkeypatch):
    load = session_module._load_backbone
    moved = "--config.backbone.position_offset=0.1"

    def load_moved(*arguments):
        return dataclasses.replace(load(*arguments), position_offset=0.1, fingerprint="moved")

    monkeypatch.setattr(session_module, "_load_backbone", load_moved)
    refused = refuse(capsys, QUICK, moved, workdir=finished)
    assert "backbone.position_offset is 0.0 there, not 0.1" in refused


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


def test_no_image_is_embedded_twice(tmp_path, monkeypatch):
    """Distillation, baselines and probes share one store, under one view of one draw each."""
    embedded = []

    def spy(backbone, split, views, key, rows, mesh):
        embedded.extend((len(split.labels), views, int(row)) for row in rows)
        return compute(backbone, split, views, key, rows, mesh)

    compute = features._embed_rows
    monkeypatch.setattr(features, "_embed_rows", spy)
    shared = ("--config.real.source=exact", "--config.augment.noise=0", "--config.real.views=2")
    probes = ("--config.probe.share_views=True", "--config.probe.views=2")
    assert start(QUICK, *shared, *probes, workdir=tmp_path / "run") == 0
    assert len(embedded) == len(set(embedded))
    views = {crop for size, crop, _ in embedded if size == 1149}
    assert {v.count for v in views} == {1, 2}, "centre crops, and views for distillation and probe"


def test_views_that_would_all_be_the_same_are_refused(tmp_path, capsys):
    changes = (
        "--config.real.source=exact",
        "--config.real.views=2",
        "--config.augment.preset=none",
    )
    message = refuse(capsys, "--config=configs/common.py", *changes, workdir=tmp_path / "w")
    assert "real.views is 2" in message


def opened(workdir, *arguments):
    """The session of a command line."""
    config, *_ = launch.parse(["launch.py", *arguments, f"--workdir={workdir}"])
    return open_session(config, common.flatten(config), str(workdir), overwrite=False)


def test_copies_and_real_images_that_stay_centre_crops(tmp_path, capsys):
    crops = ("--config.augment.center_crops=1", "--config.augment.real=False")
    arguments = (QUICK, "--config.copies=2", "--config.real.source=exact")
    session = opened(tmp_path / "run", *arguments, *crops)
    assert (session.recipe.center_crop_copies, session.recipe.augment_real) == (1, False)
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
    assert session.recipe.head_per_copy
    assert session.identity["clp.head_per_copy"] is True


def test_costs_of_objectives_are_taken_in_turns(photos, tmp_path, monkeypatch):
    """On the host, and of fewer steps than are timed."""
    monkeypatch.setattr(stages, "_TIMED_STEPS", 2)
    host = ("--config.data.placement=host", "--config.data.workers=0")
    where = f"--config.data.folder={photos}"
    session = opened(tmp_path, *FOLDER, where, *host, "--config.steps=1")
    costs = stages.step_costs(session, ["lgm", "sfm", "clp"])
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(session.backbone.params))
    for cost in costs.values():
        assert cost.seconds > 0
        assert weights < cost.num_bytes < weights + 2**26
    assert list(costs) == ["lgm", "sfm", "clp"]


def test_folder_of_photos_runs_to_the_end(photos, tmp_path):
    arguments = (
        "--config=configs/dinov2_folder.py:quick",
        f"--config.data.folder={photos}",
        "--config.copies=2",
    )
    assert start(*arguments, workdir=tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    entry = results["probe"]["digits_contrastive"]["distilled"]
    assert results["num_classes"] == 2
    assert entry["top5_mean"] is None
    assert str(photos) not in (tmp_path / "run" / "results.json").read_text()
    assert (tmp_path / "run" / "grid.png").is_file()


def test_bad_folders_are_refused(photos, tmp_path, capsys):
    def attempt(folder):
        config = "--config=configs/dinov2_folder.py:quick"
        return refuse(capsys, config, f"--config.data.folder={folder}", workdir=tmp_path / "run")

    broken = Path(shutil.copytree(photos, tmp_path / "broken"))
    image = next((broken / "dog").iterdir())
    for image in (broken / "dog").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    assert "cannot read image" in attempt(broken)
    assert image.parent.name in attempt(broken)
    hollow = Path(shutil.copytree(photos, tmp_path / "hollow"))
    (hollow / "ant").mkdir()
    (hollow / "ant" / "film.mp4").write_text("no photo")
    assert "class 'ant' has no images in" in attempt(hollow)
    (tmp_path / "empty").mkdir()
    assert "empty" in attempt(tmp_path / "empty")


def test_overwrite_throws_away_nothing_before_the_new_images_were_read(photos, tmp_path, capsys):
    config = ("--config=configs/dinov2_folder.py:quick", "--config.stages=distill")
    workdir = tmp_path / "run"
    assert start(*config, f"--config.data.folder={photos}", workdir=workdir) == 0
    before = snapshot(workdir)
    for split in ("train", "test"):
        folder = tmp_path / split
        for name in ("train", "test"):
            shutil.copytree(photos, folder / name)
        for image in (folder / split / "dog").iterdir():
            image.write_bytes(image.read_bytes()[:200])
        arguments = (*config, f"--config.data.folder={folder}", "--overwrite")
        assert f"{split}/dog" in refuse(capsys, *arguments, workdir=workdir)
        assert snapshot(workdir) == before
    train = f"--config.data.folder={tmp_path / 'train'}"
    refuse(capsys, *config, train, workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["pixels", "pyramid"])
@pytest.mark.parametrize("init", ["noise", "zero", "real"])
def test_every_parametrisation_and_start_runs(kind, init, tmp_path):
    if (kind, init) == ("pyramid", "real"):
        return
    arguments = (f"--config.images.kind={kind}", f"--config.images.init={init}")
    arguments += ("--config.stages=distill", "--config.steps=2", "--config.ipc=2")
    assert start(QUICK, *arguments, workdir=tmp_path / "run") == 0
    images, labels, _ = lgm_jax.load_distilled(tmp_path / "run")
    assert images.shape == (20, 32, 32, 3)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]


def test_foreign_images_are_probed(finished, tmp_path, capsys):
    """The PNGs alone, without our arrays, score like the run they come from, but for rounding."""
    pngs = tmp_path / "pngs"
    shutil.copytree(finished / "distilled", pngs, ignore=shutil.ignore_patterns("distilled.npz"))
    arguments = (QUICK, f"--config.images.source={pngs}", "--config.probe.epochs=20")
    assert "stages" in refuse(capsys, *arguments, workdir=tmp_path / "run")
    stages = "--config.stages=probe,baselines,report"
    assert start(*arguments, stages, workdir=tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["backbones"] == []
    assert results["steps"] is None
    own = shutil.copytree(finished, tmp_path / "own")
    # A few steps leave little contrast, and what 8 bits do to that is not what is asked here.
    arrays = dict(np.load(own / "distilled" / "distilled.npz"))
    arrays["images"] = np.round(arrays["images"] * 255).astype(np.uint8).astype(np.float32) / 255
    np.savez(own / "distilled" / "distilled.npz", **arrays)
    assert start(QUICK, "--config.probe.epochs=20", workdir=own) == 0
    expected = json.loads((own / "results.json").read_text())
    for method in ("random", "centroids", "distilled"):
        ours, theirs = (
            r["probe"]["digits_contrastive"][method]["top1_mean"] for r in (expected, results)
        )
        assert ours == pytest.approx(theirs, abs=1e-4)
    other = Path(shutil.copytree(pngs, tmp_path / "nine"))
    shutil.rmtree(other / "9_nine")
    refused = refuse(
        capsys, QUICK, stages, f"--config.images.source={other}", workdir=tmp_path / "run2"
    )
    assert "9 classes" in refused


DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def open_source(folder, workdir, ipc=1):
    """The foreign images that a session of the quick recipe would evaluate."""
    config, *_ = launch.parse(["launch.py", QUICK, f"--workdir={workdir}"])
    config.images.source, config.stages, config.ipc = str(folder), "probe", ipc
    return open_session(config, common.flatten(config), str(workdir), overwrite=False).source


def write_classes(folder, names, count=1):
    """A folder of PNGs per class; image `i` is of grey level `10 i`."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((32, 32, 3), 10 * i, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (DIGITS, "class name"),
        # A prefix that is wrong for this data set: the names know better.
        ([f"{(i + 3) % 10}_{name}" for i, name in enumerate(DIGITS)], "class name"),
        ([f"{i}_{name}" for i, name in enumerate("abcdefghij")], "<label>_<name> folders"),
    ],
)
def test_foreign_labels_follow_the_rule_that_is_printed(names, rule, tmp_path, capsys):
    source = open_source(write_classes(tmp_path / "set", names), tmp_path / "run")
    brightness = source.images.mean(axis=(1, 2, 3)) * 25.5
    np.testing.assert_allclose(brightness, source.labels, atol=1e-4)
    assert f"10 images, labels by {rule}" in capsys.readouterr().out


def test_metadata_labels_decide_where_no_name_is_known(tmp_path, capsys):
    folder = write_classes(tmp_path / "set", "jihgfedcba")
    lines = [{"file_name": f"{name}/0.png", "label": i} for i, name in enumerate("jihgfedcba")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(folder, tmp_path / "run")
    brightness = source.images.mean(axis=(1, 2, 3)) * 25.5
    np.testing.assert_allclose(brightness, source.labels, atol=1e-4)
    assert "labels by metadata.jsonl, since no class name matches: j is zero, i is one" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([*DIGITS[:9], "neun"], ["neun there", "nine here"]),
        ([f"{i}_{name}" for i, name in enumerate(["null", *DIGITS[1:]])], ["null", "zero"]),
        (list("abcdefghij"), ["a, b, c, d, e and 5 more", "<label>_<name>"]),
    ],
)
def test_foreign_classes_that_do_not_fit_are_named(names, words, tmp_path, capsys):
    folder = write_classes(tmp_path / "set", names)
    arguments = (QUICK, "--config.stages=probe", f"--config.images.source={folder}")
    line = refuse(capsys, *arguments, workdir=tmp_path / "run")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_foreign_images_need_as_many_per_class_as_the_config_says(tmp_path, capsys):
    folder = write_classes(tmp_path / "set", DIGITS, count=2)
    assert len(open_source(folder, tmp_path / "run", ipc=2).labels) == 20
    arguments = (QUICK, "--config.stages=probe", f"--config.images.source={folder}")
    assert "--config.ipc=2" in refuse(capsys, *arguments, workdir=tmp_path / "run2")
    (folder / "nine" / "0.png").unlink()
    assert "1 to 2 images" in refuse(capsys, *arguments, workdir=tmp_path / "run2")


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_classes(tmp_path / "set", DIGITS)
    shutil.copytree(ROOT / "lgm_jax/backbones/weights/digits_distilled", tmp_path / "weights")
    config, workdir, *_ = launch.parse(["launch.py", QUICK, "--workdir=~/run"])
    config.images.source, config.stages = "~/set", "probe"
    config.backbone.name = config.eval_backbones = "~/weights"
    session = open_session(config, common.flatten(config), workdir, overwrite=False)
    assert session.backbone.name == "weights"
    assert (tmp_path / "run" / "config.json").is_file()
    assert str(tmp_path) not in (tmp_path / "run" / "config.json").read_text()


def test_probes_that_cannot_differ_are_trained_once_and_depend_on_what_they_use(run_copy, capsys):
    exact = (QUICK, "--config.probe.augment=none")
    assert start(*exact, workdir=run_copy) == 0
    table = capsys.readouterr().out
    methods = json.loads((run_copy / "results.json").read_text())["probe"]["digits_contrastive"]
    for method, entry in methods.items():
        spread = method == "random"
        assert len(entry["top1_runs"]) == (2 if spread else 1)
        assert (entry["top1_std"] is not None) == spread
        assert (f"{method}: {entry['top1_mean']:.1f} % on digits_contrastive, trained once") in (
            table
        ) or spread
    assert methods["random"]["top1_std"] > 0
    # The authors' code divides by the number of runs; nothing is trained for that.
    assert start(*exact, "--config.probe.ddof=0", workdir=run_copy) == 0
    assert "random: done" in capsys.readouterr().out
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
        assert f"{method}: done" in text
    assert "full: done" not in text


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("loss", ["the loss is nan at step 5: weights, pixels", "or a device made an error"]),
        ("levels", ["no longer finite after step 4: ", "grown", "config.learning_rate=0.03"]),
    ],
)
def test_divergence_stops_the_run_and_keeps_the_last_sound_checkpoint(
    broken, words, finished, tmp_path, capsys, monkeypatch
):
    make_step = distill.make_step_along

    def make_broken_step(*arguments, **options):
        step = make_step(*arguments, **options)

        def broken_step(state, params, source):
            after, loss = step(state, params, source)
            bad = jnp.where(state.step >= (4 if broken == "loss" else 3), jnp.nan, 0)
            if broken == "loss":
                return after, loss + bad
            return after._replace(levels=tuple(v + bad for v in after.levels)), loss

        return broken_step

    monkeypatch.setattr(distill, "make_step_along", make_broken_step)
    arguments = (QUICK, "--config.stages=distill")
    line = refuse(capsys, *arguments, workdir=tmp_path / "run")
    assert all(word in line for word in words)
    assert "checkpoint 3 is sound" in line
    assert ("config.learning_rate" in line) == (broken == "levels")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]
    assert all(step < 5 for step in logged_steps(tmp_path / "run"))
    assert not (tmp_path / "run" / "distilled").exists()
    monkeypatch.undo()
    assert start(*arguments, workdir=tmp_path / "run") == 0
    np.testing.assert_array_equal(
        lgm_jax.load_distilled(tmp_path / "run")[0], lgm_jax.load_distilled(finished)[0]
    )


def test_running_out_of_memory_names_what_to_lower(tmp_path, capsys, monkeypatch):
    def exhaust(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(distill, "make_step_along", lambda *_, **__: exhaust)
    line = refuse(capsys, QUICK, "--config.stages=distill", workdir=tmp_path / "run")
    assert "out of memory in stage distill: lower config.microbatch" in line


def test_probing_nothing_is_refused(tmp_path, capsys):
    line = refuse(capsys, QUICK, "--config.stages=probe", workdir=tmp_path / "run")
    assert "add distill to config.stages" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["probe", "baselines", "report"])
def test_overwrite_without_anything_instead_is_refused(run_copy, capsys, stage):
    before = snapshot(run_copy)
    arguments = (QUICK, "--config.seed=1", "--overwrite", f"--config.stages={stage}")
    assert "add distill to config.stages" in refuse(capsys, *arguments, workdir=run_copy)
    assert snapshot(run_copy) == before


def test_validation_images_are_not_the_test_images(run_copy):
    before = json.loads((run_copy / "results.json").read_text())
    assert start(QUICK, "--config.probe.split=val", workdir=run_copy) == 0
    after = json.loads((run_copy / "results.json").read_text())
    full = [r["probe"]["digits_contrastive"]["full"]["top1_runs"] for r in (before, after)]
    # Accuracies are whole numbers of 360 and of 288 images.
    assert all(abs(a * 3.6 - round(a * 3.6)) < 1e-3 for a in full[0])
    assert all(abs(a * 2.88 - round(a * 2.88)) < 1e-3 for a in full[1])


def test_workdir_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = f"--config={ROOT}/configs/quickstart.py:quick"
    assert start(config, "--config.stages=distill", workdir="runs/here") == 0
    assert (tmp_path / "runs" / "here" / "checkpoints" / "6").is_dir()


def test_help_names_every_key_and_ends_well(capsys):
    assert start("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in common.KEYS)


def test_program_runs_from_a_shell(run_copy):
    command = [sys.executable, "launch.py", "--config", "configs/quickstart.py:quick"]
    # Another probe of images that are there.
    command += ["--workdir", str(run_copy), "--config.probe.ridge=1"]
    command.append("--config.stages=distill,probe,report")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"^distilled: [\d.]+ % on digits_contrastive$", done.stdout, re.MULTILINE)
    assert "distilled, 1 per class" in done.stdout
    assert done.stderr == ""
    command[-1] = "--config.seed=-1"
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: config.seed")


@pytest.mark.parametrize(
    "variable",
    [
        "XDG_CACHE_HOME",
        pytest.param("JAX_COMPILATION_CACHE_DIR", marks=pytest.mark.slow),
    ],
)
def test_compiled_programs_are_kept_for_the_next_start(variable, tmp_path):
    command = [sys.executable, "launch.py", QUICK, "--config.stages=distill"]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment[variable] = str(tmp_path / "kept")
    # Whatever the machine's speed.
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    folders = {"XDG_CACHE_HOME": "kept/lgm_jax/compiled", "JAX_COMPILATION_CACHE_DIR": "kept"}
    kept, images = [], []
    for name in ("first", "second"):
        workdir = tmp_path / name
        done = subprocess.run(
            [*command, f"--workdir={workdir}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        steps = (tmp_path / folders[variable]).glob("jit_step-*-cache")
        kept.append([path.name for path in steps])
        images.append(lgm_jax.load_distilled(workdir)[0])
    assert len(kept[0]) == 1
    assert kept[0] == kept[1]
    np.testing.assert_array_equal(*images)


def write_waterbirds(folder, rows):
    """A set in WILDS' layout; the label shows in the red channel, the place in the blue one."""
    lines = ["img_id,img_filename,y,split,place"]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, (y, split, place) in enumerate(rows):
        pixels = rng.integers(0, 60, (36, 40, 3)) + np.asarray([150 * y, 0, 150 * place])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i},{i}.png,{y},{split},{place}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_groups_and_worst_group_are_reported(tmp_path):
    # No waterbird on land among the test images.
    test = [(0, 2, 0)] * 3 + [(0, 2, 1)] * 2 + [(1, 2, 1)] * 5
    rows = [(y, split, place) for split in (0, 1) for y in (0, 1) for place in (0, 1)] * 2 + test
    folder = write_waterbirds(tmp_path / "birds", rows)
    data = ("--config.data.name=waterbirds", f"--config.data.folder={folder}")
    workdir = tmp_path / "run"
    assert start(QUICK, *data, "--config.stages=baselines,report", workdir=workdir) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert results["skipped_images"] == {}
    for entry in results["probe"]["digits_contrastive"].values():
        assert set(entry["groups"]) == {
            "landbird on land",
            "landbird on water",
            "waterbird on water",
        }
        sizes = {"landbird on land": 3, "landbird on water": 2, "waterbird on water": 5}
        whole = sum(entry["groups"][name] * size for name, size in sizes.items()) / 10
        assert np.isclose(whole, entry["top1_mean"], rtol=1e-5)
        assert entry["worst_group"] <= min(entry["groups"].values()) + 1e-6
    counts = json.loads((workdir / "config.json").read_text())["data"]["counts"]
    assert counts["test"]["classes"] == {"landbird": 5, "waterbird": 5}


def test_bad_images_are_listed_when_skipped_and_stop_a_run_otherwise(
    photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    (folder / "cat" / "6.jpg").write_bytes((folder / "cat" / "5.jpg").read_bytes()[:300])
    options = (QUICK, "--config.data.name=folder", f"--config.data.folder={folder}")
    options += ("--config.stages=baselines,report",)
    assert f"cannot read image {folder}/cat/6.jpg" in refuse(
        capsys, *options, workdir=tmp_path / "stopped"
    )
    skip = "--config.data.on_bad_image=skip"
    assert start(*options, skip, workdir=tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert re.search(r"note: photos: 1 \w+ images cannot be read and are left out: cat/6", printed)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["skipped_images"].values()) == [["cat/6.jpg"]]


def test_tuning_on_images_that_a_benchmark_does_not_have_is_refused(tmp_path, capsys):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            (tmp_path / split / wnid).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32)).save(tmp_path / split / wnid / f"{i}.JPEG")
    options = (QUICK, "--config.data.name=imagenet", f"--config.data.folder={tmp_path}")
    line = refuse(capsys, *options, "--config.probe.split=val", workdir=tmp_path / "run")
    assert "imagenet has no val images" in line
    assert "set --config.data.val_fraction=" in line


# Streaming images from the host.

FOLDER = (QUICK, "--config.data.name=folder", "--config.stages=distill", "--config.steps=4")


def distilled_from(folder, workdir, *arguments):
    """The images of a quick run that streams photos."""
    where = f"--config.data.folder={folder}"
    assert start(*FOLDER, where, *arguments, workdir=workdir) == 0
    return lgm_jax.load_distilled(workdir)[0]


@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
def test_placement_on_host_and_device_distil_the_same_images(photos, tmp_path, sampling, capsys):
    how = ("--config.data.crop=center", f"--config.data.sampling={sampling}", "--config.copies=3")
    held = distilled_from(photos, tmp_path / "device", *how)
    assert "read by" not in capsys.readouterr().out
    host = (*how, "--config.data.placement=host", "--config.data.workers=0")
    np.testing.assert_array_equal(distilled_from(photos, tmp_path / "host", *host), held)
    assert "real images: 6 of 8 a step, read by threads" in capsys.readouterr().out


def test_streaming_from_the_host_resumes_by_the_step_alone(photos, tmp_path):
    # Growth follows the steps, unless it is set.
    host = ("--config.data.placement=host", "--config.images.grow_every=1")
    here = (*host, "--config.data.workers=0")
    whole = distilled_from(photos, tmp_path / "whole", *here)
    distilled_from(photos, tmp_path / "parts", *here, "--config.steps=3")
    # By other workers, and with random crops.
    parts = distilled_from(photos, tmp_path / "parts", *host, "--config.data.workers=1")
    np.testing.assert_array_equal(parts, whole)
    center = distilled_from(photos, tmp_path / "center", *here, "--config.data.crop=center")
    assert not np.array_equal(center, whole)


def test_placement_follows_the_size_of_the_data(photos, tmp_path, capsys, monkeypatch):
    def run(*arguments):
        where = f"--config.data.folder={photos}"
        code = start(*FOLDER, where, "--config.data.workers=0", *arguments, workdir=tmp_path / "w")
        return code, capsys.readouterr()

    # Eight training images of 32 px take 24,576 bytes.
    monkeypatch.setattr(session_module, "_ON_DEVICE_LIMIT", 24_575)
    monkeypatch.setattr(session_module, "_MEMORY_LIMIT", 24_575)
    code, captured = run("--config.data.placement=device")
    assert code == 2
    assert re.fullmatch(r"error: [^\n]*--config\.data\.placement=host\n", captured.err)
    fresh = ("--config.probe.solver=adam", "--config.probe.augment=fresh")
    code, captured = run("--config.stages=distill,baselines", *fresh)
    assert code == 2
    assert re.fullmatch(
        r"error: [^\n]*--config\.probe\.full_augment=views or none[^\n]*\n", captured.err
    )
    assert not (tmp_path / "w").exists()
    code, captured = run()
    assert code == 0
    assert "read by threads" in captured.out
    # The crops are other ones on the device.
    monkeypatch.undo()
    code, captured = run()
    assert code == 2
    assert "data.crop" in captured.err


def test_random_crops_need_the_host(photos, tmp_path, capsys):
    where = f"--config.data.folder={photos}"
    line = refuse(capsys, *FOLDER, where, "--config.data.crop=random", workdir=tmp_path / "w")
    assert "--config.data.placement=host" in line
    host = (*FOLDER, where, "--config.data.placement=host", "--config.augment.real=False")
    line = refuse(capsys, *host, "--config.data.crop=random", workdir=tmp_path / "w")
    assert "config.augment.real=False" in line
    # Images that are not augmented are not cropped anywhere either.
    assert opened(tmp_path / "kept", *host).crop == "center"
    assert opened(tmp_path / "random", *host[:-1]).crop == "random"


def test_balanced_batches_are_another_distillation(photos, tmp_path, capsys):
    distilled_from(photos, tmp_path / "w")
    where = f"--config.data.folder={photos}"
    balanced = "--config.data.sampling=balanced"
    assert "data.sampling" in refuse(capsys, *FOLDER, where, balanced, workdir=tmp_path / "w")


def test_an_image_that_breaks_while_streaming_ends_the_run_with_its_name(photos, tmp_path):
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    for image in (folder / "dog").iterdir():
        image.write_bytes(b"no image")
    command = [sys.executable, "launch.py", *FOLDER, f"--config.data.folder={folder}"]
    command += ["--config.data.placement=host", "--config.data.workers=2", "--config.copies=8"]
    command += [f"--workdir={tmp_path / 'w'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert re.fullmatch(r"error: cannot read image [^\n]*/dog/\d\.jpg: [^\n]*\n", done.stderr)
