"""A config's step by the compiler of accelerators, on a machine that has none."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax
from ml_collections import ConfigDict

from lgm_jax import accelerators, devices, execution, hlo, memory, plan
from lgm_jax.backbones.residuals import Residuals
from lgm_jax.embedding import Embedding
from lgm_jax.opening import reads_on_host
from lgm_jax.outlines import make_outlines
from lgm_jax.programs import Programs
from lgm_jax.quantities import duration, listed, si
from lgm_jax.settings import backbone_weights, make_recipe


def describe(config: ConfigDict, name: str) -> str:
    """The plan of a config for devices by name (see `accelerators.find`), for a person."""
    topology = accelerators.find(name)
    num_classes, num_images = plan.size_of_data(config)
    programs = make_programs(
        config, topology.devices, num_classes, num_images, options=topology.options
    )
    count = len(topology.devices)
    lines = [
        plan.title(config, programs.recipe, num_images),
        f"compiled for   {name}: {count} x {topology.devices[0].device_kind}, nothing is run",
    ]
    programs, size, program, notes = _choose(programs, config, topology)
    parts = programs.flops(size)
    lines += [f"a step         {_operations_in_words(parts)}"]
    if program is not None:
        lines += [f"exchanged      {_collectives_in_words(program, count)}"]
        lines += [_memory_in_words(program, programs, topology.accelerator.memory)]
    lines += [
        _microbatches_in_words(programs, size),
        *notes,
        _real_in_words(programs, topology.accelerator.memory),
        _time_in_words(parts, topology, config.steps),
    ]
    return "\n".join(lines)


def make_programs(
    config: ConfigDict,
    on: Sequence[jax.Device],
    num_classes: int,
    num_images: int,
    *,
    options: Mapping[str, str] | None = None,
) -> Programs:
    """The programs of a config as a run makes them on some devices, without weights or data."""
    outlines = make_outlines(config, on[0])
    recipe = make_recipe(config, num_classes, outlines[0].resolution)
    return Programs(
        recipe,
        outlines,
        jax.random.key(config.seed),
        num_images,
        reads_on_host(config, recipe, num_images),
        devices.make_mesh(recipe.task.num_images, recipe.task.copies, on),
        backbone_weights(config),
        options,
    )


def _choose(
    programs: Programs, config: ConfigDict, topology: accelerators.Topology
) -> tuple[Programs, int, jax.stages.Compiled | None, list[str]]:
    """The step as a run on these devices would execute it; see `compile_fitting`."""
    found = {}

    def fitting(residuals: Residuals) -> int:
        some = dataclasses.replace(programs, residuals=residuals)
        found[residuals] = (
            some,
            *compile_fitting(some, config.microbatch, topology.accelerator.memory),
        )
        return found[residuals][1]

    platform = topology.devices[0].platform
    return found[execution.choose(fitting, programs.offered, programs.views, platform).residuals]


def compile_fitting(
    programs: Programs, size: int | None, available: int
) -> tuple[int, jax.stages.Compiled | None, list[str]]:
    """The step with so many views at a time, or with as many as fit.

    Returns:
        The number of views, the program unless it does not fit, and notes.
    """
    tried: dict[int, tuple[jax.stages.Compiled | None, int | float]] = {}

    def needed(size: int) -> int | float:
        if size not in tried:
            tried[size] = memory.try_compile(programs.lower(size), programs.options)
        return tried[size][1]

    notes = []
    if size is not None and needed(size) + programs.beside() > available:
        said = f"{si(needed(size) + programs.beside())}B of {si(available)}B"
        said = said if math.isfinite(needed(size)) else f"more than {si(available)}B"
        notes += [f"note: out of memory with config.microbatch={size}: {said}"]
    if size is None or notes:
        size = programs.fit(memory.free_bytes({"bytes_limit": available}, 0), needed)
        fits = needed(size) + programs.beside() <= available
        if notes and fits:
            notes = [f"{notes[0]}; config.microbatch={size} fits"]
        elif not fits:
            notes += ["note: out of memory even with one view at a time"]
    return size, tried[size][0], notes


def _operations_in_words(parts: Mapping[tuple[str, str, bool], float]) -> str:
    by_part: dict[str, float] = defaultdict(float)
    for (part, _, _), operations in parts.items():
        by_part[part] += operations
    return f"{si(sum(by_part.values()))}FLOP: {listed(by_part, 'FLOP')}"


def _collectives_in_words(program: jax.stages.Compiled, count: int) -> str:
    found = hlo.read_collectives(program.as_text() or "", count)
    if not found:
        return "nothing between devices"
    total = sum(each.num_bytes * each.times for each in found)
    kinds = ", ".join(
        f"{each.times:g} {each.kind} of {si(each.num_bytes)}B among {each.group}" for each in found
    )
    return f"{si(total)}B a step and device: {kinds}"


def _memory_in_words(program: jax.stages.Compiled, programs: Programs, available: int) -> str:
    account = memory.account(program)._asdict() | {"beside": programs.beside()}
    return (
        f"memory         {si(sum(account.values()))}B of {si(available)}B a device: "
        f"{listed(account, 'B')}"
    )


def _microbatches_in_words(programs: Programs, size: int) -> str:
    images, copies = programs.here
    rows, columns = devices.part(images, copies, size)
    count = -(-images // rows) * -(-copies // columns)
    how = execution.Execution(size, programs.residuals).repeats(count)
    return f"microbatches   {programs.views} views a device in {count} of {rows * columns}, {how}"


def _real_in_words(programs: Programs, available: int) -> str:
    taken: list[int | float] = []

    def fit(embedding: Embedding, limit: int) -> int:
        needed = functools.cache(embedding.needed)
        size = embedding.fit(limit, needed)
        taken.append(needed(size))
        return size

    size = programs.fit_real(memory.free_bytes({"bytes_limit": available}, 0), fit)
    said = plan.real_in_words(programs.recipe, programs.embeddings()[0].here, size)
    return f"{said}, {si(max(taken))}B"


def _time_in_words(
    parts: Mapping[tuple[str, str, bool], float], topology: accelerators.Topology, steps: int
) -> str:
    """The least that a step can take, by published peaks."""
    accelerator, count = topology.accelerator, len(topology.devices)
    seconds = sum(
        operations / accelerator.peak(dtype, exact) / count
        for (_, dtype, exact), operations in parts.items()
    )
    return (
        f"time           at least {1e3 * seconds:.3g} ms a step at the published peak of {count} x "
        f"{accelerator.bfloat16:g} TFLOP/s (bfloat16), {accelerator.float32:.3g} (float32); "
        f"{steps} steps in {duration(steps * seconds)}"
    )
