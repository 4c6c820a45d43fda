"""Where images come from: `load_dataset(name)` gives labelled images by index, in splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lgm_jax import checks
from lgm_jax.data import imagenet, tfds
from lgm_jax.data.arrays import from_arrays, load_npz
from lgm_jax.data.dataset import ArraySplit, Dataset, Split
from lgm_jax.data.digits import load_digits, load_spurious_digits
from lgm_jax.data.folder import load_artbench, load_folder, load_imagenet
from lgm_jax.data.grouped import SPAWRIOUS, load_spawrious, load_waterbirds
from lgm_jax.data.huggingface import load_huggingface
from lgm_jax.data.leaks import note_leaks
from lgm_jax.data.splits import (
    check,
    check_links,
    describe,
    select_classes,
    skip_unreadable,
)
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.progress import progress as show_progress

__all__ = [
    "ArraySplit",
    "Dataset",
    "Split",
    "check_fits",
    "check_name",
    "describe",
    "from_arrays",
    "in_memory",
    "load_dataset",
    "source_names",
]

ON_BAD_IMAGE = ("stop", "skip")

# Images decoded between two updates of the progress bar.
_BATCH = 128


@dataclasses.dataclass(frozen=True)
class _Request:
    """What a source needs to know; see `load_dataset`."""

    name: str
    folder: str
    resolution: int
    seed: int
    val_fraction: float | None
    subset: str
    label: str

    @property
    def common(self) -> dict[str, Any]:
        return {
            "resolution": self.resolution,
            "seed": self.seed,
            "val_fraction": self.val_fraction,
        }


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
        name: One of `source_names()`, or `tfds:NAME` for any other set of TFDS.
        folder: Where the images lie.
        resolution: Side of the images to give, in pixels.
        seed: Seed of the split where the data set does not come with one.
        val_fraction: Part of the training images that becomes `val` where there is none; by
            default a fifth of a person's own images, and nothing of a benchmark's.
        subset: Classes to keep: see `splits.select_classes`; all by default.
        on_bad_image: `stop` raises when an image that cannot be read is loaded, `skip` finds such
            images beforehand and leaves them out.

    Raises:
        UserError: If the name or a value is unknown or out of range, the folder is missing, not
            needed or not readable, or the labels are not in order.
    """
    check_name(name)
    checks.in_range("resolution", resolution, 1, whole=True)
    checks.in_range("seed", seed, 0, 2**31 - 1, whole=True)
    if val_fraction is not None:
        checks.in_range("val_fraction", val_fraction, 0, 0.9)
    checks.one_of("on_bad_image", on_bad_image, ON_BAD_IMAGE)
    load = _SOURCES.get(name, _tfds)
    if label and load not in (_huggingface, _tfds):
        raise UserError(f"{name} has no columns: leave config.data.label empty")
    dataset = load(_Request(name, folder, resolution, seed, val_fraction, subset, label))
    if subset:
        dataset = select_classes(dataset, subset)
    if on_bad_image == "skip":
        dataset = skip_unreadable(dataset)
    else:
        check_links(dataset)
    check(dataset)
    return note_leaks(dataset)


def source_names() -> list[str]:
    """Every name that `load_dataset` knows, beside `tfds:NAME`."""
    return list(_SOURCES)


def check_name(name: str) -> None:
    """Refuses a name that `load_dataset` does not know.

    Raises:
        UserError: If it does not.
    """
    if name not in _SOURCES and not name.startswith(tfds.PREFIX):
        raise unknown_name("data set", name, source_names())


def in_memory(split: Split, *, limit_bytes: int, progress: str = "") -> ArraySplit:
    """Decodes a whole split, with the centre crop of every image.

    Args:
        split: Any split.
        limit_bytes: Refuse images that take more memory than this.
        progress: Label of the progress bar, which shows on a terminal only.

    Raises:
        UserError: If the images exceed the limit, or one cannot be read.
    """
    shape = check_fits(split, limit_bytes=limit_bytes)
    if isinstance(split, ArraySplit):
        return split
    count = len(split.labels)
    images = np.empty(shape, np.uint8)
    for start in show_progress(range(0, count, _BATCH), progress):
        indices = np.arange(start, min(start + _BATCH, count))
        images[indices] = split.load(indices)
    return ArraySplit(images, split.labels, split.groups)


def check_fits(split: Split, *, limit_bytes: int) -> tuple[int, ...]:
    """The shape (n, r, r, 3) of all images of a split.

    Raises:
        UserError: If they exceed the limit as uint8, or the first cannot be read.
    """
    count = len(split.labels)
    shape = (count, *split.load(np.arange(min(1, count))).shape[1:])
    size = int(np.prod(shape, dtype=np.int64))
    if size > limit_bytes:
        raise UserError(
            f"{count} images of {shape[1]} px take {size / 1e9:.3g} GB of memory, more than the "
            f"limit of {limit_bytes / 1e9:.3g} GB: set --config.data.placement=host to distil from "
            "them, and --config.probe.full_augment=views or none to train the probe of all on "
            "features"
        )
    return shape


def _digits(request: _Request) -> Dataset:
    if request.folder:
        raise UserError(
            f"digits are not read from a folder: set --config.data.name=folder for {request.folder}"
        )
    load = load_digits if request.name == "digits" else load_spurious_digits
    return load(request.resolution)


def _folder(request: _Request) -> Dataset:
    return load_folder(_given(request, "the folder of images"), **request.common)


def _imagenet(request: _Request) -> Dataset:
    folder = _given(request, "the folder that holds train/<wnid>/ and val/<wnid>/")
    # Listing a million files that are not wanted takes a while.
    chosen = imagenet.SUBSETS.get(request.subset, ())
    only = {imagenet.wnids()[index] for index in chosen}
    return load_imagenet(folder, **request.common, only=only)


def _artbench(request: _Request) -> Dataset:
    folder = _given(request, "the folder that artbench-10-imagefolder-split.tar was unpacked in")
    return load_artbench(folder, **request.common)


def _waterbirds(request: _Request) -> Dataset:
    folder = _given(request, "WILDS' folder waterbirds_v1.0, which holds metadata.csv")
    return load_waterbirds(folder, resolution=request.resolution)


def _spawrious(request: _Request) -> Dataset:
    folder = _given(request, "the folder spawrious224 that its archive unpacks to")
    return load_spawrious(folder, request.name, **request.common)


def _npz(request: _Request) -> Dataset:
    return load_npz(_given(request, "the .npz file"), **request.common)


def _huggingface(request: _Request) -> Dataset:
    folder = _given(request, "the folder of parquet files")
    return load_huggingface(folder, **request.common, label=request.label)


def _tfds(request: _Request) -> Dataset:
    name = request.name.removeprefix(tfds.PREFIX)
    return tfds.load_tfds(name, request.folder, **request.common, label=request.label)


def _given(request: _Request, what: str) -> str:
    if not request.folder:
        raise UserError(f"{request.name} needs {what}: set --config.data.folder=...")
    return request.folder


_SOURCES: Mapping[str, Callable[[_Request], Dataset]] = {
    **dict.fromkeys(("digits", "digits_spurious"), _digits),
    "folder": _folder,
    "npz": _npz,
    "imagenet": _imagenet,
    "artbench": _artbench,
    "waterbirds": _waterbirds,
    **dict.fromkeys(SPAWRIOUS, _spawrious),
    "huggingface": _huggingface,
    **dict.fromkeys(tfds.NAMES, _tfds),
}
