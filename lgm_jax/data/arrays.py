"""Arrays of images: a person's own in memory, or an `.npz` file."""

from __future__ import annotations

import dataclasses
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
        resolution: Side of the images to give, in pixels.
        class_names: In label order, or by split where each has an order of its own; by default
            the labels themselves. What is not text is made it.
        group_names: In the order of groups; by default their numbers, if there are groups.
        name: Name of the data set.
        seed: Seed of the split.
        val_fraction: Part of the training images that becomes `val` where there is none.

    Raises:
        UserError: If the arrays' shapes or types do not fit, or labels or splits are not in
            order: see `labels.match_labels` and `Dataset`.
    """
    assigned, notes = assign_splits(splits, name)
    arrays, read = {}, {}
    for split, given in assigned.items():
        arrays[split] = _check_images(splits[given][0], f"{name}, {split}")
        own = class_names.get(given, ()) if isinstance(class_names, Mapping) else class_names
        read[split] = read_labels(
            splits[given][1],
            len(arrays[split]),
            where=name,
            split=split,
            names=own if len(own) else None,
        )
    group_names = check_names(group_names, name, "group")
    stored = {}
    for split, given in assigned.items():
        labelled, groups = splits[given], None
        if len(labelled) == 3:
            what = f"{name}, {split} groups"
            groups = _check_groups(labelled[2], len(arrays[split]), what)
        records = PixelRecords(f"{name}, {split}", arrays[split])
        stored[split] = Stored(records, read[split], groups, arrays[split])
    request = Request("", resolution, seed, val_fraction)
    group_names = group_names or _number_groups(stored.values())
    return assemble(request, name, stored, benchmark=False, group_names=group_names, notes=notes)


def _number_groups(splits: Iterable[Stored]) -> list[str]:
    """Names of groups that have none: their numbers."""
    largest = [
        int(split.groups.max())
        for split in splits
        if split.groups is not None and len(split.groups)
    ]
    return [str(group) for group in range(max(largest, default=-1) + 1)]


def load_npz(request: Request) -> Dataset:
    """Reads the `.npz` file of a request; see `from_arrays` for what its arrays may be.

    It holds `images` and `labels`, or `train_images`, `train_labels` and so on; and perhaps
    `class_names` (or `train_class_names` and so on), `groups` (likewise) and `group_names`. Never
    unpickled.

    Raises:
        UserError: If it cannot be read, lacks arrays, or holds Python objects.
    """
    file = request.folder
    path = Path(os.path.expanduser(file))
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise UserError(f"{file} is one array: expected an .npz file with {_LAYOUT}")
        with stored:
            arrays = {name: stored[name] for name in stored.files}
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}: expected an .npz file with {_LAYOUT}") from error
    except IsADirectoryError as error:
        raise UserError(f"{file} is a folder: expected an .npz file with {_LAYOUT}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = formats.explain_file(path) or error
        raise UserError(f"cannot read {file}: {reason}") from error
    given: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        found = _KEY.fullmatch(key)
        if found:
            names = array.reshape(-1).tolist() if found["kind"] == "class_names" else array
            given.setdefault(found["split"] or "", {})[found["kind"]] = names
    splits, notes = _choose_splits(given, str(file))
    if not splits:
        raise UserError(f"{file} has arrays {sorted(arrays)}: expected {_LAYOUT}")
    common = given.get("", {}).get("class_names", ())
    own = {split: kinds.get("class_names", common) for split, kinds in splits.items()}
    dataset = from_arrays(
        {
            split: tuple(kinds[kind] for kind in ("images", "labels", "groups") if kind in kinds)
            for split, kinds in splits.items()
        },
        resolution=request.resolution,
        class_names=own if any(map(len, own.values())) else (),
        group_names=np.asarray(arrays.get("group_names", ())).reshape(-1).tolist(),
        name=path.stem,
        seed=request.seed,
        val_fraction=request.val_fraction,
    )
    unused = [key for key in arrays if key != "group_names" and not _is_used(key, given)]
    if unused:
        notes.append(f"{file}: {list_some(unused)} is ignored: expected {_LAYOUT}")
    return dataclasses.replace(dataset, notes=[*notes, *dataset.notes])


def _is_used(key: str, given: Mapping[str, dict[str, Any]]) -> bool:
    """Whether an array belongs to a split that has images, or names the classes of all."""
    found = _KEY.fullmatch(key)
    if not found:
        return False
    return key == "class_names" or "images" in given[found["split"] or ""]


def _choose_splits(
    given: Mapping[str, dict[str, Any]], file: str
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """By split, its arrays by kind; and what is ignored.

    Args:
        given: By what stands before the kind in an array's name, its arrays by kind.
        file: For messages.
    """
    called = {name or "train": name for name, kinds in given.items() if "images" in kinds}
    if not called:
        return {}, []
    if "images" in given.get("", {}) and "images" in given.get("train", {}):
        raise UserError(f"{file} has both images and train_images: keep one of them")
    assigned, notes = assign_splits(called, file)
    splits = {}
    for split, name in assigned.items():
        kinds, prefix = given[called[name]], f"{called[name]}_".lstrip("_")
        if "labels" in kinds:
            splits[split] = kinds
        elif split == "train":
            raise UserError(f"{file} has {prefix}images but no {prefix}labels")
        else:
            notes.append(unlabelled(file, split))
    return splits, notes


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
    if flat.shape != (count,) or not np.issubdtype(flat.dtype, np.integer):
        raise UserError(f"{what} are {numbers.dtype} {numbers.shape}: expected integers ({count},)")
    # Before they are 32 bits, which a larger number would leave.
    if flat.size and (flat.min() < 0 or flat.max() >= 2**31):
        raise UserError(f"{what} are from {flat.min()} to {flat.max()}: groups must count from 0")
    return flat.astype(np.int32)
