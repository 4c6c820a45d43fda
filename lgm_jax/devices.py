"""Many devices: a mesh of two axes, the layout of arrays on it, and loops in bounded memory.

The axes are `image` and `copy`: a device has some images and some copies of each. Parameters of
images, and their optimiser states, are divided along `image`; rows of features along both. Arrays
are padded to equal parts with rows of zero, whose weight is zero. Everything else is on every
device. One device is a mesh of one.
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
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from lgm_jax.numerics import pad, stack

IMAGE, COPY = AXES = ("image", "copy")

AnyMesh = Mesh | AbstractMesh
"""Devices that are there, or whose number alone is known: of shapes and layouts."""

EVERYWHERE = PartitionSpec()
IMAGES = PartitionSpec(IMAGE)
"""The first axis divided as images are."""
ROWS = PartitionSpec(AXES)
"""The first axis divided among all devices."""

_AXES_OF: Mapping[PartitionSpec, tuple[str, ...]] = {EVERYWHERE: (), IMAGES: (IMAGE,), ROWS: AXES}


def make_mesh(
    num_images: int = 1, copies: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Returns the mesh of devices on which images x copies need the least padding; images first."""
    devices = jax.devices() if devices is None else devices
    shape = split(num_images, copies, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def outline_mesh(num_images: int, copies: int, count: int) -> AbstractMesh:
    """Returns the mesh of so many devices that are not there."""
    return AbstractMesh(split(num_images, copies, count), AXES, axis_types=(AxisType.Auto,) * 2)


def split(num_images: int, copies: int, count: int) -> tuple[int, int]:
    """Returns the numbers of parts of images and of copies for so many devices; see `make_mesh`."""
    splits = [(count // parts, parts) for parts in range(1, count + 1) if count % parts == 0]
    if num_images == copies == 1:
        return splits[0]
    return min(splits, key=lambda split: -(-num_images // split[0]) * -(-copies // split[1]))


def varying(tree: Any, axes: Sequence[str] = AXES) -> Any:
    """Marks common values as each device's own, at the beginning of a mapped function.

    So their gradients are summed over devices once, not in each turn of a loop within.
    """
    return jax.lax.pcast(tree, tuple(axes), to="varying")


def map_views(
    function: Callable[[Any, Array, Array], Array],
    size: int | None,
    params: Any,
    images: Int[Array, " s"],
    copies: Int[Array, " c"],
) -> Array:
    """Computes `function(params, images, copies)`, (s, c, d), for at most `size` views at a time.

    The function treats every view for itself. Intermediate values of several parts are recomputed
    for the gradient. A part is whole images with all copies, or some copies of one image, and is
    sliced: so each image is decoded once a part, and no gradient is scattered. `params` are arrays
    with a leading axis `s`; a `size` of `None` is all views.
    """
    rows, columns = part(len(images), len(copies), size)
    if (rows, columns) == (len(images), len(copies)):
        return function(params, images, copies)
    once = jax.checkpoint(function, prevent_cse=False)

    def of_images(part: tuple[Any, Array]) -> Array:
        if columns == len(copies):
            return once(*part, copies)
        parts = jax.lax.map(lambda some: once(*part, some), _stack(copies, columns))
        return rearrange(parts, "parts s c d -> s (parts c) d")[:, : len(copies)]

    parts = jax.lax.map(of_images, _stack((params, images), rows))
    return parts.reshape(-1, *parts.shape[2:])[: len(images)]


def part(images: int, copies: int, size: int | None) -> tuple[int, int]:
    """Returns the images, and the copies of each, that `map_views` takes at a time."""
    if size is None or images * copies <= size:
        return images, copies
    return even(images, max(1, size // copies)), even(copies, max(1, size))


def map_rows(function: Callable[..., Array], size: int | None, *arrays: Array) -> Array:
    """Computes `function(*arrays)` for at most `size` rows at a time, without a gradient."""
    count = len(arrays[0])
    if size is None or count <= size:
        return function(*arrays)
    stacked = _stack(arrays, even(count, size))
    parts = jax.lax.map(lambda part: function(*part), stacked)
    return parts.reshape(-1, *parts.shape[2:])[:count]


def put(mesh: AnyMesh, tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
    """Puts arrays on the mesh, padded with zeros where they are divided into equal parts.

    An array that is on every device already is shared: weights on meshes of the same devices take
    memory once. A `jax.ShapeDtypeStruct` becomes the shape, type and layout of the placed array.
    """
    parts, sharding = math.prod(mesh.shape[axis] for axis in _AXES_OF[spec]), layout(mesh, spec)

    def place(array: Any) -> Any:
        if isinstance(array, jax.ShapeDtypeStruct):
            rows = [-(-n // parts) * parts for n in array.shape[:1]]
            return array.update(shape=(*rows, *array.shape[1:]), sharding=sharding)
        if array.ndim:
            array = pad(array, -array.shape[0] % parts)
        if parts == 1 and (shared := _share(array, sharding)) is not None:
            return shared
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        # Every process has the whole array, and fills its own devices.
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

    return jax.tree.map(place, tree)


def layout(mesh: AnyMesh, spec: PartitionSpec = ROWS) -> NamedSharding:
    """Returns the sharding of arrays of a spec on the mesh."""
    # Without axes of one device, as XLA writes it: another name would compile a step twice.
    axes = tuple(axis for axis in _AXES_OF[spec] if mesh.shape[axis] > 1)
    return NamedSharding(mesh, PartitionSpec(axes) if axes else EVERYWHERE)


def bytes_here(tree: Any) -> int:
    """Returns the bytes on each device of arrays that lie on a mesh, or of their shapes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def put_rows(mesh: Mesh, rows: np.ndarray, count: int) -> jax.Array:
    """Divides `count` rows, of which each process has read its share, rounded up at most.

    The order of rows is not defined, but is the same for all arrays.
    """
    if not mesh.is_multi_process:
        return put(mesh, rows, ROWS)
    each = -(-count // mesh.size)
    padded = pad(rows, each * len(mesh.local_devices) - len(rows))
    local = [device for device in mesh.devices.flat if device in mesh.local_devices]
    return jax.make_array_from_single_device_arrays(
        (each * mesh.size, *rows.shape[1:]),
        layout(mesh),
        [jax.device_put(x, d) for x, d in zip(np.split(padded, len(local)), local, strict=True)],
    )


def rows_here(mesh: Mesh, count: int) -> Int[np.ndarray, " own"]:
    """Returns which of `count` rows, a multiple of the devices, `put_rows` puts in their places."""
    local = [device in mesh.local_devices for device in mesh.devices.flat]
    return np.arange(count).reshape(mesh.size, -1)[local].reshape(-1)


def place(mesh: AnyMesh, state: Any, num_images: int) -> Any:
    """Places a state: arrays with a row per image are divided, the others on every device."""
    return jax.tree.map(
        lambda leaf: put(mesh, leaf, IMAGES if _of_images(leaf, num_images) else EVERYWHERE), state
    )


def collect(mesh: Mesh, state: Any, num_images: int) -> Any:
    """Returns a placed state without padding: one that has none unchanged, others everywhere."""
    padded = -(-num_images // mesh.shape[IMAGE]) * mesh.shape[IMAGE]
    return state if padded == num_images else _cut(state, num_images, padded, mesh)


def fetch(mesh: Mesh, tree: Any) -> Any:
    """Returns arrays of the mesh such that every process can read all of them."""
    if not mesh.is_multi_process:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _everywhere(tree, mesh))


def make_largest(mesh: Mesh) -> Callable[[int], jax.Array]:
    """Makes `largest(number)`: the maximum over processes, which the caller need not wait for."""
    reduce = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, EVERYWHERE))

    def largest(number: int) -> jax.Array:
        return reduce(put_rows(mesh, np.full(len(mesh.local_devices), number, np.int32), mesh.size))

    return largest


def _share(array: Any, sharding: NamedSharding) -> jax.Array | None:
    """Returns an array on every device, if all devices of this process have it already."""
    if not isinstance(array, jax.Array) or not array.is_fully_replicated:
        return None
    held = {shard.device: shard.data for shard in array.addressable_shards}
    own = sharding.addressable_devices
    if not own <= held.keys():
        return None
    return jax.make_array_from_single_device_arrays(array.shape, sharding, [held[d] for d in own])


def _of_images(leaf: Any, num_images: int) -> bool:
    return jnp.ndim(leaf) > 0 and leaf.shape[0] == num_images


def even(count: int, most: int) -> int:
    """Returns the rows of a part, such that parts of at most `most` rows are nearly equal."""
    return -(-count // -(-count // min(count, most)))


def _stack(tree: Any, rows: int) -> Any:
    """Splits arrays into parts of so many rows along a new first axis, padded with zeros."""
    return jax.tree.map(lambda array: stack(array, -(-len(array) // rows)), tree)


@functools.partial(jax.jit, static_argnums=1)
def _everywhere(tree: Any, mesh: Mesh) -> Any:
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, EVERYWHERE))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _cut(state: Any, num_images: int, padded: int, mesh: Mesh) -> Any:
    def cut(leaf: Array) -> Array:
        return leaf[:num_images] if _of_images(leaf, padded) else leaf

    return _everywhere(jax.tree.map(cut, state), mesh)
