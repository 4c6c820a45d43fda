"""A person's own folder of images: one folder per class, perhaps in folders of splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from lgm_jax.data.assembly import Listed, Request, assemble_files
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.labels import unlabelled
from lgm_jax.data.listing import File, Listing
from lgm_jax.data.split_names import check_one, find_splits, ignored, split_of, splits_within
from lgm_jax.errors import UserError, list_some
from lgm_jax.names import folded, looks, match, plain

LAYOUT = "<folder>/<class>/*.jpg, or <folder>/train/<class>/*.jpg with val/ or test/ beside train/"
_ARCHIVES = frozenset({".tar", ".gz", ".tgz", ".zip", ".xz", ".bz2", ".7z", ".rar"})
# What archives call the folders of images and of what is said about them: no classes.
_PARTS = frozenset(
    {
        *("images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "data"),
        *("annotations", "annotation", "labels", "masks", "mask", "trimaps", "segmentations"),
        *("segmentation", "segmentationclass", "segmentationobject", "attributes", "bboxes"),
        *("ground truth", "groundtruth", "gt", "depth", "edges"),
    }
)
# Of so many classes it is looked whether they hold splits.
_LOOKED_AT = 3


def load_folder(request: Request) -> Dataset:
    """Lists a folder of images; nothing is decoded yet.

    Two layouts are read. `train/<class>/*` comes with `val`, `test` or both, by any of their usual
    names; `<class>/*` alone is split here, into about 70 % `train`, 10 % `val` and 20 % `test` of
    each class. What the folder lacks is held out of `train`: see `splits.complete`.

    Images may lie at any depth below their class, and links are followed; see `listing.Listing`
    for what is left out, of which the data set has notes. The split depends on names and seed, not
    on where the folder lies or in which order the file system lists it. The fingerprint covers
    names, sizes, labels, splits and resolution, but not what is in the files. The EXIF orientation
    is honoured.

    Raises:
        UserError: If the folder is missing or laid out otherwise, has fewer than two classes or a
            class without images, if no image could be held out for `test`, or if a link that may
            be a class leads nowhere.
    """
    root = open_folder(request.folder, LAYOUT)
    listing = Listing(root)
    given = find_splits_of_classes(listing) or {"train": ""}
    listed = {split: list_classes(listing, split, inside) for split, inside in given.items()}
    names = list(dict.fromkeys(map(str, listed["train"].classes)))
    if len(names) < 2:
        what = f"one class only, {names[0]!r}" if names else "none of the classes"
        raise UserError(f"{root / given['train']} has {what}: expected {LAYOUT}")
    return assemble_files(request, name_of(root), listing, listed, benchmark=False, orient=True)


def name_of(root: Path) -> str:
    """What to call a data set: its folder's name."""
    # `.` has no name of its own.
    return Path(os.path.abspath(root)).name


def open_folder(folder: str | Path, layout: str) -> Path:
    """The folder, with `~` expanded.

    Args:
        folder: What was asked for.
        layout: What is expected in it, for the message.

    Raises:
        UserError: If it is not a folder.
    """
    root = Path(os.path.expanduser(folder))
    if root.is_dir():
        return root
    if root.is_file() and root.suffix in _ARCHIVES:
        raise UserError(f"{folder} is an archive: unpack it, and give the folder that comes out")
    raise UserError(f"{folder} is not a folder: expected {layout}")


def list_classes(listing: Listing, split: str, inside: str, only: Collection[str] = ()) -> Listed:
    """Lists the images of class folders; those whose names look the same are one class.

    Args:
        listing: Of the data folder.
        split: Of what split they are.
        inside: The folder of class folders, below it.
        only: Names of the classes to list; all that there are by default.

    Raises:
        UserError: If there are none, or one of those to train on has other files only.
    """
    folder = listing.root / inside
    names = listing.folders(inside)
    if not names:
        loose = len(listing.images(inside))
        what = f", but images ({loose}): move each into the folder of its class" if loose else ""
        raise UserError(f"{folder} has no class folders{what}: expected {LAYOUT}")
    classes: dict[str, list[File]] = {}
    called: dict[str, str] = {}
    merged, written = [], []
    for name in names:
        if only and name not in only:
            continue
        files = listing.images(Path(inside, name).as_posix())
        if files:
            shown = called.setdefault(looks(name), plain(name))
            if shown in classes:
                merged.append(shown)
            classes.setdefault(shown, []).extend(files)
        elif listing.is_written(Path(inside, name).as_posix()):
            written.append(name)
        elif split == "train" and not listing.is_empty(Path(inside, name).as_posix()):
            raise UserError(f"class {name!r} has no images in {folder / name}")
    _check_parts(folder, list(classes))
    if merged:
        listing.say(
            f"{folder}: folders whose names look the same are one class: {list_some(merged)}"
        )
    if written:
        listing.say(f"{folder}: no classes, since they hold text alone: {list_some(written)}")
    listed = Listed()
    for shown, files in classes.items():
        listed.add(files, shown)
    return listed


