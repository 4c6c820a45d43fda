"""Sources of images: `load_dataset(name)` returns labelled images by index, in splits."""

from __future__ import annotations

import math

import numpy as np

from lgm_jax import checks
from lgm_jax.data.arrays import from_arrays
from lgm_jax.data.assembly import Request
from lgm_jax.data.class_names import name_classes
from lgm_jax.data.dataset import ArraySplit, Dataset, Split
from lgm_jax.data.leaks import note_leaks
from lgm_jax.data.sources import get_source
from lgm_jax.data.splits import check, describe, select_classes, skip_unreadable
from lgm_jax.errors import UserError
from lgm_jax.progress import progress as show_progress

__all__ = [
    "ArraySplit",
    "Dataset",
    "Split",
    "decoded_shape",
    "describe",
    "from_arrays",
    "get_source",
    "in_memory",
    "load_dataset",
]

ON_BAD_IMAGE = ("stop", "skip")

# Images decoded between two updates of the progress bar.
_BATCH = 128


def load_dataset(
    name: str,
    *,
    folder: str = "",
    resolution: int,
    seed: int = 0,
    val_fraction: float | None = None,
    subset: str = "",
    on_bad_image: str = "stop",
    label: str = "",
) -> Dataset:
    """Opens a data set by name; nothing is decoded yet, unless bad images are to be skipped.

    Args:
        name: One of `sources.SOURCES`, or `tfds:NAME` for any other set of TFDS.
        resolution: Side of the images that splits load, in pixels.
        seed: Seed of the split where the data set does not come with one.
        val_fraction: Part of the training images that becomes `val` where there is none; by
            default a fifth of a person's own images, and nothing of a benchmark's.
        subset: Classes to keep: see `splits.select_classes`; all by default.
        on_bad_image: `stop` raises when an image that cannot be read is loaded, `skip` finds such
            images beforehand and leaves them out.
        label: The column of labels, of a source that has columns; by default the likeliest.

    Raises:
        UserError: If the name or a value is unknown or out of range, the folder is missing, not
            needed or not readable, or the labels are not consistent.
    """
    source = get_source(name)
    checks.in_range("resolution", resolution, 1, whole=True)
    checks.in_range("seed", seed, 0, 2**31 - 1, whole=True)
    if val_fraction is not None:
        checks.in_range("val_fraction", val_fraction, 0, 0.9)
    checks.one_of("on_bad_image", on_bad_image, ON_BAD_IMAGE)
    if source.needs and not folder:
        raise UserError(f"{name} needs {source.needs}: set --config.data.folder=...")
    if label and not source.columns:
        raise UserError(f"{name} has no columns: leave config.data.label empty")
    request = Request(folder, resolution, seed, val_fraction, name, subset, label)
    dataset = name_classes(source.load(request), folder)
    if subset:
        dataset = select_classes(dataset, subset)
    if on_bad_image == "skip":
        dataset = skip_unreadable(dataset)
    check(dataset)
    return note_leaks(dataset)


def in_memory(split: Split, *, limit_bytes: int, progress: str = "") -> ArraySplit:
    """Decodes a whole split, with the centre crop of every image.

    `progress` is the label of a progress bar, which shows on a terminal only.

    Raises:
        UserError: If the images take more than `limit_bytes`, or one cannot be read.
    """
    shape = decoded_shape(split)
    if (size := math.prod(shape)) > limit_bytes:
        raise UserError(
            f"{shape[0]} images of {shape[1]} px take {size / 1e9:.3g} GB of memory, more than the "
            f"limit of {limit_bytes / 1e9:.3g} GB: set --config.data.placement=host"
        )
    if isinstance(split, ArraySplit):
        return split
    images = np.empty(shape, np.uint8)
    for start in show_progress(range(0, len(images), _BATCH), progress):
        indices = np.arange(start, min(start + _BATCH, len(images)))
        images[indices] = split.load(indices)
    return ArraySplit(images, split.labels, split.groups)


def decoded_shape(split: Split) -> tuple[int, ...]:
    """Returns the shape (n, r, r, 3) of all images of a split, which are uint8.

    Raises:
        UserError: If the first cannot be read.
    """
    count = len(split.labels)
    return (count, *split.load(np.arange(min(1, count))).shape[1:])
