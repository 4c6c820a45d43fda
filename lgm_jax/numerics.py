"""Arithmetic of features without loss of digits or overflow, in bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Bool, Float

# Class scores of so many rows and classes at a time: 64 MiB, over all devices.
_SCORES = 2**24


def cosine_distance(tree_a: Any, tree_b: Any) -> Float[Array, ""]:
    """Returns one minus the cosine between two pytrees, each taken as one long vector.

    Zero for parallel trees, two for opposite ones; one, with a zero gradient, where either is all
    zero. Nearly parallel ones, whose cosine rounds to one, lose no digits.
    """
    (a, exists_a), (b, exists_b) = _unit(tree_a), _unit(tree_b)
    cosine, apart = _inner(a, b), jax.tree.map(jnp.subtract, a, b)
    distance = jnp.where(cosine > 0.5, _inner(apart, apart) / 2, 1 - cosine)
    return jnp.where(exists_a & exists_b, distance, 1)


def nonzero(total: Any) -> Any:
    """Returns the total, or one in place of zero, to divide zero by."""
    return jnp.where(total == 0, 1, total)


def num_parts(rows: int, num_classes: int) -> int:
    """Returns the number of parts, a power of two, whose class scores take 64 MiB at most."""
    needed = min(-(-rows * num_classes // _SCORES), rows)
    return 1 << max(0, needed - 1).bit_length()


def padded_rows(rows: int, num_classes: int, devices: int) -> int:
    """Returns the least number of rows, from `rows` on, that parts and devices divide evenly."""
    parts, padded = 0, rows
    while (needed := num_parts(padded, num_classes)) > parts:
        parts = needed
        padded = -(-rows // (devices * parts)) * devices * parts
    return padded


def sum_of_parts(function: Callable[..., Any], parts: int, common: Any, *arrays: Array) -> Any:
    """Computes `function(common, *arrays)`, a sum over rows, for a part of the rows at a time.

    Intermediate values of a part are recomputed for the gradient. Each device adds up its own rows,
    and all of them once at the end, in the gradient of `common` too: the compiler would exchange
    sums after every part.

    Args:
        function: Returns a pytree of sums over the rows of its arguments.
        common: A pytree of arrays that all rows share.
        arrays: Arrays with as many rows; rows of zeros must add nothing to the sums.
    """
    if parts == 1:
        return function(common, *arrays)
    devices = _num_devices()
    stacked = [stack(stack(array, devices), parts, axis=1) for array in arrays]
    common = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (devices, *leaf.shape)), common)
    of_devices = jax.vmap(function)
    once = jax.checkpoint(of_devices, prevent_cse=False)

    def add(total: Any, part: Array) -> tuple[Any, None]:
        rows = (jax.lax.dynamic_index_in_dim(array, part, 1, keepdims=False) for array in stacked)
        return jax.tree.map(jnp.add, total, once(common, *rows)), None

    shapes = jax.eval_shape(of_devices, common, *(array[:, 0] for array in stacked))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, start, jnp.arange(parts))
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), total)


def everywhere(tree: Any) -> Any:
    """Gathers arrays on all devices that share them, once, before much work with each."""
    if _num_devices() == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.sharding.PartitionSpec())


def wide(features: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Returns features in float32 at least."""
    return features.astype(jnp.promote_types(features.dtype, jnp.float32))


def weighted(
    features: Float[Array, "n d"], weights: Float[Array, " n"] | None
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """Returns features and weights in float32 at least, with zeros for rows of weight zero."""
    features = wide(features)
    if weights is None:
        return features, jnp.ones_like(features, shape=features.shape[:1])
    weights = weights.astype(features.dtype)
    return jnp.where(weights[:, None] > 0, features, 0), weights


def _num_devices() -> int:
    """Returns the number of devices that share arrays: those of the mesh in JAX's context."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else mesh.size


def pad(array: Any, missing: int, axis: int = 0) -> Any:
    """Returns an array of NumPy or JAX with so many zeros more at the end of an axis."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    fill = jnp.pad if isinstance(array, jax.Array) else np.pad
    return fill(array, widths) if missing else array


def stack(array: Array, parts: int, axis: int = 0) -> Array:
    """Splits an axis into consecutive parts along a new axis before it, padded with zeros."""
    array = pad(array, -array.shape[axis] % parts, axis)
    return array.reshape(*array.shape[:axis], parts, -1, *array.shape[axis + 1 :])


def _unit(tree: Any) -> tuple[Any, Bool[Array, ""]]:
    """Scales a tree to a norm of one; returns also whether it is not zero, which stays zero."""
    largest = functools.reduce(jnp.maximum, map(jnp.max, map(jnp.abs, jax.tree.leaves(tree))))
    largest = jax.lax.stop_gradient(largest)
    # Below, reciprocals are not finite. Squares of the scaled numbers neither overflow nor vanish.
    exists = ~(largest < jnp.finfo(jnp.float32).tiny)
    scaled = jax.tree.map(lambda leaf: leaf / jnp.where(exists, largest, 1), tree)
    inverse = jax.lax.rsqrt(jnp.where(exists, _inner(scaled, scaled), 1))
    return jax.tree.map(lambda leaf: leaf * inverse, scaled), exists


def _inner(tree_a: Any, tree_b: Any) -> Float[Array, ""]:
    def product(a: Array, b: Array) -> Array:
        return jnp.dot(jnp.ravel(a), jnp.ravel(b), precision=Precision.HIGHEST)

    return jax.tree.reduce(jnp.add, jax.tree.map(product, tree_a, tree_b))