def find_splits_of_classes(listing: Listing) -> dict[str, str]:
    """From split to its folder's name, or nothing where the folders are classes.

    Names decide, and whether the folders hold folders of images. What is ignored is noted.

    Raises:
        UserError: If that cannot be told, if two folders are the same split, if splits lie in the
            classes, or if the folders lie in one that is alone.
    """
    names = listing.folders()
    found = find_splits(names)
    # What is only looked at is not left out.
    look = Listing(listing.root)

    def classes(name: str) -> list[str]:
        return [each for each in look.folders(name) if look.images(f"{name}/{each}")]

    # A class may be called bullet_train; imagenet_train holds classes.
    found = {
        split: [name for name in given if split_of(name) or look.folders(name)]
        for split, given in found.items()
    }
    found = {split: given for split, given in found.items() if given}
    known = [name for given in found.values() for name in given]
    others = [name for name in names if known and name not in known and look.images(name)]
    if "train" in found and len(found) > 1:
        return _check_splits(listing, found, others)
    if "train" in found:
        return _check_train(listing, found["train"][0], others, classes)
    exact = [name for name in known if split_of(name)]
    if exact and (not others or any(map(classes, exact))):
        raise UserError(f"{listing.root} has {' and '.join(exact)} but no train folder")
    _check_classes(listing, look, names, classes)
    for name in exact:
        _say_class(listing, name)
    return {}


def _check_parts(folder: Path, names: Sequence[str]) -> None:
    """Refuses classes that are called as the parts of an archive are: images and masks.

    Raises:
        UserError: If all are.
    """
    if len(names) > 1 and all(folded(name) in _PARTS for name in names):
        raise UserError(
            f"{folder} has {list_some(names)}, which are no classes by their names: expected "
            "<class>/*.jpg, so put the images of each class into a folder of its own"
        )


def _check_classes(
    listing: Listing, look: Listing, names: Sequence[str], classes: Callable[[str], Sequence[str]]
) -> None:
    """Refuses folders that are no classes by their names or by what they hold, or says it."""
    mentioned = [splits_within(name) for name in names]
    if mentioned and all(mentioned) and len(set().union(*mentioned)) > 1:
        raise UserError(
            f"{listing.root} has {list_some(names)}, each of a split and something else: expected "
            "train/<class> and test/<class>"
        )
    for name in names[:_LOOKED_AT]:
        inside = find_splits(each for each in look.folders(name) if split_of(each))
        if "train" in inside and len(inside) > 1:
            splits = " and ".join(given[0] for given in inside.values())
            if len(names) == 1:
                raise UserError(
                    f"{listing.root} has {name} alone, which has {splits}: give "
                    f"{listing.root / name}"
                )
            raise UserError(
                f"{listing.root / name} has {splits}: splits must hold classes, as in "
                "train/<class>, not classes splits; if it is the data set, give it alone"
            )
    if len(names) == 1 and len(below := classes(names[0])) > 1:
        raise UserError(
            f"{listing.root} has {names[0]} alone, which has {list_some(below)}: give "
            f"{listing.root / names[0]}"
        )
    held = [set(look.folders(name)) for name in names[:_LOOKED_AT]]
    alike = sorted(set.intersection(*held)) if len(held) > 1 else []
    if len(alike) > 1:
        listing.say(
            f"{listing.root}: {list_some(names)} are the classes, and each has folders "
            f"{list_some(alike)}: if those are the classes, call these train, val and test"
        )


def _check_splits(
    listing: Listing, found: dict[str, list[str]], others: Sequence[str]
) -> dict[str, str]:
    """Splits beside `train`, without those whose images lie in no classes."""
    for given in found.values():
        check_one(given, str(listing.root))
    for name in others:
        listing.say(ignored(str(listing.root), name))
    splits, look = {}, Listing(listing.root)
    trained = look.folders(found["train"][0])
    for split, (name,) in found.items():
        inside = look.folders(name)
        # Readers of class folders need one for images that have none: test/unknown.
        makeshift = len(inside) == 1 < len(trained) and not match(inside, trained)
        if split != "train" and (makeshift or (not inside and look.images(name))):
            listing.say(unlabelled(str(listing.root / name), split))
        else:
            splits[split] = name
    return splits


def _check_train(
    listing: Listing, train: str, others: Sequence[str], classes: Callable[[str], Sequence[str]]
) -> dict[str, str]:
    """Nothing, where `train` is a class beside others; it is one unless it holds folders."""
    root, inside = listing.root, classes(train)
    alike = [name for name in others if set(classes(name)) & set(inside)]
    if not others:
        raise UserError(
            f"{root} has {train} but neither val nor test: give {root / train} to have it split"
        )
    if alike or (inside and split_of(train)):
        raise UserError(
            f"{root} has {(alike or others)[0]} beside {train}, which has folders as a split has: "
            "call it val or test, or move it away; if they are classes, rename the folder "
            f"{train}"
        )
    if split_of(train):
        _say_class(listing, train)
    return {}


def _say_class(listing: Listing, name: str) -> None:
    listing.say(
        f"{listing.root}: the folder {name} is a class, since it holds images and no folders of "
        "them"
    )
