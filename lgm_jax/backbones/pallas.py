"""Self-attention of short sequences as a kernel for TPUs, in Pallas.

A program of the kernel has one image: queries, keys and values of all heads, as the projection
leaves them, in the vector memory (VMEM) of the chip. Scores are made there, a group of heads at a
time, and once more for the gradient. So no array of tokens by tokens passes through main memory,
and nothing but the kernel's input is kept for the backward pass.

Scores are keys by queries: their softmax then runs along sublanes, which is cheaper than along
lanes, and of the five products of a gradient only one needs a transpose, of keys, not of scores.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgm_jax.backbones.rotary import Layout, Tables, rotate

MOST_TOKENS = 640
"""Tokens of an image: unrolled over more scores, the kernel takes minutes to compile."""

_LANES, _SUBLANES = 128, 8

# Bytes of VMEM: of chips before v5e, and the least of v5e and later ones.
_OLD_CHIPS = ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite")
_VMEM = {True: 16 * 2**20, False: 64 * 2**20}

# Contracted axes of a product of two matrices.
_PLAIN, _ROWS, _COLUMNS = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))

# The columns of query, key or value (0, 1, 2) of a group of heads.
_Columns = Callable[[int], Any]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 3))
def attend(
    qkv: Float[Array, "b n three_d"],
    heads: int,
    tables: Tables | None = None,
    layout: Layout = "half",
) -> Float[Array, "b n d"]:
    """Self-attention: softmax(query keyᵀ / √e) value, with one kernel forward and one backward.

    Arguments as for `attention.attend`.
    """
    return _call(_forward, heads, tables, layout, qkv)


attend.defvjp(
    lambda qkv, heads, tables, layout: (
        _call(_forward, heads, tables, layout, qkv),
        (qkv, tables),
    ),
    lambda heads, layout, kept, cotangent: (
        _call(backward, heads, kept[1], layout, kept[0], cotangent),
        None,
    ),
)


def needed_bytes(tokens: int, heads: int, head_width: int, dtype: DTypeLike) -> int:
    """VMEM that the kernel takes, forward or backward.

    Input and output of an image, those of the next one beside them, and arrays of tokens by tokens
    of a group, in float32: twice what libtpu 0.0.42 takes of these.
    """
    rows, columns = (-(-tokens // tile) * tile for tile in (2 * _SUBLANES, _LANES))
    images = 2 * 7 * rows * heads * head_width * jnp.dtype(dtype).itemsize
    group = _group(heads, head_width) * -(-head_width // _LANES) * _LANES
    return images + 8 * 4 * rows * (columns + group)


def vmem_bytes(device_kind: str) -> int:
    """VMEM of a chip that a kernel may take: the rest is for what XLA computes beside it."""
    return _VMEM[device_kind in _OLD_CHIPS] * 3 // 4


def _call(
    kernel: Callable[..., None], heads: int, tables: Tables | None, layout: Layout, *images: Array
) -> Array:
    """Calls a kernel for each image; its arguments are the images', after what they share."""
    qkv = images[0]
    count, tokens, width = qkv.shape
    head_width = width // 3 // heads
    group = _group(heads, head_width)
    shared = () if tables is None else _rotation(tables, layout, group, qkv.dtype)

    def of_image(columns: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, tokens, columns), lambda image: (image, 0, 0))

    out = width // 3 if kernel is _forward else width
    return pl.pallas_call(
        functools.partial(kernel, head_width=head_width, group=group),
        grid=(count,),
        in_specs=[
            *(pl.BlockSpec(each.shape, lambda image: (0, 0)) for each in shared),
            *(of_image(each.shape[-1]) for each in images),
        ],
        out_specs=of_image(out),
        # Within `shard_map`, each device has images of its own.
        out_shape=jax.ShapeDtypeStruct(
            (count, tokens, out), qkv.dtype, manual_axis_type=jax.typeof(qkv).manual_axis_type
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=needed_bytes(tokens, heads, head_width, qkv.dtype),
        ),
        name=f"attention{kernel.__name__}",
    )(*shared, *images)


def _group(heads: int, head_width: int) -> int:
    """Heads at a time: the fewest whose columns are whole tiles, which may be addressed in a loop.

    All where there are none such.
    """
    sizes = (size for size in range(1, heads) if heads % size == 0)
    return next((size for size in sizes if size * head_width % _LANES == 0), heads)


