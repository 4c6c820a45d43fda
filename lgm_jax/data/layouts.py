"""Published sets as their archives unpack: one table, and a reader of each set's lists.

The background misleads in Waterbirds and Spawrious, which have groups of class and background.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lgm_jax.data import imagenet, tables
from lgm_jax.data.assembly import Entry, Listed, Request, assemble_files
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.folder import list_classes, name_of, open_folder
from lgm_jax.data.listing import Listing
from lgm_jax.data.split_names import SPLITS
from lgm_jax.errors import UserError, list_some

_BIRDS = ("landbird", "waterbird")
_PLACES = ("land", "water")
# Columns of whole numbers, and from where on they mean nothing.
_NUMBERS = {"y": 2, "place": 2, "split": 3}

_STYLES = (
    *("art_nouveau", "baroque", "expressionism", "impressionism", "post_impressionism"),
    *("realism", "renaissance", "romanticism", "surrealism", "ukiyo_e"),
)

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


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an archive unpacks.

    Attributes:
        marks: Files and folders that it has.
        inner: Folders below the one that is given that may have them.
        expected: The layout in words, where nothing else is read by its name.
        distinct: Whether the marks tell it from a person's own folder.
    """

    read: Callable[[Listing, Request], Listed]
    marks: Sequence[str]
    inner: Sequence[str] = ()
    expected: str = ""
    distinct: bool = False

    def find(self, root: Path) -> str | None:
        """Returns the folder with the marks: "" or one of `inner`; `None` if none has."""
        for inside in ("", *self.inner):
            if all((root / inside / mark).exists() for mark in self.marks):
                return inside
        return None


def load_published(request: Request) -> Dataset:
    """Lists a published set with its official splits, as its archive unpacks.

    The EXIF orientation is ignored, as in published results, and no training image is held out
    unless asked for. Where a set has one split beside `train`, that one is `test`.

    Raises:
        UserError: If the folder lacks something of the archive, or its lists are out of order.
    """
    layout = LAYOUTS[request.name]
    root = open_folder(request.folder, layout.expected)
    inside = layout.find(root)
    if inside is None:
        lacking = next(mark for mark in layout.marks if not (root / mark).exists())
        raise UserError(f"{root} has no {lacking}: expected {layout.expected}")
    listing = Listing(root / inside)
    if inside:
        listing.say(f"{name_of(root)}: images are those in {inside}")
    try:
        listed = layout.read(listing, request)
    except UserError:
        raise
    # Of lists that were cut short or changed; what is no MATLAB file may raise anything.
    except Exception as error:
        raise UserError(f"the lists in {listing.root} are not as published: {error!r}") from error
    return assemble_files(request, request.name, listing, listed)


def _read_imagenet(listing: Listing, request: Request) -> Listed:
    """`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`; of a subset, its classes alone."""
    if not listing.folders("val"):
        raise UserError(
            f"{listing.root}/val has no folders: move each image into the folder of its class, "
            "val/<wnid>/, as ILSVRC2012_validation_ground_truth.txt (of Kaggle's archive "
            "LOC_val_solution.csv) says"
        )
    # Listing a million files that are not wanted takes a while.
    only = {imagenet.wnids()[index] for index in imagenet.SUBSETS.get(request.subset, ())}
    listed = _list_splits(listing, ("train", "val"), only)
    return _check_folders(listing, listed, imagenet.wnids(), "classes of ImageNet-1k")


def _read_artbench(listing: Listing, request: Request) -> Listed:
    """`train/<style>/*.jpg` and `test/<style>/*.jpg`."""
    return _check_folders(
        listing, _list_splits(listing, ("train", "test")), _STYLES, "styles of ArtBench-10"
    )


def _read_birds(listing: Listing, request: Request) -> Listed:
    """`images.txt`, `image_class_labels.txt` and `train_test_split.txt` have a line per image."""
    names, labels, trained = (
        dict(_columns(listing, f"{table}.txt"))
        for table in ("classes", "image_class_labels", "train_test_split")
    )
    rows = [
        (("test", "train")[int(trained[number])], f"images/{image}", _shown(names[labels[number]]))
        for number, image in _columns(listing, "images.txt")
    ]
    return _listed(listing, rows, list(map(_shown, names.values())))


def _read_dogs(listing: Listing, request: Request) -> Listed:
    """`train_list.mat` and `test_list.mat` have `file_list`, of paths below `Images`."""
    rows = [
        (split, f"Images/{image}", image.partition("/")[0])
        for split in ("train", "test")
        for image in _read_mat(listing.root / f"{split}_list.mat", "file_list").astype(str).tolist()
    ]
    return _listed(listing, rows)


def _read_flowers(listing: Listing, request: Request) -> Listed:
    """`imagelabels.mat` has a class from 1 for each image, `setid.mat` the images of splits."""
    stored = Path(__file__).with_name("flowers_classes.txt")
    names = stored.read_text(encoding="utf-8").splitlines()
    labels = _read_mat(listing.root / "imagelabels.mat", "labels").tolist()
    rows = [
        (split, f"jpg/image_{number:05d}.jpg", names[labels[number - 1] - 1])
        for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
        for number in _read_mat(listing.root / "setid.mat", key).tolist()
    ]
    return _listed(listing, rows, names)


def _read_food(listing: Listing, request: Request) -> Listed:
    """`meta/train.txt` and `meta/test.txt` have lines `<class>/<number>`."""
    rows = [
        (split, f"images/{image}.jpg", _shown(image.partition("/")[0]))
        for split in ("train", "test")
        for (image,) in _columns(listing, f"meta/{split}.txt", 1)
    ]
    return _listed(listing, rows)


