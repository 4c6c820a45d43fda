"""Time and memory of a step by several objectives, measured side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from lgm_jax import devices, distill, hosts, memory
from lgm_jax.session import Session
from lgm_jax.settings import make_objective
from lgm_jax.stages.distilling import (
    choose_execution,
    make_programs,
    make_real,
    place_backbones,
    start_params,
)

# Steps whose median `step_costs` takes.
TIMED_STEPS = 10


class StepCost(NamedTuple):
    """Time and memory of a step.

    Attributes:
        seconds: Median of a few steps, without compilation and preparation.
        num_bytes: Bytes of a device, by XLA's account of the program: weights, images with Adam's
            moments, real images or features, and intermediate values.
    """

    seconds: float
    num_bytes: int


def step_costs(session: Session, names: Sequence[str]) -> dict[str, StepCost]:
    """Measures a step of the session's recipe by each of some objectives, in turns.

    Other work of the machine slows all of them, so that their ratios can be trusted. Reading real
    images, which is the same for all, is left out. Nothing is written. All processes of a run
    return the same numbers.
    """
    mesh = devices.make_mesh(session.task.num_images, session.task.copies)
    against = place_backbones(session, mesh)
    params = [backbone.params for backbone in against]
    # While the device is empty, so that all have the same.
    size, kept, size_real = choose_execution(session, make_programs(session, against, mesh))
    # One for all: each step donates its state.
    state = distill.init(session.task, session.key, params=start_params(session), mesh=mesh)
    programs: dict[str, Any] = {}
    batches: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as workers:
        # Features that several objectives share lie on the device once.
        real: dict[Any, Any] = {}
        for name in names:
            each = _with_objective(session, name)
            # Prepared features belong to one objective.
            prepared = each.task.objective if each.recipe.prepares else None
            if prepared not in real:
                real[prepared] = make_real(each, against, mesh, size_real, workers)(0)
            own = make_programs(each, against, mesh)
            step = dataclasses.replace(own, residuals=kept).step(size)
            batches[name] = real[prepared]
            programs[name] = step.lower(state, params, batches[name]).compile()
        # The first, which may wait for memory, does not count.
        for _ in range(1 + TIMED_STEPS):
            for name in names:
                started = time.perf_counter()
                state, _ = jax.block_until_ready(programs[name](state, params, batches[name]))
                seconds[name].append(time.perf_counter() - started)
    medians = hosts.first_says({name: statistics.median(seconds[name][1:]) for name in names})
    return {name: StepCost(medians[name], memory.account(programs[name]).total) for name in names}


def _with_objective(session: Session, name: str) -> Session:
    config = session.config.copy_and_resolve_references()
    config.objective = name
    task = dataclasses.replace(session.task, objective=make_objective(config))
    return dataclasses.replace(session, recipe=dataclasses.replace(session.recipe, task=task))
