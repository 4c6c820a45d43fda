"""Charts, as plain numbers and SVG paths: axes, and curves of losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lgm_jax.images import Pyramid
from lgm_jax.report.vocabulary import SERIES, TITLES

WIDTH, HEIGHT = 1000, 320

# Points of a curve that are drawn.
_MOST_POINTS = 400

# Percent of a chart's width between the labels of two marks, by the screen.
_ROOM = {"wide": 4.5, "narrow": 15.0}


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Returns round numbers that enclose a range in about `about` steps."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def number(value: float) -> str:
    """Writes a number for an axis, without needless zeros."""
    return f"{value:,.6g}"


def percent_range(
    lows: Sequence[float], highs: Sequence[float], guess: float
) -> tuple[float, float]:
    """Returns the tens of percent that enclose error bars and, where it is not far, guessing."""
    low = 10 * math.floor((min(lows) - 1) / 10)
    if guess >= low - 20:
        low = min(low, 10 * math.floor((guess - 1) / 10))
    high = 10 * math.ceil((max(highs) + 0.5) / 10)
    return float(max(0, low)), float(min(100, high))


def curve(points: Sequence[Sequence[float | int]], end: float, low: float, high: float) -> str:
    """Returns the path of a curve from 0 to `end`, and from `low` up to `high`, in the chart's box.

    Long curves are thinned evenly; the last point stays. One point becomes a dot.
    """
    stride = math.ceil(len(points) / _MOST_POINTS)
    thinned = [*points[:-1:stride], points[-1]]
    path = "L".join(
        f"{WIDTH * x / end:.1f} {HEIGHT * (high - y) / (high - low):.1f}" for x, y in thinned
    )
    # A line of no length is drawn as a dot.
    return f"M{path}" if len(thinned) > 1 else f"M{path}h0"


def describe_losses(
    series: Sequence[tuple[str, Sequence[Sequence[float | int]]]],
    steps: int = 0,
    marks: Sequence[tuple[int, str]] = (),
) -> dict[str, Any] | None:
    """Returns curves of losses by step, or epoch, in one box, with ticks placed in percent.

    Args:
        series: A name, and step and loss of each point; losses that are not finite are left out.
        steps: The last step that the box has room for, at least.
        marks: Steps at which something happened, each with its label.
    """
    finite = [(name, [p for p in points if math.isfinite(p[1])]) for name, points in series]
    curves = [(name, points) for name, points in finite if points]
    if not curves:
        return None
    every = [point for _, points in curves for point in points]
    end = float(max(steps, *(step for step, _ in every))) or 1.0
    x_ticks = [tick for tick in ticks(0.0, end) if tick <= end]
    y_ticks = ticks(min(0.0, *(y for _, y in every)), max(y for _, y in every))
    low, high = y_ticks[0], y_ticks[-1]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "x_ticks": [(number(x), 100 * x / end) for x in x_ticks],
        "y_ticks": [(number(y), 100 * (high - y) / (high - low)) for y in y_ticks],
        "marks": _place_marks([(100 * x / end, text) for x, text in marks if x < end]),
        "curves": [
            {
                "name": name,
                "series": i % len(SERIES) if len(curves) > 1 else None,
                "path": curve(points, end, low, high),
                "first": points[0],
                "last": points[-1],
            }
            for i, (name, points) in enumerate(curves)
        ],
    }


def describe_learning(backbone: str, entries: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns curves of training losses, if any solver of these classifiers has epochs."""
    curves = [
        (title, entries[method].get("loss_curve") or [])
        for method, title in TITLES.items()
        if method in entries
    ]
    loss = describe_losses(curves)
    return {"backbone": backbone, "loss": loss} if loss else None


def describe_growth(settings: Mapping[str, Any], side: int | None) -> list[tuple[int, str]]:
    """Returns the steps at which a finer level of detail joined the images, and its side."""
    every = settings.get("images.grow_every") or 0
    if settings.get("images.kind") != "pyramid" or not every or side is None:
        return []
    start = settings.get("images.start_resolution") or 1
    delay = settings.get("images.grow_delay") or 0
    pyramid = Pyramid(side, start_resolution=start, grow_every=every, grow_delay=delay)
    steps = range(delay, delay + every * (len(pyramid.sizes) + 1), every)
    return [
        (step, f"{pyramid.side_at(step)} px")
        for before, step in itertools.pairwise(steps)
        if pyramid.side_at(step) > pyramid.side_at(before)
    ]


def _place_marks(marks: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    """Returns for each mark whether its label has room, on wide screens and on narrow ones."""
    placed: list[dict[str, Any]] = []
    for part, text in marks:
        fits = {
            screen: all(part - mark["at"] >= room for mark in placed if mark[screen])
            for screen, room in _ROOM.items()
        }
        placed.append({"at": part, "text": text, **fits})
    return placed
