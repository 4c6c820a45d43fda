"""The map of features: real images as dots, distilled ones as thumbnails."""

from __future__ import annotations

from typing import Any

import numpy as np

from lgm_jax.report import charts, pictures
from lgm_jax.report.gallery import DISTILLED, Gallery
from lgm_jax.report.place import Place

# Thumbnails on the map, and their side.
_THUMBS, _THUMB_SIDE = 100, 48

# Height of the map by its width, on a wide screen and on a narrow one, and the empty part along
# each edge.
_SHAPE, _NARROW_SHAPE = 0.56, 1.1
_MARGIN = 0.07

# At most so many thumbnails have names beside them, at most so many classes colours of their own.
# Sides of a named thumbnail's box by the map's width, on a wide screen and on a narrow one.
_NAMED, _COLOURED = 24, 20
_BOX, _NARROW_BOX = (0.058, 0.066), (0.135, 0.175)


def describe_map(gallery: Gallery, place: Place) -> dict[str, Any]:
    """Returns dots of real images by class, and thumbnails of distilled ones, in one box.

    Each direction fills the box. Thumbnails that would hide each other are moved apart, with a line
    to their places.
    """
    points = gallery.map
    if points is None:
        raise ValueError("the gallery has no map")
    everything = np.concatenate([points.real, points.syn])
    low, high = everything.min(axis=0), everything.max(axis=0)
    middle, span = (low + high) / 2, np.maximum((high - low) / (1 - 2 * _MARGIN), 1e-9)

    def place_at(features: np.ndarray) -> np.ndarray:
        part = (features - middle[None]) / span[None] + 0.5
        return part * np.asarray([[1, -1]]) + np.asarray([[0, 1]])

    dots = place_at(points.real) * 1000
    thumbs = pictures.spread(len(gallery.labels), _THUMBS)
    small = pictures.shrink([gallery.files[DISTILLED][i] for i in thumbs], _THUMB_SIDE)
    places = place_at(points.syn)[thumbs]
    named = len(thumbs) <= _NAMED
    wide, narrow = _move_apart(places) if named else (places, places)

    def describe_class(label: int) -> dict[str, Any]:
        names = gallery.class_names
        hue = round(360 * label / len(names) + 20) % 360
        return {
            "label": label,
            "name": names[label],
            "hue": hue if len(names) <= _COLOURED else None,
            "count": int(np.sum(points.labels == label)),
        }

    return {
        "shape": _SHAPE,
        "narrow_shape": _NARROW_SHAPE,
        "named": named,
        "moved": not (np.array_equal(wide, places) and np.array_equal(narrow, places)),
        "classes": [
            {
                **describe_class(label),
                "path": "".join(f"M{x:.0f} {y:.0f}h0" for x, y in dots[points.labels == label]),
            }
            for label in np.unique(points.labels).tolist()
        ],
        "thumbs": [
            {
                **describe_class(int(gallery.labels[i])),
                "at": 100 * places[number],
                "wide": 100 * wide[number],
                "narrow": 100 * narrow[number],
                "src": place.put("map", i, webp),
            }
            for number, (i, webp) in enumerate(zip(thumbs, small, strict=True))
        ],
        "points": len(points.real),
        "explained": [100 * float(part) for part in points.explained],
    }


def _move_apart(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns places at which no thumbnail hides another, on a wide screen and a narrow one."""
    # On a narrow screen there is room for so many names.
    height = _NARROW_BOX[1] if len(places) <= _NAMED // 2 else _NARROW_BOX[0]
    return (
        charts.move_apart(places, _BOX, _SHAPE),
        charts.move_apart(places, (_NARROW_BOX[0], height), _NARROW_SHAPE),
    )
