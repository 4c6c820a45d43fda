"""Where things go in a chart: ticks, curves and colours, as plain numbers and SVG paths."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Of curves, as in style.mplstyle; the page gives lighter ones in the dark.
SERIES = 7

# Points of a curve that are drawn.
_MOST_POINTS = 400

WIDTH, HEIGHT = 1000, 320


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that enclose a range, about `about` steps apart."""
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
    """The path of a curve in a box of `WIDTH` by `HEIGHT`; `y` grows upwards.

    Long curves are thinned evenly; the last point stays.
    """
    stride = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = [*points[::stride]]
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    (x0, x1), (y0, y1) = x_range, y_range
    across, up = WIDTH / ((x1 - x0) or 1), HEIGHT / ((y1 - y0) or 1)
    placed = [f"{across * (x - x0):.1f} {up * (y1 - y):.1f}" for x, y in kept]
    return "M" + "L".join(placed) if placed else ""


def number(value: float) -> str:
    """A number for an axis, without needless zeros."""
    return f"{value:,.6g}"
