"""Many devices: each has its own synthetic images and its own part of a real batch.

There is one mesh axis. Arrays along whose images are divided are padded to a multiple of the number
of devices; padding has the label `PADDING` and counts for nothing. Inside `over_devices` code sees
one device's part, and what devices know of each other comes from `total` alone.

A mesh of `None` stands for one device and plain `jax.jit`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

AXIS = "data"

PADDING = -1
"""The label of a row that is there to fill up and has no weight."""

EVERYWHERE = PartitionSpec()
DIVIDED = PartitionSpec(AXIS)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis over some devices; all by default."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def over_devices(
    function: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Runs a function on every device of a mesh, each with its part of what is divided.

    JAX checks that what is returned as common to all devices is so. Without a mesh this is the
    function itself.
    """
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def specs(tree: Any) -> Any:
    """How a state is laid out: arrays are divided along their first axis, scalars are common."""
    return jax.tree.map(lambda leaf: DIVIDED if jnp.ndim(leaf) else EVERYWHERE, tree)


def constrain(tree: Any, mesh: Mesh | None) -> Any:
    """Lays a state out as `specs` says, inside a jitted function."""
    if mesh is None:
        return tree
    layout = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree))
    return jax.lax.with_sharding_constraint(tree, layout)


def own(tree: Any, mesh: Mesh | None) -> Any:
    """Makes each device's copy of common values its own, so that gradients are its own too.

    A gradient with respect to a common value is summed over devices already.
    """
    return tree if mesh is None else jax.lax.pcast(tree, AXIS, to="varying")


def total(tree: Any, mesh: Mesh | None) -> Any:
    """Sums over devices."""
    return tree if mesh is None else jax.lax.psum(tree, AXIS)


def own_positions(each: int, mesh: Mesh | None) -> Int[Array, " each"]:
    """Which rows this device has, if each has as many."""
    first = 0 if mesh is None else jax.lax.axis_index(AXIS) * each
    return first + jnp.arange(each, dtype=jnp.int32)


def divide(mesh: Mesh, array: Any, *, axis: int = 0, fill: int = 0) -> jax.Array:
    """Gives each device its part of an array, padded to equal parts.

    Args:
        mesh: The devices.
        array: From NumPy or JAX.
        axis: Along which to divide.
        fill: What to pad with.
    """
    missing = -array.shape[axis] % mesh.size
    if missing:
        widths = [(0, missing if i == axis else 0) for i in range(array.ndim)]
        pad = jnp.pad if isinstance(array, jax.Array) else np.pad
        array = pad(array, widths, constant_values=fill)
    spec = PartitionSpec(*(None,) * axis, AXIS)
    # XLA calls what one device has whole; another name for it would compile a step twice.
    return jax.device_put(array, NamedSharding(mesh, spec if mesh.size > 1 else EVERYWHERE))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts the same on every device."""
    return jax.device_put(tree, NamedSharding(mesh, EVERYWHERE))


def place(mesh: Mesh, state: Any) -> Any:
    """Lays a state out as `specs` says, padded with images of zero."""
    return jax.tree.map(
        lambda leaf: divide(mesh, leaf) if jnp.ndim(leaf) else replicate(mesh, leaf), state
    )


def collect(mesh: Mesh, state: Any, count: int) -> Any:
    """A placed state without its padding, which is the same whatever the number of devices.

    Where there is no padding, it is the state as it is, each device with its part.
    """
    return state if count % mesh.size == 0 else _cut(state, count, mesh)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _cut(state: Any, count: int, mesh: Mesh) -> Any:
    whole = NamedSharding(mesh, EVERYWHERE)
    cut = jax.tree.map(lambda leaf: leaf[:count] if leaf.ndim else leaf, state)
    return jax.lax.with_sharding_constraint(cut, whole)
