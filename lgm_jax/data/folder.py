"""Folders of images with one folder per class: a person's own, ImageNet and ArtBench."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from lgm_jax.data import imagenet
from lgm_jax.data.dataset import Dataset, Split, digest
from lgm_jax.data.listing import File, Listing
from lgm_jax.data.records import FileRecords, ImageSplit
from lgm_jax.data.splits import complete, list_some
from lgm_jax.errors import UserError
from lgm_jax.names import looks, match, plain

_SPLIT_FOLDERS: Mapping[str, Sequence[str]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_LAYOUT = "<folder>/<class>/*.jpg, or <folder>/train/<class>/*.jpg with val/ or test/ beside train/"
_ARCHIVES = frozenset({".tar", ".gz", ".tgz", ".zip", ".xz", ".bz2", ".7z", ".rar"})
_ARTBENCH = (
    "art_nouveau",
    "baroque",
    "expressionism",
    "impressionism",
    "post_impressionism",
    "realism",
    "renaissance",
    "romanticism",
    "surrealism",
    "ukiyo_e",
)


_Classes = Mapping[str, Sequence[File]]


def load_folder(
    folder: str | Path, *, resolution: int, seed: int = 0, val_fraction: float | None = None
) -> Dataset:
    """Lists a folder of images; nothing is decoded yet.

    Two layouts are read. `train/<class>/*` comes with `val` (or `valid`, `validation`), `test` or
    both; `<class>/*` alone is split here, into about 70 % `train`, 10 % `val` and 20 % `test` of
    each class. What the folder lacks is held out of `train`: see `splits.complete`.

    Images may lie at any depth below their class, and links are followed; see `listing.Listing`
    for what is left out, of which the data set has notes. The split depends on names and seed, not
    on where the folder lies or in which order the file system lists it. The fingerprint covers
    names, sizes, labels, splits and resolution, but not what is in the files. The EXIF orientation
    is honoured.

    Args:
        folder: The data folder; `~` is expanded.
        resolution: Side of the images to give, in pixels.
        seed: Seed of the split.
        val_fraction: Part of the training images that becomes `val` where there is none.

    Raises:
        UserError: If the folder is missing or laid out otherwise, has fewer than two classes, a
            class without images or classes that differ between splits, if an image could not be
            held out for every split, or if a link that may be a class leads nowhere.
    """
    root = open_folder(folder, _LAYOUT)
    listing = Listing(root)
    given = _given_splits(listing) or {"train": ""}
    classes = {split: _list_classes(listing, inside) for split, inside in given.items()}
    dataset = _make_dataset(listing, given, classes, resolution, orient=True)
    return complete(dataset, seed=seed, val_fraction=val_fraction)


def load_imagenet(
    folder: str | Path,
    *,
    resolution: int,
    seed: int = 0,
    val_fraction: float | None = None,
    only: Collection[str] = (),
) -> Dataset:
    """Lists ImageNet as it is unpacked: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`.

    The official validation images are the `test` split. No other ones are held out of the training
    images unless asked for, so that they are those of published results.

    Args:
        folder: The data folder; `~` is expanded.
        resolution: Side of the images to give, in pixels.
        seed: Seed of the split.
        val_fraction: Part of the training images that becomes `val`; none by default.
        only: WordNet names of the classes to list; all that there are by default.

    Raises:
        UserError: As for `load_folder`, or if a folder is not named after a class of ImageNet-1k.
    """
    layout = "<folder>/train/<wnid>/*.JPEG and <folder>/val/<wnid>/*.JPEG"
    root = open_folder(folder, layout)
    given = {"train": "train", "val": "val"}
    for name in given.values():
        if not (root / name).is_dir():
            raise UserError(f"{root} has no folder {name}: expected {layout}")
    listing = Listing(root)
    if not listing.folders("val"):
        raise UserError(
            f"{root / 'val'} has no folders: move each image into the folder of its class, "
            "val/<wnid>/, as ILSVRC2012_validation_ground_truth.txt says"
        )
    classes = {split: _list_classes(listing, inside, only) for split, inside in given.items()}
    strange = sorted(set(classes["train"]) - set(imagenet.wnids()))
    if strange:
        raise UserError(
            f"{root / 'train'} has folders that are no classes of ImageNet-1k: "
            f"{list_some(strange)}; for a data set of your own, set --config.data.name=folder"
        )
    dataset = _make_dataset(listing, given, classes, resolution, orient=False, name="imagenet")
    named = name_imagenet_classes(dataset)
    return complete(named, seed=seed, val_fraction=val_fraction or 0.0)


def load_artbench(
    folder: str | Path, *, resolution: int, seed: int = 0, val_fraction: float | None = None
) -> Dataset:
    """Lists ArtBench-10 as its archive `artbench-10-imagefolder-split.tar` unpacks.

    Its images are 256 x 256, so nothing is resized at that resolution. None of the training images
    are held out unless asked for.

    Args:
        folder: The unpacked folder or the one it was unpacked in; `~` is expanded.
        resolution: Side of the images to give, in pixels.
        seed: Seed of the split.
        val_fraction: Part of the training images that becomes `val`; none by default.

    Raises:
        UserError: As for `load_folder`, or if it does not hold ArtBench's ten styles.
    """
    layout = "train/<style>/*.jpg and test/<style>/*.jpg, as artbench-10-imagefolder-split.tar has"
    root = open_folder(folder, layout)
    inner = root / "artbench-10-imagefolder-split"
    root = inner if inner.is_dir() else root
    given = {"train": "train", "test": "test"}
    for name in given.values():
        if not (root / name).is_dir():
            raise UserError(f"{root} has no folder {name}: expected {layout}")
    listing = Listing(root)
    classes = {split: _list_classes(listing, inside) for split, inside in given.items()}
    if tuple(sorted(classes["train"])) != _ARTBENCH:
        raise UserError(f"{root / 'train'} has other folders than ArtBench's {list(_ARTBENCH)}")
    dataset = _make_dataset(listing, given, classes, resolution, orient=False, name="artbench")
    return complete(dataset, seed=seed, val_fraction=val_fraction or 0.0)


def name_imagenet_classes(dataset: Dataset) -> Dataset:
    """Gives classes called by their WordNet names the names that people use."""
    numbers = {wnid: index for index, wnid in enumerate(imagenet.wnids())}
    names = [imagenet.names()[numbers[wnid]] for wnid in dataset.class_names]
    return dataclasses.replace(dataset, class_names=names, wnids=list(dataset.class_names))


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


def _given_splits(listing: Listing) -> dict[str, str]:
    """From split to its folder's name, or nothing where the folders are classes."""
    root, names = listing.root, listing.folders()
    given: dict[str, str] = {}
    for split, known in _SPLIT_FOLDERS.items():
        found = [name for name in names if name.lower() in known]
        if len(found) > 1:
            raise UserError(f"{root} has both {' and '.join(found)}: keep one of them")
        if found:
            given[split] = found[0]
    if "train" not in given and given:
        raise UserError(f"{root} has {' and '.join(given.values())} but no train folder")
    if set(given) == {"train"}:
        if len(names) == 1:
            raise UserError(
                f"{root} has {names[0]} but neither val nor test: give {root / names[0]} to have "
                "it split"
            )
        # Among other folders and with nothing held out, it is a class: trains.
        return {}
    return given


def _list_classes(listing: Listing, inside: str, only: Collection[str] = ()) -> _Classes:
    """From each class to its images; folders whose names look the same are one class."""
    folder = listing.root / inside
    names = listing.folders(inside)
    if not names:
        raise UserError(f"{folder} has no class folders: expected {_LAYOUT}")
    classes: dict[str, list[File]] = {}
    called: dict[str, str] = {}
    merged = []
    for name in names:
        if only and name not in only:
            continue
        files = listing.images(Path(inside, name).as_posix())
        if files:
            shown = called.setdefault(looks(name), plain(name))
            if shown in classes:
                merged.append(shown)
            classes.setdefault(shown, []).extend(files)
        elif not listing.is_empty(Path(inside, name).as_posix()):
            raise UserError(f"class {name!r} has no images in {folder / name}")
    if merged:
        listing.say(
            f"{folder}: folders whose names look the same are one class: {list_some(merged)}"
        )
    return classes


def _make_dataset(
    listing: Listing,
    given: Mapping[str, str],
    classes: Mapping[str, _Classes],
    resolution: int,
    *,
    orient: bool,
    name: str = "",
) -> Dataset:
    """The listed images, in the splits that the folder has."""
    root, class_names = listing.root, list(classes["train"])
    if len(class_names) < 2:
        what = f"one class only, {class_names[0]!r}" if class_names else "none of the classes"
        raise UserError(f"{root / given['train']} has {what}: expected {_LAYOUT}")
    splits: dict[str, Split] = {}
    facts: list[object] = [resolution, orient, class_names]
    for split, members in classes.items():
        if split != "train":
            members = _align(listing, classes["train"], members, given[split])
            _check_same_classes(
                root / given["train"], classes["train"], root / given[split], members
            )
        files = [file for group in members.values() for file in group]
        counts = [len(group) for group in members.values()]
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        records = FileRecords(root, [file.path for file in files])
        splits[split] = ImageSplit(records, np.arange(len(files)), labels, resolution, orient)
        facts += [split, files, labels]
    return Dataset(
        # `.` has no name of its own.
        name or Path(os.path.abspath(root)).name,
        class_names,
        splits,
        digest(*facts),
        notes=listing.notes(),
        lost=listing.lost,
    )


def _align(listing: Listing, train: _Classes, members: _Classes, inside: str) -> _Classes:
    """Classes by the names that they have in `train` and in its order, those it lacks last."""
    called = match(list(members), list(train))
    differing = [f"{name} is {called[name]}" for name in called if called[name] != name]
    if differing:
        listing.say(f"{listing.root / inside}: classes by another spelling: {list_some(differing)}")
    renamed = {called.get(name, name): files for name, files in members.items()}
    order = [*(name for name in train if name in renamed), *(n for n in renamed if n not in train)]
    return {name: renamed[name] for name in order}


def _check_same_classes(
    train_folder: Path, train: _Classes, folder: Path, classes: _Classes
) -> None:
    for here, there, lacking in (
        (folder, train_folder, set(classes) - set(train)),
        (train_folder, folder, set(train) - set(classes)),
    ):
        if lacking:
            names = list_some(sorted(lacking))
            raise UserError(f"{here} has classes that {there} lacks: {names}")
