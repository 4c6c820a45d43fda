"""Kills a run at random moments, starts it again, and compares with a run left alone.

    python tools/kill_runs.py --kills=50 --out=FOLDER
    python tools/kill_runs.py --kills=50 --signal=SIGTERM --out=FOLDER
    python tools/kill_runs.py --kills=2 --out=FOLDER -- --config.steps=10

A run is started and killed until it gets to its end, then the next, until there were `--kills`
kills. Images (float32, all bits), accuracies and logged losses must be those of the run that was
left alone, and no kill may cost more than the steps since the last checkpoint. Kills are spread
over everything a run does: start-up, features, steps, checkpoints, probes, the report. FOLDER may
be in a bucket. What comes after `--` is for the runs.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
from etils import epath

from lgm_jax import paths
from lgm_jax.interrupts import CTRL_C, REQUEUE

CHECKPOINT_EVERY = 5

PROGRAM = (
    *(sys.executable, "launch.py"),
    "--config=configs/quickstart.py:quick",
    "--config.steps=40",
    f"--config.checkpoint_every={CHECKPOINT_EVERY}",
    "--config.log_every=5",
    "--config.image_every=20",
    "--config.real.source=cached",
    "--config.real.views=2",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="how many in all")
    parser.add_argument("--signal", default="SIGKILL", help="what to send, for example SIGTERM")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", required=True, type=paths.locate, help="where runs go; emptied")
    parser.add_argument("changes", nargs="*", help="of the runs, after --")
    options = parser.parse_args()
    program = [*PROGRAM, *options.changes]
    number, draw = signal.Signals[options.signal], random.Random(options.seed)
    options.out.rmtree(missing_ok=True)
    options.out.mkdir(parents=True)
    # The first compiles, and the others find what it compiled: their time is the one to cut.
    finish(program, options.out / "first")
    started = time.perf_counter()
    finish(program, options.out / "second")
    seconds = time.perf_counter() - started
    print(f"left alone: {seconds:.1f} s", flush=True)
    expected, kills, runs = outcome(options.out / "first"), 0, 0
    if differences := compare(expected, outcome(options.out / "second")):
        sys.exit(f"two runs left alone differ in {differences}")
    while kills < options.kills:
        workdir = options.out / f"killed_{runs}"
        log: list[str] = []
        while not start(program, workdir, number, draw.uniform(0, seconds), log):
            kills += 1
            check_start_again(workdir, log)
        differences = compare(expected, outcome(workdir))
        print(
            f"run {runs}: {len(log)} kills, at {', '.join(log)}: {differences or 'the same'}",
            flush=True,
        )
        if differences:
            sys.exit(1)
        workdir.rmtree()
        runs += 1
    print(f"{kills} kills by {options.signal} in {runs} runs: all ended as the one left alone")


def finish(program: list[str], workdir: epath.Path) -> None:
    """Runs to the end."""
    subprocess.run([*program, f"--workdir={workdir}"], check=True, capture_output=True)


def start(
    program: list[str], workdir: epath.Path, number: signal.Signals, after: float, log: list[str]
) -> bool:
    """Runs, and kills after some seconds; says whether the run had ended by itself."""
    process = subprocess.Popen(
        [*program, f"--workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        _, errors = process.communicate()
        # Before it handles signals, it dies of them.
        if process.returncode not in (-number, 0, REQUEUE, CTRL_C):
            raise RuntimeError(f"exit code {process.returncode}: {errors}") from None
        if process.returncode == 0:
            return True
        log.append(f"{after:.1f} s (step {newest(workdir)})")
        return False
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {errors}")
    return True


def newest(workdir: epath.Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    folders = (workdir / "checkpoints").glob("*")
    return max((int(folder.name) for folder in folders if folder.name.isdigit()), default=0)


def check_start_again(workdir: epath.Path, log: list[str]) -> None:
    """No logged step may lie further behind the newest checkpoint than one interval."""
    metrics = workdir / "metrics.jsonl"
    logged = json.loads(metrics.read_text().splitlines()[-1])["step"] if metrics.exists() else 0
    # One interval for the checkpoint to come, and one for the one that was being written.
    if logged - newest(workdir) > 2 * CHECKPOINT_EVERY:
        raise RuntimeError(f"killed at {log[-1]}, with {logged} steps logged: too many are lost")


def outcome(workdir: epath.Path) -> dict[str, Any]:
    """Everything about a run that a kill must not change."""
    results = json.loads((workdir / "results.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    content = io.BytesIO((workdir / "distilled" / "distilled.npz").read_bytes())
    with np.load(content) as arrays:
        images = arrays["images"]
    return {
        "images": images.tobytes(),
        "probe": results["probe"],
        "final_loss": results["final_loss"],
        "losses": [(line["step"], line["loss"]) for line in lines],
        "pictures": sorted(path.name for path in (workdir / "progress").iterdir()),
        "timelapse": {p.name: p.read_bytes() for p in (workdir / "timelapse").iterdir()},
        "animation": (workdir / "timelapse.webp").read_bytes(),
    }


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, by name."""
    return [name for name, value in expected.items() if found[name] != value]


if __name__ == "__main__":
    main()
