"""Arrays of images: a person's own in memory, or an `.npz` file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lgm_jax.data import formats
from lgm_jax.data.assembly import Request, Stored, assemble
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.labels import check_names, check_numbers, read_labels, unlabelled
from lgm_jax.data.records import PixelRecords
from lgm_jax.data.split_names import assign_splits
from lgm_jax.errors import UserError, explain, list_some

Labelled = tuple[np.ndarray, Any] | tuple[np.ndarray, Any, Any]

_LAYOUT = (
    "images (n, h, w, 3) uint8 and labels (n,), or train_images, train_labels, test_images, "
    "test_labels and perhaps val_images, val_labels"
)
_KINDS = ("images", "labels", "groups", "class_names")


def from_arrays(
    splits: Mapping[str, Labelled],
    *,
    resolution: int,
    class_names: Sequence[Any] | Mapping[str, Sequence[Any]] = (),
    group_names: Sequence[Any] = (),
    name: str = "arrays",
    seed: int = 0,
    val_fraction: float | None = None,
) -> Dataset:
    """A data set of arrays in memory.

    Args:
        splits: `train`, and perhaps `val` and `test`, by any of their usual names: images
            (n, h, w), (n, h, w, 1), (n, h, w, 3) or (n, h, w, 4) uint8; labels (n,) or (n, 1),
            as for `read_labels`; and perhaps groups, integers from 0. What is missing is held out
            of `train`: see `splits.complete`.
        resolution: Side of the images to return, in pixels.
        class_names: In label order, or by split where each has an order of its own; by default
            the labels themselves. What is not text is made it.
        group_names: In the order of groups; by default their numbers, if there are groups.
        val_fraction: Part of the training images that becomes `val` where there is none.

    Raises:
        UserError: If the arrays' shapes or types do not fit, or labels or splits are not
            consistent: see `labels.match_labels` and `Dataset`.
    """
    assigned, notes = assign_splits(splits, name)
    stored = {}
    for split, given in assigned.items():
        where = f"{name}, {split}"
        if not isinstance(splits[given], tuple | list) or len(splits[given]) not in (2, 3):
            raise UserError(f"{where}: expected (images, labels) or (images, labels, groups)")
        images, labels, *groups = splits[given]
        images = _check_images(images, where)
        names = class_names.get(given, ()) if isinstance(class_names, Mapping) else class_names
        stored[split] = Stored(
            PixelRecords(where, images),
            read_labels(labels, len(images), where, list(names) or None),
            _read_groups(groups[0], len(images), where) if groups else None,
            images,
        )
    numbers = [part.groups.max(initial=-1) for part in stored.values() if part.groups is not None]
    group_names = check_names(group_names, name, "group") or list(
        map(str, range(max(numbers, default=-1) + 1))
    )
    request = Request("", resolution, seed, val_fraction)
    return assemble(request, name, stored, benchmark=False, group_names=group_names, notes=notes)


def load_npz(request: Request) -> Dataset:
    """Reads the `.npz` file of a request; see `from_arrays` for what its arrays may be.

    It holds `images` and `labels`, or `train_images`, `train_labels` and so on; and perhaps
    `class_names`, `groups` (likewise) and `group_names`.

    Raises:
        UserError: If it cannot be read, or lacks arrays.
    """
    file = request.folder
    path = Path(os.path.expanduser(file))
    arrays = read_npz(path)
    if {"images", "train_images"} <= set(arrays):
        raise UserError(f"{file} has both images and train_images: keep one of them")
    prefix_of = {
        "train" if key == "images" else key.removesuffix("_images"): key.removesuffix("images")
        for key in arrays
        if key == "images" or key.endswith("_images")
    }
    if not prefix_of:
        raise UserError(f"{file} has arrays {sorted(arrays)}: expected {_LAYOUT}")
    assigned, notes = assign_splits(prefix_of, file)
    splits: dict[str, Any] = {}
    names = {}
    for split, given in assigned.items():
        prefix = prefix_of[given]
        if f"{prefix}labels" in arrays:
            keys = [f"{prefix}{kind}" for kind in ("images", "labels", "groups")]
            splits[split] = tuple(arrays[key] for key in keys if key in arrays)
            shared = arrays.get("class_names", np.zeros(0))
            names[split] = arrays.get(f"{prefix}class_names", shared).reshape(-1).tolist()
        elif split == "train":
            raise UserError(f"{file} has {prefix}images but no {prefix}labels")
        else:
            notes.append(unlabelled(file, split))
    used = {f"{prefix}{kind}" for prefix in prefix_of.values() for kind in _KINDS}
    if unused := [key for key in arrays if key not in used | {"class_names", "group_names"}]:
        notes.append(f"{file}: {list_some(unused)} is ignored: expected {_LAYOUT}")
    dataset = from_arrays(
        splits,
        resolution=request.resolution,
        class_names=names,
        group_names=np.asarray(arrays.get("group_names", ())).reshape(-1).tolist(),
        name=path.stem,
        seed=request.seed,
        val_fraction=request.val_fraction,
    )
    return dataclasses.replace(dataset, notes=[*notes, *dataset.notes])


def read_npz(path: Path | epath.Path, expected: str = _LAYOUT) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz` file, by name; nothing is unpickled."""
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise TypeError("it is one array")
            return dict(stored)
    # A broken archive makes zipfile, zlib and NumPy raise almost anything.
    except Exception as error:
        reason = formats.explain_file(path) or explain(error)
        raise UserError(f"cannot read {path}: {reason}; expected {expected} in an .npz") from error


def _check_images(images: np.ndarray, where: str) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    shape = images.shape
    is_colour = len(shape) in (3, 4) and shape[3:] in ((), (3,), (4,))
    if images.dtype != np.uint8 or not is_colour or 0 in shape[1:]:
        raise UserError(
            f"{where} images are {images.dtype} {shape}: expected uint8 (n, h, w), (n, h, w, 3) or "
            "(n, h, w, 4)"
        )
    return images


def _read_groups(numbers: Any, count: int, where: str) -> np.ndarray:
    numbers = np.asarray(numbers)
    flat = numbers[:, 0] if numbers.shape == (count, 1) else numbers
    # Before they are 32 bits, which a larger number would leave; those that are too large for the
    # names are refused with these.
    check_numbers(flat, count, 2**31, f"{where} groups", "groups")
    return flat.astype(np.int32)
