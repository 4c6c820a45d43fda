"""Programs whose output is closed, full, or of few characters."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import write_run

from tests.marks import slow

ROOT = Path(__file__).parents[1]
QUICK = "--config=configs/quickstart.py:quick"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose name is not ASCII; not to be changed but for its page."""
    return Path(write_run(tmp_path_factory.mktemp("runs") / "é±…", steps=(10, 20)))


def start(*arguments, environment=(), **streams):
    """Starts a program in a shell's way; gives its exit code and what it said."""
    environment = dict(environment) or {"PYTHONIOENCODING": "utf-8"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        timeout=300,
        **streams,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        slow({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        slow({"PYTHONIOENCODING": "latin-1"}),
    ],
)
def test_what_an_output_cannot_show_is_written_in_other_characters(run, environment):
    code, out, err = start("-m", "lgm_jax.report", run, environment=environment)
    assert (code, err) == (0, b"")
    # The locale may have the argument's bytes decoded one by one.
    assert out.endswith(b"report.html\n")
    if environment.get("PYTHONIOENCODING") == "ascii":
        assert b"\\xe9+-.../report.html" in out


def test_unbuffered_output_comes_at_once():
    """`python -u`, as containers run it."""
    program = "from lgm_jax import terminal; import sys, time; terminal.prepare(); print('out')\n"
    program += "print('err', file=sys.stderr); time.sleep(600)"
    command = [sys.executable, "-u", "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    try:
        waiting = {process.stdout, process.stderr}
        while waiting:
            ready, _, _ = select.select(waiting, [], [], 300)
            assert ready, "nothing was said for five minutes"
            waiting -= set(ready)
        assert (process.stdout.readline(), process.stderr.readline()) == (b"out\n", b"err\n")
    finally:
        process.kill()
        process.communicate()


def test_a_closed_pipe_ends_a_program_quietly(run):
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = start("-m", "lgm_jax.report", run, stdout=writing)
    os.close(writing)
    assert (code, err) == (141, b"")


@pytest.mark.slow
def test_an_output_that_is_full_is_one_line(run):
    with open("/dev/full", "wb") as full:
        code, _, err = start("-m", "lgm_jax.report", run, stdout=full)
        assert code == 2
        assert err == b"error: cannot write to standard output: No space left on device\n"
        assert start("-m", "lgm_jax.report", run / "none", stderr=full)[0] == 2
        # What cannot be told is left out, and the program goes on.
        program = "from lgm_jax import terminal; import sys; terminal.prepare()\n"
        program += "print('err', file=sys.stderr, flush=True); print('out')"
        assert start("-c", program, stderr=full)[:2] == (0, b"out\n")


def test_closed_streams_are_no_files(run):
    """What is opened first would get the number of a stream that is closed, and be written to."""
    (run / "report.html").unlink()
    command = f"exec {sys.executable} -m lgm_jax.report '{run}' <&- >&- 2>&-"
    process = subprocess.run(["sh", "-c", command], cwd=ROOT, timeout=300)
    assert process.returncode == 0
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.slow
def test_a_run_that_nobody_reads_any_more_saves_first(tmp_path):
    command = [sys.executable, "launch.py", QUICK, "--config.stages=distill", "--config.steps=9999"]
    command += [f"--config.{key}=9999" for key in ("checkpoint_every", "image_every")]
    # As a short run does, so that the step is compiled already.
    command.append("--config.images.grow_every=1")
    process = subprocess.Popen(
        [*command, "--config.log_every=1", f"--workdir={tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while not process.stdout.readline().startswith("step 2/"):
            assert process.poll() is None, process.stderr.read()
        process.stdout.close()
        assert process.wait(timeout=300) == 141
        assert process.stderr.read() == ""
    assert [path.name.isdecimal() for path in (tmp_path / "checkpoints").iterdir()] == [True]
