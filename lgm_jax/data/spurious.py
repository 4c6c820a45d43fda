"""Sets whose background misleads: Waterbirds and Spawrious, with groups of class and background."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lgm_jax.data import tables
from lgm_jax.data.assembly import Listed
from lgm_jax.data.listing import Listing
from lgm_jax.data.split_names import SPLITS
from lgm_jax.errors import UserError

# By split, the images; and the names of classes and of groups.
Grouped = tuple[Mapping[str, Listed], Sequence[str], Sequence[str]]

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


def list_waterbirds(listing: Listing, expected: str) -> Grouped:
    """Lists Waterbirds with its official splits, as WILDS unpacks it (`waterbirds_v1.0`).

    Groups are bird x background: landbird on land, on water, waterbird on land, on water.

    Args:
        listing: Of the folder with `metadata.csv`.
        expected: What the folder should hold, for messages.

    Raises:
        UserError: If the table is missing, lacks a column or has a value that it should not, or if
            an image is missing or lies outside the folder.
    """
    table = listing.root / "metadata.csv"
    if not table.is_file():
        raise UserError(f"{listing.root} has no metadata.csv: expected {expected}")
    listed = {split: Listed() for split in SPLITS}
    lines: dict[str, int] = {}
    for line, row in _read_table(table, ("img_filename", "y", "split", "place"), expected):
        y, place = (_number(row[name], 2, name, table, line) for name in ("y", "place"))
        split = SPLITS[_number(row["split"], 3, "split", table, line)]
        if not row["img_filename"]:
            raise UserError(f"{table}, line {line}: img_filename is empty")
        image = listing.find(row["img_filename"])
        if lines.setdefault(image.path, line) != line:
            raise UserError(
                f"{table}, line {line}: {image.path} is in line {lines[image.path]} already"
            )
        listed[split].add([image], _BIRDS[y], f"{_BIRDS[y]} on {_PLACES[place]}")
    return listed, _BIRDS, [f"{bird} on {place}" for bird in _BIRDS for place in _PLACES]


def list_spawrious(listing: Listing, benchmark: str, expected: str) -> Grouped:
    """Lists a Spawrious benchmark with its official training and test images.

    The archives unpack to `0/<background>/<dog>/*.png` and, for one-to-one benchmarks, `1/...`
    too: the two training environments. One-to-one: in folder 0, 97 % of a dog's training images
    show it before its own background, in folder 1, 87 %, the others before one that all share; in
    the test images, dogs have swapped backgrounds. Where only a part of a folder is wanted, the
    authors take the first files that the system happens to list, here it is the first by name.
    Groups are dog x background.

    Args:
        listing: Of the unpacked folder.
        benchmark: A key of `SPAWRIOUS`.
        expected: What the folder should hold, for messages.

    Raises:
        UserError: If a folder is missing or has too few images.
    """
    spec = SPAWRIOUS[benchmark]
    names: dict[str, None] = {}
    listed = {"train": Listed(), "test": Listed()}

    def add(split: str, environment: int, place: str, dog: str, part: slice = slice(None)) -> None:
        inside, group = f"{environment}/{place}/{dog}", f"{dog}, {place}"
        names[group] = None
        if not (listing.root / inside).is_dir():
            raise UserError(f"{listing.root} has no folder {inside}: expected {expected}")
        found = listing.images(inside)
        if part.stop and len(found) < part.stop:
            raise UserError(
                f"{listing.root / inside} has {len(found)} images, but {part.stop} are needed: "
                "unpack the archive again"
            )
        listed[split].add(found[part], dog, group)

    for i, dog in enumerate(_LISTED):
        if spec.filler:
            for environment, share in ((0, 0.97), (1, 0.87)):
                own = int(share * _DOGS_PER_FOLDER)
                add("train", environment, spec.train[i], dog, slice(own))
                add("train", environment, spec.filler, dog, slice(_DOGS_PER_FOLDER - own))
                add("test", environment, spec.test[i], dog)
        else:
            for entry in (i, _SWAPPED[i]):
                add("train", 0, spec.train[entry], dog, slice(_DOGS_PER_FOLDER))
                add("test", 0, spec.test[entry], dog)
    return listed, _DOGS, list(names)


def _read_table(
    table: Path, columns: Sequence[str], layout: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with their lines, by the names of columns; what is missing is empty.

    Raises:
        UserError: If it is no text or lacks a column.
    """
    rows = tables.read_rows(table)
    _, head = next(rows, (0, []))
    names = [name.lower() for name in head]
    lacking = sorted(set(columns) - set(names))
    if lacking:
        raise UserError(f"{table} has no column {lacking[0]}: expected {layout}")
    for line, cells in rows:
        row = dict(zip(names, cells, strict=False))
        yield line, {name: row.get(name, "") for name in columns}


def _number(text: str, limit: int, name: str, table: Path, line: int) -> int:
    whole = tables.whole(text)
    if whole not in map(str, range(limit)):
        raise UserError(f"{table}, line {line}: {name} is {text!r}, not from 0 to {limit - 1}")
    return int(whole)
