"""Published sets as their archives unpack: one table, and a reader of each set's lists."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgm_jax.data import formats, imagenet, spurious, tables
from lgm_jax.data.assembly import Entry, Listed, Request, assemble_files
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.folder import list_classes, name_of, open_folder
from lgm_jax.data.listing import Listing
from lgm_jax.data.split_names import SPLITS, check_one, find_splits
from lgm_jax.errors import UserError, list_some

_ARTBENCH = (
    *("art_nouveau", "baroque", "expressionism", "impressionism", "post_impressionism"),
    *("realism", "renaissance", "romanticism", "surrealism", "ukiyo_e"),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an archive unpacks.

    Attributes:
        marks: Files and folders by which it is known.
        inner: Folders below the one that is given that may have the marks.
        distinct: Whether the marks tell it from a person's own folder.
    """

    expected: str
    read: Callable[[Listing, Request, str], Listed]
    marks: Sequence[str]
    inner: Sequence[str] = ()
    distinct: bool = False

    def find(self, root: Path) -> str | None:
        """Returns the folder with the marks: "" or one of `inner`; `None` if none has."""
        for inside in ("", *self.inner):
            if all((root / inside / mark).exists() for mark in self.marks):
                return inside
        return None


def find_layout(folder: str, name: str) -> str | None:
    """Returns the name of the layout that a folder, if it exists, has.

    The source `folder` stands for every layout that is distinct.
    """
    root = Path(os.path.expanduser(folder))
    for each, layout in LAYOUTS.items() if folder else ():
        wanted = layout.distinct if name == "folder" else each == name
        if wanted and layout.find(root) is not None:
            return each
    return None


def load_published(request: Request) -> Dataset:
    """Lists a published set with its official splits, as its archive unpacks.

    The EXIF orientation is ignored, as in published results, and no training image is held out
    unless asked for. Where a set has one split beside `train`, that one is `test`.
    """
    layout = LAYOUTS[request.name]
    root = open_folder(request.folder, layout.expected)
    inside = layout.find(root) or ""
    listing = Listing(root / inside)
    if inside:
        listing.say(f"{name_of(root)}: images are those in {inside}")
    listed = layout.read(listing, request, layout.expected)
    return assemble_files(request, request.name, listing, listed)


def _read_imagenet(listing: Listing, request: Request, expected: str) -> Listed:
    """`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`; of a subset, its classes alone."""
    given = _find_splits(listing, ("train", "val"), expected)
    if not listing.folders(given["val"]):
        raise UserError(
            f"{listing.root / given['val']} has no folders: move each image into the folder of its "
            "class, val/<wnid>/, as ILSVRC2012_validation_ground_truth.txt (of Kaggle's archive "
            "LOC_val_solution.csv) says"
        )
    # Listing a million files that are not wanted takes a while.
    only = {imagenet.wnids()[index] for index in imagenet.SUBSETS.get(request.subset, ())}
    listed = {split: list_classes(listing, split, inside, only) for split, inside in given.items()}
    for split, entries in listed.items():
        strange = sorted({str(entry.name) for entry in entries} - set(imagenet.wnids()))
        if strange:
            raise UserError(
                f"{listing.root / given[split]} has folders that are no classes of ImageNet-1k: "
                f"{list_some(strange)}; for a data set of your own, set --config.data.name=folder"
            )
    return Listed(listed)


def _read_artbench(listing: Listing, request: Request, expected: str) -> Listed:
    """`train/<style>/*.jpg` and `test/<style>/*.jpg`."""
    given = _find_splits(listing, ("train", "test"), expected)
    listed = {split: list_classes(listing, split, inside) for split, inside in given.items()}
    if tuple(dict.fromkeys(entry.name for entry in listed["train"])) != _ARTBENCH:
        raise UserError(
            f"{listing.root / given['train']} has other folders than ArtBench's {list(_ARTBENCH)}"
        )
    return Listed(listed)


