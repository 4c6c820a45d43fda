"""Folders under any name that the file system takes."""

import json
import os
import string
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from run_folders import write_run

import launch
import lgm_jax
from lgm_jax import runs
from lgm_jax.checkpoints import Checkpoints
from lgm_jax.distill import State
from lgm_jax.errors import UserError
from lgm_jax.profiling import StepTrace
from lgm_jax.report.page import write_page
from lgm_jax.report.view import read_run
from tests.marks import slow

QUICK = "--config=configs/quickstart.py:quick"

# Whatever can be typed, and what cannot.
PRINTABLE = [f"a{c}b" for c in string.printable if c != "/"]
WHOLE = [
    *("[1]", "x[0:2]", "{a}", "{a,b}", "%41", "a::b", "-a", "~", "**", "$HOME", " a ", "a.", "..."),
    *("é", "e\u0301", "\N{GRINNING FACE}", "a" * 255, os.fsdecode(b"\xff\xfe")),
]
# One each of those that tensorstore, Orbax, str.format and UTF-8 stumble over.
WORST = ["a#?%|\\", "[1]", "{a}", "a\nb", os.fsdecode(b"\xff\xfe")]


def a_state(step):
    rows = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)
    return State(jnp.int32(step), {"images": (rows,)}, {"images": (rows + 1,)})


@pytest.mark.parametrize("names", [WORST, slow([*PRINTABLE, *WHOLE])])
def test_checkpoints_are_read_again_from_a_folder_of_any_name(names, tmp_path):
    for name in names:
        folder = epath.Path(tmp_path / name / "checkpoints")
        with Checkpoints(folder, keep=2) as checkpoints:
            checkpoints.save(3, a_state(3))
        assert (Path(folder) / "3").is_dir(), name
        with Checkpoints(folder, keep=2) as checkpoints:
            assert checkpoints.latest_step() == 3, name
            restored = checkpoints.restore(a_state(0))
        images, expected = (state.params["images"] for state in (restored, a_state(3)))
        np.testing.assert_array_equal(images[0], expected[0], err_msg=name)


@pytest.mark.slow
def test_a_run_of_any_name_starts_goes_on_and_is_reported(tmp_path, capfd):
    name = "".join(WORST)
    workdir, stages = tmp_path / name, "--config.stages=distill,report"
    arguments = [QUICK, stages, "--config.checkpoint_every=1", "--config.track=tensorboard"]
    arguments += [f"--workdir={workdir}", f"--config.real.cache={tmp_path / 'cache' / name}"]
    assert launch.main(["launch.py", *arguments, "--config.steps=2"]) == 0
    assert launch.main(["launch.py", *arguments, "--config.steps=3"]) == 0
    said = capfd.readouterr()
    assert "steps 2 to 3" in said.out
    assert "damaged" not in said.out
    assert "left out" not in said.out
    assert len(list((tmp_path / "cache" / name).rglob("*.npy"))) > 0
    assert sorted(path.name for path in workdir.parent.iterdir()) == sorted({name, "cache"})
    images, _, _ = lgm_jax.load_distilled(workdir)
    assert len(images) == 10
    config = json.loads((workdir / runs.CONFIG).read_text(encoding="utf-8"))
    assert config["command"].startswith("python launch.py")
    assert (workdir / runs.PAGE).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_is_written_anew_from_a_folder_of_any_name(tmp_path):
    for name in WORST:
        folder = write_run(tmp_path / name, ipc=1, steps=(10, 20))
        page = write_page(read_run(folder), [read_run(folder)])
        assert page.read_bytes().decode("utf-8").count("compare.html") > 0, name


@pytest.mark.parametrize("name", WORST)
def test_a_trace_is_written_to_a_folder_of_any_name(name, tmp_path):
    with StepTrace(epath.Path(tmp_path / name), steps=1) as trace:
        for i in range(4):
            trace.advance(jnp.ones(3) + i)
    assert len(list((tmp_path / name).rglob("perfetto_trace.json.gz"))) == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_needed_and_cannot_be_made(there, tmp_path, monkeypatch):
    """The folder for temporary files has such a name itself, or is not there."""
    odd = tmp_path / "odd#"
    if there:
        odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with pytest.raises(UserError, match=r"needs a link .*set TMPDIR to a plain name"):
        Checkpoints(epath.Path(tmp_path / "run#"), keep=1)
    Checkpoints(epath.Path(tmp_path / "plain"), keep=1).__exit__(None, None, None)


def test_without_a_home_a_tilde_is_refused(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match="no home folder is known"):
        runs.check_run("~/runs/x", {}, overwrite=False)


@pytest.mark.parametrize("address", ["x://y", "nothing://bucket/runs"])
def test_an_address_that_nothing_reads_is_refused(address):
    with pytest.raises(UserError, match="no folder, and no address"):
        runs.check_run(address, {}, overwrite=False)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("gs://", "it names no bucket"),
        ("gs://bucket/run", "Please install gcsfs to access Google Storage"),
    ],
)
def test_an_address_that_cannot_be_read_is_one_line(address, said, monkeypatch, capsys):
    kind = type(epath.Path())
    exists = kind.exists

    def ask(path):
        if "://" in os.fspath(path):
            raise ImportError("Please install gcsfs\nto access Google Storage")
        return exists(path)

    monkeypatch.setattr(kind, "exists", ask)
    assert launch.main(["launch.py", QUICK, f"--workdir={address}"]) == 2
    assert capsys.readouterr().err == (
        f"error: {address} is no folder, and no address that can be read here: {said}\n"
    )
