"""Predicts arithmetic, memory and exchange of a distillation, without weights or images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lgm_jax import checks, devices, distill, execution, flops, memory, real
from lgm_jax.backbones.residuals import Residuals
from lgm_jax.data.sources import known_size
from lgm_jax.errors import UserError
from lgm_jax.execution import Execution
from lgm_jax.objectives import LGM, SFM
from lgm_jax.opening import find_data, reads_on_host
from lgm_jax.programs import Network, Programs, make_outlines
from lgm_jax.quantities import duration, listed, si
from lgm_jax.settings import Recipe, backbone_weights, make_recipe

# What the step of a plan is executed on: an accelerator, whatever plans it.
_PLATFORM = "gpu"

SHARE = 0.45
"""Of the peak, in planning: what large products reach when all else is in their way."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices to plan for.

    Attributes:
        memory: Of each, in 10^9 bytes.
        tflops: Peak of each, in 10^12 floating-point operations a second; `None` if unknown.
        bandwidth: Of each one's line to the others, in 10^9 bytes a second; `None` if unknown.
    """

    devices: int = 1
    memory: float = 80.0
    tflops: float | None = None
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        checks.counts(self, "devices")
        for name in ("memory", "tflops", "bandwidth"):
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The costs of one step.

    Attributes:
        programs: What is planned, for the devices of the machine.
        flops: By part, of the matrix products on all devices.
        exchanged: Bytes that each device adds up with the others, or gets from them.
        memory: Bytes on a device, by part.
        execution: How many views are in the backbone at a time, and what is kept of them.
        real_size: How many real images are in a backbone at a time.
    """

    programs: Programs
    machine: Machine
    flops: dict[str, float]
    exchanged: int
    memory: dict[str, float]
    execution: Execution
    real_size: int

    @property
    def recipe(self) -> Recipe:
        """What is to be made."""
        return self.programs.recipe

    @property
    def view_flops(self) -> float:
        """Operations of one forward pass of one view, by all backbones."""
        return _flops(self.programs)[0]

    @property
    def exchange(self) -> float:
        """Seconds of a step that are the exchange; 0 where the bandwidth is unknown."""
        count, bandwidth = self.machine.devices, self.machine.bandwidth
        # In a ring, each sends its part of the sums on twice, all but once around.
        sent = 2 * (count - 1) / count * self.exchanged
        return 0.0 if bandwidth is None else sent / (bandwidth * 1e9)

    @property
    def peak(self) -> float | None:
        """Seconds of a step at the peak of the devices; `None` where that is unknown."""
        if self.machine.tflops is None:
            return None
        # A device may have one image more than another, and images of no weight fill up.
        here = sum(self.flops.values()) * self.programs.views / self.recipe.task.num_views
        return here / (self.machine.tflops * 1e12)

    @property
    def seconds(self) -> float | None:
        """Seconds of a step at the share of the peak that is planned with, and of the exchange."""
        return None if self.peak is None else self.peak / SHARE + self.exchange


def plan_config(config: ConfigDict, machine: Machine, num_classes: int, num_images: int) -> Plan:
    """Plans the steps of a config for data of so many classes and training images."""
    programs = make_programs(config, machine.devices, num_classes, num_images)
    return make_plan(programs, machine, config.microbatch)


def make_programs(
    config: ConfigDict,
    on: Sequence[jax.Device] | int,
    num_classes: int,
    num_images: int,
    *,
    options: Mapping[str, str] | None = None,
) -> Programs:
    """The programs of a config as a run makes them, without weights or data.

    Args:
        on: The devices, or a number of those for which nothing is compiled.
        options: Of their compiler.
    """
    outlines = make_outlines(config, None if isinstance(on, int) else on[0])
    recipe = make_recipe(config, num_classes, outlines[0].resolution)
    make_mesh: Any = devices.outline_mesh if isinstance(on, int) else devices.make_mesh
    return Programs(
        recipe,
        outlines,
        jax.random.key(config.seed),
        num_images,
        reads_on_host(config, recipe, num_images),
        make_mesh(recipe.task.num_images, recipe.task.copies, on),
        backbone_weights(config),
        options,
    )


