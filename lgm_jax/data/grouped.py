"""Sets whose background misleads: Waterbirds and Spawrious, with groups of class and background."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lgm_jax.data import tables
from lgm_jax.data.dataset import Dataset, Split, digest
from lgm_jax.data.folder import open_folder
from lgm_jax.data.listing import Listing
from lgm_jax.data.records import FileRecords, ImageSplit
from lgm_jax.data.split_names import SPLITS
from lgm_jax.data.splits import complete
from lgm_jax.errors import UserError

_BIRDS = ("landbird", "waterbird")
_PLACES = ("land", "water")

_DOGS = ("bulldog", "corgi", "dachshund", "labrador")
_DOGS_PER_FOLDER = 3168


class _Member(NamedTuple):
    """An image: its path below the data folder, its size in bytes, label and group."""

    path: str
    size: int
    label: int
    group: int


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


def load_waterbirds(folder: str | Path, *, resolution: int) -> Dataset:
    """Lists Waterbirds with its official splits, as WILDS unpacks it (`waterbirds_v1.0`).

    Groups are bird x background, from 0: landbird on land, on water, waterbird on land, on water.

    Args:
        folder: The folder with `metadata.csv`; `~` is expanded.
        resolution: Side of the images to give, in pixels.

    Raises:
        UserError: If the table is missing, lacks a column or has a value that it should not, or if
            an image is missing or lies outside the folder.
    """
    layout = "metadata.csv with img_filename, y, split and place, and the images that it names"
    root = open_folder(folder, layout)
    table = root / "metadata.csv"
    if not table.is_file():
        raise UserError(f"{root} has no metadata.csv: expected {layout}")
    members: dict[str, list[_Member]] = {split: [] for split in SPLITS}
    listing = Listing(root)
    lines: dict[str, int] = {}
    for line, row in _read_table(table, ("img_filename", "y", "split", "place"), layout):
        y, place = (_number(row[name], 2, name, table, line) for name in ("y", "place"))
        split = SPLITS[_number(row["split"], 3, "split", table, line)]
        if not row["img_filename"]:
            raise UserError(f"{table}, line {line}: img_filename is empty")
        image = listing.find(row["img_filename"])
        if lines.setdefault(image.path, line) != line:
            raise UserError(
                f"{table}, line {line}: {image.path} is in line {lines[image.path]} already"
            )
        members[split].append(_Member(*image, y, 2 * y + place))
    groups = [f"{bird} on {place}" for bird in _BIRDS for place in _PLACES]
    return _make_dataset("waterbirds", listing, members, _BIRDS, groups, resolution)


def load_spawrious(
    folder: str | Path,
    benchmark: str,
    *,
    resolution: int,
    seed: int = 0,
    val_fraction: float | None = None,
) -> Dataset:
    """Lists a Spawrious benchmark with its official training and test images.

    The archives unpack to `0/<background>/<dog>/*.png` and, for one-to-one benchmarks, `1/...`
    too: the two training environments. One-to-one: in folder 0, 97 % of a dog's training images
    show it before its own background, in folder 1, 87 %, the others before one that all share; in
    the test images, dogs have swapped backgrounds. Where only a part of a folder is wanted, the
    authors take the first files that the system happens to list, here it is the first by name.
    Groups are dog x background.

    Args:
        folder: The unpacked folder (`spawrious224`) or the one it was unpacked in.
        benchmark: A key of `SPAWRIOUS`.
        resolution: Side of the images to give, in pixels.
        seed: Seed of the split.
        val_fraction: Part of the training images that becomes `val`; none by default.

    Raises:
        UserError: If a folder is missing or has too few images.
    """
    layout = "0/<background>/<dog>/*.png (and 1/... for o2o), as spawrious224 has them"
    root = open_folder(folder, layout)
    inner = root / "spawrious224"
    root = inner if inner.is_dir() else root
    spec, listing = SPAWRIOUS[benchmark], Listing(root)
    names: list[str] = []
    members: dict[str, list[_Member]] = {"train": [], "test": []}

    def add(split: str, environment: int, place: str, dog: str, part: slice = slice(None)) -> None:
        inside = f"{environment}/{place}/{dog}"
        if f"{dog}, {place}" not in names:
            names.append(f"{dog}, {place}")
        label, group = _DOGS.index(dog), names.index(f"{dog}, {place}")
        if not (root / inside).is_dir():
            raise UserError(f"{root} has no folder {inside}: expected {layout}")
        found = listing.images(inside)
        if part.stop and len(found) < part.stop:
            raise UserError(
                f"{root / inside} has {len(found)} images, but {part.stop} are needed: unpack the "
                "archive again"
            )
        members[split] += [_Member(*file, label, group) for file in found[part]]

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
    dataset = _make_dataset(benchmark, listing, members, _DOGS, names, resolution)
    return complete(dataset, seed=seed, val_fraction=val_fraction or 0.0)


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


def _make_dataset(
    name: str,
    listing: Listing,
    members: Mapping[str, Sequence[_Member]],
    class_names: Sequence[str],
    group_names: Sequence[str],
    resolution: int,
) -> Dataset:
    splits: dict[str, Split] = {}
    for split, listed in members.items():
        paths, sizes = [member.path for member in listed], [member.size for member in listed]
        records = FileRecords(listing.root, paths, sizes)
        labels = np.asarray([member.label for member in listed], np.int32)
        groups = np.asarray([member.group for member in listed], np.int32)
        rows = np.arange(len(listed))
        splits[split] = ImageSplit(records, rows, labels, resolution, groups=groups)
    fingerprint = digest(resolution, class_names, group_names, members)
    return Dataset(
        name,
        list(class_names),
        splits,
        fingerprint,
        list(group_names),
        notes=listing.notes(),
        lost=listing.lost,
    )
