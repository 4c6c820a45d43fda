"""How large the public data sets are, for plans that are made before one has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lgm_jax.data import imagenet
from lgm_jax.data.grouped import SPAWRIOUS


class Size(NamedTuple):
    """Numbers of classes, and of images by split as they are used here."""

    classes: int
    train: int
    test: int


_IMAGENET = Size(1000, 1_281_167, 50_000)

# One-to-one benchmarks take 3,168 training images from each of two folders for each of four dogs,
# many-to-many ones from each of two backgrounds; tested is on as many.
_SPAWRIOUS = Size(4, 25_344, 25_344)

SIZES: Mapping[str, Size] = {
    "imagenet": _IMAGENET,
    "imagenet2012": _IMAGENET,
    "imagenette": Size(10, 9_469, 3_925),
    "caltech_birds2011": Size(200, 5_994, 5_794),
    "stanford_dogs": Size(120, 12_000, 8_580),
    "oxford_flowers102": Size(102, 1_020, 6_149),
    "food101": Size(101, 75_750, 25_250),
    "cifar10": Size(10, 50_000, 10_000),
    "oxford_iiit_pet": Size(37, 3_680, 3_669),
    "artbench": Size(10, 50_000, 10_000),
    "waterbirds": Size(2, 4_795, 5_794),
    **dict.fromkeys(SPAWRIOUS, _SPAWRIOUS),
}
"""By `data.name`; sources: the data sets' pages in TFDS's catalogue, and WILDS."""


def known_size(name: str, subset: str = "") -> Size | None:
    """The size of a public data set; `None` of one that is not known.

    Args:
        name: As `config.data.name` has it.
        subset: Likewise. Of some classes, images are taken to be their share of all.
    """
    whole = SIZES.get(name)
    if whole is None or not subset:
        return whole
    count = len(imagenet.SUBSETS.get(subset, subset.split(",")))
    return Size(count, whole.train * count // whole.classes, whole.test * count // whole.classes)