def _read_birds(listing: Listing, request: Request, expected: str) -> Listed:
    """`images.txt`, `image_class_labels.txt` and `train_test_split.txt` have a line per image."""
    names, labels, trained = (
        dict(_columns(listing, f"{table}.txt", expected))
        for table in ("classes", "image_class_labels", "train_test_split")
    )
    rows = []
    for number, image in _columns(listing, "images.txt", expected):
        label, split = labels.get(number, "none"), trained.get(number, "none")
        if label not in names or split not in ("0", "1"):
            raise UserError(
                f"{listing.root}: image {number} has class {label} and split {split}: expected a "
                "class of classes.txt, and 1 for train or 0"
            )
        rows.append((("test", "train")[int(split)], f"images/{image}", _shown(names[label])))
    return _listed(listing, rows, [_shown(name) for name in names.values()])


def _read_dogs(listing: Listing, request: Request, expected: str) -> Listed:
    """`train_list.mat` and `test_list.mat` have `file_list`, of paths below `Images`."""
    rows = [
        (split, f"Images/{image}", image.partition("/")[0])
        for split in ("train", "test")
        for image in _read_mat(listing.root / f"{split}_list.mat", "file_list").astype(str).tolist()
    ]
    return _listed(listing, rows)


def _read_flowers(listing: Listing, request: Request, expected: str) -> Listed:
    """`imagelabels.mat` has a class from 1 for each image, `setid.mat` the images of splits."""
    stored = Path(__file__).with_name("flowers_classes.txt")
    names = stored.read_text(encoding="utf-8").splitlines()
    labels = _read_mat(listing.root / "imagelabels.mat", "labels").tolist()
    rows = []
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        for number in _read_mat(listing.root / "setid.mat", key).tolist():
            label = labels[number - 1] if 0 < number <= len(labels) else 0
            if not 0 < label <= len(names):
                raise UserError(f"{listing.root}/imagelabels.mat has no class of image {number}")
            rows.append((split, f"jpg/image_{number:05d}.jpg", names[label - 1]))
    return _listed(listing, rows, names)


def _read_food(listing: Listing, request: Request, expected: str) -> Listed:
    """`meta/train.txt` and `meta/test.txt` have lines `<class>/<number>`."""
    rows = [
        (split, f"images/{image}.jpg", _shown(image.partition("/")[0]))
        for split in ("train", "test")
        for (image,) in _columns(listing, f"meta/{split}.txt", expected, 1)
    ]
    return _listed(listing, rows)


def _read_pets(listing: Listing, request: Request, expected: str) -> Listed:
    """`annotations/trainval.txt` and `test.txt` have lines `<breed>_<number> <class> ...`."""
    rows = []
    names: dict[str, str] = {}
    for split, table in (("train", "trainval"), ("test", "test")):
        for image, rest in _columns(listing, f"annotations/{table}.txt", expected):
            breed, number = _shown(image.rpartition("_")[0]), rest.split()[0]
            if names.setdefault(number, breed) != breed:
                raise UserError(
                    f"{listing.root}/annotations: {image} is of class {number}, which is "
                    f"{names[number]}"
                )
            rows.append((split, f"images/{image}.jpg", breed))
    return _listed(listing, rows, [names[number] for number in sorted(names, key=int)])


_IMAGENET = Layout(
    "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG",
    _read_imagenet,
    ("train",),
    # Where the archive that Kaggle hands out has them, from each of the folders above.
    ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"),
)

