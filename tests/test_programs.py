"""What is planned is what runs: programs are made of shapes as a run makes them of arrays."""

from __future__ import annotations

import pytest

import launch
from lgm_jax import compilation, devices, distill
from lgm_jax.stages import STAGES, distilling

QUICK = [
    "launch.py",
    "--config=configs/quickstart.py:quick",
    "--config.stages=distill",
    "--config.steps=1",
]


@pytest.fixture
def lowered_texts(monkeypatch):
    """Runs `launch.py`; returns the text of its first step, and that of its session's programs."""

    def run(*arguments: str) -> tuple[str, str]:
        seen, sessions = [], []
        call, stage = compilation.Program.__call__, distilling.distill_stage

        def spy(program, *values, **named):
            if isinstance(values[0], distill.State) and not seen:
                seen.append(program.lower(*values, **named).as_text())
            return call(program, *values, **named)

        monkeypatch.setattr(compilation.Program, "__call__", spy)
        monkeypatch.setitem(STAGES, "distill", lambda each: [sessions.append(each), stage(each)])
        assert launch.main([*QUICK, *arguments]) == 0
        session = sessions[0]
        mesh = devices.make_mesh(session.task.num_images, session.task.copies)
        size = session.run.last_process("distill")["microbatch"]
        return seen[0], distilling.make_programs(session, mesh).lower(size).as_text()

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {"real.source": "stream", "labels": "soft", "microbatch": 3},
        {"real.source": "exact", "objective": "sfm", "images.kind": "pixels"},
    ],
)
def test_a_program_made_of_shapes_is_the_one_that_runs(changes, lowered_texts, tmp_path):
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    ran, planned = lowered_texts(f"--workdir={tmp_path / 'run'}", *flags)
    assert planned == ran
    assert "stablehlo.dot_general" in planned
