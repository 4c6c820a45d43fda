"""An experiment that several processes make together: each takes the runs that are free."""

import fcntl
import re
import signal
import threading
import time
from pathlib import Path

import ml_collections
import pytest
from etils import epath

import launch
from lgm_jax import files, locks, runs
from lgm_jax.experiments import runner
from lgm_jax.interrupts import Interrupted

ROOT = Path(__file__).parents[1]
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
    """Makes runs that take a moment, as `launch.py` does: opened, made if need be, and closed."""

    def __init__(self):
        self.made = []

    def __call__(self, config, folder, then):
        identity = {"number": config.number}
        run = runs.check_run(folder, identity, overwrite=False)
        run.open(identity, {})
        try:
            if not (run.path / runs.RESULTS).exists():
                time.sleep(0.05)
                self.made.append((threading.get_ident(), run.path.name))
                files.write_json(run.path / runs.RESULTS, {"found": float(config.number)})
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
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.02, raising=False)
    starts, failures = Starts(), []
    threads = [
        threading.Thread(target=make, args=(starts, tmp_path, failures), daemon=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(name for _, name in starts.made) == sorted(f"{name}_seed0" for name in WHOLE)
    assert len({maker for maker, _ in starts.made}) > 1
    assert not list(tmp_path.glob("*.tmp"))
    # And once more, with nothing left to do.
    make(starts, tmp_path)
    assert len(starts.made) == len(WHOLE)


def hold(folder):
    """Locks a run's folder as another process would; close the file to let go."""
    folder.mkdir(parents=True)
    file = (folder / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def test_a_run_that_is_held_is_waited_for_and_then_gone_on_with(monkeypatch, tmp_path, capsys):
    """Its maker may have died."""
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.02, raising=False)
    file = hold(tmp_path / "runs" / "b_seed0")
    starts, threads = Starts(), []

    def start(config, folder, then):
        if config.number == len(NAMES) - 1 and not threads:
            threads.append(threading.Timer(0.3, file.close))
            threads[0].start()
        return starts(config, folder, then)

    make(start, tmp_path)
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


def test_the_program_takes_the_runs_that_are_free(tmp_path, vit_folder, capsys, monkeypatch):
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.2, raising=False)
    path = ROOT / "configs" / "experiments" / "figure3.py"
    arguments = [
        *("launch.py", f"--config={path}:quick", f"--workdir={tmp_path / 'w'}"),
        *(f"--config.experiment.backbones={vit_folder}", "--config.images.crop=16"),
        *("--config.images.resolution=16", "--config.probe.views=1"),
    ]
    name = f"digits_{Path(vit_folder).name}_copies1_seed0"
    file = hold(tmp_path / "w" / "runs" / name)
    run_stages = launch.run_stages

    def run_and_free(config, folder, *rest):
        made = run_stages(config, folder, *rest)
        file.close()
        return made

    monkeypatch.setattr(launch, "run_stages", run_and_free)
    assert launch.main(arguments) == 0
    printed = capsys.readouterr().out
    first, second = printed.index("run 1 of 2: "), printed.index("run 2 of 2: ")
    assert "copies2" in printed[first:second]
    assert "copies1" in printed[second:]
    assert (tmp_path / "w" / "table.md").exists()
