"""A run that is started again: what it repeats, what it skips, and what it is called."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import launch
import lgm_jax
from lgm_jax import memory
from lgm_jax.report import gallery
from lgm_jax.stages import distilling, progress
from tests.launching import QUICK, ROOT, commits, logged_steps, snapshot, start
from tests.marks import slow


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
    for name in ("report.html", "timelapse.webp", "card.png"):
        (run_copy / name).unlink()
        assert start(QUICK, workdir=run_copy) == 0
        assert (run_copy / name).exists()
    assert "learn from all 1,149 real images" in (run_copy / "report.html").read_text()
    # So is the folder of the pictures, where they do not fit the page.
    monkeypatch.setattr(gallery, "MOST_CLASSES", 5)
    assert start(QUICK, workdir=run_copy) == 0
    assert 'src="report/distilled/00000.webp"' in (run_copy / "report.html").read_text()
    assert (run_copy / "report" / "distilled" / "00000.webp").is_file()


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.usefixtures("later")
@pytest.mark.slow
def test_finished_run_that_went_on_and_was_killed_is_finished_still(run_copy, monkeypatch):
    results, made_by = (run_copy / "results.json").read_bytes(), commits(run_copy, "distill")
    write_page = progress.write_unfinished_page

    def write_and_die(*arguments):
        write_page(*arguments)
        raise Killed

    monkeypatch.setattr(progress, "write_unfinished_page", write_and_die)
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
@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.usefixtures("later")
def test_more_steps_continue_as_if_never_stopped(finished, run_copy, longer):
    ((_, first),) = commits(run_copy, "distill")
    assert start(QUICK, "--config.steps=8", "--config.stages=distill", workdir=run_copy) == 0
    continued, shorter = (lgm_jax.load_distilled(folder)[0] for folder in (run_copy, finished))
    np.testing.assert_array_equal(continued, longer)
    assert not np.array_equal(continued, shorter)
    assert logged_steps(run_copy) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert commits(run_copy, "distill") == [(0, first), (6, "later")]


@pytest.mark.slow
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
    # Another kernel of attention has other needs.
    text = stages.read_text()
    stages.write_text(text.replace('"digits_contrastive": "xla"', '"digits_contrastive": "cudnn"'))
    assert stages.read_text() != text
    assert start(QUICK, "--config.steps=9", "--config.stages=distill", workdir=run_copy) == 0
    assert begun()[-1] == (8, 10)


@pytest.mark.slow
def test_products_alone_are_kept_where_all_does_not_fit(finished, tmp_path, capsys, monkeypatch):
    asked = []

    def choose_size(view_bytes, free, views):
        asked.append(view_bytes)
        return views - 1 if len(asked) == 1 else views

    monkeypatch.setattr(memory, "choose_size", choose_size)
    arguments = (QUICK, "--config.stages=distill")
    assert start(*arguments, workdir=tmp_path / "run") == 0
    assert "10 views at a time, products with weights kept" in capsys.readouterr().out
    whole, products = asked
    assert products < whole
    np.testing.assert_allclose(
        lgm_jax.load_distilled(tmp_path / "run")[0], lgm_jax.load_distilled(finished)[0], atol=1e-3
    )
    assert start(*arguments, "--config.steps=7", workdir=tmp_path / "run") == 0
    assert "10 views at a time, products with weights kept" in capsys.readouterr().out
    assert len(asked) == 2
    made_by = json.loads((tmp_path / "run" / "stages.json").read_text())["distill"]["made_by"]
    assert [(made["microbatch"], made["residuals"]) for made in made_by] == [(10, "products")] * 2


@pytest.mark.slow
def test_lost_output_is_made_again(run_copy, finished):
    (run_copy / "stages.json").unlink()
    shutil.rmtree(run_copy / "distilled")
    shutil.rmtree(run_copy / "checkpoints" / "6")
    assert start(QUICK, "--config.stages=distill,report", workdir=run_copy) == 0
    np.testing.assert_array_equal(
        lgm_jax.load_distilled(run_copy)[0], lgm_jax.load_distilled(finished)[0]
    )


@pytest.mark.slow
def test_a_run_too_short_to_grow_goes_on_as_it_began(tmp_path, capsys):
    command = ["launch.py", "--config=configs/quickstart.py:quick", "--config.stages=distill"]
    for steps in (3, 5):
        arguments = [*command, f"--workdir={tmp_path / 'run'}", f"--config.steps={steps}"]
        assert launch.main(arguments) == 0
    said = capsys.readouterr().out
    assert "continues with images.grow_every=0, as it began" in said
    assert "steps 3 to 5" in said


@pytest.mark.slow
def test_overwrite_starts_anew_and_keeps_what_is_not_ours(run_copy, finished):
    (run_copy / "notes.txt").write_text("mine")
    arguments = (QUICK, "--config.seed=1", "--overwrite", "--config.stages=distill")
    assert start(*arguments, workdir=run_copy) == 0
    assert (run_copy / "notes.txt").read_text() == "mine"
    new, old = (lgm_jax.load_distilled(folder)[0] for folder in (run_copy, finished))
    assert not np.array_equal(new, old)


def test_overwrite_keeps_the_same_distillation(run_copy, capsys):
    assert start(QUICK, "--overwrite", workdir=run_copy) == 0
    assert "6 steps are done" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage", [slow("truncated"), "bits", slow("emptied"), slow("other numbers")]
)
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


@pytest.mark.slow
def test_damaged_features_are_computed_again(run_copy, capsys):
    shards = sorted(run_copy.glob("features/**/*.npy"))
    before = [shard.read_bytes() for shard in shards]
    assert shards
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    launch.main(["launch.py", QUICK, f"--workdir={run_copy}", "--config.probe.ridge=1"])
    assert "is damaged; its features are computed again" in capsys.readouterr().out
    assert [shard.read_bytes() for shard in shards] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGUSR1), slow(signal.SIGINT)])
def test_signal_saves_and_the_next_start_goes_on(number, finished, tmp_path, capsys, monkeypatch):
    class Signalled(distilling.StepProgress):
        def advance(self):
            if self._start == 0:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(distilling, "StepProgress", Signalled)
    expected = 130 if number == signal.SIGINT else 75
    assert start(QUICK, "--config.stages=distill", workdir=tmp_path / "run") == expected
    assert capsys.readouterr().err == (f"interrupted by {number.name}: start again to continue\n")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]
    assert start(QUICK, "--config.stages=distill", workdir=tmp_path / "run") == 0
    np.testing.assert_array_equal(
        lgm_jax.load_distilled(tmp_path / "run")[0], lgm_jax.load_distilled(finished)[0]
    )


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


def test_command_of_the_module_is_recorded_as_such():
    argv = ["site-packages/lgm_jax/recipes/launch.py", "--config=quickstart", "--workdir=w"]
    assert launch.recorded_command(argv) == "python -m lgm_jax --config=quickstart --workdir=w"


def test_command_is_recorded_without_what_is_about_one_start():
    argv = ["launch.py", "--config=../c.py:quick", "--overwrite", "--config.stages=probe,report"]
    argv += ["--distributed", "10.0.0.1:9876", "--num_processes=2", "-process_id=1"]
    argv += ["--config.stages", "report", "--nooverwrite", "--config.seed", "-1", "--workdir=w"]
    argv += ["--config.backbone.name=../../me/w,a..b", "--config.data.folder", "/home/me/photos"]
    assert launch.recorded_command(argv) == (
        "python launch.py --config=../c.py:quick --config.seed -1 --workdir=w "
        "--config.backbone.name=../../me/w,a..b --config.data.folder=/home/me/photos"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "variable",
    [
        "XDG_CACHE_HOME",
        "JAX_COMPILATION_CACHE_DIR",
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
        steps = (tmp_path / folders[variable]).glob("jit_update-*-cache")
        kept.append([path.name for path in steps])
        images.append(lgm_jax.load_distilled(workdir)[0])
    assert len(kept[0]) == 1
    assert kept[0] == kept[1]
    np.testing.assert_array_equal(*images)
