"""Distilled sets on disk: an image folder that other tools load, and the exact values beside it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from lgm_jax import paths
from lgm_jax.errors import UserError
from lgm_jax.runs import replacing

ARRAYS = "distilled.npz"
METADATA = "metadata.jsonl"
NUMBERED = "<label>_<name> folders"


@dataclasses.dataclass(frozen=True)
class DistilledSet:
    """A distilled set as it was found on disk.

    Attributes:
        images: Float32 in [0, 1], not normalised.
        labels: Indices into the class names, int32.
        class_names: In label order.
        labelled_by: What gives the labels: `ARRAYS`, `METADATA` or `NUMBERED`; `None` if they are
            no more than the sorted order of the class folders.
        probabilities: Of each class, float32, where labels are soft; only `ARRAYS` has them.
    """

    images: Float[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"]
    class_names: list[str]
    labelled_by: str | None
    probabilities: Float[np.ndarray, "n k"] | None = None


class _Class(NamedTuple):
    folder: epath.Path
    name: str


def save_distilled(
    folder: epath.PathLike,
    images: Float[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
    probabilities: Float[np.ndarray, "n k"] | None = None,
) -> None:
    """Writes one PNG per image, `metadata.jsonl`, and `distilled.npz` with the unrounded values.

    Folders are named `<label>_<class name>`, so that sorting them by name, as torchvision, TFDS
    and the Hugging Face hub do, gives the labels back.

    Args:
        folder: Where to write; made if need be.
        images: Images in [0, 1], float32.
        labels: Indices into `class_names`, int32.
        class_names: Human-readable, in label order.
        probabilities: Of each class, float32; for soft labels.
    """
    folder = epath.Path(folder)
    counts: dict[int, int] = {}
    lines = []
    for image, label in zip(images, labels.tolist(), strict=True):
        number = counts[label] = counts.get(label, -1) + 1
        name = f"{class_folder(label, class_names)}/{number:03d}.png"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))
        entry = {"file_name": name, "label": label, "class_name": class_names[label]}
        lines.append(json.dumps(entry, ensure_ascii=False))
    (folder / METADATA).write_text("\n".join(lines) + "\n")
    with replacing(folder / ARRAYS) as temporary, temporary.open("wb") as file:
        arrays = {
            "images": images,
            "labels": labels,
            "class_names": np.asarray(class_names, np.str_),
        }
        if probabilities is not None:
            arrays["probabilities"] = probabilities
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_distilled(
    folder: str | Path,
) -> tuple[Float[np.ndarray, "n h w 3"], Int[np.ndarray, " n"], list[str]]:
    """Reads a distilled set.

    Args:
        folder: A run's workdir, its `distilled/`, or any folder of PNGs in one folder per class.
            Labels are then those in `metadata.jsonl`, else those of folders named
            `<label>_<name>`, else the sorted order of the folders. `~` is expanded.

    Returns:
        Images (n, h, w, 3) float32 in [0, 1], not normalised; labels (n,) int32; class names.

    Raises:
        UserError: If there is no distilled set, or one that cannot be read.
    """
    found = read_distilled(folder)
    return found.images, found.labels, found.class_names


def read_distilled(folder: str | Path) -> DistilledSet:
    """As `load_distilled`, and says what gave the labels."""
    path = paths.locate(folder)
    if (path / "distilled").is_dir():
        path = path / "distilled"
    if (path / ARRAYS).is_file():
        return _read_arrays(path / ARRAYS)
    if not path.is_dir():
        raise UserError(f"{folder} is not a folder")
    classes, labelled_by = _list_classes(path)
    files = [
        (label, file) for label, c in enumerate(classes) for file in sorted(c.folder.glob("*.png"))
    ]
    if not files:
        raise UserError(f"{folder} holds no distilled set: expected {ARRAYS} or <class>/*.png")
    images = [_read_png(file) for _, file in files]
    if len({image.shape for image in images}) > 1:
        raise UserError(f"the images in {folder} differ in size")
    labels = np.asarray([label for label, _ in files], np.int32)
    return DistilledSet(np.stack(images), labels, [c.name for c in classes], labelled_by)


def first_of_classes(
    folder: epath.PathLike, count: int
) -> list[tuple[str, Float[np.ndarray, "h w 3"]]]:
    """The first image of each of the first classes with its name, without reading the others.

    Args:
        folder: A run's workdir, or its `distilled/`.
        count: How many classes at most.

    Raises:
        UserError: If there is no distilled set with `metadata.jsonl`, or one that cannot be read.
    """
    path = epath.Path(folder)
    path = path / "distilled" if (path / "distilled").is_dir() else path
    if not (path / METADATA).is_file():
        raise UserError(f"{folder} holds no distilled set: {METADATA} is missing")
    found = []
    for each in _list_classes(path)[0][:count]:
        files = sorted(each.folder.glob("*.png"))
        found += [(each.name, _read_png(file)) for file in files[:1]]
    return found


def class_folder(label: int, class_names: Sequence[str]) -> str:
    """A folder name that sorts by label and is valid on any file system."""
    width = len(str(len(class_names) - 1))
    return f"{label:0{width}d}_{safe_name(class_names[label])}"


def safe_name(class_name: str) -> str:
    """The part of a class folder's name that stands for the class's name."""
    return re.sub(r"[^\w.-]+", "_", class_name).strip("._")[:80]


def encode_png(image: Float[np.ndarray, "h w 3"]) -> bytes:
    """An image in [0, 1] as an 8-bit PNG."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _read_arrays(path: epath.Path) -> DistilledSet:
    # A broken archive makes zipfile, zlib and NumPy raise almost anything.
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels, names = (arrays[key] for key in ("images", "labels", "class_names"))
            soft = arrays.get("probabilities")
    except KeyError as error:
        raise UserError(f"{path} is no distilled set: {error.args[0]}") from error
    except Exception as error:
        raise UserError(f"{path} is damaged: {error or type(error).__name__}") from error
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
        return DistilledSet(images, labels.astype(np.int32), names.tolist(), ARRAYS, soft)
    raise UserError(f"{path} is no distilled set: {problem}")


