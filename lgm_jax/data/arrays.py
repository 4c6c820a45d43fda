"""Arrays of images: a person's own in memory, or an `.npz` file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lgm_jax.data.dataset import SPLITS, Dataset, Split, digest
from lgm_jax.data.records import ImageSplit, PixelRecords
from lgm_jax.data.splits import complete
from lgm_jax.errors import UserError

Labelled = tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, np.ndarray]

_LAYOUT = (
    "images (n, h, w, 3) uint8 and labels (n,), or train_images, train_labels, test_images, "
    "test_labels and perhaps val_images, val_labels"
)


def from_arrays(
    splits: Mapping[str, Labelled],
    *,
    resolution: int,
    class_names: Sequence[str] = (),
    group_names: Sequence[str] = (),
    name: str = "arrays",
    seed: int = 0,
    val_fraction: float | None = None,
) -> Dataset:
    """A data set of arrays in memory.

    Args:
        splits: `train`, and perhaps `val` and `test`: images (n, h, w), (n, h, w, 1),
            (n, h, w, 3) or (n, h, w, 4) uint8; labels (n,) or (n, 1) integers from 0; and perhaps
            groups, likewise. What is missing is held out of `train`: see `splits.complete`.
        resolution: Side of the images to give, in pixels.
        class_names: In label order; by default their numbers.
        group_names: In the order of groups; by default their numbers, if there are groups.
        name: Name of the data set.
        seed: Seed of the split.
        val_fraction: Part of the training images that becomes `val` where there is none.

    Raises:
        UserError: If the arrays' shapes or types do not fit.
    """
    if "train" not in splits or not set(splits) <= set(SPLITS):
        raise UserError(f"{name} has splits {sorted(splits)}: expected train, and val or test")
    made: dict[str, Split] = {}
    facts: list[object] = [resolution, list(class_names), list(group_names)]
    for split, arrays in splits.items():
        images = _check_images(arrays[0], f"{name}, {split}")
        labels = _check_numbers(arrays[1], len(images), f"{name}, {split} labels")
        groups = None
        if len(arrays) == 3:
            groups = _check_numbers(arrays[2], len(images), f"{name}, {split} groups")
        records = PixelRecords(f"{name}, {split}", images)
        rows = np.arange(len(images))
        made[split] = ImageSplit(records, rows, labels, resolution, groups=groups)
        facts += [split, images, labels, [] if groups is None else groups]
    if not class_names:
        largest = max(int(split.labels.max(initial=0)) for split in made.values())
        class_names = [str(label) for label in range(largest + 1)]
    found = [split.groups.max(initial=0) for split in made.values() if split.groups is not None]
    if found and not group_names:
        group_names = [str(group) for group in range(int(max(found)) + 1)]
    dataset = Dataset(name, list(class_names), made, digest(*facts), list(group_names))
    return complete(dataset, seed=seed, val_fraction=val_fraction)


def load_npz(
    file: str | Path, *, resolution: int, seed: int = 0, val_fraction: float | None = None
) -> Dataset:
    """Reads an `.npz` file; see `from_arrays` for what its arrays may be.

    It holds `images` and `labels`, or `train_images`, `train_labels` and so on; and perhaps
    `class_names`, `groups` (or `train_groups` and so on) and `group_names`. Never unpickled.

    Raises:
        UserError: If it cannot be read, lacks arrays, or holds Python objects.
    """
    path = Path(os.path.expanduser(file))
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise UserError(f"{file} is one array: expected an .npz file with {_LAYOUT}")
        with stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}: expected an .npz file with {_LAYOUT}") from error
    except IsADirectoryError as error:
        raise UserError(f"{file} is a folder: expected an .npz file with {_LAYOUT}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    splits = {}
    for split in SPLITS:
        prefix = f"{split}_"
        if split == "train" and f"{prefix}images" not in arrays:
            prefix = ""
        if f"{prefix}images" in arrays:
            keys = [f"{prefix}{kind}" for kind in ("images", "labels", "groups")]
            splits[split] = tuple(arrays[key] for key in keys if key in arrays)
            if len(splits[split]) < 2 or keys[1] not in arrays:
                raise UserError(f"{file} has {keys[0]} but no {keys[1]}")
    if "train" not in splits:
        raise UserError(f"{file} has arrays {sorted(arrays)}: expected {_LAYOUT}")
    return from_arrays(
        splits,
        resolution=resolution,
        class_names=[str(name) for name in arrays.get("class_names", ())],
        group_names=[str(name) for name in arrays.get("group_names", ())],
        name=path.stem,
        seed=seed,
        val_fraction=val_fraction,
    )


def _check_images(images: np.ndarray, where: str) -> np.ndarray:
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or images.shape[3:]
        not in (
            (),
            (3,),
            (4,),
        )
    ):
        raise UserError(
            f"{where} images are {images.dtype} {images.shape}: expected uint8 (n, h, w), "
            "(n, h, w, 3) or (n, h, w, 4)"
        )
    return images


def _check_numbers(numbers: np.ndarray, count: int, what: str) -> np.ndarray:
    flat = numbers.reshape(-1) if numbers.shape == (count, 1) else numbers
    if flat.shape != (count,) or not np.issubdtype(flat.dtype, np.integer):
        raise UserError(f"{what} are {numbers.dtype} {numbers.shape}: expected integers ({count},)")
    return flat.astype(np.int32)
