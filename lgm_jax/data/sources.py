"""Every data source by name, in one table."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from lgm_jax.data.arrays import load_npz
from lgm_jax.data.assembly import Request
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.digits import load_digits, load_spurious_digits
from lgm_jax.data.folder import load_folder
from lgm_jax.data.layouts import LAYOUTS, SPAWRIOUS, load_published
from lgm_jax.data.splits import split_subset
from lgm_jax.errors import UserError, unknown_name


class Size(NamedTuple):
    """Numbers of classes, and of images by split as they are used here."""

    classes: int
    train: int
    test: int


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of data sets.

    Attributes:
        needs: The folder or file that must be given, in words; "" if none.
        size: Its size, for plans before the data exist on this machine.
        columns: Whether it may have several columns of labels.
        prepared: Whether TFDS prepares it, in a folder that holds one for each data set.
    """

    load: Callable[[Request], Dataset]
    needs: str = ""
    size: Size | None = None
    columns: bool = False
    prepared: bool = False


def _digits(request: Request) -> Dataset:
    if folder := request.folder:
        raise UserError(
            f"digits are not read from a folder: set --config.data.name=folder for {folder}"
        )
    load = load_digits if request.name == "digits" else load_spurious_digits
    return load(request.resolution)


def _own(request: Request) -> Dataset:
    """A person's own folder, or one that an archive of a published set unpacked to."""
    root = Path(os.path.expanduser(request.folder))
    for name, layout in LAYOUTS.items():
        if layout.distinct and layout.find(root) is not None:
            dataset = load_published(dataclasses.replace(request, name=name))
            note = (
                f"the folder is read as {name}, with its official splits, since it is laid out so"
            )
            return dataclasses.replace(dataset, notes=[*dataset.notes, note])
    return load_folder(request)


def _hub(request: Request) -> Dataset:
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        message = f"datasets is not installed: pip install 'lgm_jax[hf]' ({error})"
        raise UserError(message) from error
    from lgm_jax.data.huggingface import load_huggingface

    return load_huggingface(request)


def _tfds(request: Request) -> Dataset:
    """A set of TFDS, as it was prepared or as its archive unpacked."""
    layout, root = LAYOUTS.get(request.name), Path(os.path.expanduser(request.folder))
    if request.folder and layout is not None and layout.find(root) is not None:
        return load_published(request)
    from lgm_jax.data.tfds import load_tfds

    return load_tfds(request)


# Sizes: the data sets' pages in TFDS's catalogue, and WILDS. Of Spawrious, one-to-one benchmarks
# take 3,168 training images from each of two folders for each of four dogs, many-to-many ones from
# each of two backgrounds; tested is on as many.
_IMAGENET = Size(1000, 1_281_167, 50_000)
_PUBLISHED: Mapping[str, Size] = {
    "imagenet": _IMAGENET,
    "artbench": Size(10, 50_000, 10_000),
    "waterbirds": Size(2, 4_795, 5_794),
    **dict.fromkeys(SPAWRIOUS, Size(4, 25_344, 25_344)),
}
_PREPARED: Mapping[str, Size] = {
    "imagenet2012": _IMAGENET,
    "imagenette": Size(10, 9_469, 3_925),
    "caltech_birds2011": Size(200, 5_994, 5_794),
    "stanford_dogs": Size(120, 12_000, 8_580),
    "oxford_flowers102": Size(102, 1_020, 6_149),
    "food101": Size(101, 75_750, 25_250),
    "cifar10": Size(10, 50_000, 10_000),
    "oxford_iiit_pet": Size(37, 3_680, 3_669),
}

_TFDS = Source(_tfds, columns=True, prepared=True)

SOURCES: Mapping[str, Source] = {
    "digits": Source(_digits),
    "digits_spurious": Source(_digits),
    "folder": Source(_own, "the folder of images"),
    "npz": Source(load_npz, "the .npz file"),
    "huggingface": Source(_hub, "the folder of parquet files", columns=True),
    **{
        name: Source(load_published, f"the folder with {LAYOUTS[name].expected}", size)
        for name, size in _PUBLISHED.items()
    },
    **{name: dataclasses.replace(_TFDS, size=size) for name, size in _PREPARED.items()},
}
"""By `config.data.name`, beside `tfds:NAME`."""


def get_source(name: str) -> Source:
    """Returns the source of a name, which may be `tfds:NAME`; refuses unknown ones."""
    if name.startswith("tfds:"):
        return _TFDS
    if name not in SOURCES:
        raise unknown_name("data set", name, list(SOURCES))
    return SOURCES[name]


def known_size(name: str, subset: str = "") -> Size | None:
    """Returns the size of a public data set, else `None`; of a subset, its classes' share."""
    whole = SOURCES[name].size if name in SOURCES else None
    if whole is None or not subset:
        return whole
    count = len(split_subset(subset))
    return Size(count, whole.train * count // whole.classes, whole.test * count // whole.classes)
