"""Traces of steps."""

from __future__ import annotations

import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from etils import epath

import launch
from lgm_jax.profiling import StepTrace


def read_traces(folder):
    paths = list(folder.rglob("perfetto_trace.json.gz"))
    return [json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] for path in paths]


def test_as_many_steps_as_asked_for_are_traced_after_the_first_two(tmp_path):
    with StepTrace(epath.Path(tmp_path), 2) as trace:
        for number in range(6):
            with jax.profiler.TraceAnnotation(f"number_{number}"):
                result = jnp.ones(3) + number
            trace.advance(result)
    (events,) = read_traces(tmp_path)
    names = {event.get("name", "") for event in events}
    assert {f"number_{number}" for number in range(6)} & names == {"number_2", "number_3"}


def test_a_loop_that_ends_early_leaves_a_whole_trace_and_zero_steps_none(tmp_path):
    for steps in (5, 0):
        with StepTrace(epath.Path(tmp_path / str(steps)), steps) as trace:
            for _ in range(3):
                trace.advance(jnp.ones(3))
    assert len(read_traces(tmp_path / "5")) == 1
    assert not (tmp_path / "0").exists()


@pytest.mark.slow
def test_a_run_writes_a_trace_of_its_steps(tmp_path, capsys):
    arguments = ["--config=configs/quickstart.py:quick", "--config.steps=4", "--profile"]
    arguments += ["--config.stages=distill", f"--workdir={tmp_path / 'run'}"]
    assert launch.main(["launch.py", *arguments]) == 0
    assert "ui.perfetto.dev" in capsys.readouterr().out
    assert len(read_traces(tmp_path / "run" / "profile")) == 1