def _rotation(
    tables: Tables, layout: Layout, group: int, dtype: DTypeLike
) -> tuple[Array, Array, Array]:
    """Cosines and sines of a group of heads, and the matrix that makes a pair's other half."""
    cosines, sines = (jnp.tile(table, (1, group)) for table in tables)
    unit = jnp.eye(tables[0].shape[-1], dtype=jnp.float32)
    turn = rotate(unit[None, :, None], jnp.zeros_like(unit), jnp.ones_like(unit), layout)[0, :, 0]
    return cosines, sines, jnp.kron(jnp.eye(group, dtype=dtype), turn.astype(dtype))


def _forward(*refs: Any, head_width: int, group: int) -> None:
    *shared, qkv, out = refs

    def attend_group(at: _Columns) -> None:
        attended = []
        for query, key, value in _heads(shared, qkv, at, head_width):
            weights, total = softmax(query, key)
            attended.append(_dot(value, weights.astype(value.dtype), _COLUMNS) / total)
        out[:, at(0)] = jnp.concatenate(attended, axis=0).T.astype(out.dtype)

    _each_group(out.shape[-1], group * head_width, attend_group)


def backward(*refs: Any, head_width: int, group: int) -> None:
    *shared, qkv, cotangent, out = refs
    scale = 1 / math.sqrt(head_width)

    def differentiate_group(at: _Columns) -> None:
        given = _split(cotangent[:, at(0)], head_width)
        gradients: tuple[list[Array], ...] = ([], [], [])
        for (query, key, value), own in zip(
            _heads(shared, qkv, at, head_width), given, strict=True
        ):
            weights, total = softmax(query, key)
            weights = weights / total
            d_weights = _dot(value, own, _ROWS)
            d_scores = weights * (d_weights - jnp.sum(weights * d_weights, axis=0, keepdims=True))
            d_scores = d_scores.astype(key.dtype)
            gradients[0].append(_dot(key, d_scores, _COLUMNS) * scale)
            gradients[1].append(_dot(d_scores, query, _PLAIN) * scale)
            gradients[2].append(_dot(weights.astype(own.dtype), own, _PLAIN))
        d_query = jnp.concatenate(gradients[0], axis=0).T
        d_key, d_value = (jnp.concatenate(each, axis=1) for each in gradients[1:])
        for number, each in enumerate((d_query, d_key, d_value)):
            each = each.astype(out.dtype)
            out[:, at(number)] = _rotate(shared, each, -1) if shared and number < 2 else each

    _each_group(cotangent.shape[-1], group * head_width, differentiate_group)


def _each_group(width: int, size: int, function: Callable[[_Columns], None]) -> None:
    """Calls a function with the columns of each group, `size` of them in `width`."""

    def of_group(start: Any) -> None:
        function(lambda part: pl.ds(part * width + start, size))

    if size == width:
        of_group(0)
        return

    def turn(number: Any, carry: tuple[()]) -> tuple[()]:
        of_group(pl.multiple_of(number * size, _LANES))
        return carry

    jax.lax.fori_loop(0, width // size, turn, ())


def _heads(
    shared: Sequence[Any], qkv: Any, at: _Columns, head_width: int
) -> list[tuple[Array, Array, Array]]:
    """Query, key and value (n, e) of each head of a group, turned."""
    query, key, value = (qkv[:, at(part)] for part in range(3))
    if shared:
        query, key = _rotate(shared, query), _rotate(shared, key)
    parts = (_split(part, head_width) for part in (query, key, value))
    return list(zip(*parts, strict=True))


def _split(part: Array, head_width: int) -> list[Array]:
    return [part[:, start : start + head_width] for start in range(0, part.shape[1], head_width)]


def _rotate(shared: Sequence[Any], x: Array, sign: int = 1) -> Array:
    """Turns queries or keys, or their gradients back: sines are the same for what turns together.

    A product with a signed permutation is exact, and needs no shuffle of lanes.
    """
    cosines, sines, turn = shared
    turned = sign * _dot(x, turn[...], _PLAIN)
    return (x.astype(jnp.float32) * cosines[...] + turned * sines[...]).astype(x.dtype)


def softmax(query: Array, key: Array) -> tuple[Array, Array]:
    """Weights, keys by queries, and the sums (1, n) that they are yet to be divided by."""
    scores = _dot(key, query, _ROWS) * (1 / math.sqrt(query.shape[-1]))
    weights = jnp.exp(scores - jnp.max(scores, axis=0, keepdims=True))
    return weights, jnp.sum(weights, axis=0, keepdims=True)


def _dot(left: Array, right: Array, contracted: Any) -> Array:
    """A product in float32, of operands that are not rounded to less than they are."""
    return jax.lax.dot_general(
        left,
        right,
        (contracted, ((), ())),
        precision="highest" if left.dtype == jnp.float32 else "default",
        preferred_element_type=jnp.float32,
    )
