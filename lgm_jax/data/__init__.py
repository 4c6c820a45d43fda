"""Where images come from: `load_dataset(name)` gives labelled images by index, in three splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lgm_jax.data.dataset import ArraySplit, Dataset, Split
from lgm_jax.data.digits import load_digits
from lgm_jax.data.folder import load_folder
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.progress import progress as show_progress

__all__ = ["ArraySplit", "Dataset", "Split", "in_memory", "load_dataset"]

# Images decoded between two updates of the progress bar.
_BATCH = 128


def load_dataset(name: str, *, folder: str = "", resolution: int, seed: int = 0) -> Dataset:
    """Opens a data set by name.

    Args:
        name: `digits`, or `folder` for a folder of images.
        folder: Where the images lie, for `folder` only.
        resolution: Side of the images to give, in pixels.
        seed: Seed of the split where the data set does not come with one.

    Raises:
        UserError: If the name is unknown, or the folder is missing, not needed or not readable.
    """
    if name not in _SOURCES:
        raise unknown_name("data set", name, list(_SOURCES))
    return _SOURCES[name](folder, resolution, seed)


def in_memory(split: Split, *, limit_bytes: int, progress: str = "") -> ArraySplit:
    """Decodes a whole split.

    Args:
        split: Any split.
        limit_bytes: Refuse images that take more memory than this.
        progress: Label of the progress bar, which shows on a terminal only.

    Raises:
        UserError: If the images exceed the limit, or one cannot be read.
    """
    count = len(split.labels)
    shape = (count, *split.load(np.arange(min(1, count))).shape[1:])
    size = int(np.prod(shape, dtype=np.int64))
    if size > limit_bytes:
        raise UserError(
            f"{count} images of {shape[1]} px take {size / 1e9:.3g} GB of memory, more than the "
            f"limit of {limit_bytes / 1e9:.3g} GB"
        )
    if isinstance(split, ArraySplit):
        return split
    images = np.empty(shape, np.uint8)
    for start in show_progress(range(0, count, _BATCH), progress):
        indices = np.arange(start, min(start + _BATCH, count))
        images[indices] = split.load(indices)
    return ArraySplit(images, split.labels)


def _digits(folder: str, resolution: int, seed: int) -> Dataset:
    if folder:
        raise UserError(
            f"digits are not read from a folder: set --config.data.name=folder for {folder}"
        )
    return load_digits(resolution)


def _folder(folder: str, resolution: int, seed: int) -> Dataset:
    if not folder:
        raise UserError("no folder of images given: set --config.data.folder=...")
    return load_folder(folder, resolution=resolution, seed=seed)


_SOURCES: Mapping[str, Callable[[str, int, int], Dataset]] = {"digits": _digits, "folder": _folder}
