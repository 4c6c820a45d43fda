"""Folders of images with one folder per class: a person's own, ImageNet and ArtBench."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from lgm_jax.data import imagenet
from lgm_jax.data.dataset import Dataset, Split, digest
from lgm_jax.data.labels import Labels, match_labels
from lgm_jax.data.layout import check_parts, find_layout
from lgm_jax.data.listing import File, Listing
from lgm_jax.data.records import FileRecords, ImageSplit
from lgm_jax.data.split_names import check_one, find_splits
from lgm_jax.data.splits import complete
from lgm_jax.errors import UserError, list_some
from lgm_jax.names import looks, plain

_LAYOUT = "<folder>/<class>/*.jpg, or <folder>/train/<class>/*.jpg with val/ or test/ beside train/"
_ARCHIVES = frozenset({".tar", ".gz", ".tgz", ".zip", ".xz", ".bz2", ".7z", ".rar"})
# Where the archive that Kaggle hands out has ImageNet, from each of the folders above.
_UNPACKED = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
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

    Two layouts are read; see `layout.find_layout`. `train/<class>/*` comes with `val`, `test` or
    both, by any of their usual names; `<class>/*` alone is split here, into about 70 % `train`,
    10 % `val` and 20 % `test` of each class. What the folder lacks is held out of `train`: see
    `splits.complete`.

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
        UserError: If the folder is missing or laid out otherwise, has fewer than two classes or a
            class without images, if no image could be held out for `test`, or if a link that may
            be a class leads nowhere.
    """
    root = open_folder(folder, _LAYOUT)
    listing = Listing(root)
    given = find_layout(listing) or {"train": ""}
    classes = {split: _list_classes(listing, split, inside) for split, inside in given.items()}
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
        folder: The data folder, or one above its `ILSVRC/Data/CLS-LOC`; `~` is expanded.
        resolution: Side of the images to give, in pixels.
        seed: Seed of the split.
        val_fraction: Part of the training images that becomes `val`; none by default.
        only: WordNet names of the classes to list; all that there are by default.

    Raises:
        UserError: As for `load_folder`, or if a folder is not named after a class of ImageNet-1k.
    """
    layout = "<folder>/train/<wnid>/*.JPEG and <folder>/val/<wnid>/*.JPEG"
    root = open_folder(folder, layout)
    inside = next((path for path in _UNPACKED if (root / path / "train").is_dir()), "")
    listing = Listing(root / inside)
    if inside:
        listing.say(f"{os.path.basename(os.path.abspath(root))}: images are those in {inside}")
        root = root / inside
    given = _find_splits(listing, ("train", "val"), layout)
    if not listing.folders(given["val"]):
        raise UserError(
            f"{root / given['val']} has no folders: move each image into the folder of its class, "
            "val/<wnid>/, as ILSVRC2012_validation_ground_truth.txt (of Kaggle's archive "
            "LOC_val_solution.csv) says"
        )
    classes = {
        split: _list_classes(listing, split, inside, only) for split, inside in given.items()
    }
    for split, listed in classes.items():
        strange = sorted(set(listed) - set(imagenet.wnids()))
        if strange:
            raise UserError(
                f"{root / given[split]} has folders that are no classes of ImageNet-1k: "
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
    listing = Listing(root)
    given = _find_splits(listing, ("train", "test"), layout)
    classes = {split: _list_classes(listing, split, inside) for split, inside in given.items()}
    if tuple(sorted(classes["train"])) != _ARTBENCH:
        raise UserError(
            f"{root / given['train']} has other folders than ArtBench's {list(_ARTBENCH)}"
        )
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


def _find_splits(listing: Listing, wanted: Sequence[str], layout: str) -> dict[str, str]:
    """From each split of a benchmark to its folder's name; what else there is, is noted."""
    names = listing.folders()
    found = find_splits(names)
    for split in wanted:
        if split not in found:
            raise UserError(f"{listing.root} has no folder {split}: expected {layout}")
        check_one(found[split], str(listing.root))
    given = {split: found[split][0] for split in wanted}
    others = [name for name in names if name not in given.values()]
    if others:
        listing.say(f"{listing.root}: what lies in {list_some(others)} is ignored")
    return given


def _list_classes(
    listing: Listing, split: str, inside: str, only: Collection[str] = ()
) -> _Classes:
    """From each class to its images; folders whose names look the same are one class."""
    folder = listing.root / inside
    names = listing.folders(inside)
    if not names:
        loose = len(listing.images(inside))
        what = f", but images ({loose}): move each into the folder of its class" if loose else ""
        raise UserError(f"{folder} has no class folders{what}: expected {_LAYOUT}")
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
    check_parts(folder, list(classes))
    if merged:
        listing.say(
            f"{folder}: folders whose names look the same are one class: {list_some(merged)}"
        )
    if written:
        listing.say(f"{folder}: no classes, since they hold text alone: {list_some(written)}")
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
    root, names = listing.root, list(classes["train"])
    if len(names) < 2:
        what = f"one class only, {names[0]!r}" if names else "none of the classes"
        raise UserError(f"{root / given['train']} has {what}: expected {_LAYOUT}")
    # `.` has no name of its own.
    name = name or Path(os.path.abspath(root)).name
    read = {}
    for split, members in classes.items():
        counts = [len(group) for group in members.values()]
        numbers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        read[split] = Labels(numbers, list(members))
    class_names, matched, more = match_labels(read, name)
    splits: dict[str, Split] = {}
    facts: list[object] = [resolution, orient, class_names]
    for split, labels in matched.items():
        files = [file for group in classes[split].values() for file in group]
        records = FileRecords(root, [file.path for file in files], [file.size for file in files])
        splits[split] = ImageSplit(records, np.arange(len(files)), labels, resolution, orient)
        facts += [split, files, labels]
    notes = [*listing.notes(), *more]
    return Dataset(name, class_names, splits, digest(*facts), notes=notes, lost=listing.lost)
