"""Classes of the images in a folder, in the layouts that distillation programs write.

<class>/*.jpg              class: a name, a WordNet name, <label>_<name>, a number, new000
<class>.png                one image of each class
<class>_<number>.png       several, also class000_id000.jpg
<any>.png and labels.csv   the table says which is of which class
syn/<any of these>         any depth of folders that are alone in theirs
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lgm_jax.data import tables
from lgm_jax.data.listing import Listing, below
from lgm_jax.distilled import METADATA
from lgm_jax.errors import UserError, list_some
from lgm_jax.names import looks, plain

# The number before a class's name: `3_cat`, `003-cat`, `3 cat`, `003.cat`; of `0.5` it is none.
NUMBER_BEFORE = re.compile(r"^(\d+)(?:[ _-]|\. ?(?!\d))(?=.)")
NUMBERED = "<label>_<name> folders"
NUMBERS = "the numbers of its classes"
SAVE_AS_ARRAYS = (
    "save its arrays instead: numpy.savez('images.npz', images=..., labels=...), images (n, h, w, "
    "3) in [0, 1] or 8 bits"
)

# Files that hold images but run code when they are read.
_PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".joblib"})
# What tells images of a class apart: `_3`, `-03`, `_id003`, ` (2)`.
_IMAGE_NUMBER = re.compile(r"(?:[ _-]+(?:id|img|image|ipc|copy)?[ _-]?\d+| ?\(\d+\))$")


class ClassFolders(NamedTuple):
    """Image files by class.

    Attributes:
        files: By class, in label order, paths below `root`.
        labelled_by: The source of the labels: `METADATA`, `NUMBERED` or `NUMBERS`; `None` if they
            are no more than the sorted order.
        notes: What was left out, a line each.
    """

    root: Path
    files: Sequence[Sequence[str]]
    names: Sequence[str]
    labelled_by: str | None
    notes: Sequence[str]


def find_classes(folder: Path) -> list[ClassFolders]:
    """Returns ways to read a folder, likeliest first: several only where files name the classes."""
    listing = Listing(folder)
    inside = _descend(listing)
    metadata = folder / inside / METADATA
    listing.use(below(inside, METADATA))
    groups = {
        name: [file.path for file in images]
        for name in listing.folders(inside)
        if (images := listing.images(below(inside, name)))
    }
    if len(groups) > 1:
        every = [path for paths in groups.values() for path in paths]
        numbered = numbers_of(list(groups)) is not None and not metadata.is_file()
        tabled = _by_table(listing, inside, every) if numbered else None
        return [tabled or _by_name(listing, inside, groups)]
    files = [file.path for file in listing.beside(inside) or listing.images(inside)]
    if not files:
        held = sorted((folder / inside).rglob("*"))
        pickles = [file.name for file in held if file.suffix.lower() in _PICKLES]
        reason = "expected distilled.npz or <class>/*.png"
        if pickles:
            reason = f"{pickles[0]} is a pickle, which can run code; {SAVE_AS_ARRAYS}"
        raise UserError(f"{folder} holds no distilled set: {reason}")
    if tabled := _by_table(listing, inside, files):
        return [tabled]
    shorter: dict[str, list[str]] = {}
    whole: dict[str, list[str]] = {}
    for path in files:
        stem = Path(path).stem
        shorter.setdefault(_IMAGE_NUMBER.sub("", stem) or stem, []).append(path)
        whole.setdefault(stem, []).append(path)
    ways = [way for way in (shorter, whole) if len(way) > 1]
    if any(numbers_of(list(way)) is not None for way in ways):
        tables.refuse_others(folder, inside)
    if not ways:
        raise UserError(f"{folder} has images of one class only, {files[0]} for example")
    distinct = ways[:1] if shorter.keys() == whole.keys() else ways
    return [_by_name(listing, inside, way) for way in distinct]


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The numbers that names are but for a beginning that all share (`new000`), all different."""
    matches = [re.fullmatch(r"(.*?)[ _-]*(\d+)", name) for name in names]
    beginnings = {match[1] for match in matches if match}
    numbers = [int(match[2]) for match in matches if match]
    return numbers if len(beginnings) == 1 and len(set(numbers)) == len(names) else None


