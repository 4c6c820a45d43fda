"""Many devices: a mesh of two axes, what lies where on it, and views in memory that is bounded.

The axes are `image` and `copy`: a device has some images and some copies of each. Parameters of
images, and what the optimiser keeps of them, are divided along `image`; rows of features along
both. Arrays are padded to equal parts with rows of zero, whose weight is zero. Everything else is
on every device. One device is a mesh of one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

IMAGE, COPY = AXES = ("image", "copy")

EVERYWHERE = PartitionSpec()
IMAGES = PartitionSpec(IMAGE)
"""The first axis divided as images are."""
ROWS = PartitionSpec(AXES)
"""The first axis divided among all devices."""

_AXES_OF: Mapping[PartitionSpec, tuple[str, ...]] = {EVERYWHERE: (), IMAGES: (IMAGE,), ROWS: AXES}


def make_mesh(
    num_images: int = 1, copies: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh on which images x copies views leave the fewest places empty; images first.

    Args:
        num_images: Synthetic images.
        copies: Views of each.
        devices: All by default.
    """
    devices = jax.devices() if devices is None else devices
    shape = split(num_images, copies, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def split(num_images: int, copies: int, count: int) -> tuple[int, int]:
    """Into how many parts images and copies go on so many devices; see `make_mesh`."""
    splits = [(count // parts, parts) for parts in range(1, count + 1) if count % parts == 0]
    if num_images == copies == 1:
        return splits[0]
    return min(splits, key=lambda split: -(-num_images // split[0]) * -(-copies // split[1]))


def on_mesh(
    function: Callable[..., Any],
    mesh: Mesh,
    in_specs: Any,
    out_specs: Any,
    *,
    checked: bool = True,
) -> Callable[..., Any]:
    """`jax.shard_map`, each device with its part, for functions in which devices share nothing.

    Where `checked`, JAX makes sure of that; it cannot follow all loops.
    """
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=checked
    )


def varying(tree: Any, axes: Sequence[str] = AXES) -> Any:
    """Makes common values each device's own, at the beginning of a mapped function.

    So what devices add up of their gradients is added up once, not in each turn of a loop within.
    """
    return jax.lax.pcast(tree, tuple(axes), to="varying")


def numbers_here(each: int, axis: str | Sequence[str]) -> Int[Array, " each"]:
    """Which rows this device has, if each has as many along an axis."""
    return jax.lax.axis_index(axis) * each + jnp.arange(each, dtype=jnp.int32)


def map_views(
    function: Callable[[Any, Array, Array], Array],
    size: int | None,
    params: Any,
    images: Int[Array, " s"],
    copies: Int[Array, " c"],
) -> Array:
    """`function(params, images, copies)`, (s, c, d), of at most `size` views at a time.

    Nothing of a part is kept for the gradient, but where one part is all. A part is whole images
    with all copies, or some copies of one image, and comes by slicing: so each image is decoded
    once a part, and no gradient is scattered.

    Args:
        function: Treats every view for itself.
        size: Most views at a time; `None` for all.
        params: Of the images, arrays with a leading axis `s`.
        images: Their numbers.
        copies: Numbers of the copies of each.
    """
    rows, columns = part(len(images), len(copies), size)
    if (rows, columns) == (len(images), len(copies)):
        return function(params, images, copies)
    once = jax.checkpoint(function, prevent_cse=False)

    def of_images(part: tuple[Any, Array]) -> Array:
        if columns == len(copies):
            return once(*part, copies)
        found = jax.lax.map(lambda some: once(*part, some), _stack(copies, columns))
        return rearrange(found, "parts s c d -> s (parts c) d")[:, : len(copies)]

    found = jax.lax.map(of_images, _stack((params, images), rows))
    return found.reshape(-1, *found.shape[2:])[: len(images)]


def part(images: int, copies: int, size: int | None) -> tuple[int, int]:
    """Images, and copies of each, that `map_views` takes at a time of so many."""
    if size is None or images * copies <= size:
        return images, copies
    return even(images, max(1, size // copies)), even(copies, max(1, size))


def map_rows(function: Callable[..., Array], size: int | None, *arrays: Array) -> Array:
    """`function(*arrays)` of at most `size` rows at a time; nothing is kept for a gradient."""
    count = len(arrays[0])
    if size is None or count <= size:
        return function(*arrays)
    stacked = _stack(arrays, even(count, size))
    found = jax.lax.map(lambda part: function(*part), stacked)
    return found.reshape(-1, *found.shape[2:])[:count]


def put(mesh: Mesh, tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
    """Puts arrays on the mesh, those that are divided padded with zeros to equal parts.

    What is to be on every device stays where it lies already: weights that are put on meshes of the
    same devices take memory once. Of a `jax.ShapeDtypeStruct` in the place of an array, it returns
    what the array would become.
    """
    parts, laid = _parts(mesh, spec), layout(mesh, spec)

    def place(array: Any) -> Any:
        if isinstance(array, jax.ShapeDtypeStruct):
            rows = [-(-n // parts) * parts for n in array.shape[:1]]
            return array.update(shape=(*rows, *array.shape[1:]), sharding=laid)
        if array.ndim and array.shape[0] % parts:
            missing = [(0, -array.shape[0] % parts)] + [(0, 0)] * (array.ndim - 1)
            pad = jnp.pad if isinstance(array, jax.Array) else np.pad
            array = pad(array, missing)
        if parts == 1 and (shared := _share(array, laid)) is not None:
            return shared
        if laid.is_fully_addressable:
            return jax.device_put(array, laid)
        # Every process has all of it, and gives its own devices their parts.
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, laid, whole.__getitem__)

    return jax.tree.map(place, tree)


def layout(mesh: Mesh, spec: PartitionSpec = ROWS) -> NamedSharding:
    """How arrays of a spec lie on the mesh."""
    # As XLA says it, which leaves out axes of one device: another name for the same would compile
    # a step twice.
    axes = tuple(axis for axis in _AXES_OF[spec] if mesh.shape[axis] > 1)
    return NamedSharding(mesh, PartitionSpec(axes) if axes else EVERYWHERE)


def bytes_here(tree: Any) -> int:
    """Bytes of each device for arrays that lie on a mesh, or for their shapes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def put_rows(mesh: Mesh, rows: np.ndarray, count: int) -> jax.Array:
    """Divides what the processes have together, each the rows that it has read.

    Which device has which rows is left open; it is the same for all arrays.

    Args:
        mesh: The devices.
        rows: This process's, at most `count / processes`, rounded up.
        count: Rows of all processes.
    """
    if not mesh.is_multi_process:
        return put(mesh, rows, ROWS)
    each = -(-count // mesh.size)
    own = each * len(mesh.local_devices)
    padded = np.pad(rows, [(0, own - len(rows)), *[(0, 0)] * (rows.ndim - 1)])
    local = [device for device in mesh.devices.flat if device in mesh.local_devices]
    return jax.make_array_from_single_device_arrays(
        (each * mesh.size, *rows.shape[1:]),
        layout(mesh),
        [jax.device_put(x, d) for x, d in zip(np.split(padded, len(local)), local, strict=True)],
    )


def place(mesh: Mesh, state: Any, num_images: int) -> Any:
    """Lays a state out: what has a row per image is divided and padded, the rest is everywhere."""

    def lay(leaf: Any) -> Any:
        return put(mesh, leaf, IMAGES if _of_images(leaf, num_images) else EVERYWHERE)

    return jax.tree.map(lay, state)


def collect(mesh: Mesh, state: Any, num_images: int) -> Any:
    """A placed state without its padding, which is the same whatever the number of devices.

    Where there is no padding, it is the state as it is, each device with its part.
    """
    padded = -(-num_images // mesh.shape[IMAGE]) * mesh.shape[IMAGE]
    return state if padded == num_images else _cut(state, num_images, padded, mesh)


def fetch(mesh: Mesh, tree: Any) -> Any:
    """Arrays of the mesh where a process can read them: each gets all of what is divided.

    Within one process they are so as they are.
    """
    if not mesh.is_multi_process:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _everywhere(tree, mesh))


def make_largest(mesh: Mesh) -> Callable[..., jax.Array]:
    """Makes `largest(*numbers)`: of each number that of all processes, without waiting for it."""
    reduce = jax.jit(lambda rows: rows.max(axis=0), out_shardings=NamedSharding(mesh, EVERYWHERE))

    def largest(*numbers: int) -> jax.Array:
        mine = np.tile(np.array(numbers, np.int32), (len(mesh.local_devices), 1))
        return reduce(put_rows(mesh, mine, mesh.size))

    return largest


def _share(array: Any, laid: NamedSharding) -> jax.Array | None:
    """An array on every device, if all devices of this process have it; in whatever order."""
    if not isinstance(array, jax.Array) or not array.is_fully_replicated:
        return None
    held = {shard.device: shard.data for shard in array.addressable_shards}
    own = laid.addressable_devices
    if not own <= held.keys():
        return None
    return jax.make_array_from_single_device_arrays(array.shape, laid, [held[d] for d in own])


def _parts(mesh: Mesh, spec: PartitionSpec) -> int:
    return math.prod(mesh.shape[axis] for axis in _AXES_OF[spec])


def _of_images(leaf: Any, num_images: int) -> bool:
    return jnp.ndim(leaf) > 0 and leaf.shape[0] == num_images


def even(count: int, most: int) -> int:
    """Rows of a part, such that parts of at most so many are as equal as can be."""
    return -(-count // -(-count // min(count, most)))


def _stack(tree: Any, rows: int) -> Any:
    """Parts of so many rows along a new first axis; rows of zero fill up."""

    def stack(array: Array) -> Array:
        missing = -array.shape[0] % rows
        if missing:
            widths = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
            array = jnp.pad(array, widths)
        return array.reshape(-1, rows, *array.shape[1:])

    return jax.tree.map(stack, tree)


@functools.partial(jax.jit, static_argnums=1)
def _everywhere(tree: Any, mesh: Mesh) -> Any:
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, EVERYWHERE))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _cut(state: Any, num_images: int, padded: int, mesh: Mesh) -> Any:
    def cut(leaf: Array) -> Array:
        return leaf[:num_images] if _of_images(leaf, padded) else leaf

    return _everywhere(jax.tree.map(cut, state), mesh)
