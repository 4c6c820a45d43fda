"""A person's own folder of images: a folder per class, or a table; perhaps folders of splits."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lgm_jax.data.assembly import Entry, Listed, Request, assemble_files
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.listing import File, Listing, below
from lgm_jax.data.split_names import (
    assign_splits,
    check_one,
    find_splits,
    ignored,
    split_of,
    splits_within,
)
from lgm_jax.data.tables import Row, find_table
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
# What is written about images: a folder of these alone is no class.
_WRITTEN = frozenset(
    {
        *(".txt", ".xml", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".md"),
        *(".rst", ".html", ".log", ".cfg", ".ini", ".names", ".list", ".lst", ".py"),
        *(".sh", ".mat", ".m", ".ipynb"),
    }
)
# Of so many classes it is looked whether they hold splits.
_LOOKED_AT = 3


def load_folder(request: Request) -> Dataset:
    """Lists a folder of images, whose EXIF orientation is honoured; nothing is decoded yet.

    Class folders come in two layouts: `train/<class>/*` with `val`, `test` or both, by any of their
    usual names, or `<class>/*` alone; or a table labels images that lie in no class folders. What
    is missing is held out of `train`: see `splits.complete`. The fingerprint covers names, sizes,
    labels, splits and resolution, but not what is in the files.

    Raises:
        UserError: If the folder is missing or laid out otherwise, lacks classes or images, or is
            ambiguous.
    """
    root = open_folder(request.folder, LAYOUT)
    if labelled := _load_flat(request, root):
        return labelled
    listing = Listing(root)
    given = find_splits_of_classes(listing) or {"train": ""}
    listed = {split: list_classes(listing, split, inside) for split, inside in given.items()}
    names = list(dict.fromkeys(str(entry.name) for entry in listed["train"]))
    if len(names) < 2:
        what = f"one class only, {names[0]!r}" if names else "none of the classes"
        raise UserError(f"{root / given['train']} has {what}: expected {LAYOUT}")
    for split, entries in listed.items():
        inside = list({str(entry.name) for entry in entries})
        # Readers of class folders need one for images that have none: test/unknown.
        if len(inside) == 1 and not match(inside, names):
            listed[split] = [entry._replace(name=None) for entry in entries]
    return assemble_files(request, name_of(root), listing, Listed(listed), own=True)


def name_of(root: Path) -> str:
    """Returns the name of a folder, which `.` has not by itself."""
    return Path(os.path.abspath(root)).name


def open_folder(folder: str | Path, layout: str) -> Path:
    """Returns the folder, with `~` expanded; refuses what is none, saying the `layout` expected."""
    root = Path(os.path.expanduser(folder))
    if root.is_dir():
        return root
    if root.is_file() and root.suffix in _ARCHIVES:
        raise UserError(f"{folder} is an archive: unpack it, and give the folder that comes out")
    raise UserError(f"{folder} is not a folder: expected {layout}")


def list_classes(
    listing: Listing, split: str, inside: str, only: Collection[str] = ()
) -> list[Entry]:
    """Lists the images of the class folders in `inside`; names that look the same are one class.

    Held-out images that lie in no class folders have no class. `only` has the names of the classes
    to list; by default all.
    """
    folder = listing.root / inside
    names = listing.folders(inside)
    if not names:
        loose = listing.images(inside)
        if loose and split != "train":
            return [Entry(file, None) for file in loose]
        what = f", but images ({len(loose)}): move each into the folder of its class"
        raise UserError(f"{folder} has no class folders{what * bool(loose)}: expected {LAYOUT}")
    classes: dict[str, list[File]] = {}
    shown: dict[str, str] = {}
    merged, written = [], []
    for name in names:
        if only and name not in only:
            continue
        place = below(inside, name)
        if files := listing.images(place):
            if looks(name) in shown:
                merged.append(shown[looks(name)])
            classes.setdefault(shown.setdefault(looks(name), plain(name)), []).extend(files)
        elif others := listing.others(place):
            if _WRITTEN.issuperset(others):
                written.append(name)
            elif split == "train":
                raise UserError(f"class {name!r} has no images in {folder / name}")
    if len(classes) > 1 and all(folded(name) in _PARTS for name in classes):
        raise UserError(
            f"{folder} has {list_some(list(classes))}, which are no classes by their names: "
            "expected <class>/*.jpg, so put the images of each class into a folder of its own"
        )
    if merged:
        why = "folders whose names look the same are one class"
        listing.say(f"{folder}: {why}: {list_some(merged)}")
    if written:
        listing.say(f"{folder}: no classes, since they hold text alone: {list_some(written)}")
    return [Entry(file, name) for name, files in classes.items() for file in files]


def find_splits_of_classes(listing: Listing) -> dict[str, str]:
    """From split to its folder's name, or nothing where the folders are classes.

    Names decide, and whether the folders hold folders of images.
    """
    root, names = listing.root, listing.folders()
    # What is only looked at is not left out.
    look = Listing(root)

    def classes(name: str) -> list[str]:
        return [each for each in look.folders(name) if look.images(f"{name}/{each}")]

    # A class may be called bullet_train; imagenet_train holds classes.
    found = {
        split: some
        for split, given in find_splits(names).items()
        if (some := [name for name in given if split_of(name) or look.folders(name)])
    }
    known = [name for given in found.values() for name in given]
    others = [name for name in names if known and name not in known and look.images(name)]
    if "train" in found and len(found) > 1:
        for given in found.values():
            check_one(given, str(root))
        for name in others:
            listing.say(ignored(str(root), name))
        return {split: given[0] for split, given in found.items()}
    exact = [name for name in known if split_of(name)]
    if "train" in found:
        train, inside = found["train"][0], classes(found["train"][0])
        if not others:
            raise UserError(
                f"{root} has {train} but neither val nor test: give {root / train} to have it split"
            )
        alike = [name for name in others if set(classes(name)) & set(inside)]
        if alike or (inside and exact):
            raise UserError(
                f"{root} has {(alike or others)[0]} beside {train}, which has folders as a split "
                "has: call it val or test, or move it away; if they are classes, rename the folder "
                f"{train}"
            )
    else:
        if exact and (not others or any(map(classes, exact))):
            raise UserError(f"{root} has {' and '.join(exact)} but no train folder")
        _check_classes(listing, look, names)
    for name in exact:
        listing.say(
            f"{root}: the folder {name} is a class, since it holds images and no folders of them"
        )
    return {}


def _check_classes(listing: Listing, look: Listing, names: Sequence[str]) -> None:
    """Refuses or notes folders whose names or content are not those of classes."""
    root = listing.root
    mentioned = [splits_within(name) for name in names]
    if mentioned and all(mentioned) and len(set().union(*mentioned)) > 1:
        raise UserError(
            f"{root} has {list_some(names)}, each of a split and something else: expected "
            "train/<class> and test/<class>"
        )
    held = [look.folders(name) for name in names[:_LOOKED_AT]]
    for name, inside in zip(names, held, strict=False):
        splits = find_splits(each for each in inside if split_of(each))
        if "train" in splits and len(splits) > 1:
            both = " and ".join(given[0] for given in splits.values())
            raise UserError(
                f"{root / name} has {both}: splits must hold classes, as in train/<class>, not "
                "classes splits; if it is the data set, give it alone"
            )
    alike = sorted(set.intersection(*map(set, held))) if len(held) > 1 else []
    if len(alike) > 1:
        listing.say(
            f"{root}: {list_some(names)} are the classes, and each has folders "
            f"{list_some(alike)}: if those are the classes, call these train, val and test"
        )


def _load_flat(request: Request, root: Path) -> Dataset | None:
    """Lists images that lie in no class folders, as a table beside them labels each.

    They lie in the folder itself, in one folder in it, or in folders of splits (with a table each,
    or one above). Returns `None` if no table names images.
    """
    look = Listing(root)
    places = _find_places(look)
    listing = Listing(root)
    listed: dict[str, list[Entry]] = {}
    held = {split: look.beside(inside) for split, inside in places.items()}
    for split, inside in places.items():
        files = held[split]
        others = [f.path for each in places if each != split for f in held[each]]
        table = find_table(root, inside, [file.path for file in files], split, others)
        rows = [table.rows.get(file.path, Row("")) if table else Row("") for file in files]
        listed[split] = [
            Entry(file, row.label or None, row.group) for file, row in zip(files, rows, strict=True)
        ]
        if table is None:
            if split == "train":
                return None
            continue
        listing.say(f"{root}: {table.path} says which image is of which class")
        if len(places) == 1:
            listed = _split(listing, listed["train"], [row.split for row in rows])
            if table.missing:
                listing.say(
                    f"{root}: {table.path} names {len(table.missing)} files that do not exist: "
                    f"{list_some(table.missing)}"
                )
        entries = listed[split]
        lacking = [entry.file.path for entry in entries if entry.name is None]
        if lacking and (split == "train" or len(lacking) < len(entries)):
            raise UserError(f"{root / table.path} says no class of {list_some(lacking)}")
    if not listed:
        return None
    every = [entry for entries in listed.values() for entry in entries]
    classes = {entry.name for entry in every if entry.name is not None}
    groups = sorted({entry.group for entry in every})
    if "" in groups and len(groups) > 1:
        raise UserError(f"{root}: the table says the groups of some images only")
    ordered = sorted(classes, key=int if all(map(str.isdecimal, classes)) else str)
    found = Listed(listed, ordered, groups if groups != [""] else ())
    return assemble_files(request, name_of(root), listing, found, own=True)


def _find_places(look: Listing) -> Mapping[str, str]:
    """From splits to the folders that hold images and no folders; `train` alone is to be split."""
    names = look.folders()
    if look.beside():
        return {} if any(map(look.images, names)) else {"train": ""}
    found = find_splits(names)
    for given in found.values():
        check_one(given, str(look.root))
    places = {split: given[0] for split, given in found.items()}
    if "train" not in places or len(places) < len(names):
        places = {"train": names[0]} if len(names) == 1 else {}
    flat = all(look.beside(inside) and not look.folders(inside) for inside in places.values())
    return places if flat else {}


def _split(listing: Listing, every: list[Entry], splits: list[str]) -> dict[str, list[Entry]]:
    """Images by the splits that the table says; all are `train` if it says none."""
    if not any(splits):
        return {"train": every}
    pairs = list(zip(every, splits, strict=True))
    lacking = [entry.file.path for entry, split in pairs if not split]
    if lacking:
        raise UserError(f"{listing.root}: the table says no split of {list_some(lacking)}")
    assigned, notes = assign_splits(dict.fromkeys(splits), str(listing.root))
    for note in notes:
        listing.say(note)
    return {
        split: [entry for entry, each in pairs if each == called]
        for split, called in assigned.items()
    }