def _read_pets(listing: Listing, request: Request) -> Listed:
    """`annotations/trainval.txt` and `test.txt` have lines `<breed>_<number> <class> ...`."""
    rows = []
    numbers: dict[str, int] = {}
    for split, table in (("train", "trainval"), ("test", "test")):
        for image, rest in _columns(listing, f"annotations/{table}.txt"):
            breed = _shown(image.rpartition("_")[0])
            numbers[breed] = int(rest.split()[0])
            rows.append((split, f"images/{image}.jpg", breed))
    return _listed(listing, rows, sorted(numbers, key=numbers.__getitem__))


def _read_waterbirds(listing: Listing, request: Request) -> Listed:
    """Lists Waterbirds with its official splits, as WILDS unpacks it (`waterbirds_v1.0`).

    Groups are bird x background: landbird on land, on water, waterbird on land, on water.
    """
    table = listing.root / "metadata.csv"
    listed: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    lines: dict[str, int] = {}
    for line, row in tables.read_rows(table):
        where, numbers = f"{table}, line {line}", []
        for name, limit in _NUMBERS.items():
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


def _read_spawrious(listing: Listing, request: Request) -> Listed:
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
    for split, inside, count in _spawrious_folders(*SPAWRIOUS[request.name]):
        _, place, dog = inside.split("/")
        if not (listing.root / inside).is_dir():
            raise UserError(f"{listing.root} has no folder {inside}: unpack the archive again")
        images = listing.images(inside)
        if count and len(images) < count:
            raise UserError(
                f"{listing.root / inside} has {len(images)} images, but {count} are needed: "
                "unpack the archive again"
            )
        groups[group := f"{dog}, {place}"] = None
        listed[split] += [Entry(image, dog, group) for image in images[:count]]
    return Listed(listed, _DOGS, list(groups))


def _spawrious_folders(train: str, test: str, shared: str) -> Iterator[tuple[str, str, int | None]]:
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


_IMAGENET = Layout(
    _read_imagenet,
    ("train", "val"),
    # Where the archive that Kaggle hands out has them, from each of the folders above.
    ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"),
    "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG",
)
_SPAWRIOUS = Layout(
    _read_spawrious,
    ("0",),
    ("spawrious224",),
    "0/<background>/<dog>/*.png (and 1/... for o2o), as spawrious224 has them",
)

LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("imagenet", "imagenet2012", "imagenette"), _IMAGENET),
    "caltech_birds2011": Layout(
        _read_birds,
        ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
        ("CUB_200_2011",),
        distinct=True,
    ),
    "stanford_dogs": Layout(
        _read_dogs, ("Images", "train_list.mat", "test_list.mat"), distinct=True
    ),
    "oxford_flowers102": Layout(
        _read_flowers, ("jpg", "imagelabels.mat", "setid.mat"), distinct=True
    ),
    "food101": Layout(
        _read_food, ("images", "meta/train.txt", "meta/test.txt"), ("food-101",), distinct=True
    ),
    "oxford_iiit_pet": Layout(
        _read_pets,
        ("images", "annotations/trainval.txt", "annotations/test.txt"),
        distinct=True,
    ),
    "artbench": Layout(
        _read_artbench,
        ("train", "test"),
        ("artbench-10-imagefolder-split",),
        "train/<style>/*.jpg and test/<style>/*.jpg, as artbench-10-imagefolder-split.tar has",
    ),
    "waterbirds": Layout(
        _read_waterbirds,
        ("metadata.csv",),
        ("waterbirds_v1.0",),
        "metadata.csv with img_filename, y, split and place, and its images, of waterbirds_v1.0",
    ),
    **dict.fromkeys(SPAWRIOUS, _SPAWRIOUS),
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


def _list_splits(
    listing: Listing, wanted: Sequence[str], only: Collection[str] = ()
) -> dict[str, list[Entry]]:
    """Lists the class folders of splits; notes other folders."""
    if others := [name for name in listing.folders() if name not in wanted]:
        listing.say(f"{listing.root}: what lies in {list_some(others)} is ignored")
    return {split: list_classes(listing, split, split, only) for split in wanted}


def _check_folders(
    listing: Listing, listed: Mapping[str, Sequence[Entry]], known: Sequence[str], what: str
) -> Listed:
    """Refuses folders of other classes: any data set may have such folders of splits."""
    for split, entries in listed.items():
        if strange := sorted({str(entry.name) for entry in entries} - set(known)):
            raise UserError(
                f"{listing.root}/{split} has folders that are no {what}: {list_some(strange)}; for "
                "a data set of your own, set --config.data.name=folder"
            )
    return Listed(listed)


def _columns(listing: Listing, name: str, count: int = 2) -> Iterator[list[str]]:
    """The lines of a list, cut at spaces into so many columns."""
    for line in tables.read_text(listing.root / name).splitlines():
        # The authors of pets begin with comments.
        if line.strip() and not line.startswith("#"):
            yield line.strip().split(maxsplit=count - 1)


def _read_mat(path: Path, key: str) -> np.ndarray:
    """A variable of a MATLAB file (n,)."""
    from scipy import io

    return np.atleast_1d(io.loadmat(path, variable_names=[key], squeeze_me=True)[key])


def _shown(name: str) -> str:
    """A class's name without the number and `_` of its folder: `001.Black_footed_Albatross`."""
    return re.sub(r"^\d+[._ -]", "", name).replace("_", " ")
