"""Arrays of images: a person's own in memory, or an `.npz` file."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lgm_jax.data import formats, pixels
from lgm_jax.data.assembly import Request, Stored, assemble
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.labels import check_names, read_labels, unlabelled
from lgm_jax.data.records import PixelRecords
from lgm_jax.data.split_names import assign_splits
from lgm_jax.errors import UserError, list_some

Labelled = tuple[np.ndarray, Any] | tuple[np.ndarray, Any, Any]

_LAYOUT = (
    "images (n, h, w, 3) uint8 and labels (n,), or train_images, train_labels, test_images, "
    "test_labels and perhaps val_images, val_labels"
)
# `images`, `train_images`, `validation_labels`: what an array of a file is.
_KEY = re.compile(r"(?:(?P<split>.+)_)?(?P<kind>images|labels|groups|class_names)")


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
            which are whole numbers or names of classes, or -1 or `None` throughout a held-out
            split that has none; and perhaps groups, integers from 0. What is missing is held out
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
        images, labels, *groups = splits[given]
        images = _check_images(images, where)
        names = class_names.get(given, ()) if isinstance(class_names, Mapping) else class_names
        stored[split] = Stored(
            PixelRecords(where, images),
            read_labels(labels, len(images), where, list(names) or None),
            _check_groups(groups[0], len(images), f"{where} groups") if groups else None,
            images,
        )
    # Groups that have no names are called by their numbers.
    largest = max(
        (part.groups.max(initial=-1) for part in stored.values() if part.groups is not None),
        default=-1,
    )
    group_names = check_names(group_names, name, "group") or list(map(str, range(largest + 1)))
    request = Request("", resolution, seed, val_fraction)
    return assemble(request, name, stored, benchmark=False, group_names=group_names, notes=notes)


def load_npz(request: Request) -> Dataset:
    """Reads the `.npz` file of a request; see `from_arrays` for what its arrays may be.

    It holds `images` and `labels`, or `train_images`, `train_labels` and so on; and perhaps
    `class_names`, `groups` (likewise) and `group_names`. Refused if it cannot be read or lacks
    arrays.
    """
    file = request.folder
    path = Path(os.path.expanduser(file))
    arrays = read_npz(path)
    # By split, the name of its array of each kind.
    given: dict[str, dict[str, str]] = {}
    for key in arrays:
        if found := _KEY.fullmatch(key):
            kinds, kind = given.setdefault(found["split"] or "train", {}), found["kind"]
            if kinds.setdefault(kind, key) != key and kind == "images":
                raise UserError(f"{file} has both images and train_images: keep one of them")
    given = {name: kinds for name, kinds in given.items() if "images" in kinds}
    if not given:
        raise UserError(f"{file} has arrays {sorted(arrays)}: expected {_LAYOUT}")
    assigned, notes = assign_splits(given, file)
    splits: dict[str, Any] = {}
    names = {}
    for split, called in assigned.items():
        kinds = given[called]
        if "labels" in kinds:
            wanted = ("images", "labels", "groups")
            splits[split] = tuple(arrays[kinds[kind]] for kind in wanted if kind in kinds)
            shared = arrays.get("class_names", np.zeros(0))
            names[split] = arrays.get(f"{called}_class_names", shared).reshape(-1).tolist()
        elif split == "train":
            images = kinds["images"]
            raise UserError(f"{file} has {images} but no {images.replace('images', 'labels')}")
        else:
            notes.append(unlabelled(file, split))
    used = {key for kinds in given.values() for key in kinds.values()}
    unused = [key for key in arrays if key not in {*used, "group_names", "class_names"}]
    if unused:
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
            if isinstance(stored, np.lib.npyio.NpzFile):
                return {name: stored[name] for name in stored.files}
        what = f"{path} is one array"
    except FileNotFoundError:
        what = f"there is no file {path}"
    except IsADirectoryError:
        what = f"{path} is a folder"
    # A broken archive makes zipfile, zlib and NumPy raise almost anything.
    except Exception as error:
        reason = formats.explain_file(path) or error or type(error).__name__
        raise UserError(f"cannot read {path}: {reason}") from error
    raise UserError(f"{what}: expected an .npz file with {expected}")


def _check_images(images: np.ndarray, where: str) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    shape, problem = images.shape, ""
    if images.dtype != np.uint8:
        problem = f": {pixels.as_bytes(images)}"
    elif len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (3, 4):
        problem = f": {pixels.advise(images)}"
    elif len(shape) in (3, 4) and shape[3:] in ((), (3,), (4,)) and 0 not in shape[1:]:
        return images
    raise UserError(
        f"{where} images are {images.dtype} {shape}: expected uint8 (n, h, w), "
        f"(n, h, w, 3) or (n, h, w, 4){problem}"
    )


def _check_groups(numbers: Any, count: int, what: str) -> np.ndarray:
    numbers = np.asarray(numbers)
    flat = numbers.reshape(-1) if numbers.shape == (count, 1) else numbers
    if flat.shape != (count,) or flat.dtype.kind not in "iu":
        raise UserError(f"{what} are {numbers.dtype} {numbers.shape}: expected integers ({count},)")
    # Before they are 32 bits, which a larger number would leave.
    if flat.size and (flat.min() < 0 or flat.max() >= 2**31):
        raise UserError(f"{what} are from {flat.min()} to {flat.max()}: groups must count from 0")
    return flat.astype(np.int32)
