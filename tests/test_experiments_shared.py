"""Runs of experiments: several processes take the free ones, and a signal ends them at any time."""

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import re
import signal
import threading
import time
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from etils import epath

import launch
from lgm_jax import experiments, files, locks, runs
from lgm_jax.experiments import result, runner
from lgm_jax.interrupts import Interrupted
from tests.experimenting import ROOT, entry, flat_score, load, outcomes_of
from tests.run_folders import EMPTY
from tools import write_results

NAMES = tuple("abcdef")


def plan(finished):
    """Six runs, and one more that depends on what these found."""
    names = NAMES if len(finished) < len(NAMES) else (*NAMES, "last")
    return [runner.Planned({"set": name, "seed": 0}, {"number": i}) for i, name in enumerate(names)]


def config():
    made = ml_collections.ConfigDict({"number": 0, "real": {"cache": ""}})
    made.experiment = ml_collections.ConfigDict({"name": "shared", "share": ""})
    return made


class Starts:
    """Makes runs as `launch.py` does: opened, made if need be, and closed.

    No run ends before `threads` threads are each making one.
    """

    def __init__(self, threads=1):
        self.made, self.threads, self.makers, self.enough = [], threads, set(), threading.Event()

    def __call__(self, config, folder, then):
        identity = {"number": config.number}
        run = runs.check_run(folder, identity, overwrite=False)
        run.open(identity, {})
        try:
            if not (run.path / runs.RESULTS).exists():
                self.makers.add(threading.get_ident())
                if len(self.makers) >= self.threads:
                    self.enough.set()
                assert self.enough.wait(60)
                self.made.append((threading.get_ident(), run.path.name))
                files.write_json(run.path / runs.RESULTS, EMPTY | {"found": float(config.number)})
        finally:
            run.close()


def make(starts, workdir, failures=None):
    """Makes all runs, and returns what they found, by the letter of each."""
    try:
        folder, outcomes = runner.run(plan, config(), str(workdir), starts, lambda _: None)
        assert str(folder) == str(workdir)
        found = {each.axes["set"]: each.results["found"] for each in outcomes}
        assert found == WHOLE
    except BaseException as error:
        if failures is None:
            raise
        failures.append(error)


WHOLE = {name: float(i) for i, name in enumerate((*NAMES, "last"))}