def count_from(numbers: Sequence[int], classes: int) -> int | None:
    """Returns 0 or 1 where numbers count classes from there, each once; else `None`."""
    for first in (0, 1):
        if sorted(numbers) == list(range(first, first + classes)):
            return first
    return None


def _descend(listing: Listing) -> str:
    """The folder that holds classes, or images: below folders that are alone in theirs."""
    inside = ""
    while len(names := listing.folders(inside)) == 1:
        lower = below(inside, names[0])
        # What lies beside a folder of folders is a preview.
        if not listing.folders(lower) and (listing.beside(inside) or not listing.images(lower)):
            break
        inside = lower
    return inside


def _by_name(listing: Listing, inside: str, groups: Mapping[str, Sequence[str]]) -> ClassFolders:
    """Classes in the order of labels from metadata, numbered names or numbers."""
    names = sorted(groups)
    metadata = listing.root / inside / METADATA
    described = _describe(metadata, names) if metadata.is_file() else {}
    pairs = [NUMBER_BEFORE.match(name) for name in names]
    before = [int(match[1]) for match in pairs if match]
    shown, by = names, None
    labels: Sequence[int] = range(len(names))
    if any("label" in entry for entry in described.values()):
        labels, by = [described.get(name, {}).get("label", -1) for name in names], METADATA
        if set(labels) != set(range(len(names))):
            raise UserError(
                f"{metadata} does not give the {len(names)} class folders the labels 0 to "
                f"{len(names) - 1}, one each"
            )
    elif count_from(before, len(names)) is not None:
        labels, by = before, NUMBERED
        shown = [NUMBER_BEFORE.sub("", name) for name in names]
    elif numbers := numbers_of(names):
        labels, by = numbers, NUMBERS if count_from(numbers, len(names)) is not None else None
    order = sorted(range(len(names)), key=labels.__getitem__)
    called = [described.get(names[i], {}).get("class_name") or shown[i] for i in order]
    files = [sorted(groups[names[i]]) for i in order]
    return _found(listing, files, called, by)


def _by_table(listing: Listing, inside: str, files: Sequence[str]) -> ClassFolders | None:
    """Classes of files from a table beside them, or above; `None` without one."""
    table = tables.find_table(listing.root, inside, files)
    if table is None:
        return None
    labels = {file: row.label for file, row in table.rows.items() if row.label}
    if lacking := [file for file in files if file not in labels]:
        raise UserError(f"{listing.root / table.path} says no class of {list_some(lacking)}")
    listing.use(table.path)
    listing.say(f"{listing.root}: {table.path} says which image is of which class")
    numbered = all(map(str.isdecimal, labels.values()))
    names = sorted({labels[file] for file in files}, key=int if numbered else str)
    by_class = [[file for file in files if labels[file] == name] for name in names]
    return _found(listing, by_class, names, NUMBERS if numbered else None)


def _found(
    listing: Listing, files: Sequence[Sequence[str]], names: Sequence[str], by: str | None
) -> ClassFolders:
    return ClassFolders(listing.root, files, list(map(plain, names)), by, listing.notes())


def _describe(path: Path, names: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """Labels and class names of class folders that metadata has: `label` and `class_name`."""
    known = {looks(name): name for name in names} | {name: name for name in names}
    classes: dict[str, dict[str, Any]] = {}
    for line, entry in tables.read_objects(path):
        where = f"{path}, line {line}"
        if not isinstance(entry.get("file_name"), str):
            raise UserError(f"{where}: no object with a file_name")
        facts = {key: entry[key] for key in ("label", "class_name") if entry.get(key) is not None}
        if type(facts.get("label", 0)) is not int or type(facts.get("class_name", "")) is not str:
            raise UserError(f"{where}: label must be a whole number and class_name a text")
        name, slash, _ = entry["file_name"].partition("/")
        folder = known.get(name) or known.get(looks(name), name)
        if slash and classes.setdefault(folder, facts) != facts:
            raise UserError(f"{where}: {folder} has another label or class_name above")
    return classes
