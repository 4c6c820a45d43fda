"""What is planned is what runs: of shapes, plans make the programs that runs make of arrays."""

from __future__ import annotations

import jax
import pytest

import launch
from lgm_jax import compilation, compiled, distill, plan
from tests.marks import slow

QUICK = ["--config=configs/quickstart.py:quick", "--config.stages=distill", "--config.steps=1"]


def config_of(*flags):
    config, *_ = launch.parse(["launch.py", *flags], writes=False)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"real.source": "stream", "labels": "soft", "microbatch": 3},
        slow(
            {"real.source": "exact", "objective": "sfm", "images.kind": "pixels", "microbatch": 10}
        ),
    ],
)
def test_what_is_planned_runs(changes, tmp_path, monkeypatch):
    """To the letter, without weights or data."""
    flags = [*QUICK, *(f"--config.{key}={value}" for key, value in changes.items())]
    ran, call = [], compilation.Program.__call__

    def spy(program, *values, **named):
        if isinstance(values[0], distill.State) and not ran:
            ran.append(program.lower(*values, **named).as_text())
        return call(program, *values, **named)

    monkeypatch.setattr(compilation.Program, "__call__", spy)
    assert launch.main(["launch.py", *flags, f"--workdir={tmp_path / 'run'}"]) == 0
    config = config_of(*flags)
    programs = compiled.make_programs(config, jax.devices(), *plan.size_of_data(config))
    assert ran == [programs.lower(changes["microbatch"]).as_text()]
    # Of programs with options for XLA too, as those for CPUs have.
    parts = {part for part, *_ in programs.flops(changes["microbatch"])}
    assert {"synthetic forward", "backward", "objective"} <= parts
    assert "stablehlo.dot_general" in ran[0]