LAYOUTS: Mapping[str, Layout] = {
    "imagenet": _IMAGENET,
    "imagenet2012": _IMAGENET,
    "imagenette": _IMAGENET,
    "caltech_birds2011": Layout(
        "images/, images.txt, image_class_labels.txt, train_test_split.txt and classes.txt, as "
        "CUB_200_2011.tgz has them",
        _read_birds,
        ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
        ("CUB_200_2011",),
        distinct=True,
    ),
    "stanford_dogs": Layout(
        "Images/<class>/*.jpg of images.tar, and train_list.mat and test_list.mat of lists.tar",
        _read_dogs,
        ("Images", "train_list.mat", "test_list.mat"),
        distinct=True,
    ),
    "oxford_flowers102": Layout(
        "jpg/*.jpg of 102flowers.tgz, and imagelabels.mat and setid.mat",
        _read_flowers,
        ("jpg", "imagelabels.mat", "setid.mat"),
        distinct=True,
    ),
    "food101": Layout(
        "images/<class>/*.jpg, meta/train.txt and meta/test.txt, as food-101.tar.gz has them",
        _read_food,
        ("images", "meta/train.txt", "meta/test.txt"),
        ("food-101",),
        distinct=True,
    ),
    "oxford_iiit_pet": Layout(
        "images/*.jpg, and annotations/trainval.txt and annotations/test.txt",
        _read_pets,
        ("images", "annotations/trainval.txt", "annotations/test.txt"),
        distinct=True,
    ),
    "artbench": Layout(
        "train/<style>/*.jpg and test/<style>/*.jpg, as artbench-10-imagefolder-split.tar has",
        _read_artbench,
        ("train", "test"),
        ("artbench-10-imagefolder-split",),
    ),
    "waterbirds": Layout(
        "metadata.csv with img_filename, y, split and place, and its images, of waterbirds_v1.0",
        spurious.read_waterbirds,
        ("metadata.csv",),
        ("waterbirds_v1.0",),
    ),
    **dict.fromkeys(
        spurious.SPAWRIOUS,
        Layout(
            "0/<background>/<dog>/*.png (and 1/... for o2o), as spawrious224 has them",
            spurious.read_spawrious,
            ("0",),
            ("spawrious224",),
        ),
    ),
}
"""By `data.name`: those of TFDS are read as TFDS prepares them, or as their archives unpack."""


def _listed(
    listing: Listing, rows: Sequence[tuple[str, str, str]], classes: Sequence[str] = ()
) -> Listed:
    """The images of rows of split, path and class; by default, classes are in sorted order."""
    listed: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for split, path, name in rows:
        listed[split].append(Entry(listing.find(path), name))
    splits = {split: entries for split, entries in listed.items() if entries or split != "val"}
    return Listed(splits, classes or sorted({name for _, _, name in rows}))


def _find_splits(listing: Listing, wanted: Sequence[str], expected: str) -> dict[str, str]:
    """Returns the folder of each split; notes other folders."""
    names, given = listing.folders(), {}
    found = find_splits(names)
    for split in wanted:
        if split not in found:
            raise UserError(f"{listing.root} has no folder {split}: expected {expected}")
        check_one(found[split], str(listing.root))
        given[split] = found[split][0]
    if others := [name for name in names if name not in given.values()]:
        listing.say(f"{listing.root}: what lies in {list_some(others)} is ignored")
    return given


def _columns(listing: Listing, name: str, expected: str, count: int = 2) -> Iterator[list[str]]:
    """The lines of a list, cut at spaces into so many columns."""
    path = listing.root / name
    if not path.is_file():
        raise UserError(f"{listing.root} has no {name}: expected {expected}")
    for number, line in enumerate(tables.read_text(path).splitlines(), 1):
        cells = line.strip().split(maxsplit=count - 1)
        # The authors of pets begin with comments.
        if not cells or line.startswith("#"):
            continue
        if len(cells) < count:
            raise UserError(f"{path}, line {number}: {line!r} has fewer than {count} columns")
        yield cells


def _read_mat(path: Path, key: str) -> np.ndarray:
    """A variable of a MATLAB file (n,)."""
    from scipy import io

    try:
        stored: Any = io.loadmat(path, variable_names=[key], squeeze_me=True)[key]
    # What is no MATLAB file makes its reader raise almost anything.
    except Exception as error:
        reason = formats.explain_file(path) or f"no MATLAB file with {key} ({error})"
        raise UserError(f"cannot read {path}: {reason}".replace("\n", " ")) from error
    return np.atleast_1d(stored)


def _shown(name: str) -> str:
    """A class's name without the number and `_` of its folder: `001.Black_footed_Albatross`."""
    return re.sub(r"^\d+[._ -]", "", name).replace("_", " ")
