"""Sets whose background misleads: Waterbirds and Spawrious, with groups of class and background."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lgm_jax.data import tables
from lgm_jax.data.assembly import Entry, Listed, Request
from lgm_jax.data.listing import Listing
from lgm_jax.data.split_names import SPLITS
from lgm_jax.errors import UserError

_BIRDS = ("landbird", "waterbird")
_PLACES = ("land", "water")

_DOGS = ("bulldog", "corgi", "dachshund", "labrador")
_DOGS_PER_FOLDER = 3168


class _Spawrious(NamedTuple):
    """A benchmark: the backgrounds of bulldog, dachshund, labrador, corgi, as the authors list."""

    train: Sequence[str]
    test: Sequence[str]
    filler: str = ""


SPAWRIOUS: Mapping[str, _Spawrious] = {
    "spawrious_o2o_easy": _Spawrious(
        ("desert", "jungle", "dirt", "snow"), ("dirt", "snow", "desert", "jungle"), "beach"
    ),
    "spawrious_o2o_medium": _Spawrious(
        ("mountain", "beach", "dirt", "jungle"), ("jungle", "dirt", "beach", "snow"), "desert"
    ),
    "spawrious_o2o_hard": _Spawrious(
        ("jungle", "mountain", "snow", "desert"), ("mountain", "snow", "desert", "jungle"), "beach"
    ),
    "spawrious_m2m_easy": _Spawrious(
        ("desert", "mountain", "dirt", "jungle"), ("dirt", "jungle", "mountain", "desert")
    ),
    "spawrious_m2m_medium": _Spawrious(
        ("beach", "snow", "mountain", "desert"), ("desert", "mountain", "beach", "snow")
    ),
    "spawrious_m2m_hard": _Spawrious(
        ("dirt", "jungle", "snow", "beach"), ("snow", "beach", "dirt", "jungle")
    ),
}
"""Source: Lynch et al., arXiv 2303.05470, and the authors' `spawrious` package."""

# The order in which the authors list the dogs of a benchmark.
_LISTED = ("bulldog", "dachshund", "labrador", "corgi")
# In many-to-many benchmarks two dogs swap backgrounds: which entry each takes second.
_SWAPPED = (1, 0, 3, 2)


def read_waterbirds(listing: Listing, request: Request, expected: str) -> Listed:
    """Lists Waterbirds with its official splits, as WILDS unpacks it (`waterbirds_v1.0`).

    Groups are bird x background: landbird on land, on water, waterbird on land, on water.
    """
    table = listing.root / "metadata.csv"
    listed: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    lines: dict[str, int] = {}
    for line, row in tables.read_columns(table, ("img_filename", "y", "split", "place"), expected):
        where = f"{table}, line {line}"
        y, place, split = (
            _number(row[name], limit, f"{where}: {name}")
            for name, limit in (("y", 2), ("place", 2), ("split", 3))
        )
        if not row["img_filename"]:
            raise UserError(f"{where}: img_filename is empty")
        image = listing.find(row["img_filename"])
        if lines.setdefault(image.path, line) != line:
            raise UserError(f"{where}: {image.path} is in line {lines[image.path]} already")
        group = f"{_BIRDS[y]} on {_PLACES[place]}"
        listed[SPLITS[split]].append(Entry(image, _BIRDS[y], group))
    return Listed(listed, _BIRDS, [f"{bird} on {place}" for bird in _BIRDS for place in _PLACES])


def read_spawrious(listing: Listing, request: Request, expected: str) -> Listed:
    """Lists a Spawrious benchmark with its official training and test images.

    The archives unpack to `0/<background>/<dog>/*.png` and, for one-to-one benchmarks, `1/...`
    too: the two training environments. One-to-one: in folder 0, 97 % of a dog's training images
    show it before its own background, in folder 1, 87 %, the others before one that all share; in
    the test images, dogs have swapped backgrounds. Where only a part of a folder is wanted, the
    authors take the first files that the system happens to list, here it is the first by name.
    Groups are dog x background.
    """
    listed: dict[str, list[Entry]] = {"train": [], "test": []}
    groups: dict[str, None] = {}
    for split, inside, count in _folders(SPAWRIOUS[request.name]):
        _, place, dog = inside.split("/")
        group = f"{dog}, {place}"
        groups[group] = None
        if not (listing.root / inside).is_dir():
            raise UserError(f"{listing.root} has no folder {inside}: expected {expected}")
        images = listing.images(inside)
        if count and len(images) < count:
            raise UserError(
                f"{listing.root / inside} has {len(images)} images, but {count} are needed: "
                "unpack the archive again"
            )
        listed[split] += [Entry(image, dog, group) for image in images[:count]]
    return Listed(listed, _DOGS, list(groups))


def _folders(spec: _Spawrious) -> Iterator[tuple[str, str, int | None]]:
    """Splits, folders, and how many of each folder's images are wanted, `None` for all."""
    for i, dog in enumerate(_LISTED):
        if not spec.filler:
            for entry in (i, _SWAPPED[i]):
                yield "train", f"0/{spec.train[entry]}/{dog}", _DOGS_PER_FOLDER
                yield "test", f"0/{spec.test[entry]}/{dog}", _DOGS_PER_FOLDER
            continue
        for environment, share in ((0, 0.97), (1, 0.87)):
            own = int(share * _DOGS_PER_FOLDER)
            yield "train", f"{environment}/{spec.train[i]}/{dog}", own
            yield "train", f"{environment}/{spec.filler}/{dog}", _DOGS_PER_FOLDER - own
            yield "test", f"{environment}/{spec.test[i]}/{dog}", None


def _number(text: str, limit: int, what: str) -> int:
    number = tables.whole(text)
    if number not in map(str, range(limit)):
        raise UserError(f"{what} is {text!r}, not from 0 to {limit - 1}")
    return int(number)
