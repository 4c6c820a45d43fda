"""Sets whose background misleads: Waterbirds and Spawrious, with groups of class and background."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lgm_jax.data import tables
from lgm_jax.data.assembly import Entry, Listed, Request
from lgm_jax.data.listing import Listing
from lgm_jax.data.split_names import SPLITS
from lgm_jax.errors import UserError

_BIRDS = ("landbird", "waterbird")
_PLACES = ("land", "water")

# In the order of the labels, and in that in which the authors list a benchmark's backgrounds.
_DOGS = ("bulldog", "corgi", "dachshund", "labrador")
_LISTED = ("bulldog", "dachshund", "labrador", "corgi")
_DOGS_PER_FOLDER = 3168

SPAWRIOUS: Mapping[str, tuple[str, str, str]] = {
    "spawrious_o2o_easy": ("desert jungle dirt snow", "dirt snow desert jungle", "beach"),
    "spawrious_o2o_medium": ("mountain beach dirt jungle", "jungle dirt beach snow", "desert"),
    "spawrious_o2o_hard": ("jungle mountain snow desert", "mountain snow desert jungle", "beach"),
    "spawrious_m2m_easy": ("desert mountain dirt jungle", "dirt jungle mountain desert", ""),
    "spawrious_m2m_medium": ("beach snow mountain desert", "desert mountain beach snow", ""),
    "spawrious_m2m_hard": ("dirt jungle snow beach", "snow beach dirt jungle", ""),
}
"""By benchmark: the dogs' backgrounds in training and in test images, and the one that all share.

Source: Lynch et al., arXiv 2303.05470, and the authors' `spawrious` package.
"""

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
        where, numbers = f"{table}, line {line}", []
        for name, limit in (("y", 2), ("place", 2), ("split", 3)):
            number = tables.whole(row[name])
            if number not in map(str, range(limit)):
                raise UserError(f"{where}: {name} is {row[name]!r}, not from 0 to {limit - 1}")
            numbers.append(int(number))
        y, place, split = numbers
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
    for split, inside, count in _folders(*SPAWRIOUS[request.name]):
        _, place, dog = inside.split("/")
        if not (listing.root / inside).is_dir():
            raise UserError(f"{listing.root} has no folder {inside}: expected {expected}")
        images = listing.images(inside)
        if count and len(images) < count:
            raise UserError(
                f"{listing.root / inside} has {len(images)} images, but {count} are needed: "
                "unpack the archive again"
            )
        groups[group := f"{dog}, {place}"] = None
        listed[split] += [Entry(image, dog, group) for image in images[:count]]
    return Listed(listed, _DOGS, list(groups))


def _folders(train: str, test: str, shared: str) -> Iterator[tuple[str, str, int | None]]:
    """Splits, folders, and how many of each folder's images are wanted, `None` for all."""
    trained, tested = train.split(), test.split()
    for i, dog in enumerate(_LISTED):
        if not shared:
            for entry in (i, _SWAPPED[i]):
                yield "train", f"0/{trained[entry]}/{dog}", _DOGS_PER_FOLDER
                yield "test", f"0/{tested[entry]}/{dog}", _DOGS_PER_FOLDER
            continue
        for environment, share in ((0, 0.97), (1, 0.87)):
            own = int(share * _DOGS_PER_FOLDER)
            yield "train", f"{environment}/{trained[i]}/{dog}", own
            yield "train", f"{environment}/{shared}/{dog}", _DOGS_PER_FOLDER - own
            yield "test", f"{environment}/{tested[i]}/{dog}", None