def test_each_run_is_made_once_whoever_makes_it(monkeypatch, tmp_path):
    """Locks are those of open files, so that threads are to each other as processes are."""
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    starts, failures = Starts(threads=2), []
    threads = [
        threading.Thread(target=make, args=(starts, tmp_path, failures), daemon=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(name for _, name in starts.made) == sorted(f"{name}_seed0" for name in WHOLE)
    assert len({maker for maker, _ in starts.made}) > 1
    assert not list(tmp_path.glob("*.tmp"))
    # And once more, with nothing left to do.
    make(starts, tmp_path)
    assert len(starts.made) == len(WHOLE)


def test_a_run_that_begins_between_two_looks_is_a_runs_folder(monkeypatch, tmp_path):
    folder, identity, read, others = str(tmp_path / "run"), {"number": 1}, files.read_json, []

    def read_just_before(path):
        found = read(path)
        if not others:
            monkeypatch.setattr(files, "read_json", read)
            others.append(runs.check_run(folder, identity, overwrite=False))
            others[0].open(identity, {})
        return found

    monkeypatch.setattr(files, "read_json", read_just_before)
    assert runs.check_run(folder, identity, overwrite=False).holds == "this"
    others[0].close()


def hold(folder):
    """Locks a run's folder as another process would; close the file to let go."""
    folder.mkdir(parents=True)
    file = (folder / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def test_a_run_that_is_held_is_waited_for_and_then_gone_on_with(monkeypatch, tmp_path, capsys):
    """Its maker may have died."""
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    file = hold(tmp_path / "runs" / "b_seed0")
    starts, sleep = Starts(), time.sleep

    def let_go(seconds):
        # Once it is waited for, however late.
        if seconds == runner.POLL_SECONDS:
            file.close()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", let_go)
    make(starts, tmp_path)
    assert [name[0] for _, name in starts.made] == [*"acdefb", "l"]
    said = capsys.readouterr().out
    assert said.count("waiting for other processes that make b_seed0;") == 1
    assert re.findall(r"run (\d) of (\d): ", said)[:6] == [(str(i), "6") for i in range(1, 7)]


def test_waiting_ends_by_a_signal(monkeypatch, tmp_path):
    file = hold(tmp_path / "runs" / "c_seed0")

    def interrupt(seconds):
        raise Interrupted(signal.SIGTERM)

    starts = Starts()
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None if seconds < 1 else interrupt(seconds))
        with pytest.raises(Interrupted):
            make(starts, tmp_path)
    assert len(starts.made) == len(NAMES) - 1
    file.close()
    make(starts, tmp_path)
    assert len(starts.made) == len(WHOLE)


def test_looking_whether_a_folder_is_held_leaves_it_as_it_is(tmp_path):
    folder = epath.Path(tmp_path / "run")
    assert not locks.in_use(folder)
    assert not folder.exists()
    file = hold(tmp_path / "run")
    assert locks.in_use(folder)
    file.close()
    assert not locks.in_use(folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_what_other_experiments_have_in_a_shared_run_is_left_out():
    config = load("table1", ":embedded", "--config.experiment.seeds=1")
    sweep, own = experiments.find(config), outcomes_of(config, flat_score)
    every = []
    for each in own:
        probe = each.results["probe"]
        taught = {"kd": {name: {"distilled": entry(1.0)} for name in (*probe, "other")}}
        shared = {name: {"neighbors": entry(1.0), **entries} for name, entries in probe.items()}
        shared["other"] = {"distilled": entry(1.0)}
        results = {**each.results, "probe": shared, "taught": taught}
        every.append(dataclasses.replace(each, results=results))
    alone, shared = (experiments.to_csv(sweep.studies(config, each)) for each in (own, every))
    assert alone == shared


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, vit_folder):
    """An experiment whose first run another process held, and which a signal ended before it.

    Returns:
        The workdir, the arguments, and what was printed.
    """
    workdir = tmp_path_factory.mktemp("experiment") / "figure3"
    arguments = [
        *("launch.py", f"--config={ROOT}/configs/experiments/figure3.py:quick"),
        *(f"--workdir={workdir}", f"--config.experiment.backbones={vit_folder}"),
        *("--config.experiment.copies=2", "--config.experiment.seeds=2"),
        *("--config.images.crop=16", "--config.images.resolution=16", "--config.probe.views=1"),
    ]
    name = f"digits_{Path(vit_folder).name}_copies2_seed0"
    file = hold(workdir / "runs" / name)
    run_stages, started, printed = launch.run_stages, [], io.StringIO()

    def run_first(config, folder, *rest):
        started.append(folder)
        if len(started) == 2:
            raise Interrupted(signal.SIGTERM)
        made = run_stages(config, folder, *rest)
        file.close()
        return made

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(runner, "POLL_SECONDS", 0.2)
        patch.setattr(launch, "run_stages", run_first)
        assert launch.main(arguments) == 75
    return workdir, arguments, printed.getvalue()


@pytest.mark.slow
def test_the_program_takes_the_runs_that_are_free(interrupted):
    workdir, _, printed = interrupted
    first, second = printed.index("run 1 of 2: "), printed.index("run 2 of 2: ")
    assert "seed 1" in printed[first:second]
    assert "seed 0" in printed[second:]
    assert not (workdir / "table.md").exists()


@pytest.mark.slow
def test_interrupted_experiment_goes_on_and_repeats_nothing(interrupted, capsys):
    workdir, arguments, _ = interrupted
    (first,) = (workdir / "runs").glob("*seed1/stages.json")
    before = json.loads(first.read_text())
    capsys.readouterr()
    assert launch.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "run 1 of 2: digits tiny copies2 seed 0\n" in printed
    _, _, second = printed.partition("run 2 of 2: digits tiny copies2 seed 1\n")
    assert "distill: 2 steps are done" in second
    assert json.loads(first.read_text()) == before
    for name in ("figure.png", "figure.svg", "images.png", "table.csv", "table.md"):
        assert f"result: {workdir / name}\n" in printed
    rows = list(csv.DictReader(io.StringIO((workdir / "table.csv").read_text())))
    assert {(row["variant"], row["evaluated"], row["seed"]) for row in rows} == {
        *(("copies2", "tiny", "0"), ("copies2", "tiny", "1")),
    }
    for seed in ("0", "1"):
        (folder,) = (workdir / "runs").glob(f"*seed{seed}")
        (probe,) = json.loads((folder / "results.json").read_text())["probe"].values()
        values = [float(row["value"]) for row in rows if row["seed"] == seed]
        assert np.allclose(values, probe["distilled"]["top1_runs"], atol=1e-3)
    _check_page(workdir, rows)
    # The first run stored the features that both read.
    assert list((workdir / "features").iterdir())
    assert not list((workdir / "runs").glob("*/features"))


def _check_page(workdir, rows):
    """What the runs gave is enough to make the table again, and where it changes, so does this."""
    out = workdir / "docs"
    assert write_results.main([str(workdir)], out) == 0
    collected = json.loads((out / "runs" / f"{workdir.name}.json").read_text())
    table = result.to_markdown(write_results.tabulate(collected))
    assert table == (workdir / "table.md").read_text()
    assert str(workdir) not in json.dumps(collected)
    first = float(rows[0]["value"])
    for run in collected["runs"].values():
        for probed in run["results"]["probe"].values():
            runs_of = probed["distilled"]["top1_runs"]
            probed["distilled"]["top1_runs"] = [first + 1] * len(runs_of)
    assert result.to_markdown(write_results.tabulate(collected)) != table


def test_workdir_of_something_else_is_refused(finished, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise Interrupted(signal.SIGTERM)

    # An experiment's folder is one before its first run is.
    monkeypatch.setattr(launch, "run_stages", interrupt)
    config = f"--config={ROOT}/configs/experiments/figure3.py:quick"
    assert launch.main(["launch.py", config, f"--workdir={tmp_path}"]) == 75
    for folder, words in ((finished, "a run's folder"), (tmp_path, "experiment figure3")):
        config = f"--config={ROOT}/configs/experiments/table1.py:quick"
        assert launch.main(["launch.py", config, f"--workdir={folder}"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("name", ["table2", "objectives"])
def test_whole_quick_experiment(name, tmp_path):
    path = ROOT / "configs" / "experiments" / f"{name}.py"
    assert launch.main(["launch.py", f"--config={path}:quick", f"--workdir={tmp_path}"]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert len([float(row["value"]) for row in rows]) > 8
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
