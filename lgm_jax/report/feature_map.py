"""The map of features: real images as dots, distilled ones as thumbnails."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from lgm_jax.report import pictures
from lgm_jax.report.gallery import DISTILLED, Gallery
from lgm_jax.report.pictures import Place
from lgm_jax.report.plane import Map
from lgm_jax.report.vocabulary import class_colours

# Side of the thumbnails.
_SIDE = 64

# Height of the map by its width, on a wide screen and on a narrow one, and the empty part along
# each edge.
_SHAPE, _NARROW_SHAPE = 0.56, 1.1
_MARGIN = 0.07

# At most so many classes have thumbnails with names, in colours of their own; more have dots.
NAMED = 30

# Sides of a named thumbnail's box by the map's width, on a wide screen and on a narrow one, which
# has room for so many names; more have none there.
_BOX, _NARROW_BOX, _NARROW_NAMED = (0.085, 0.074), (0.2, 0.16), 12
_NARROW_THUMB = (0.09, 0.09)

# Half the height of a name, by the map's width: the middle of a box lies as far below that of its
# thumbnail.
_NAME, _NARROW_NAME = 0.009, 0.028


def describe_map(gallery: Gallery | None, place: Place) -> dict[str, Any] | None:
    """Returns dots of real images by class, and thumbnails of distilled ones, in one box.

    Each direction fills the box. Thumbnails and names that would hide each other are moved apart,
    with a line to their places. Many classes have dots, whose thumbnails are shown one at a time.
    `None` without a gallery that has a map.
    """
    if gallery is None or gallery.map is None:
        return None
    points, (real, syn) = gallery.map, _stretch(gallery.map)
    dots = real * 1000
    named = len(gallery.class_names) <= NAMED
    thumbs = list(range(len(gallery.labels)))
    if len(thumbs) > NAMED:
        # The first of each class.
        thumbs = np.unique(gallery.labels, return_index=True)[1].tolist()
    small = pictures.shrink([gallery.files[DISTILLED][i] for i in thumbs], _SIDE)
    places = syn[thumbs]
    wide, narrow = _move_apart(places) if named else (places, places)
    colours = class_colours(len(gallery.class_names))

    def describe_class(label: int) -> dict[str, Any]:
        return {
            "label": label,
            "name": gallery.class_names[label],
            "colours": colours[label] if named else None,
            "count": int(np.sum(points.labels == label)),
        }

    return {
        "shape": _SHAPE,
        "narrow_shape": _NARROW_SHAPE,
        "named": named,
        "narrow_named": len(thumbs) <= _NARROW_NAMED,
        "separates": bool(points.separates),
        "moved": not (np.allclose(wide, places) and np.allclose(narrow, places)),
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


def _stretch(points: Map) -> tuple[np.ndarray, np.ndarray]:
    """Returns real and distilled images in parts of the box, from its upper left corner."""
    everything = np.concatenate([points.real, points.syn])
    low, high = everything.min(axis=0), everything.max(axis=0)
    middle, span = (low + high) / 2, np.maximum((high - low) / (1 - 2 * _MARGIN), 1e-9)
    part = (everything - middle[None]) / span[None] + 0.5
    places = part * np.asarray([[1, -1]]) + np.asarray([[0, 1]])
    return places[: len(points.real)], places[len(points.real) :]


def _move_apart(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns places at which no thumbnail hides another, on a wide screen and a narrow one."""

    def move(box: tuple[float, float], name: float, shape: float) -> np.ndarray:
        below = np.array([[0, name / shape]])
        return move_apart(places + below, box, shape) - below

    few = len(places) <= _NARROW_NAMED
    narrow, name = (_NARROW_BOX, _NARROW_NAME) if few else (_NARROW_THUMB, 0.0)
    return move(_BOX, _NAME, _SHAPE), move(narrow, name, _NARROW_SHAPE)


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
