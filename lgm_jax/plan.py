"""Predicts arithmetic, memory and exchange of a distillation, without weights or images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lgm_jax import checks, devices, distill, execution, flops, memory, real
from lgm_jax.backbones import residuals
from lgm_jax.backbones.residuals import Residuals
from lgm_jax.data.sources import known_size
from lgm_jax.errors import UserError
from lgm_jax.execution import Execution
from lgm_jax.features import BATCH
from lgm_jax.objectives import LGM, SFM, Features
from lgm_jax.opening import find_data, reads_on_host
from lgm_jax.outlines import Outline, make_outlines
from lgm_jax.quantities import duration, listed, si
from lgm_jax.settings import Recipe, make_recipe

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
    """The costs of one step, those of a device where it says so.

    Attributes:
        outlines: The backbones to distil against.
        flops: By part, of the matrix products on all devices.
        exchanged: Bytes that each device adds up with the others, or gets from them.
        memory: Bytes on a device, by part.
        views: Augmented synthetic images of a device.
        execution: How many of them are in the backbone at a time, and what is kept of them.
        embedded_once: Real views that are embedded before the first step.
        real_views: Real images that a device embeds together: its part of a step's, or of a batch.
        real_size: How many of them are in a backbone at a time.
    """

    recipe: Recipe
    outlines: Sequence[Outline]
    machine: Machine
    flops: dict[str, float]
    exchanged: int
    memory: dict[str, float]
    views: int
    execution: Execution
    embedded_once: int
    real_views: int
    real_size: int

    @property
    def parts(self) -> int:
        """Microbatches of a device in a step."""
        return -(-self.views // self.execution.microbatch)

    @property
    def view_flops(self) -> float:
        """Operations of one forward pass of one view, by all backbones."""
        return sum(outline.flops[0] for outline in self.outlines)

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
        here = sum(self.flops.values()) * self.views / self.recipe.task.num_views
        return here / (self.machine.tflops * 1e12)

    @property
    def seconds(self) -> float | None:
        """Seconds of a step at the share of the peak that is planned with, and of the exchange."""
        return None if self.peak is None else self.peak / SHARE + self.exchange


def plan_config(config: ConfigDict, machine: Machine, num_classes: int, num_images: int) -> Plan:
    """Plans the steps of a config for data of so many classes and training images."""
    outlines = make_outlines(config)
    recipe = make_recipe(config, num_classes, outlines[0].resolution)
    on_host = reads_on_host(config, recipe, num_images)
    return make_plan(recipe, outlines, num_images, machine, config.microbatch, on_host=on_host)


def describe(config: ConfigDict, machine: Machine) -> str:
    """The plan of a config, in words, for a person."""
    num_classes, num_images = size_of_data(config)
    plan = plan_config(config, machine, num_classes, num_images)
    needed = sum(plan.memory.values())
    lines = [
        title(config, plan.recipe, num_images),
        f"a step         {si(sum(plan.flops.values()))}FLOP: {listed(plan.flops, 'FLOP')}",
        f"exchanged      {si(float(plan.exchanged))}B a step and device"
        + ("" if machine.devices > 1 else ", with more devices"),
        f"memory         {si(needed)}B a device: {listed(plan.memory, 'B')}",
        f"microbatches   {plan.views} views a device in {plan.parts} of "
        f"{plan.execution.microbatch}, {plan.execution.repeats(plan.parts)}",
        real_in_words(plan.recipe, plan.real_views, plan.real_size),
    ]
    if needed > machine.memory * 1e9:
        lines.append(f"note: this is more than the {machine.memory:g} GB of --plan_memory")
    if plan.embedded_once:
        once = plan.embedded_once * plan.view_flops
        lines.append(f"before         {plan.embedded_once} views embedded once, {si(once)}FLOP")
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


def real_in_words(recipe: Recipe, here: int, size: int) -> str:
    """How real images are embedded, `size` at a time, in a line."""
    together = "step" if recipe.real.source == "stream" else "batch"
    return f"real images    {here} a {together} and device in {-(-here // size)} of {size}"


def make_plan(
    recipe: Recipe,
    outlines: Sequence[Outline],
    num_images: int,
    machine: Machine,
    size: int | None = None,
    *,
    on_host: bool = False,
) -> Plan:
    """Counts what a step takes.

    Args:
        size: Views in the backbone at a time; by default what fits.
        on_host: Whether streamed images come from the host.
    """
    task, sources = recipe.task, recipe.real
    split = devices.split(task.num_images, task.copies, machine.devices)
    images_here, copies_here = -(-task.num_images // split[0]), -(-task.copies // split[1])
    views = images_here * copies_here
    used = _arguments(recipe, outlines, images_here, num_images, machine.devices, held=not on_host)
    stats = {"bytes_limit": int(machine.memory * 1e9)}
    free = memory.free_bytes(stats, int(sum(used.values())))

    def fitting(kept: Residuals) -> int:
        if size is not None:
            return min(size, views)
        return memory.choose_size(view_bytes(kept), free, views, _PLATFORM)

    def view_bytes(kept: Residuals) -> int:
        return sum(_view_bytes(outline, _alike(task), kept) for outline in outlines)

    offered = min((residuals.offered(outline) for outline in outlines), key=len)
    chosen = execution.choose(fitting, offered, views, _PLATFORM)
    view = view_bytes(chosen.residuals)
    used["microbatch"] = float(memory.needed_bytes(view, chosen.microbatch, _PLATFORM))
    real_views, real_size, forward = _embedding(recipe, outlines, machine, free)
    if sources.source == "stream":
        real_size = real_size if size is None else devices.even(real_views, size)
        used["microbatch"] = max(used["microbatch"], forward * real_size)
    counted = _count_flops(recipe, outlines, num_images, again=chosen.microbatch < views)
    dims = [outline.spec.feature_dim for outline in outlines]
    exchanged = sum(_exchanged(recipe, dim, views * machine.devices) for dim in dims)
    if split[1] > 1:
        # Devices that share the copies of an image add up its gradient, for each backbone.
        exchanged += len(outlines) * images_here * distill.params_bytes(task)
    return Plan(
        recipe,
        outlines,
        machine,
        counted,
        exchanged=exchanged,
        memory=used,
        views=views,
        execution=chosen,
        embedded_once=0 if sources.source == "stream" else sources.views * num_images,
        real_views=real_views,
        real_size=real_size,
    )


def _arguments(
    recipe: Recipe,
    outlines: Sequence[Outline],
    images_here: int,
    num_images: int,
    num_devices: int,
    *,
    held: bool,
) -> dict[str, float]:
    """Bytes of a device for what a step takes, by part."""
    sources, dims = recipe.real, [outline.spec.feature_dim for outline in outlines]
    leaves = jax.tree.leaves([outline.params for outline in outlines])
    # Parameters, Adam's two moments, the gradient and that of the backbones before.
    copies = 4.0 + (len(outlines) > 1)
    given = real.bytes_on_device(
        sources.source, sources.views, num_images, dims, recipe.task, num_devices, held=held
    )
    return {
        "weights": float(sum(x.size * x.dtype.itemsize for x in leaves)),
        "images": copies * images_here * distill.params_bytes(recipe.task),
        "real": float(given),
    }


def _embedding(
    recipe: Recipe, outlines: Sequence[Outline], machine: Machine, free: int
) -> tuple[int, int, int]:
    """How many real images a device embeds together, how many at a time, and bytes of each."""
    streams, task = recipe.real.source == "stream", recipe.task
    together = -(-task.num_views // machine.devices) if streams else BATCH
    each = max(_forward_bytes(outline, task.crop) for outline in outlines)
    size = memory.choose_size(each, free, together, _PLATFORM)
    return together, devices.even(together, size), each


def _alike(task: distill.Distillation) -> distill.Distillation:
    """A task whose views take as much: the same for many, so that their plans share it."""
    return dataclasses.replace(
        task,
        num_classes=2,
        ipc=1,
        copies=1,
        center_crop_copies=min(1, task.center_crop_copies),
        objective=LGM(),
        labels="hard",
    )


def _count_flops(
    recipe: Recipe, outlines: Sequence[Outline], num_images: int, *, again: bool
) -> dict[str, float]:
    """Counts operations of a step by part; `again`: with a second forward pass for the gradient."""
    task, sources = recipe.task, recipe.real
    dims = [outline.spec.feature_dim for outline in outlines]
    forward, backward = (
        task.num_views * sum(part) for part in zip(*(each.flops for each in outlines), strict=True)
    )
    rows = sources.views * num_images if sources.source == "exact" else task.num_views
    if recipe.prepares:
        rows = task.num_classes
    counted = {"synthetic forward": forward}
    if again:
        counted["again"] = forward
    counted["backward"] = backward
    if sources.source == "stream":
        counted["real forward"] = forward
    counted["objective"] = sum(_objective_flops(recipe, dim, rows) for dim in dims)
    return counted


@functools.lru_cache
def _view_bytes(outline: Outline, task: distill.Distillation, kept: Residuals) -> int:
    return memory.view_bytes(task, outline, kept)


@functools.lru_cache
def _forward_bytes(outline: Outline, crop: int) -> int:
    return memory.forward_view_bytes(outline, crop)


def _objective_flops(recipe: Recipe, dim: int, rows: int) -> float:
    """Counts operations of the matrix products of the objective and its gradient."""
    task = recipe.task

    def features(count: int, copies: int) -> Features:
        def numbers(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, *shape), dtype)

        index, weight = numbers(jnp.int32), numbers(jnp.float32)
        return Features(
            numbers(jnp.float32, dim), index, weight, index, index, task.num_classes, copies
        )

    def loss(values: Any, synthetic: Features, real: Features) -> Any:
        key = jax.random.key(0)
        return task.objective(key, dataclasses.replace(synthetic, values=values), real)

    synthetic = features(task.num_views, task.copies)
    return flops.count(jax.grad(loss), synthetic.values, synthetic, features(rows, 1))


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
