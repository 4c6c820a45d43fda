"""PIL's antialiased bilinear resizing to the bit, in half the time, for a process of one thread.

PIL sums whole numbers, across and then down, and rounds after each. Here a pass is a product of
matrices in float32 for every few columns or rows, which the processor computes many at a time. What
comes so close to half of a grey level that its rounding is in doubt is summed as PIL does. Where
threads share a process, these many short calls would wait for each other, and PIL's would not.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

# PIL's weights are whole multiples of 2^-22, which float32 holds exactly.
_ONE = 2**22

# Outputs of a product: more would multiply more zeros, fewer take more calls.
_BLOCK = 4

# Pixels of the source for one of the result, at most; beyond, products would be too large.
MOST = 4.0

# Multiplications of a product. OpenBLAS shares out larger ones between threads.
_PRODUCT = 2**18


class _Axis(NamedTuple):
    """How outputs along one axis are made.

    Attributes:
        starts: The first source that each output sees.
        weights: Of the sources from there on, in units of 2^-22.
        lows: The first source that each block of outputs sees.
        blocks: Weights of these sources for each output of a block, for each of the channels.
    """

    starts: Int[np.ndarray, " r"]
    weights: Int[np.ndarray, "r t"]
    lows: list[int]
    blocks: Float[np.ndarray, "b s o"]


def resize(
    pixels: UInt8[np.ndarray, "h w 3"], side: int, box: tuple[float, float, float, float]
) -> UInt8[np.ndarray, "r r 3"]:
    """`Image.resize((side, side), BILINEAR, box=box)`.

    Args:
        box: Left, top, right and bottom of what is resized, at most `MOST` times `side` on a side.
    """
    height, width, _ = pixels.shape
    across = _axis(width, box[0], box[2], side, 3)
    down = _axis(height, box[1], box[3], side, 1)
    source = pixels.reshape(height, -1)
    size, outputs = across.blocks.shape[1:]
    low, high = 3 * across.lows[0], 3 * across.lows[-1] + size
    wide = np.empty((height, len(across.lows) * outputs), np.float32)
    # A strip stays in the processor's cache.
    strip = max(1, _PRODUCT // (size * outputs))
    for top in range(0, height, strip):
        rows = slice(top, top + strip)
        part = source[rows, low:high].astype(np.float32)
        sums = np.empty((len(part), wide.shape[1]), np.float32)
        for number, (first, block) in enumerate(zip(across.lows, across.blocks, strict=True)):
            at = 3 * first - low
            made = sums[:, number * outputs : (number + 1) * outputs]
            np.matmul(part[:, at : at + size], block, out=made)
        doubtful = _round(sums, wide[rows], across)
        output, channel = np.divmod(doubtful[1], 3)
        seen = 3 * _seen(across, output, width) + channel[:, None]
        wide[rows][doubtful] = _exact(across, output, source[rows][doubtful[0][:, None], seen])
    size, outputs = down.blocks.shape[1:]
    sums = np.empty((len(down.lows) * outputs, wide.shape[1]), np.float32)
    for number, (first, block) in enumerate(zip(down.lows, down.blocks, strict=True)):
        made = sums[number * outputs : (number + 1) * outputs]
        np.matmul(block.T, wide[first : first + size], out=made)
    sums = np.ascontiguousarray(sums[:side, : 3 * side])
    whole = np.empty_like(sums)
    doubtful = _round(sums, whole, down)
    values = wide[_seen(down, doubtful[0], height), doubtful[1][:, None]]
    whole[doubtful] = _exact(down, doubtful[0], values)
    return whole.astype(np.uint8).reshape(side, side, 3)


def _round(
    sums: Float[np.ndarray, "a b"], whole: Float[np.ndarray, "a b"], axis: _Axis
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds sums into `whole`; returns the places of those that may have been rounded wrongly."""
    np.rint(sums, out=whole)
    np.subtract(sums, whole, out=sums)
    np.abs(sums, out=sums)
    # Below 256, a product or a sum is off by 2^-17 at most. Here, four times as much.
    doubtful = np.flatnonzero(sums > 0.5 - axis.weights.shape[1] * 2.0**-15)
    # `np.nonzero` of two axes takes ten times as long.
    return np.divmod(doubtful, sums.shape[1])


def _seen(axis: _Axis, outputs: Int[np.ndarray, " n"], size: int) -> Int[np.ndarray, "n t"]:
    """The sources of some outputs; beyond the last, whose weight is zero, the last."""
    seen = axis.starts[outputs][:, None] + np.arange(axis.weights.shape[1])
    return np.minimum(seen, size - 1)


def _exact(
    axis: _Axis, outputs: Int[np.ndarray, " n"], values: np.ndarray
) -> Int[np.ndarray, " n"]:
    sums = np.sum(values.astype(np.int64) * axis.weights[outputs], axis=1)
    return (sums + _ONE // 2) // _ONE


@functools.lru_cache(maxsize=16)
def _axis(size: int, low: float, high: float, count: int, channels: int) -> _Axis:
    """PIL's weights, each computed in the order in which PIL does."""
    # Its boxes are float32.
    first, last = np.float32(low), np.float32(high)
    scale = float(last - first) / count
    support = max(scale, 1.0)
    centers = float(first) + (np.arange(count) + 0.5) * scale
    starts = np.maximum(np.trunc(centers - support + 0.5), 0).astype(np.int64)
    ends = np.minimum(np.trunc(centers + support + 0.5), size).astype(np.int64)
    seen = starts[:, None] + np.arange(int((ends - starts).max()))
    distances = np.abs((seen - centers[:, None] + 0.5) * (1 / support))
    shares = np.where(seen < ends[:, None], np.maximum(1 - distances, 0), 0)
    total = functools.reduce(np.add, shares.T)
    weights = np.trunc(0.5 + shares / total[:, None] * _ONE).astype(np.int64)
    lows = starts[::_BLOCK]
    length = int((np.maximum.reduceat(ends, np.arange(0, count, _BLOCK)) - lows).max())
    lows = np.minimum(lows, size - length)
    blocks = np.zeros((len(lows), length, channels, _BLOCK, channels), np.float32)
    output, tap = np.nonzero(weights)
    block, within = np.divmod(output, _BLOCK)
    for channel in range(channels):
        at = (block, seen[output, tap] - lows[block], channel, within, channel)
        blocks[at] = weights[output, tap] / _ONE
    flat = blocks.reshape(len(lows), length * channels, _BLOCK * channels)
    return _Axis(starts, weights, lows.tolist(), flat)
