"""Geometry of charts: ticks, curves and boxes, as plain numbers and SVG paths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Points of a curve that are drawn.
_MOST_POINTS = 400

WIDTH, HEIGHT = 1000, 320


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Returns round numbers that enclose a range in about `about` steps."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def curve(
    points: Sequence[tuple[float, float]], x_range: Sequence[float], y_range: Sequence[float]
) -> str:
    """Returns the path of a curve in a box of `WIDTH` by `HEIGHT`; `y` grows upwards.

    Long curves are thinned evenly; the last point stays. One point becomes a dot.
    """
    stride = max(1, math.ceil(len(points) / _MOST_POINTS))
    thinned = [*points[::stride]]
    if points and thinned[-1] != points[-1]:
        thinned.append(points[-1])
    (x0, x1), (y0, y1) = x_range, y_range
    across, up = WIDTH / ((x1 - x0) or 1), HEIGHT / ((y1 - y0) or 1)
    placed = [f"{across * (x - x0):.1f} {up * (y1 - y):.1f}" for x, y in thinned]
    if len(placed) == 1:
        # A line of no length is drawn as a dot.
        return f"M{placed[0]}h0"
    return "M" + "L".join(placed) if placed else ""


def percent_range(
    lows: Sequence[float], highs: Sequence[float], guess: float
) -> tuple[float, float]:
    """Returns the tens of percent that enclose values, so that dots on an axis use its width.

    Args:
        lows: Lower ends of the values.
        highs: Upper ends.
        guess: Accuracy of guessing; the axis reaches it where it is not far.
    """
    low = 10 * math.floor((min(lows) - 1) / 10)
    if guess >= low - 20:
        low = min(low, 10 * math.floor((guess - 1) / 10))
    high = 10 * math.ceil((max(highs) + 0.5) / 10)
    return float(max(0, low)), float(min(100, high))


def move_apart(
    places: Float[np.ndarray, "n 2"], box: tuple[float, float], shape: float
) -> Float[np.ndarray, "n 2"]:
    """Moves boxes apart, no further than it takes for none to hide another.

    Args:
        places: Middles of the boxes, in parts of a frame's width and height.
        box: Width and height of a box, in parts of the frame's width.
        shape: The frame's height by its width.

    Returns:
        Places within the frame. If it is too full, some boxes still overlap.
    """
    size = np.asarray([box[0], box[1] / shape])
    edge = size / 2
    moved = np.clip(places.astype(float), edge, 1 - edge)
    for turn in range(500):
        apart = moved[:, None] - moved[None]
        overlap = size - np.abs(apart)
        hidden = (overlap > 1e-9).all(axis=-1) & ~np.eye(len(moved), dtype=bool)
        if not hidden.any():
            break
        # Along the direction in which less has to be moved, and at times, where a full row holds
        # them in it, along the other; two at one place part by their order.
        order = np.sign(np.arange(len(moved))[:, None] - np.arange(len(moved))[None])
        shorter = np.argmin(overlap / size, axis=-1)[..., None] == np.arange(2)
        along = shorter if turn % 120 < 100 else ~shorter
        towards = np.where(apart == 0, order[..., None], np.sign(apart))
        push = np.where(hidden[..., None] & along, towards * overlap / 2, 0.0)
        moved = np.clip(moved + 0.7 * push.sum(axis=1), edge, 1 - edge)
    return moved


def number(value: float) -> str:
    """Writes a number for an axis, without needless zeros."""
    return f"{value:,.6g}"