def describe(config: ConfigDict, machine: Machine) -> str:
    """The plan of a config, in words, for a person."""
    num_classes, num_images = size_of_data(config)
    plan = plan_config(config, machine, num_classes, num_images)
    needed, how = sum(plan.memory.values()), plan.recipe.real
    lines = [
        title(config, plan.recipe, num_images),
        f"a step         {si(sum(plan.flops.values()))}FLOP: {listed(plan.flops, 'FLOP')}",
        f"exchanged      {si(float(plan.exchanged))}B a step and device"
        + ("" if machine.devices > 1 else ", with more devices"),
        f"memory         {si(needed)}B a device: {listed(plan.memory, 'B')}",
        microbatches_in_words(plan.programs, plan.execution),
        real_in_words(plan.programs, plan.real_size),
    ]
    if needed > machine.memory * 1e9:
        lines.append(f"note: this is more than the {machine.memory:g} GB of --plan_memory")
    if how.source != "stream":
        views = how.views * num_images
        once = f"{views} views embedded once, {si(views * plan.view_flops)}FLOP"
        lines.append(f"before         {once}")
    if plan.exchange:
        ms = 1e3 * plan.exchange
        lines.append(f"exchange       {ms:.3g} ms a step at {machine.bandwidth:g} GB/s")
    if plan.peak is not None and plan.seconds is not None:
        lines.append(
            f"time           {1 / plan.peak:.3g} steps/s at the peak of {machine.devices} x "
            f"{machine.tflops:g} TFLOP/s; at {SHARE:.0%} of it"
            + (" and with the exchange" if plan.exchange else "")
            + f" {1e3 * plan.seconds:.3g} ms a step, {config.steps} steps in "
            f"{duration(config.steps * plan.seconds)}"
        )
    return "\n".join(lines)


def title(config: ConfigDict, recipe: Recipe, num_images: int) -> str:
    """Returns the subject of a plan, in a line."""
    task = recipe.task
    return (
        f"{config.backbone.name} at {task.crop} px, {task.num_images} images of "
        f"{task.parametrisation.resolution} px x {task.copies} copies, {config.objective} with "
        f"real features: {recipe.real.source} of {num_images} images"
    )


def microbatches_in_words(programs: Programs, how: Execution) -> str:
    """How a device takes its views, in parts, in a line."""
    size, parts = programs.parts(how.microbatch)
    views = f"{programs.views} views a device in {parts} of {size}"
    return f"microbatches   {views}, {how.repeats(parts)}"


def real_in_words(programs: Programs, size: int) -> str:
    """How real images are embedded, `size` at a time, in a line."""
    here = programs.embeddings()[0].here
    together = "step" if programs.recipe.real.source == "stream" else "batch"
    return f"real images    {here} a {together} and device in {-(-here // size)} of {size}"


