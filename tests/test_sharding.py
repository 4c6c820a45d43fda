"""Many devices: their laws and what they exchange, and the program as a person starts it there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import launch
import lgm_jax
from tests.marks import slow

ROOT = Path(__file__).parents[1]


def run_on_eight_devices(*command: str) -> str:
    """Runs Python in a process of eight CPU devices, which must end well; gives its output."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("which", ["not slow", slow("slow")])
def test_laws_of_many_devices(which):
    laws = ("tests/on_eight_devices.py", "tests/collectives.py")
    output = run_on_eight_devices("-m", "pytest", "-q", *laws, "-m", which)
    assert " passed" in output
    assert "skipped" not in output


# The program, which prints on how many places of each device its weights lie while it distils.
COUNTING = """
import sys
from collections import Counter
import jax
import launch
from lgm_jax.stages import distilling

run = distilling.Loop.run

def counting(loop, state):
    (backbone,) = loop.session.backbones
    leaf = max(jax.tree.leaves(backbone.params), key=lambda leaf: leaf.size)
    alike = [each for each in jax.live_arrays() if each.shape == leaf.shape]
    parts = [part for each in alike for part in each.addressable_shards]
    places = {(part.device.id, part.data.unsafe_buffer_pointer()) for part in parts}
    print("places of weights:", sorted(Counter(device for device, _ in places).items()))
    return run(loop, state)

distilling.Loop.run = counting
sys.exit(launch.main(sys.argv))
"""


@pytest.mark.slow
def test_a_run_of_eight_devices_goes_on_on_one(tmp_path, capsys):
    def count_on_eight_devices(_: str, *command: str) -> str:
        return run_on_eight_devices("-c", COUNTING, *command)

    def run_on_one_device(*command: str) -> str:
        """The same in this process, which has one."""
        assert launch.main(command) == 0
        return capsys.readouterr().out

    command = ("launch.py", "--config=configs/quickstart.py:quick", "--config.stages=distill")
    images = []
    for workdir, first in (("mixed", count_on_eight_devices), ("one", run_on_one_device)):
        arguments = (*command, f"--workdir={tmp_path / workdir}")
        output = first(*arguments, "--config.steps=3")
        assert ("8 devices, 2 views at a time" in output) == (workdir == "mixed")
        once = f"places of weights: {[(device, 1) for device in range(8)]}"
        assert (once in output) == (workdir == "mixed")
        # What fits is chosen anew on other devices.
        assert "10 views at a time" in run_on_one_device(*arguments, "--config.steps=5")
        images.append(lgm_jax.load_distilled(tmp_path / workdir)[0])
    # Measured: 5e-6 after six steps.
    np.testing.assert_allclose(*images, rtol=0, atol=1e-3)
