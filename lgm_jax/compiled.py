"""A config's step by the compiler of accelerators, on a machine that has none."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from lgm_jax import accelerators, execution, hlo, memory, plan
from lgm_jax.backbones.residuals import Residuals
from lgm_jax.programs import Embedding, Programs
from lgm_jax.quantities import duration, listed, si

Fitting = tuple[int, jax.stages.Compiled | None, list[str]]


def describe(config: ConfigDict, name: str) -> str:
    """The plan of a config for devices by name (see `accelerators.find`), for a person."""
    topology = accelerators.find(name)
    accelerator, count = topology.accelerator, len(topology.devices)
    num_classes, num_images = plan.size_of_data(config)
    programs = plan.make_programs(
        config, topology.devices, num_classes, num_images, options=topology.options
    )
    found: dict[Residuals, Fitting] = {}

    def fitting(residuals: Residuals) -> int:
        some = dataclasses.replace(programs, residuals=residuals)
        found[residuals] = compile_fitting(some, config.microbatch, accelerator.memory)
        return found[residuals][0]

    platform = topology.devices[0].platform
    chosen = execution.choose(fitting, programs.offered, programs.views, platform)
    size, program, notes = found[chosen.residuals]
    programs = dataclasses.replace(programs, residuals=chosen.residuals)
    counted = programs.flops(size)
    by_part: dict[str, float] = defaultdict(float)
    for (part, _, _), operations in counted.items():
        by_part[part] += operations
    lines = [
        plan.title(config, programs.recipe, num_images),
        f"compiled for   {name}: {count} x {topology.devices[0].device_kind}, nothing is run",
        f"a step         {si(sum(by_part.values()))}FLOP: {listed(by_part, 'FLOP')}",
    ]
    if program is not None:
        account = memory.account(program)._asdict() | {"beside": programs.beside()}
        lines += [
            f"exchanged      {_collectives_in_words(program, count)}",
            f"memory         {si(sum(account.values()))}B of {si(accelerator.memory)}B a device: "
            f"{listed(account, 'B')}",
        ]
    lines += [
        plan.microbatches_in_words(programs, chosen),
        *notes,
        _real_in_words(programs, accelerator.memory),
        _time_in_words(counted, topology, config.steps),
    ]
    return "\n".join(lines)


def compile_fitting(programs: Programs, size: int | None, available: int) -> Fitting:
    """The step with so many views at a time, or with as many as fit.

    Returns:
        The number of views, the program unless it does not fit, and notes.
    """

    @functools.cache
    def compiled(size: int) -> tuple[jax.stages.Compiled | None, int | float]:
        return memory.try_compile(programs.lower(size), programs.options)

    def needed(size: int) -> int | float:
        return compiled(size)[1]

    notes = []
    if size is not None and (total := needed(size) + programs.beside()) > available:
        said = f"{si(total)}B of" if math.isfinite(total) else "more than"
        notes += [f"note: out of memory with config.microbatch={size}: {said} {si(available)}B"]
    if size is None or notes:
        size = programs.fit(memory.free_bytes({"bytes_limit": available}, 0), needed)
        fits = needed(size) + programs.beside() <= available
        if notes and fits:
            notes = [f"{notes[0]}; config.microbatch={size} fits"]
        elif not fits:
            notes += ["note: out of memory even with one view at a time"]
    return size, compiled(size)[0], notes


def _collectives_in_words(program: jax.stages.Compiled, count: int) -> str:
    found = hlo.read_collectives(program.as_text() or "", count)
    if not found:
        return "nothing between devices"
    total = sum(each.num_bytes * each.times for each in found)
    kinds = ", ".join(
        f"{each.times:g} {each.kind} of {si(each.num_bytes)}B among {each.group}" for each in found
    )
    return f"{si(total)}B a step and device: {kinds}"


def _real_in_words(programs: Programs, available: int) -> str:
    taken: list[int | float] = []

    def fit(embedding: Embedding, limit: int) -> int:
        needed = functools.cache(embedding.needed)
        size = embedding.fit(limit, needed)
        taken.append(needed(size))
        return size

    size = programs.fit_real(memory.free_bytes({"bytes_limit": available}, 0), fit)
    return f"{plan.real_in_words(programs, size)}, {si(max(taken))}B"


def _time_in_words(
    counted: Mapping[tuple[str, str, bool], float], topology: accelerators.Topology, steps: int
) -> str:
    """The least that a step can take, by published peaks."""
    accelerator, count = topology.accelerator, len(topology.devices)
    seconds = sum(
        operations / accelerator.peak(dtype, exact) / count
        for (_, dtype, exact), operations in counted.items()
    )
    return (
        f"time           at least {1e3 * seconds:.3g} ms a step at the published peak of {count} x "
        f"{accelerator.bfloat16:g} TFLOP/s (bfloat16), {accelerator.float32:.3g} (float32); "
        f"{steps} steps in {duration(steps * seconds)}"
    )