def make_plan(programs: Programs, machine: Machine, size: int | None = None) -> Plan:
    """Counts what a step takes, with `size` views in the backbone at a time, or what fits."""
    recipe, outlines = programs.recipe, programs.networks
    task, streams = recipe.task, recipe.real.source == "stream"
    views, (images_here, _) = programs.views, programs.here
    _, params, given = programs.arguments()
    used = {
        "weights": float(devices.bytes_here(params)),
        # Parameters, Adam's two moments, the gradient and that of the backbones before.
        "images": (4.0 + (len(outlines) > 1)) * images_here * distill.params_bytes(task),
        "real": float(devices.bytes_here(given) + programs.beside()),
    }
    stats = {"bytes_limit": int(machine.memory * 1e9)}
    free = memory.free_bytes(stats, int(sum(used.values())))

    def view_bytes(kept: Residuals) -> int:
        return sum(_view_bytes(outline, memory.one_view(task), kept) for outline in outlines)

    def fitting(kept: Residuals) -> int:
        most = size or memory.choose_size(view_bytes(kept), free, views, _PLATFORM)
        # As the step divides them, in equal parts of whole images or of one's copies.
        return programs.parts(most)[0]

    chosen = execution.choose(fitting, programs.offered, views, _PLATFORM)
    kept = view_bytes(chosen.residuals)
    used["microbatch"] = float(memory.needed_bytes(kept, chosen.microbatch, _PLATFORM))
    # Real images that a device embeds together: its part of a step's, or of a batch.
    real_views = programs.embeddings()[0].here
    real_bytes = max(_forward_bytes(outline, task.crop) for outline in outlines)
    fits = size if size and streams else memory.choose_size(real_bytes, free, real_views, _PLATFORM)
    real_size = devices.even(real_views, fits)
    if streams:
        used["microbatch"] = max(used["microbatch"], real_bytes * real_size)
    exchanged = sum(
        _exchanged(recipe, each.feature_dim, views * machine.devices) for each in outlines
    )
    if programs.mesh.shape[devices.COPY] > 1:
        # Devices that share the copies of an image add up its gradient, for each backbone.
        exchanged += len(outlines) * images_here * distill.params_bytes(task)
    forward, backward = (task.num_views * each for each in _flops(programs))
    counted = {"synthetic forward": forward}
    if chosen.microbatch < views:
        counted["again"] = forward
    counted["backward"] = backward
    if streams:
        counted["real forward"] = forward
    counted["objective"] = sum(
        _objective_flops(task, each, outline.feature_dim)
        for outline, each in zip(outlines, given, strict=True)
    )
    return Plan(programs, machine, counted, exchanged, used, chosen, real_size)


def _flops(programs: Programs) -> tuple[float, float]:
    """Operations of a view, forward and backward, by all backbones."""
    networks: Sequence[Any] = programs.networks
    return sum(each.flops[0] for each in networks), sum(each.flops[1] for each in networks)


@functools.lru_cache
def _view_bytes(outline: Network, task: distill.Distillation, kept: Residuals) -> int:
    return memory.view_bytes(task, outline, kept)


@functools.lru_cache
def _forward_bytes(outline: Network, crop: int) -> int:
    return memory.forward_view_bytes(outline, crop)


def _objective_flops(task: distill.Distillation, given: Any, dim: int) -> float:
    """Counts operations of the matrix products of the objective and its gradient."""

    def loss(values: Any, synthetic: Any, given: Any) -> Any:
        seen = dataclasses.replace(synthetic, values=values)
        return task.objective(jax.random.key(0), seen, given)

    synthetic = real.abstract_features(task.num_views, dim, task.num_classes, task.copies)
    return flops.count(jax.grad(loss), synthetic.values, synthetic, given)


def _exchanged(recipe: Recipe, dim: int, views: int) -> int:
    """Bytes of a step's features that each device adds up with the others, or gets from them.

    Of an objective that is not ours, those of all features of all views on all devices.
    """
    task = recipe.task
    sums = task.num_classes * (dim + 1)
    if isinstance(task.objective, LGM):
        return 2 * 4 * (sums + 1)
    if isinstance(task.objective, SFM):
        # Sums of each class, and of all; what is prepared of real images is on every device.
        return (1 if recipe.prepares else 2) * 4 * (sums + dim + 1)
    labels = 1 if task.labels == "hard" else 2 * task.num_classes
    # Features and soft labels with their gradients, weights; the loss and a count.
    return 4 * (views * (2 * dim + labels + 1) + 2)


def size_of_data(config: ConfigDict) -> tuple[int, int]:
    """Classes and training images, without decoding one."""
    try:
        dataset = find_data(config, 1, "stop")
    except UserError:
        size = known_size(config.data.name, config.data.subset)
        if size is None:
            raise
        print(f"note: the data set is not there yet; planned for {size.train} training images")
        return size.classes, size.train
    return dataset.num_classes, len(dataset.splits["train"].labels)
