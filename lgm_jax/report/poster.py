"""The card of a run, `card.png`: its result, ten images and the chart of accuracies."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from lgm_jax.report import pictures
from lgm_jax.report.gallery import Gallery
from lgm_jax.report.grid import find_font, fit
from lgm_jax.report.view import first_pictures
from lgm_jax.report.vocabulary import COLOURS, INK, LINE, PAPER, SOFT

# As for social media and slides.
_SIZE, _MARGIN = (1600, 900), 64
_PAPER, _INK, _SOFT, _LINE = (pair[0] for pair in (PAPER, INK, SOFT, LINE))

_FOOT = "lgm_jax: Linear Gradient Matching, arXiv 2511.16674"

# Images, and the box in which they lie: left, top and width. The chart, with its height.
_MOST, _IMAGES = 10, (_MARGIN, 250, 970)
_CHART = (1110, 250, 426, 452)
_NAME, _GAP = 24, 14


def draw_card(
    title: str, about: str, gallery: Gallery, accuracy: Mapping[str, Any] | None
) -> Image.Image:
    """Draws the card.

    Args:
        title: The result, in a line or two.
        about: A line on the data and the backbone.
        accuracy: The chart of accuracies, as `describe_accuracies` returns it, if there are any.
    """
    canvas = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(canvas)
    letters = [title, about, _FOOT, *gallery.class_names, "…"]
    lines = textwrap.wrap(title, 46)[:2]
    large = find_font(letters, 64 if len(lines) == 1 else 52)
    # Wrapped, it needs no spaces that keep a line whole.
    heading = "\n".join(lines).replace("\u00a0", " ")
    draw.text((_MARGIN, 52), heading, font=large, fill=_INK, spacing=8)
    small = find_font(letters, 28)
    width = _SIZE[0] - 2 * _MARGIN
    for text, y in ((about, 172 + 28 * len(lines)), (_FOOT, _SIZE[1] - 44)):
        draw.text((_MARGIN, y), fit(text, small, width), font=small, fill=_SOFT, anchor="ls")
    _draw_images(canvas, gallery, _IMAGES if accuracy else (*_IMAGES[:2], width))
    if accuracy:
        _draw_chart(draw, accuracy, letters)
    return canvas


def _draw_images(canvas: Image.Image, gallery: Gallery, box: tuple[int, int, int]) -> None:
    """Draws the first images of evenly chosen classes, each above its name."""
    firsts = first_pictures(gallery)
    shown = [sorted(firsts.items())[i] for i in pictures.spread(len(firsts), _MOST)]
    left, top, width = box
    columns = min(5, len(shown)) if len(shown) > 4 else len(shown)
    rows = math.ceil(len(shown) / columns)
    room = _SIZE[1] - 90 - top
    side = min((width - (columns - 1) * _GAP) // columns, room // rows - _NAME - _GAP)
    draw = ImageDraw.Draw(canvas)
    font = find_font([*gallery.class_names, "…"], _NAME - 3)
    for i, (label, file) in enumerate(shown):
        x, y = left + i % columns * (side + _GAP), top + i // columns * (side + _NAME + _GAP + 8)
        with Image.open(io.BytesIO(file)) as picture:
            canvas.paste(pictures.resize(picture.convert("RGB"), side), (x, y))
        name = fit(gallery.class_names[label], font, side)
        draw.text((x, y + side + 4), name, font=font, fill=_SOFT)


def _draw_chart(
    draw: ImageDraw.ImageDraw, found: Mapping[str, Any], letters: Sequence[str]
) -> None:
    """Draws the dots of one evaluation backbone, with their names and numbers above them."""
    left, top, width, height = _CHART
    font, small = find_font(letters, 26), find_font(letters, 22)
    step = (height - 30) // len(found["rows"])

    def at(percent: float) -> int:
        return round(left + percent / 100 * width)

    bottom = top + step * len(found["rows"])
    for text, percent in found["ticks"]:
        for middle in range(top + 56, bottom, step):
            draw.line([(at(percent), middle - 14), (at(percent), middle + 14)], _LINE, 2)
        draw.text((at(percent), bottom + 8), text, font=small, fill=_SOFT, anchor="ma")
    draw.text((left, bottom + 40), "top-1 accuracy, %", font=small, fill=_SOFT)
    for y, row in zip(range(top, bottom, step), found["rows"], strict=True):
        middle, colour = y + 56, COLOURS[row["method"]][0]
        draw.text((left, y + 6), row["title"], font=font, fill=_INK)
        draw.text((left + width, y + 6), f"{row['mean']:.1f}", font=font, fill=_INK, anchor="ra")
        radius = 11 if row["method"] == "distilled" else 9
        inside = _PAPER if row["method"] == "full" else colour
        draw.circle((at(row["at"]), middle), radius, inside, colour, 4)
        for ink, thick in ((_PAPER, 8), (colour, 3)) if row["std"] else ():
            draw.line([(at(row["low"]), middle), (at(row["high"]), middle)], ink, thick)
