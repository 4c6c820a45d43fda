"""Curves of losses, with the steps at which the images grew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lgm_jax.images import level_sizes, num_active
from lgm_jax.report import charts
from lgm_jax.report.vocabulary import SERIES, TITLES

# Percent of a curve's width between the labels of two marks, on a wide screen and a narrow one.
_ROOM, _NARROW_ROOM = 4.5, 15.0


def describe_losses(
    series: Sequence[tuple[str, Sequence[tuple[int, float]]]],
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
    x_ticks = [tick for tick in charts.ticks(0.0, end) if tick <= end]
    y_ticks = charts.ticks(min(0.0, *(y for _, y in every)), max(y for _, y in every))
    x_range, y_range = (0.0, end), (y_ticks[0], y_ticks[-1])
    return {
        "width": charts.WIDTH,
        "height": charts.HEIGHT,
        "x_ticks": [(charts.number(x), 100 * x / end) for x in x_ticks],
        "y_ticks": [
            (charts.number(y), 100 * (y_range[1] - y) / (y_range[1] - y_range[0])) for y in y_ticks
        ],
        "marks": _place_marks([(100 * x / end, text) for x, text in marks if x < end]),
        "curves": [
            {
                "name": name,
                "series": number % len(SERIES),
                "path": charts.curve([(float(x), y) for x, y in points], x_range, y_range),
                "first": points[0],
                "last": points[-1],
            }
            for number, (name, points) in enumerate(curves)
        ],
    }


def describe_learning(backbone: str, entries: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns curves of training losses, if any solver of these classifiers has epochs."""
    curves = [
        (title, [(epoch, loss) for epoch, loss in entries[method].get("loss_curve") or []])
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
    sizes = level_sizes(side)
    start = int(settings.get("images.start_resolution") or 1)
    delay = int(settings.get("images.grow_delay") or 0)
    steps = range(delay, delay + every * (len(sizes) + 1), every)
    counts = [int(num_active(step, sizes, start, every, delay)) for step in steps]
    return [
        (step, f"{sizes[count - 1]} px")
        for step, before, count in zip(steps[1:], counts, counts[1:], strict=False)
        if count > before
    ]


def _place_marks(marks: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    """Returns for each mark whether its label has room, on wide screens and on narrow ones."""
    placed: list[dict[str, Any]] = []
    last = {"wide": -math.inf, "narrow": -math.inf}
    for part, text in marks:
        fits = {}
        for name, room in (("wide", _ROOM), ("narrow", _NARROW_ROOM)):
            fits[name] = part - last[name] >= room
            last[name] = part if fits[name] else last[name]
        placed.append({"at": part, "text": text, **fits})
    return placed
