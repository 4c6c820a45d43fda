"""How many views fit into a backbone at a time: memory of a step, and of devices."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import psutil
from jaxtyping import Array, Float

from lgm_jax import devices
from lgm_jax.backbones import residuals
from lgm_jax.backbones.residuals import Residuals
from lgm_jax.distill import Distillation, abstract_params, make_embed
from lgm_jax.errors import OUT_OF_MEMORY
from lgm_jax.objectives import LGM

# For devices that report no memory of their own, such as CPUs. Not of what is free at the moment,
# so that the same command does the same on a machine that is busy.
_PART_OF_MACHINE = 0.5

# Where Linux tells how much of the machine's memory a container may use.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# Part of a device's memory to plan with; allocators lose some to fragments.
_USABLE = 0.9

# What a view takes, over what `kept_bytes` counts, by platform. With XLA for CPUs: 1.33 for a ViT-B
# of twelve blocks; more for one of few, where the working memory of one block counts for more. By
# the compilers of accelerators, 0.9 to 1.05 for a ViT-B in bfloat16 (docs/scaling.md); that is what
# plans without them go by, and the first size to try.
_MARGINS = {"cpu": 1.5, "gpu": 1.0, "tpu": 1.0}

# How compilers say that a program needs more than a device has: of all, or of its temporaries.
_REFUSAL = re.compile(r"([\d.]+)([KMG])\)? (?:of [\d.]+[KMG] hbm|exceeds available)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


Needed = Callable[[int], int | float]
"""Bytes of each device that the program of a size needs; infinity if that is only known to be more
than there is."""


class Account(NamedTuple):
    """Bytes of one device that a program takes; results in the place of arguments do not count."""

    arguments: int
    results: int
    temporary: int

    @property
    def total(self) -> int:
        return sum(self)


def account(program: jax.stages.Compiled) -> Account:
    """Returns the memory of a compiled program on each device, by its compiler's account."""
    found: Any = program.memory_analysis()
    return Account(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )


def try_compile(
    lowered: Any, options: Mapping[str, str] | None = None
) -> tuple[jax.stages.Compiled | None, int | float]:
    """Compiles a lowered program, for accelerators, and runs nothing.

    Returns:
        The program, and the bytes of each device that it needs. Where its compiler refuses it for
        lack of memory: `None`, and what it says that it would need; infinity if it does not say.
    """
    try:
        compiled = lowered.compile(compiler_options=dict(options or {}))
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        refused = _REFUSAL.search(str(error))
        return None, math.inf if refused is None else int(float(refused[1]) * _UNITS[refused[2]])
    return compiled, account(compiled).total


def view_bytes(task: Distillation, network: Any, kept: Residuals = "all") -> int:
    """Estimated bytes that a step holds of every view that is in the backbone; runs nothing.

    Args:
        network: The backbone, or its outline: of its parameters only shapes and types count.
        kept: What its blocks keep for the gradient.
    """
    single = one_view(task)
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    apply = residuals.keeping(network, kept).apply
    embed = make_embed(single, apply, jax.random.key(0), mesh=mesh)

    def held(count: int) -> int:
        def features(images: Any, backbone_params: Any) -> Float[Array, "n d"]:
            return embed({"images": images}, backbone_params, jnp.int32(0)).values

        return kept_bytes(features, abstract_params(single, count), network.params)

    # The difference leaves out what is kept once, such as parameters.
    each = held(2) - held(1)
    if kept == "all":
        return each
    # What is computed anew is there for one block at a time.
    return each + view_bytes(task, network) // network.spec.blocks


def one_view(task: Distillation) -> Distillation:
    """Returns a task of single views that take as much: the same for many tasks."""
    return dataclasses.replace(
        task,
        num_classes=2,
        ipc=1,
        copies=1,
        center_crop_copies=min(1, task.center_crop_copies),
        objective=LGM(),
        labels="hard",
    )


def forward_view_bytes(network: Any, crop: int) -> int:
    """Estimated bytes of a view, of `crop` pixels, without a gradient: those of a block."""

    def kept(count: int) -> int:
        images = jax.ShapeDtypeStruct((count, crop, crop, 3), jnp.float32)
        return kept_bytes(lambda some, params: network.apply(params, some), images, network.params)

    blocks = network.spec.blocks if len(residuals.offered(network)) > 1 else 1
    return (kept(2) - kept(1)) // blocks


