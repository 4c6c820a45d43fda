"""Memory that does not grow with the batch: views go through the backbone some at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

# For devices that report no memory of their own, such as CPUs: the part of the machine's memory
# that microbatches may take together, of all processes of a run, which may share the machine. Not
# of what is free at the moment, so that the same command does the same on a machine that is busy.
_PART_OF_MACHINE = 0.5

# Where Linux tells how much of the machine's memory a container may use.
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# Part of a device's memory to plan with; allocators lose some to fragments.
_USABLE = 0.9

# What a view takes, over what `kept_bytes` counts. Measured with XLA for CPUs: 1.2 for a ViT-B of
# twelve blocks, 1.5 for one of two, where the working memory of one block counts for more.
_MARGIN = 1.5


def map_in_parts(function: Callable[..., Array], size: int | None, *arrays: Array) -> Array:
    """`function(*arrays)` of at most `size` rows at a time, in the memory of one such part.

    Where it is differentiated, with respect to what `function` closes over, each part is computed
    anew.

    Args:
        function: Treats every row for itself, and gives as many rows as it gets.
        size: Most rows at a time; `None` for all.
        arrays: Arrays with as many rows.
    """
    count = arrays[0].shape[0]
    if size is None or count <= size:
        return function(*arrays)
    starts, rows = _parts(count, size)
    # In a loop nothing is merged with the first computation, so no barrier is needed.
    once = jax.checkpoint(lambda start: function(*_take(arrays, start, rows)), prevent_cse=False)
    results = jax.lax.map(once, starts)
    body, last = results[:-1], results[-1]
    body = body.reshape(-1, *last.shape[1:])
    return jnp.concatenate([body, last[body.shape[0] + rows - count :]])


def vjp_in_parts(
    function: Callable[[Any, Array], Array], size: int | None, tree: Any, indices: Array
) -> tuple[Array, Callable[[Array], Any]]:
    """`jax.vjp` with respect to a tree's rows, in the memory of at most `size` of them at a time.

    Nothing but the results is kept, and each part is computed again for its gradient. Where all
    rows fit in one part, this is `jax.vjp` and nothing is computed twice.

    Args:
        function: Of a tree and indices, treats every row for itself, and gives as many rows.
        size: Most rows at a time; `None` for all.
        tree: What to differentiate with respect to: arrays with as many rows.
        indices: A further argument with as many rows.

    Returns:
        The results, and a function from their gradient to that of the tree.
    """
    count = indices.shape[0]
    if size is None or count <= size:
        results, pullback = jax.vjp(lambda tree: function(tree, indices), tree)
        return results, lambda gradient: pullback(gradient)[0]
    starts, rows = _parts(count, size)

    def pullback_in_parts(gradient: Array) -> Any:
        def put(total: Any, start: Array) -> tuple[Any, None]:
            part, own, given = _take((tree, indices, gradient), start, rows)
            _, pullback = jax.vjp(lambda part: function(part, own), part)
            # Rows that two parts share get the same gradient twice, and keep one.
            return jax.tree.map(
                lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, start, 0),
                total,
                pullback(given)[0],
            ), None

        return jax.lax.scan(put, jax.tree.map(jnp.zeros_like, tree), starts)[0]

    leaves, structure = jax.tree.flatten(tree)

    def of_leaves(indices: Array, *leaves: Array) -> Array:
        return function(jax.tree.unflatten(structure, leaves), indices)

    return map_in_parts(of_leaves, size, indices, *leaves), pullback_in_parts


def _parts(count: int, size: int) -> tuple[Array, int]:
    """Where parts start and their number of rows; all have as many, so the last may overlap."""
    number = -(-count // size)
    rows = -(-count // number)
    return jnp.minimum(rows * jnp.arange(number), count - rows), rows


def _take(tree: Any, start: Array, rows: int) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, rows, axis=0), tree)


def kept_bytes(function: Callable[..., Array], argument: Any, *others: Any) -> int:
    """Bytes that are kept of a computation until it is differentiated; runs nothing.

    Args:
        function: The function.
        argument: Its first argument, the one to differentiate with respect to; of this and the
            others only shapes and types count.
        others: Its other arguments.
    """

    def pullback(argument: Any, *others: Any) -> Any:
        return jax.vjp(lambda argument: function(argument, *others), argument)[1]

    kept = jax.eval_shape(pullback, argument, *others)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def free_bytes(stats: Mapping[str, int] | None, reserved: int) -> int:
    """Memory of a device for microbatches.

    A device that reports nothing, as a CPU, gets its share of half of the machine's memory. All
    processes of the run are taken to be on this machine, as nothing says which are: on machines of
    their own they get less than they could have.

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
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(Path, _CONTAINER_LIMITS):
        # A machine without containers has no such file, and a container without a limit says "max".
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits)


def choose_size(view_bytes: int, free: int, views: int) -> int:
    """Views at a time: all if they fit, and one at least.

    Args:
        view_bytes: What `kept_bytes` counts for one of them.
        free: Bytes of memory for them.
        views: Views of one device in a step.
    """
    return max(1, min(views, int(free / (_MARGIN * view_bytes))))


def needed_bytes(view_bytes: int, size: int) -> int:
    """Memory that is reckoned with for `size` views at a time."""
    return int(_MARGIN * view_bytes * size)