def _are_probabilities(values: np.ndarray, shape: tuple[int, int]) -> bool:
    if values.dtype != np.float32 or values.shape != shape:
        return False
    return bool(values.min() >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-4))


def _read_png(path: epath.Path) -> Float[np.ndarray, "h w 3"]:
    from PIL import Image

    # Broken bytes make PIL's decoders raise almost anything.
    try:
        with path.open("rb") as file, Image.open(file, formats=("PNG",)) as image:
            return np.asarray(image.convert("RGB"), np.float32) / 255
    except Exception as error:
        raise UserError(f"cannot read image {path}: {error or type(error).__name__}") from error


def _list_classes(path: epath.Path) -> tuple[list[_Class], str | None]:
    """The class folders in label order, and what gives the labels."""
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    metadata = _read_metadata(path / METADATA) if (path / METADATA).is_file() else {}
    described = [metadata.get(folder.name, {}) for folder in folders]
    every = set(range(len(folders)))
    numbers = [re.fullmatch(r"(\d+)_(.*)", folder.name) for folder in folders]
    labels, names = list(range(len(folders))), [folder.name for folder in folders]
    labelled_by = None
    if any("label" in entry for entry in described):
        labels, labelled_by = [entry.get("label", -1) for entry in described], METADATA
        if set(labels) != every:
            raise UserError(
                f"{path / METADATA} does not give the {len(folders)} class folders the labels 0 to "
                f"{len(folders) - 1}, one each"
            )
    elif {int(match[1]) for match in numbers if match} == every:
        labels, labelled_by = [int(match[1]) for match in numbers if match], NUMBERED
        names = [match[2] for match in numbers if match]
    classes = [
        _Class(folder, entry.get("class_name", name))
        for folder, entry, name in zip(folders, described, names, strict=True)
    ]
    return [classes[i] for i in sorted(range(len(folders)), key=labels.__getitem__)], labelled_by


def _read_metadata(path: epath.Path) -> Mapping[str, Mapping[str, Any]]:
    """What a `metadata.jsonl` says of each class folder: `label` and `class_name`, if it does."""
    classes: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{path}, line {number}: no object with a file_name")
        folder, slash, _ = entry["file_name"].partition("/")
        if not slash:
            continue
        said = {key: entry[key] for key in ("label", "class_name") if entry.get(key) is not None}
        if type(said.get("label", 0)) is not int or type(said.get("class_name", "")) is not str:
            raise UserError(
                f"{path}, line {number}: label must be a whole number and class_name a text"
            )
        if classes.setdefault(folder, said) != said:
            raise UserError(
                f"{path}, line {number}: {folder} has another label or class_name above"
            )
    return classes
