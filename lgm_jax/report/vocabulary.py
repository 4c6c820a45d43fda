"""The rows of results: their names and colours, the same on the terminal, pages and figures.

A colour is a pair of hexadecimal codes, on light paper and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

Colour = tuple[str, str]

TITLES: Mapping[str, str] = {
    "distilled": "distilled",
    "centroids": "typical real",
    "neighbors": "look-alike real",
    "random": "random real",
    "full": "all real",
}
"""Titles of rows by method in `results.json`, in the order in which they are shown."""

COLOURS: Mapping[str, Colour] = {
    "distilled": ("#b23a12", "#f0764a"),
    "centroids": ("#0072b2", "#56b4e9"),
    "neighbors": ("#00805d", "#35c29a"),
    "random": ("#946500", "#e6b23c"),
    "full": ("#1c1a17", "#f0ece5"),
}
"""Colours of rows, distinct for any colour vision."""

SERIES: Sequence[Colour] = (
    ("#0072b2", "#56b4e9"),
    ("#c45500", "#f0854a"),
    ("#00805d", "#35c29a"),
    ("#b0588c", "#e095c0"),
    ("#946500", "#e6b23c"),
    ("#2f86ba", "#8fd0f5"),
    ("#1c1a17", "#f0ece5"),
)
"""Colours of curves that are not rows: those of Okabe and Ito, legible on both papers."""

PAPER, INK, SOFT, LINE = (
    ("#faf9f7", "#141312"),
    ("#1c1a17", "#f0ece5"),
    ("#5f5a52", "#a9a398"),
    ("#dedad3", "#37342f"),
)

# Lightness of the colours of classes, in turns, on each paper: dots are 3:1 on the ground of a map.
# And their chroma.
_LIGHTNESS, _CHROMA = ((0.42, 0.56), (0.66, 0.84)), 0.14

# From OKLab to the cube roots of cone responses, and from these to linear sRGB (Ottosson, 2020).
_TO_CONES = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def images_of(method: str) -> str:
    """Returns the images that the classifiers of a row are trained on, as part of a sentence."""
    return "the distilled images" if method == "distilled" else f"{TITLES[method]} images"


def class_colours(count: int) -> list[Colour]:
    """Returns a colour for each class: hues evenly apart, neighbours of different lightness."""
    hues = [2 * math.pi * (label / count + 0.08) for label in range(count)]
    light, dark = (
        [_hex(lightness[i % 2], hue) for i, hue in enumerate(hues)] for lightness in _LIGHTNESS
    )
    return list(zip(light, dark, strict=True))


def _hex(lightness: float, hue: float) -> str:
    """Returns the sRGB code of an OKLCH colour, its channels clipped to what screens show."""
    cones = _TO_CONES @ [lightness, _CHROMA * math.cos(hue), _CHROMA * math.sin(hue)]
    linear = np.clip(_TO_RGB @ cones**3, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in encoded)
