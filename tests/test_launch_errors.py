"""What the program refuses, in one line each, and what it leaves as it was."""

import dataclasses
import fcntl
import gc
import os
import resource
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import lgm_jax
from lgm_jax import checkpoints, distill, locks, opening
from tests.launching import QUICK, ROOT, logged_steps, refuse, snapshot, start
from tests.marks import slow


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


def test_workdir_of_another_distillation_is_refused_by_key(run_copy, capsys):
    before = snapshot(run_copy)
    line = refuse(capsys, QUICK, "--config.seed=1", "--config.copies=2", workdir=run_copy)
    assert "seed is 0 there, not 1" in line
    assert "copies is 1 there, not 2" in line
    assert "--overwrite" in line
    assert snapshot(run_copy) == before


def test_fewer_steps_than_were_made_are_refused(run_copy, capsys):
    before = snapshot(run_copy / "distilled") | snapshot(run_copy / "checkpoints")
    line = refuse(capsys, QUICK, "--config.steps=2", workdir=run_copy)
    assert "6 steps" in line
    assert snapshot(run_copy / "distilled") | snapshot(run_copy / "checkpoints") == before


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


@pytest.mark.slow
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
    assert "continue from the last checkpoint" in line
    assert start(*arguments, workdir=run_copy) == 0
    assert "steps 6 to 8" in capsys.readouterr().out
    np.testing.assert_array_equal(lgm_jax.load_distilled(run_copy)[0], longer)


def test_checkpoints_that_fail_in_several_places_print_nothing(tmp_path, caplog, capfd):
    """Of six writes at once, some end before the first error is raised, and some after."""
    rows = tuple(jnp.arange(20_000.0) + level for level in range(6))
    state = distill.State(jnp.int32(0), {"images": rows}, {})
    checkpoints.quiet_storage()
    with checkpoints.Checkpoints(epath.Path(tmp_path / "compiled"), 1) as sound:
        sound.save(0, state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        for attempt in range(20):
            folder = epath.Path(tmp_path / str(attempt))
            with (
                pytest.raises(ValueError, match="File too large"),
                checkpoints.Checkpoints(folder, 1) as full,
            ):
                full.save(0, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert not caplog.records
    assert not capfd.readouterr().err


def test_writes_that_nobody_waits_for_are_not_told_of(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    for _ in range(2):
        checkpoints.quiet_storage()
    late, other = (
        types.SimpleNamespace(exc_value=RuntimeError(said), object=None)
        for said in ("Event loop is closed", "another")
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert told == [other]


def test_an_offset_of_positions_that_matters_is_named(finished, capsys, monkeypatch):
    load = opening.load_backbone
    moved = "--config.backbone.position_offset=0.1"

    def load_moved(*arguments):
        loaded = load(*arguments)
        settings = dataclasses.replace(loaded.settings, position_offset=0.1)
        return dataclasses.replace(loaded, settings=settings, fingerprint="moved")

    monkeypatch.setattr(opening, "load_backbone", load_moved)
    refused = refuse(capsys, QUICK, moved, workdir=finished)
    assert "backbone.position_offset is 0.0 there, not 0.1" in refused


def test_views_that_would_all_be_the_same_are_refused(tmp_path, capsys):
    changes = (
        "--config.real.source=exact",
        "--config.real.views=2",
        "--config.augment.preset=none",
    )
    message = refuse(capsys, "--config=configs/common.py", *changes, workdir=tmp_path / "w")
    assert "real.views is 2" in message


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("loss", ["the loss is nan at step 5: weights, pixels", "or a device made an error"]),
        slow("levels", ["no longer finite after step 4: ", "grown", "config.learning_rate=0.03"]),
    ],
)
def test_divergence_stops_the_run_and_keeps_the_last_sound_checkpoint(
    broken, words, finished, tmp_path, capsys, monkeypatch
):
    make_step = distill.make_step

    def make_broken_step(*arguments, **options):
        step = make_step(*arguments, **options)

        def broken_step(state, params, real):
            bad = jnp.where(state.step >= (4 if broken == "loss" else 3), jnp.nan, 0)
            after, found = step(state, params, real)
            if broken == "loss":
                return after, {"loss": found["loss"] + bad}
            spoiled = jax.tree.map(lambda leaf: leaf + bad, after.params)
            return after._replace(params=spoiled), found

        return broken_step

    monkeypatch.setattr(distill, "make_step", make_broken_step)
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


@pytest.mark.slow
def test_a_loss_that_nobody_waited_for_stops_the_run_at_its_step(tmp_path, capsys, monkeypatch):
    """Of a hundred steps, the timelapse has a frame of the 12th and of the 14th."""
    make_step, seen = distill.make_step, []

    def make_broken_step(*arguments, **options):
        step = make_step(*arguments, **options)

        def broken_step(state, params, real):
            bad = jnp.where(state.step == 12, jnp.nan, 0)
            after, found = step(state, params, real)
            seen.append(found)
            return after, {"loss": found["loss"] + bad}

        return broken_step

    monkeypatch.setattr(distill, "make_step", make_broken_step)
    every = ("--config.log_every=5", "--config.checkpoint_every=9", "--config.image_every=100")
    arguments = (QUICK, "--config.stages=distill", "--config.steps=100", *every)
    line = refuse(capsys, *arguments, workdir=tmp_path / "run")
    assert "the loss is nan at step 13: weights, pixels" in line
    assert "(seen in images that later steps have changed, up to step 14)" in line
    assert "checkpoint 9 is sound" in line
    assert logged_steps(tmp_path / "run") == [1, 5, 10]
    assert len(seen) == 14


def test_running_out_of_memory_names_what_to_lower(tmp_path, capsys, monkeypatch):
    def exhaust(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(distill, "make_step", lambda *_, **__: exhaust)
    where = {"workdir": tmp_path / "run"}
    arguments = (QUICK, "--config.stages=distill")
    line = refuse(capsys, *arguments, "--config.microbatch=10", **where)
    assert "out of memory in stage distill: lower config.microbatch, which was 10:" in line
    # What it says helps, or says something else.
    assert "start again with --config.microbatch=5" in line
    line = refuse(capsys, *arguments, "--config.microbatch=1", **where)
    assert "lower config.images.resolution: one view at a time does not fit" in line


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
