"""Makes photos whose backgrounds mislead, in the manner of Waterbirds, of a folder of photos.

    python -m tools.mislead IMAGENETTE OUT

`IMAGENETTE` is a folder that `data.name=folder` reads. Photos of two classes lend objects, the
middle of the photo under a round, soft mask; photos of two others are the places that objects are
pasted on. Of the training images, 95 % show the first object on the first place, or the second on
the second; in the test images, all four groups are equally large. Every photo is used once at most,
whether as an object or as a place, and photos with the same pixels count as one; so no training
image shares a photo with a test image.

`OUT` holds `images/*.jpg` and `metadata.csv` with `file_name`, `label`, `group`, `split`:
`--config.data.name=folder --config.data.folder=OUT` reads it with its groups, and
`configs/experiments/table4.py:imagenette` compares them. The same seed makes the same images.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from lgm_jax import terminal
from lgm_jax.data import Dataset, load_dataset
from lgm_jax.data.splits import split_subset
from lgm_jax.errors import UserError
from lgm_jax.progress import progress

COLUMNS = ("file_name", "label", "group", "split")

# The side of the images, in pixels, and that of an object in it, as its part.
SIDE, OBJECT = 224, (0.5, 0.7)

# The part of an object's photo that is shown, and that of the mask's radius that is opaque.
_MIDDLE, _OPAQUE = 0.85, 0.8

_QUALITY = 95


class Pair(NamedTuple):
    """An image to make: of an object and a place (0 or 1 each), and the rows of their photos."""

    thing: int
    place: int
    photos: tuple[int, int]


def plan(
    things: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    agreement: float,
    rng: np.random.Generator,
) -> list[Pair]:
    """Returns the images of a split, of both objects as many, each with photos of its own.

    Args:
        things: By object, the rows of its photos.
        places: By place, the rows of its photos.
        agreement: The part of each object's images that show it on the place of its number.
        rng: Decides which photos meet.
    """
    # Even, so that groups can be equally large.
    count = min(map(len, [*things, *places])) // 2 * 2
    drawn = [iter(rng.permutation(rows)[:count].tolist()) for rows in [*things, *places]]
    agreeing = round(agreement * count)
    return [
        Pair(thing, place, (next(drawn[thing]), next(drawn[2 + place])))
        for thing in range(2)
        for place in [thing] * agreeing + [1 - thing] * (count - agreeing)
    ]


def mask(side: int) -> Float[np.ndarray, "side side 1"]:
    """Returns the opacity of a square's pixels: a disc that is soft towards its edge."""
    line = (np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1
    radius = np.hypot(line[:, None], line[None, :])
    ramp = np.clip((1 - radius) / (1 - _OPAQUE), 0, 1)
    return (ramp * ramp * (3 - 2 * ramp))[..., None]


def paste(
    thing: UInt8[np.ndarray, "r r 3"], place: UInt8[np.ndarray, "r r 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "r r 3"]:
    """Returns the place with the middle of the object's photo at a random spot, of random size."""
    whole = len(place)
    side = round(whole * rng.uniform(*OBJECT))
    top, left = rng.integers(0, whole - side + 1, 2)
    edge = round(whole * (1 - _MIDDLE) / 2)
    middle = Image.fromarray(thing[edge : whole - edge, edge : whole - edge])
    small = np.asarray(middle.resize((side, side), Image.Resampling.LANCZOS), np.float32)
    image = place.astype(np.float32)
    covered = image[top : top + side, left : left + side]
    covered += mask(side) * (small - covered)
    return np.round(image).astype(np.uint8)


def distinct(dataset: Dataset) -> dict[str, list[list[int]]]:
    """Returns the rows of photos by split and class, of equal photos the first alone.

    Training photos come first: a test photo that is also a training photo is left out.
    """
    seen: set[bytes] = set()
    rows: dict[str, list[list[int]]] = {}
    for name in ("train", "test"):
        split = dataset.splits[name]
        rows[name] = [[] for _ in dataset.class_names]
        for row in progress(range(len(split.labels)), f"{name}: photos"):
            found = hashlib.sha256(split.load(np.asarray([row])).tobytes()).digest()
            if found not in seen:
                seen.add(found)
                rows[name][split.labels[row]].append(row)
    return rows


def make(dataset: Dataset, out: Path, agreement: float, seed: int) -> dict[tuple[str, str], int]:
    """Makes a set of the photos of two objects and two places; returns the images by split, group.

    Args:
        dataset: The photos, of four classes: two objects, two places.
        out: The folder to write; created if it does not exist.
        agreement: See `plan`; of the training images.
        seed: Of all randomness.
    """
    names = dataset.class_names
    (out / "images").mkdir(parents=True)
    lines, counts, numbers = [], dict[tuple[str, str], int](), itertools.count()
    for split, rows in distinct(dataset).items():
        rng = np.random.default_rng([seed, split == "test"])
        pairs = plan(rows[:2], rows[2:], agreement if split == "train" else 0.5, rng)
        for pair in progress(pairs, f"{split}: images"):
            file = f"images/{next(numbers):05d}.jpg"
            thing, place = dataset.splits[split].load(np.asarray(pair.photos))
            Image.fromarray(paste(thing, place, rng)).save(out / file, quality=_QUALITY)
            group = f"{names[pair.thing]} on {names[2 + pair.place]}"
            lines.append((file, names[pair.thing], group, split))
            counts[split, group] = counts.get((split, group), 0) + 1
    with (out / "metadata.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([COLUMNS, *lines])
    return counts


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = terminal.Parser(prog="python -m tools.mislead", description=__doc__.split("\n")[0])
    parser.add_argument("photos", help="a folder of photos, as of data.name=folder")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--objects", default="cassette player,French horn", help="two classes")
    parser.add_argument("--places", default="church,parachute", help="two others")
    parser.add_argument("--agreement", type=float, default=0.95, help="of the training images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for flag in ("objects", "places"):
        if (count := len(split_subset(getattr(options, flag)))) != 2:
            raise UserError(f"--{flag} must be two classes, not {count}")
    if not 0.5 <= options.agreement <= 1:
        raise UserError(f"--agreement must be from 0.5 to 1, not {options.agreement:g}")
    if options.out.exists():
        raise UserError(f"{options.out} exists already: name a new folder")
    return options


@terminal.one_line_errors
def main(arguments: Sequence[str]) -> int:
    """Makes the set that the command line names; returns the exit code."""
    options = _parse(arguments)
    dataset = load_dataset(
        "folder",
        folder=options.photos,
        resolution=SIDE,
        val_fraction=0.0,
        subset=f"{options.objects},{options.places}",
    )
    for (split, group), count in make(
        dataset, options.out, options.agreement, options.seed
    ).items():
        print(f"{split}: {count} images of {group}")
    print(f"data set: {options.out}")
    return 0


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.run(main, sys.argv[1:]))
