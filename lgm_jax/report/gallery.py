"""The gallery of a run, `gallery.npz`: its pictures and the map of its features.

It holds small WebP pictures of the distilled images and of the real ones they are compared with.
So a page is written again, or beside other runs', from the run folder alone: without the data set,
the backbone or a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8

from lgm_jax import files
from lgm_jax.errors import UserError
from lgm_jax.report import pictures
from lgm_jax.report.plane import Map

DISTILLED = "distilled"
# In the order in which they are shown.
REALS = ("centroids", "neighbors", "random")

# Images shown of a class at most; sides of distilled and real ones in pixels.
_PER_CLASS, _SIDE, _REAL_SIDE = 5, 256, 160

# A page of at most so many classes is one file. It shows so many images, in so many bytes.
MOST_CLASSES, _MOST_IMAGES = 100, 200
_BUDGET, _REAL_BUDGET = 3_000_000, 600_000

_AGAIN = "delete it, and start the run again to have it made anew"


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures of a run.

    Attributes:
        class_names: Names of the classes, in label order.
        labels: Classes of the images that are shown, the first few of each class.
        total: Images per class, with those that are not shown.
        files: WebP files by kind, one per image shown: `distilled`, and those of `REALS` that are
            known.
        map: The map of their features, if known.
        side: Side of the distilled images in pixels; galleries of earlier versions lack it.
    """

    class_names: Sequence[str]
    labels: Int[np.ndarray, " s"]
    total: int
    files: Mapping[str, Sequence[bytes]]
    map: Map | None = None
    side: int | None = None


def fits_one_file(num_classes: int) -> bool:
    """Returns whether the pictures of so many classes go into the page itself."""
    return num_classes <= MOST_CLASSES


def shown(labels: Int[np.ndarray, " n"], most: int = _MOST_IMAGES) -> Int[np.ndarray, " s"]:
    """Returns the indices of the images that a page shows: the first few of each class in turn.

    Args:
        labels: Classes of all images; every class has some.
        most: Images that are shown, unless there are more classes than one file takes: then there
            are five of each.
    """
    classes = len(np.unique(labels))
    few = max(1, min(_PER_CLASS, most // classes)) if fits_one_file(classes) else _PER_CLASS
    order = np.argsort(labels, kind="stable")
    return order[_numbers(labels)[order] < few]


def make_gallery(
    images: Float[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
    reals: Mapping[str, UInt8[np.ndarray, "s h w 3"]] | None = None,
    feature_map: Map | None = None,
) -> Gallery:
    """Encodes pictures so small that those of 100 classes fit one page of less than 10 MB.

    Args:
        images: All distilled images, in [0, 1].
        reals: By kind, the real image beside each that is `shown`.
    """
    rows = shown(labels)
    budget, real_budget = (
        (_BUDGET, _REAL_BUDGET) if fits_one_file(len(class_names)) else (None, None)
    )
    encoded = {DISTILLED: pictures.encode(pictures.to_bytes(images[rows]), _SIDE, budget)}
    for kind, beside in (reals or {}).items():
        encoded[kind] = pictures.encode(beside, _REAL_SIDE, real_budget)
    total = int(np.bincount(labels).max())
    names, side = list(map(str, class_names)), int(images.shape[1])
    return Gallery(names, labels[rows], total, encoded, feature_map, side)


def real_rows(
    labels: Int[np.ndarray, " n"],
    centroids: Int[np.ndarray, " images"],
    neighbors: Int[np.ndarray, " n"],
    random: Int[np.ndarray, " images"],
) -> dict[str, Int[np.ndarray, " s"]]:
    """Returns, by kind, the indices of the real images beside each distilled one that is `shown`.

    Args:
        labels: Classes of all distilled images; each class has as many.
        centroids: Training images nearest to their class's mean, class by class.
        neighbors: Training images nearest to each distilled image.
        random: Training images drawn at random, class by class.
    """
    rows = shown(labels)
    per_class = len(labels) // (int(labels.max()) + 1)
    place = labels[rows] * per_class + _numbers(labels)[rows]
    return {"centroids": centroids[place], "neighbors": neighbors[rows], "random": random[place]}


def _numbers(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns for each image how many of its class come before it."""
    order = np.argsort(labels, kind="stable")
    numbers = np.empty(len(labels), int)
    numbers[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return numbers


def save_gallery(path: epath.Path, gallery: Gallery) -> None:
    """Writes `gallery.npz`."""
    arrays: dict[str, Any] = {
        "class_names": np.asarray(gallery.class_names, np.str_),
        "labels": gallery.labels,
        "total": gallery.total,
    }
    if gallery.side is not None:
        arrays["side"] = gallery.side
    for kind, stored in gallery.files.items():
        arrays[f"{kind}_bytes"] = np.frombuffer(b"".join(stored), np.uint8)
        arrays[f"{kind}_ends"] = np.cumsum([len(file) for file in stored], dtype=np.int64)
    if gallery.map is not None:
        for field in dataclasses.fields(Map):
            arrays[f"map_{field.name}"] = getattr(gallery.map, field.name)
    files.write_arrays(path, arrays)


def load_gallery(path: epath.Path) -> Gallery:
    """Reads `gallery.npz`.

    Raises:
        UserError: If it is damaged.
    """
    stored = files.read_arrays(path, _AGAIN)
    try:
        labels, found = stored["labels"], {}
        for kind in (DISTILLED, *REALS):
            if f"{kind}_ends" in stored:
                parts = np.split(stored[f"{kind}_bytes"], stored[f"{kind}_ends"])
                found[kind] = [part.tobytes() for part in parts[:-1]]
        if {len(listed) for listed in found.values()} != {len(labels)}:
            raise ValueError("pictures and labels differ in number")
        # Those of earlier versions do not have all fields.
        values = {
            name.removeprefix("map_"): value
            for name, value in stored.items()
            if name.startswith("map_")
        }
        return Gallery(
            stored["class_names"].tolist(),
            labels,
            int(stored["total"]),
            found,
            Map(**values) if values else None,
            int(stored["side"]) if "side" in stored else None,
        )
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {_AGAIN} ({error})") from error
