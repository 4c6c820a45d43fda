"""The stages of a run: distil, probe, baselines, report.

A stage is a function of a `Session` that computes what the run folder lacks, and records it there:
`session.run.find(name, inputs)` returns an earlier result for the same inputs, and
`session.run.finish(...)` records a new one. A config names others as `package.module:function`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lgm_jax.session import Session
from lgm_jax.stages.distilling import distill_stage
from lgm_jax.stages.probing import baselines_stage, probe_stage
from lgm_jax.stages.reporting import report_stage

Stage = Callable[[Session], None]

STAGES: Mapping[str, Stage] = {
    "distill": distill_stage,
    "probe": probe_stage,
    "baselines": baselines_stage,
    "report": report_stage,
}
"""Stages by name, in the order in which they run; others come in the order in which they are named,
before the report."""
