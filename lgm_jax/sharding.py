"""Many devices: each has its own synthetic images and its own part of a real batch.

There is one mesh axis. Arrays along whose images are divided are padded to a multiple of the number
of devices; padding has the label `PADDING` and counts for nothing. Inside `over_devices` code sees
one device's part, and what devices know of each other comes from `total` and `gather` alone.

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


def mesh_of_several(devices: Sequence[jax.Device]) -> Mesh | None:
    """A mesh over some devices; `None` over one."""
    return make_mesh(devices) if len(devices) > 1 else None


def over_devices(
    function: Callable[..., Any],
    mesh: Mesh | None,
    in_specs: Any,
    out_specs: Any,
    *,
    checked: bool = True,
) -> Callable[..., Any]:
    """Runs a function on every device of a mesh, each with its part of what is divided.

    JAX checks that what is returned as common to all devices is so. Without a mesh this is the
    function itself.

    Args:
        function: What to run.
        mesh: The devices.
        in_specs: How its arguments are laid out.
        out_specs: How its results are.
        checked: `False` for what returns nothing in common and sums nothing, but has loops that
            the check cannot follow.
    """
    if mesh is None:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=checked
    )


def over_rows(function: Callable[..., Array], mesh: Mesh | None) -> Callable[..., Array]:
    """Runs `function(common, *rows)` on every device of a mesh, each with its part of the rows.

    A row of the result may depend on the same row of each argument and on what is common, and on
    no other. All devices get the whole result. To be called inside a jitted function.
    """
    if mesh is None:
        return function

    def run(common: Any, *rows: Array) -> Array:
        count = len(rows[0])
        missing = -count % mesh.size
        filled = [jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for array in rows]
        layout = (EVERYWHERE, *(DIVIDED,) * len(rows))
        result = over_devices(function, mesh, layout, DIVIDED)(common, *filled)
        return replicated(result, mesh)[:count]

    return run


def specs(tree: Any) -> Any:
    """How a state is laid out: arrays are divided along their first axis, scalars are common."""
    return jax.tree.map(lambda leaf: DIVIDED if jnp.ndim(leaf) else EVERYWHERE, tree)


def constrain(tree: Any, mesh: Mesh | None) -> Any:
    """Lays a state out as `specs` says, inside a jitted function."""
    if mesh is None:
        return tree
    layout = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree))
    return jax.lax.with_sharding_constraint(tree, layout)


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """Gives all devices the whole, inside a jitted function."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, EVERYWHERE))


def own(tree: Any, mesh: Mesh | None) -> Any:
    """Makes each device's copy of common values its own, so that gradients are its own too.

    A gradient with respect to a common value is summed over devices already.
    """
    return tree if mesh is None else jax.lax.pcast(tree, AXIS, to="varying")


def total(tree: Any, mesh: Mesh | None) -> Any:
    """Sums over devices."""
    return tree if mesh is None else jax.lax.psum(tree, AXIS)


def gather(tree: Any, mesh: Mesh | None) -> Any:
    """What all devices have, on each, along the first axis in the order of `own_positions`.

    The gradient of a device's part is the sum of what the devices make of it.
    """
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), tree)


def own_positions(each: int, mesh: Mesh | None) -> Int[Array, " each"]:
    """Which rows this device has, if each has as many."""
    first = 0 if mesh is None else jax.lax.axis_index(AXIS) * each
    return first + jnp.arange(each, dtype=jnp.int32)


def divide(mesh: Mesh | None, array: Any, *, axis: int = 0, fill: int = 0) -> jax.Array:
    """Gives each device its part of an array, padded to equal parts.

    Args:
        mesh: The devices.
        array: From NumPy or JAX.
        axis: Along which to divide.
        fill: What to pad with.
    """
    if mesh is None:
        return jnp.asarray(array)
    if mesh.is_multi_process:
        array = np.asarray(array)
    missing = -array.shape[axis] % mesh.size
    if missing:
        widths = [(0, missing if i == axis else 0) for i in range(array.ndim)]
        pad = jnp.pad if isinstance(array, jax.Array) else np.pad
        array = pad(array, widths, constant_values=fill)
    spec = PartitionSpec(*(None,) * axis, AXIS)
    # XLA calls what one device has whole; another name for it would compile a step twice.
    return _put(array, NamedSharding(mesh, spec if mesh.size > 1 else EVERYWHERE))


def replicate(mesh: Mesh | None, tree: Any) -> Any:
    """Puts the same on every device."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, EVERYWHERE)), tree)


def join(mesh: Mesh, rows: np.ndarray, count: int, *, fill: int = 0) -> jax.Array:
    """Divides what the processes have together, each the rows that it has read.

    Which device gets which rows is left open; it is the same for all arrays.

    Args:
        mesh: The devices.
        rows: This process's, at most `count / processes`, rounded up.
        count: Rows of all processes.
        fill: What to pad with.
    """
    if not mesh.is_multi_process:
        return divide(mesh, rows, fill=fill)
    devices = [device for device in mesh.devices.flat if device in mesh.local_devices]
    each = -(-count // mesh.size)
    widths = [(0, each * len(devices) - len(rows)), *[(0, 0)] * (rows.ndim - 1)]
    parts = np.split(np.pad(rows, widths, constant_values=fill), len(devices))
    return jax.make_array_from_single_device_arrays(
        (each * mesh.size, *rows.shape[1:]),
        NamedSharding(mesh, DIVIDED),
        [jax.device_put(part, device) for part, device in zip(parts, devices, strict=True)],
    )


def fetch(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays of the mesh where a process can read them: each gets all of what is divided.

    Within one process they are so as they are.
    """
    if mesh is None or not mesh.is_multi_process:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _everywhere(tree, mesh))


def make_largest(mesh: Mesh) -> Callable[[int], jax.Array]:
    """Makes `largest(number)`: of the numbers that the processes give, without waiting for it."""
    reduce = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, EVERYWHERE))

    def largest(number: int) -> jax.Array:
        mine = np.full(len(mesh.local_devices), number, np.int32)
        return reduce(join(mesh, mine, mesh.size))

    return largest


def place(mesh: Mesh | None, state: Any) -> Any:
    """Lays a state out as `specs` says, padded with images of zero."""
    if mesh is None:
        return state
    return jax.tree.map(
        lambda leaf: divide(mesh, leaf) if jnp.ndim(leaf) else replicate(mesh, leaf), state
    )


def collect(mesh: Mesh | None, state: Any, count: int) -> Any:
    """A placed state without its padding, which is the same whatever the number of devices.

    Where there is no padding, it is the state as it is, each device with its part.
    """
    return state if mesh is None or count % mesh.size == 0 else _cut(state, count, mesh)


def _put(array: Any, layout: NamedSharding) -> jax.Array:
    if layout.is_fully_addressable:
        return jax.device_put(array, layout)
    # Every process has all of it, and gives its own devices their parts.
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, layout, whole.__getitem__)


@functools.partial(jax.jit, static_argnums=1)
def _everywhere(tree: Any, mesh: Mesh) -> Any:
    return replicated(tree, mesh)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _cut(state: Any, count: int, mesh: Mesh) -> Any:
    return replicated(jax.tree.map(lambda leaf: leaf[:count] if leaf.ndim else leaf, state), mesh)
