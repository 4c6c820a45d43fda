"""What comes from outside the package runs from a config: devices, kills, resume, report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import launch
import lgm_jax

ROOT = Path(__file__).parents[1]
QUICK = ("launch.py", "--config=configs/quickstart.py:quick")
OBJECTIVE = (
    "--config.objective=tests.extensions:SquaredError",
    "--config.objective_options.noise=0.05",
    "--config.copies=3",
)


# The program, which goes no further than the fifth step: however late it is looked at, and killed.
HELD = """
import sys, time
import launch
from lgm_jax.stages import distilling

class Held(distilling.StepProgress):
    steps = 0

    def advance(self):
        super().advance()
        self.steps += 1
        if self.steps == 5:
            time.sleep(900)

distilling.StepProgress = Held
sys.exit(launch.main(sys.argv))
"""


def start_on_devices(count, *arguments):
    """Starts a program that is compiled as users have it: other rounding grows with every step."""
    flags = f"--xla_force_host_platform_device_count={count}"
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_an_objective_runs_on_eight_devices_in_microbatches_killed_and_resumed(tmp_path):
    many, one = tmp_path / "many", tmp_path / "one"
    command = (*QUICK, *OBJECTIVE, "--config.microbatch=2", f"--workdir={many}")
    first = start_on_devices(8, "-c", HELD, *command[1:])
    try:
        deadline = time.monotonic() + 600
        while not (many / "checkpoints" / "3").exists():
            assert first.poll() is None, first.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert first.poll() is None, "it ended before it could be killed"
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    second = start_on_devices(8, *command)
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output
    assert "8 devices, 2 views at a time" in output
    results = json.loads((many / "results.json").read_text())
    assert results["objective"] == "tests.extensions:SquaredError"
    assert results["about_objective"]["title"] == "squared-error gradient matching"
    page = (many / "report.html").read_text()
    assert "squared-error gradient matching" in page
    assert "compares the first steps of two regressions" in page
    identity = json.loads((many / "config.json").read_text())["identity"]
    assert identity["objective_options.noise"] == 0.05
    # Noise is drawn by row, wherever it lies: one device makes the same images.
    alone = (*QUICK, *OBJECTIVE, "--config.stages=distill", f"--workdir={one}")
    third = start_on_devices(1, *alone)
    output, _ = third.communicate(timeout=900)
    assert third.returncode == 0, output
    images = [lgm_jax.load_distilled(folder)[0] for folder in (many, one)]
    np.testing.assert_allclose(*images, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_parametrisation_augmentation_solver_and_stage_run_from_a_config(tmp_path):
    workdir = tmp_path / "run"
    arguments = (
        *QUICK,
        "--config.images.kind=tests.extensions:Fourier",
        "--config.images.options.decay=1.5",
        "--config.augment.preset=tests.extensions:Shift",
        "--config.augment.options.pixels=1",
        "--config.augment.scale_min=None",
        "--config.probe.solver=tests.extensions:class_means",
        "--config.stages=distill,probe,tests.extensions:count_stage,report",
        f"--workdir={workdir}",
    )
    assert launch.main(arguments) == 0
    identity = json.loads((workdir / "config.json").read_text())["identity"]
    said = {key: value for key, value in identity.items() if "kind" in key or "options" in key}
    assert said == {
        "images.kind": "tests.extensions:Fourier",
        "images.options.decay": 1.5,
        "augment.options.pixels": 1,
    }
    assert identity["augment.preset"] == "tests.extensions:Shift"
    stages = json.loads((workdir / "stages.json").read_text())
    assert stages["count"]["result"] == {"images": 10}
    (probed,) = (record for name, record in stages.items() if name.startswith("probe/"))
    assert probed["inputs"]["protocol"]["solver"] == "tests.extensions:class_means"
    assert probed["result"]["top1_mean"] > 15, "of ten classes, by chance, 10 %"
    assert (workdir / "report.html").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.objective=tests.extensions:Nothing", "objective 'tests.extensions:Nothing'"),
        ("--config.objective_options.noize=1", "does not take its options"),
        ("--config.stages=distill,nowhere:stage", "stage 'nowhere:stage' cannot be imported"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_a_line(flag, message, tmp_path, capsys):
    arguments = [*QUICK, *OBJECTIVE, flag, f"--workdir={tmp_path / 'run'}"]
    assert launch.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_plan_of_an_objective_from_outside(capsys):
    assert launch.main([*QUICK, *OBJECTIVE, "--plan"]) == 0
    assert "tests.extensions:SquaredError" in capsys.readouterr().out
