"""Several processes in one run, each of one CPU device, over loopback, as a person starts them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
import lgm_jax
from lgm_jax import devices, hosts
from tests.marks import heavy

ROOT = Path(__file__).parents[1]
QUICK = "--config=configs/quickstart.py:quick"
DISTILL = "--config.stages=distill"

# Images after a few steps, two processes against one. Measured: 1.2e-5 after ten steps.
ROUNDING = 1e-3


@contextlib.contextmanager
def started(count, workdir, *arguments):
    """Starts one run of `count` processes, which are killed in the end if they still live."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        name: value for name, value in os.environ.items() if "_proxy" not in name.lower()
    }
    command = [sys.executable, "launch.py", QUICK, f"--workdir={workdir}", *arguments]
    processes = []
    try:
        for number in range(count):
            meeting = [f"--distributed={address}", f"--num_processes={count}"]
            meeting += [f"--process_id={number}"]
            process = subprocess.Popen(
                [*command, *(meeting if count > 1 else [])],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def finish(processes):
    """Waits for all; gives exit codes, and what each said on stdout and stderr once they met."""
    said = [process.communicate(timeout=900) for process in processes]
    met = [(out, re.sub(r"^waiting for .*\n", "", err)) for out, err in said]
    return [process.returncode for process in processes], met


def run(count, workdir, *arguments):
    """Runs all to the end, which must be a good one; gives what process 0 printed."""
    with started(count, workdir, *arguments) as processes:
        codes, said = finish(processes)
    assert codes == [0] * count, said
    assert [out for out, _ in said[1:]] == [""] * (count - 1)
    return said[0][0]


def newest_checkpoint(workdir):
    folders = (workdir / "checkpoints").glob("*")
    return max((int(path.name) for path in folders if path.name.isdigit()), default=None)


def await_checkpoint(workdir, processes):
    """Waits until a checkpoint is written and the run goes on."""
    deadline = time.monotonic() + 600
    while newest_checkpoint(workdir) is None:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


def images(workdir):
    return lgm_jax.load_distilled(workdir)[0]


@pytest.mark.slow
def test_two_processes_read_one_batch_and_one_goes_on(tmp_path, capsys):
    arguments = [DISTILL, "--config.data.placement=host", "--config.data.workers=0"]
    # By itself it would follow the steps, of which there are two numbers.
    arguments.append("--config.images.grow_every=1")
    together = run(2, tmp_path / "two", *arguments, "--config.steps=3")
    assert "steps 0 to 3, 2 devices, 2 processes" in together
    # This process is the one that goes on, and the one that is never two.
    for workdir, steps in (("two", "steps 3 to 5"), ("one", "steps 0 to 5")):
        alone = ["launch.py", QUICK, f"--workdir={tmp_path / workdir}", *arguments]
        assert launch.main([*alone, "--config.steps=5"]) == 0
        assert steps in capsys.readouterr().out
    np.testing.assert_allclose(
        images(tmp_path / "two"), images(tmp_path / "one"), rtol=0, atol=ROUNDING
    )


@pytest.mark.slow
def test_what_process_0_refuses_ends_all_with_one_line(tmp_path):
    tmp_path.joinpath("run").mkdir()
    with (tmp_path / "run" / ".lock").open("a") as lock, started(2, tmp_path / "run") as processes:
        fcntl.flock(lock, fcntl.LOCK_EX)
        codes, said = finish(processes)
    assert codes == [2, 2]
    assert said[1] == ("", "")
    assert said[0][1].startswith("error: another process is using workdir")
    assert said[0][1].count("\n") == 1


LEAVES = """
import os, sys, time
from lgm_jax import hosts, meeting

number, late = int(sys.argv[2]), sys.argv[3]
if number == 1 and late == "hears":
    hosts._LISTEN_SECONDS = 12.0
if number == 1 and late == "leaves":
    ends = os._exit
    os._exit = lambda code: (time.sleep(3), ends(code))
with hosts.joined(meeting.Meeting(sys.argv[1], 2, number)):
    if number == 0:
        hosts.leave(2, "error: refused")
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("late", ["hears", "leaves"])
def test_process_0_outlasts_another_that_is_late(late):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVES, address, str(number), late],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    codes, said = finish(processes)
    assert codes == [2, 2], said
    assert said == [("", "error: refused\n"), ("", "")]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--distributed=here"], "must be off, auto or HOST:PORT"),
        (["--distributed=host:0"], "must be off, auto or HOST:PORT"),
        (["--distributed=host:99999"], "must be off, auto or HOST:PORT"),
        (["--distributed=host:80"], "needs --num_processes=P and --process_id=I"),
        (["--distributed=host:80", "--num_processes=2"], "needs --num_processes=P"),
        (["--distributed=host:80", "--num_processes=2", "--process_id=2"], "not 2 of 2"),
        (["--distributed=host:80", "--num_processes=two"], "num_processes"),
        (["--num_processes=2"], "--num_processes is for --distributed=HOST:PORT"),
        (["--distributed=auto", "--process_id=0"], "--process_id is for --distributed=HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, reason, tmp_path, capsys):
    assert launch.main(["launch.py", QUICK, f"--workdir={tmp_path / 'run'}", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert reason in said
    assert not (tmp_path / "run").exists()


def test_one_process_joins_and_fetches_as_it_divides():
    mesh, rows = devices.make_mesh(), np.arange(6.0, dtype=np.float32)
    np.testing.assert_array_equal(
        devices.put_rows(mesh, rows, 6), devices.put(mesh, rows, devices.ROWS)
    )
    tree = {"rows": jax.numpy.asarray(rows)}
    assert devices.fetch(mesh, tree) is tree
    assert int(devices.make_largest(mesh)(7)) == 7


def test_death_of_another_process_is_told_from_other_errors(monkeypatch):
    death = jax.errors.JaxRuntimeError("INTERNAL: UNAVAILABLE: Task 1 heartbeat timeout.")
    caused = ValueError("a checkpoint failed")
    caused.__cause__ = death
    assert not hosts.tells_of_death(death), "there is no other process"
    monkeypatch.setattr(hosts.this, "count", 2)
    assert hosts.tells_of_death(death)
    assert hosts.tells_of_death(caused)
    assert not hosts.tells_of_death(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"))


@pytest.mark.slow
@pytest.mark.parametrize("source", [heavy("stream"), heavy("cached"), "exact"])
def test_processes_give_the_same_run(source, tmp_path):
    arguments = [f"--config.real.source={source}", "--config.eval_backbones=digits_contrastive"]
    # Three images of the ten do not come with a device, and a batch of 10 not with a process.
    for count, workdir in ((3, tmp_path / "three"), (1, tmp_path / "one")):
        run(count, workdir, *arguments)
    np.testing.assert_allclose(
        images(tmp_path / "three"), images(tmp_path / "one"), rtol=0, atol=ROUNDING
    )
    results = [
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("three", "one")
    ]
    tables = [result["probe"]["digits_contrastive"] for result in results]
    for method in ("full", "random", "centroids"):
        assert tables[0][method] == tables[1][method]
    shards = [
        sorted(path.name for path in (tmp_path / name / "features").rglob("*.npy"))
        for name in ("three", "one")
    ]
    assert [name[:7] for name in shards[0]] == [name[:7] for name in shards[1]]
    # Again, all is found.
    before = sorted((tmp_path / "three" / "features").rglob("*"))
    assert "steps are done" in run(3, tmp_path / "three", *arguments)
    assert sorted((tmp_path / "three" / "features").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, heavy(1)])
def test_signal_to_any_process_saves_and_ends_all(number, tmp_path):
    arguments = [DISTILL, "--config.steps=100000", "--config.image_every=100000"]
    with started(2, tmp_path / "run", *arguments) as processes:
        await_checkpoint(tmp_path / "run", processes)
        processes[number].send_signal(signal.SIGTERM)
        codes, said = finish(processes)
    assert codes == [75, 75]
    assert said[0][1].endswith("interrupted by SIGTERM: start again to continue\n")
    newest = newest_checkpoint(tmp_path / "run")
    out = run(2, tmp_path / "run", DISTILL, f"--config.steps={newest + 2}")
    assert f"steps {newest} to {newest + 2}" in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, heavy(1)])
def test_killed_process_ends_the_other_within_a_minute(number, tmp_path):
    with started(2, tmp_path / "run", DISTILL, "--config.steps=100000") as processes:
        await_checkpoint(tmp_path / "run", processes)
        processes[number].kill()
        killed = time.monotonic()
        processes[1 - number].communicate(timeout=90)
        assert time.monotonic() - killed < 60
        # The first is how Python tells of what a shell calls the second.
        assert processes[1 - number].returncode in (-signal.SIGABRT, hosts.LOST)
    newest = newest_checkpoint(tmp_path / "run")
    out = run(2, tmp_path / "run", DISTILL, f"--config.steps={newest + 2}")
    assert f"steps {newest} to {newest + 2}" in out
