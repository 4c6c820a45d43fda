"""The gallery of a run, `gallery.npz`: its pictures and the map of its features.

It holds small WebP pictures of the distilled images and of the real ones they are compared with.
So a page is written again, or beside other runs', from the run folder alone: without the data set,
the backbone or a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8

from lgm_jax.errors import UserError
from lgm_jax.files import replacing
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

    @property
    def fits_one_file(self) -> bool:
        """Whether a page is one file, rather than a page and a folder of pictures."""
        return fits_one_file(len(self.class_names))


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
    first = np.searchsorted(labels[order], labels[order])
    return order[np.arange(len(order)) - first < few]


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
        labels: Their classes.
        class_names: Names of the classes, in label order.
        reals: By kind, the real image beside each that is `shown`.
        feature_map: The map of their features.
    """
    rows = shown(labels)
    one_file = fits_one_file(len(class_names))
    files = {
        DISTILLED: pictures.encode(
            pictures.to_bytes(images[rows]), _SIDE, _BUDGET if one_file else None
        )
    }
    for kind, beside in (reals or {}).items():
        files[kind] = pictures.encode(beside, _REAL_SIDE, _REAL_BUDGET if one_file else None)
    total = int(np.bincount(labels).max())
    names, side = list(map(str, class_names)), int(images.shape[1])
    return Gallery(names, labels[rows], total, files, feature_map, side)


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
    # Which image of its class each is.
    order = np.argsort(labels, kind="stable")
    number = np.empty(len(labels), int)
    number[order] = np.arange(len(labels)) % per_class
    place = labels[rows] * per_class + number[rows]
    return {"centroids": centroids[place], "neighbors": neighbors[rows], "random": random[place]}


def save_gallery(path: epath.Path, gallery: Gallery) -> None:
    """Writes `gallery.npz`."""
    arrays: dict[str, np.ndarray] = {
        "class_names": np.asarray(gallery.class_names, np.str_),
        "labels": gallery.labels,
        "total": np.asarray(gallery.total),
    }
    if gallery.side is not None:
        arrays["side"] = np.asarray(gallery.side)
    for kind, files in gallery.files.items():
        arrays[f"{kind}_bytes"], arrays[f"{kind}_ends"] = pictures.pack(files)
    if gallery.map is not None:
        for field in dataclasses.fields(Map):
            arrays[f"map_{field.name}"] = getattr(gallery.map, field.name)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_gallery(path: epath.Path) -> Gallery:
    """Reads `gallery.npz`.

    Raises:
        UserError: If it is damaged.
    """
    # A broken archive makes zipfile, zlib and NumPy raise almost anything.
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _from_arrays(arrays.__getitem__, arrays.files)
    except Exception as error:
        raise UserError(
            f"{path} is damaged: delete it, and start the run again to have it made anew ({error})"
        ) from error


def _from_arrays(get: Callable[[str], np.ndarray], stored: Sequence[str]) -> Gallery:
    files = {
        kind: pictures.unpack(get(f"{kind}_bytes"), get(f"{kind}_ends"))
        for kind in (DISTILLED, *REALS)
        if f"{kind}_ends" in stored
    }
    feature_map = None
    if "map_real" in stored:
        # Those of earlier versions do not have all.
        names = (field.name for field in dataclasses.fields(Map))
        feature_map = Map(**{name: get(f"map_{name}") for name in names if f"map_{name}" in stored})
    labels = get("labels")
    if {len(listed) for listed in files.values()} != {len(labels)}:
        raise ValueError("pictures and labels differ in number")
    names, total = get("class_names").tolist(), int(get("total"))
    side = int(get("side")) if "side" in stored else None
    return Gallery(names, labels, total, files, feature_map, side)
