"""Accuracy class by class, and which classes are taken for which."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from lgm_jax.report.pictures import Place
from lgm_jax.report.view import RunView
from lgm_jax.report.vocabulary import TITLES

# Classes whose confusion matrix is a table; that of more is a picture.
_TABLE = 20

# Confusions that are listed beside a picture, and of a class.
_PAIRS, _CONFUSED = 10, 2

# Light on dark paper, and dark on light.
_RIGHT, _WRONG = (0, 114, 178), (213, 94, 0)


def describe_classes(run: RunView, place: Place) -> dict[str, Any] | None:
    """Returns accuracies by class on the first evaluation backbone, with the confusion of classes.

    `None` where the results have none, as those of earlier versions, or those of other classes.
    """
    backbone, entries = next(iter(run.probes.items()), ("", {}))
    names = run.gallery.class_names if run.gallery else run.class_names
    own = next((m for m in ("distilled", "full") if entries.get(m, {}).get("per_class")), None)
    confusion = entries[own].get("confusion") if own is not None else None
    if not confusion or not _fits(confusion, len(names)):
        return None
    shares, images = _share(confusion, len(names))
    tested = np.flatnonzero(images > 0).tolist()
    values = {
        method: found
        for method in TITLES
        if len(found := entries.get(method, {}).get("per_class") or ()) == len(names)
        and None not in (found[label] for label in tested)
    }
    if own not in values or not tested:
        return None
    wrong = shares * (1 - np.eye(len(names)))
    rows = [
        {
            "label": label,
            "name": names[label],
            "values": {method: each[label] for method, each in values.items()},
            "own": values[own][label],
            "gain": values["distilled"][label] - values["centroids"][label]
            if {"distilled", "centroids"} <= set(values)
            else None,
            "confused": [
                {"label": other, "name": names[other], "percent": 100 * float(wrong[label, other])}
                for other in _largest(wrong[label], _CONFUSED)
            ],
        }
        for label in tested
    ]
    table = len(names) <= _TABLE
    return {
        "backbone": backbone,
        "own": own,
        "methods": {method: TITLES[method] for method in values},
        "rows": rows,
        "by_label": {row["label"]: row for row in rows},
        "images": (int(min(images[images > 0])), int(max(images))),
        "matrix": {"names": names, "rows": shares.tolist()} if table else None,
        "picture": None if table else place.put("confusion", 0, _draw(shares)),
        "pairs": [
            {"name": names[a], "named": names[b], "percent": 100 * float(wrong[a, b])}
            for a, b in (divmod(i, len(names)) for i in _largest(wrong, _PAIRS))
        ],
    }


def _fits(confusion: Mapping[str, Sequence[Any]], num_classes: int) -> bool:
    """Returns whether a confusion has columns of one length, and no class beyond the last."""
    columns = [confusion[each] for each in ("class", "named", "images")]
    return (
        len(set(map(len, columns))) == 1
        and set(columns[0]) <= set(range(num_classes))
        and set(columns[1]) <= set(range(-1, num_classes))
    )


def _share(
    confusion: Mapping[str, Sequence[Any]], num_classes: int
) -> tuple[Float[np.ndarray, "k k"], Float[np.ndarray, " k"]]:
    """Returns the part of each class that is named each class, and the images of each class."""
    counts = np.zeros((num_classes, num_classes + 1))
    # Those that no class was named for come last.
    # JSON may have 1.0, which is no index.
    places = (np.asarray(confusion[each], np.int32) for each in ("class", "named"))
    np.add.at(counts, tuple(places), confusion["images"])
    images = counts.sum(axis=1).round()
    return counts[:, :-1] / np.maximum(images, 1)[:, None], images


def _largest(shares: Float[np.ndarray, " *k"], most: int) -> list[int]:
    """Returns the flat indices of the largest shares, the largest first; none of zero."""
    order = np.argsort(-shares, axis=None, kind="stable")[:most]
    return [i for i in order.tolist() if shares.flat[i] > 0]


def _draw(shares: Float[np.ndarray, "k k"]) -> bytes:
    """Draws a confusion matrix, a pixel for each entry, on clear ground."""
    right = np.eye(len(shares), dtype=bool)
    pixels = np.where(right[..., None], _RIGHT, _WRONG).astype(np.uint8)
    # Rare confusions are seen, too.
    strength = np.where(shares > 0, 0.3 + 0.7 * np.sqrt(shares), 0)
    alpha = np.round(255 * strength).astype(np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(np.concatenate([pixels, alpha[..., None]], axis=-1))
    picture.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()