def kept_bytes(function: Callable[..., Array], argument: Any, *others: Any) -> int:
    """Bytes kept of a computation until it is differentiated by `argument`; runs nothing."""

    def pullback(argument: Any, *others: Any) -> Any:
        return jax.vjp(lambda argument: function(argument, *others), argument)[1]

    kept = jax.eval_shape(pullback, argument, *others)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def free_bytes(stats: Mapping[str, int] | None, reserved: int) -> int:
    """Bytes of a device for microbatches.

    A device that reports nothing, as a CPU, gets its share of half of the machine's memory. All
    processes of the run are taken to be on this machine, as nothing says which are.

    Args:
        stats: What the device reports of itself, `device.memory_stats()`.
        reserved: Bytes that will be needed for something else and are not taken yet.
    """
    if not stats or "bytes_limit" not in stats:
        sharing = jax.process_count() * jax.local_device_count()
        return int(_PART_OF_MACHINE * machine_bytes()) // sharing
    return int(_USABLE * stats["bytes_limit"]) - stats.get("bytes_in_use", 0) - reserved


def machine_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    limits = [psutil.virtual_memory().total]
    for path in map(Path, CONTAINER_LIMITS):
        # A machine without containers has no such file, and a container without a limit says "max".
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits)


def choose_size(view_bytes: int, free: int, views: int, platform: str = "cpu") -> int:
    """Views at a time, of those of a device in a step, for `free` bytes: all, or one at least."""
    return max(1, min(views, int(free / (_MARGINS[platform] * view_bytes))))


def needed_bytes(view_bytes: int, size: int, platform: str) -> int:
    """Memory that is reckoned with for `size` views at a time; arguments as for `choose_size`."""
    return int(_MARGINS[platform] * view_bytes * size)


def fit(needed: Needed, limit: int, sizes: Sequence[int], first: int, fixed: int) -> int:
    """The largest size whose program fits in `limit` bytes, or one that a quarter more would not.

    Every program that is asked for is compiled, which takes long. So the first guess is to be good,
    and the next ones follow from a straight line of bytes against sizes. Where a compiler does not
    say what a program needs that does not fit, half of its size is next.

    Args:
        sizes: All that may be, in ascending order; the least if none fits.
        fixed: Bytes that every program takes.
    """
    # Of `sizes`, the last known to fit, and the first known not to.
    fits, fails = -1, len(sizes)
    at = max(0, bisect.bisect_right(sizes, first) - 1)
    known: dict[int, int | float] = {0: fixed}
    while fits < at < fails:
        found = needed(sizes[at])
        if found <= limit:
            fits = at
        else:
            fails = at
        if math.isfinite(found):
            known[sizes[at]] = found
            reached = bisect.bisect_right(sizes, _reached(known, limit)) - 1
        else:
            reached = bisect.bisect_right(sizes, sizes[fails] // 2) - 1
            reached = reached if reached > fits else fails
        # A line leads nowhere where a smaller size needs no less; and where it says that not even
        # the least fits, unless it is the first, which starts from what every program takes.
        lost = reached >= fails or (fits == reached == -1 and len(known) > 2)
        at = (fits + fails) // 2 if lost else reached
        if 0 <= fits < at < len(sizes) - 1 and sizes[at] < 1.25 * sizes[fits]:
            break
    return sizes[max(0, fits)]


def _reached(known: Mapping[int, int | float], limit: int) -> int | float:
    """The size at which a line reaches the limit: that through the known ones on both sides of it,
    or else through the two nearest, of which one may be 0."""
    less = [size for size in sorted(known) if size and known[size] <= limit][-2:]
    more = [size for size in sorted(known) if known[size] > limit][:2]
    near = [less[-1], more[0]] if less and more else less or more
    one, two = near if len(near) == 2 else (0, near[0])
    low, high = known[one], known[two]
    return one + (limit - low) * (two - one) / (high - low) if high != low else math.inf
