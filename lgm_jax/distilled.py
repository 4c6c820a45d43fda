"""Distilled sets on disk: a folder of images that other tools load, and the exact values."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8

from lgm_jax import files, paths
from lgm_jax.errors import UserError
from lgm_jax.names import plain

ARRAYS = "distilled.npz"
METADATA = "metadata.jsonl"


class DistilledSet(NamedTuple):
    """A distilled set.

    Attributes:
        images: Float32 in [0, 1], not normalised.
        labels: Indices into the class names, int32.
        class_names: Names of the classes, in label order.
        labelled_by: The source of the labels: `ARRAYS`, or see `data.class_folders.ClassFolders`.
        probabilities: Class probabilities, float32, where labels are soft; only `ARRAYS` has them.
    """

    images: Float[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"]
    class_names: list[str]
    labelled_by: str | None
    probabilities: Float[np.ndarray, "n k"] | None = None


def save_distilled(
    folder: epath.PathLike,
    images: Float[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
    probabilities: Float[np.ndarray, "n k"] | None = None,
) -> None:
    """Writes one PNG per image, `metadata.jsonl`, and `distilled.npz` with the unrounded values.

    Folders are named `<label>_<class name>`, so that sorting them by name, as torchvision, TFDS
    and the Hugging Face hub do, restores the labels.

    Args:
        images: Images in [0, 1], float32.
        labels: Indices into `class_names`, int32.
        probabilities: Class probabilities, float32, for soft labels.
    """
    from PIL import Image

    folder = epath.Path(folder)
    counts: dict[int, int] = {}
    width, lines = len(str(len(class_names) - 1)), []
    for image, label in zip(images, labels.tolist(), strict=True):
        number = counts[label] = counts.get(label, -1) + 1
        name = f"{label:0{width}d}_{safe_name(class_names[label])}/{number:03d}.png"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
        entry = {"file_name": name, "label": label, "class_name": class_names[label]}
        lines.append(json.dumps(entry, ensure_ascii=False))
    # In UTF-8, whatever the locale.
    (folder / METADATA).write_bytes(("\n".join(lines) + "\n").encode())
    arrays = {"images": images, "labels": labels, "class_names": np.asarray(class_names, np.str_)}
    if probabilities is not None:
        arrays["probabilities"] = probabilities
    files.write_arrays(folder / ARRAYS, arrays, compressed=True)


def load_distilled(
    folder: epath.PathLike,
) -> tuple[Float[np.ndarray, "n h w 3"], Int[np.ndarray, " n"], list[str]]:
    """Reads a distilled set.

    Args:
        folder: A run's workdir, its `distilled/`, or any folder of images that
            `data.class_folders` describes. Labels are then those in `metadata.jsonl`, else those of
            folders named `<label>_<name>` or by numbers, else the sorted order of the folders. `~`
            is expanded.

    Returns:
        Images (n, h, w, 3) float32 in [0, 1], not normalised; labels (n,) int32; class names.

    Raises:
        UserError: If there is no distilled set, or one that cannot be read.
    """
    return read_distilled(folder)[:3]


def read_distilled(folder: epath.PathLike) -> DistilledSet:
    """Reads a distilled set with the source of its labels; see `load_distilled`."""
    path = paths.locate(folder)
    if (path / "distilled").is_dir():
        path = path / "distilled"
    if (path / ARRAYS).is_file():
        return read_arrays(path / ARRAYS)
    if not path.is_dir():
        raise UserError(f"{folder} is not a folder")
    if paths.is_bucket(path):
        raise UserError(f"{folder} holds no {ARRAYS}: images in a bucket are not read")
    # Importing the readers of data sets takes long, and sets of arrays do without.
    from lgm_jax.data.class_folders import find_classes

    folders = find_classes(Path(path))[0]
    images = [read_image(folders.root / file) for files in folders.files for file in files]
    if len({image.shape for image in images}) > 1:
        raise UserError(f"the images in {folder} differ in size")
    counts = [len(files) for files in folders.files]
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    stacked = np.stack(images).astype(np.float32) / 255
    return DistilledSet(stacked, labels, list(folders.names), folders.labelled_by)


def first_of_classes(
    folder: epath.PathLike, count: int, first: Collection[str] = ()
) -> list[tuple[str, Float[np.ndarray, "h w 3"]]]:
    """Reads the first image of each of at most `count` classes, with the class's name.

    Args:
        folder: As for `load_distilled`.
        first: Names of classes that come before the others, where the set has them.
    """
    images, labels, names, *_ = read_distilled(folder)
    classes, rows = (each.tolist() for each in np.unique(labels, return_index=True))
    ordered = sorted(
        zip(classes, rows, strict=True), key=lambda at: (names[at[0]] not in first, at)
    )
    return [(names[label], images[row]) for label, row in ordered[:count]]


def safe_name(class_name: str) -> str:
    """Returns a class's name as part of a folder's name that is valid on any file system."""
    # The locale of a machine may lack letters.
    coding = sys.getfilesystemencoding()
    encodable = class_name.encode(coding, "replace").decode(coding)
    fit = re.sub(r"[^\w.-]+", "_", encodable).strip("._")
    # Names of files end at 255 bytes, of which other alphabets take several a letter.
    return fit[:80].encode()[:200].decode(errors="ignore")


def read_arrays(path: epath.Path) -> DistilledSet:
    """Reads a `distilled.npz`; refuses what is damaged, or something else."""
    arrays, needed = files.read_arrays(path), ("images", "labels", "class_names")
    if lacking := [name for name in needed if name not in arrays]:
        raise UserError(f"{path} is no distilled set: it has no {lacking[0]}")
    images, labels, names = (arrays[name] for name in needed)
    return check_arrays(path, images, labels, names, arrays.get("probabilities"))


def check_arrays(
    path: epath.Path,
    images: np.ndarray,
    labels: np.ndarray,
    names: np.ndarray,
    soft: np.ndarray | None,
) -> DistilledSet:
    """Returns the arrays of a file as a set; refuses what `save_distilled` would not write."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.float32 or not images.size:
        problem = f"images are {images.dtype} {images.shape}, not float32 (n, h, w, 3)"
    elif not (images.min() >= 0 and images.max() <= 1):
        problem = "images are not within [0, 1]"
    elif names.ndim != 1 or names.dtype.kind != "U":
        problem = "class_names is no list of texts"
    elif labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        problem = f"labels are {labels.dtype} {labels.shape}, not one whole number per image"
    elif labels.min() < 0 or labels.max() >= len(names):
        problem = f"labels are not within 0 to {len(names) - 1}"
    elif soft is not None and not _are_probabilities(soft, (len(images), len(names))):
        problem = "probabilities are not float32 of each image and class, which add up to one"
    else:
        return DistilledSet(images, labels.astype(np.int32), list(map(plain, names)), ARRAYS, soft)
    raise UserError(f"{path} is no distilled set: {problem}")


def _are_probabilities(values: np.ndarray, shape: tuple[int, int]) -> bool:
    if values.dtype != np.float32 or values.shape != shape:
        return False
    return bool(values.min() >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-4))


def read_image(path: epath.Path | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image of any supported format, without cropping or rotating it.

    Raises:
        UserError: If it cannot be read.
    """
    from lgm_jax.data.decode import BadImageError, decode

    try:
        return np.asarray(decode(path.read_bytes(), orient=False, name=path.name))
    except (BadImageError, OSError) as error:
        raise UserError(f"cannot read image {path}: {error}") from error
