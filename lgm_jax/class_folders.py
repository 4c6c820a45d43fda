"""Which image of a folder is of which class, in the layouts that distillation programs write.

<class>/*.jpg              class: a name, a WordNet name, <label>_<name>, a number, new000
<class>.png                one image of each class
<class>_<number>.png       several, also class000_id000.jpg
<any>.png and labels.csv   the table says which is of which class
syn/<any of these>         any depth of folders that are alone in theirs
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from lgm_jax import label_tables
from lgm_jax.errors import UserError, list_some
from lgm_jax.names import looks, plain

if TYPE_CHECKING:
    from lgm_jax.data.listing import Listing

METADATA = "metadata.jsonl"
# The number before a class's name: `3_cat`, `003-cat`, `3 cat`, `003.cat`; of `0.5` it is none.
NUMBER_BEFORE = re.compile(r"^(\d+)(?:[ _-]|\. ?(?!\d))(?=.)")
NUMBERED = "<label>_<name> folders"
NUMBERS = "the numbers of its classes"

# Files that hold images but run code when they are read.
_PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".joblib"})
# What tells images of a class apart: `_3`, `-03`, `_id003`, ` (2)`.
_IMAGE_NUMBER = re.compile(r"(?:[ _-]+(?:id|img|image|ipc|copy)?[ _-]?\d+| ?\(\d+\))$")


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """Image files by class.

    Attributes:
        root: The folder that they are in.
        files: By class, in label order, paths below `root`.
        names: Of the classes.
        labelled_by: What gives the labels: `METADATA`, `NUMBERED` or `NUMBERS`; `None` if they are
            no more than the sorted order.
        notes: What was left out, a line each.
    """

    root: Path
    files: Sequence[Sequence[str]]
    names: Sequence[str]
    labelled_by: str | None
    notes: Sequence[str]


def find_classes(folder: Path) -> list[ClassFolders]:
    """The ways to read a folder, likeliest first: more than one only where files name the classes.

    Raises:
        UserError: If it holds no images, or metadata that contradict themselves.
    """
    # Reading data sets takes much to import, which loading a set of arrays does without.
    from lgm_jax.data.listing import Listing

    listing = Listing(folder)
    inside = _descend(listing)
    names = listing.folders(inside)
    groups = {name: listing.images(_join(inside, name)) for name in names}
    by_folder = {name: [file.path for file in files] for name, files in groups.items() if files}
    root = folder / inside
    listing.use(_join(inside, METADATA))
    if len(by_folder) > 1:
        every = [path for paths in by_folder.values() for path in paths]
        if numbers_of(list(by_folder)) is not None and not (root / METADATA).is_file():
            tabled = _by_table(listing, inside, every)
            if tabled is not None:
                return [tabled]
        return [_label(root, by_folder, inside, listing.notes())]
    files = _beside(listing, inside) or [file.path for file in listing.images(inside)]
    if not files:
        raise UserError(f"{folder} holds no distilled set: {_explain(root)}")
    described = _by_metadata(root, files, inside, listing) or _by_table(listing, inside, files)
    if described is not None:
        return [described]
    shorter: dict[str, list[str]] = {}
    whole: dict[str, list[str]] = {}
    for path in files:
        stem = Path(path).stem
        shorter.setdefault(_IMAGE_NUMBER.sub("", stem) or stem, []).append(path)
        whole.setdefault(stem, []).append(path)
    ways = [way for way in (shorter, whole) if len(way) > 1]
    if any(numbers_of(list(way)) is not None for way in ways):
        label_tables.refuse_others(folder, _above(inside))
    if not ways:
        raise UserError(f"{folder} has images of one class only, {files[0]} for example")
    distinct = ways[:1] if shorter.keys() == whole.keys() else ways
    return [_label(root, way, inside, listing.notes()) for way in distinct]


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The numbers that names are but for a beginning that all share (`new000`), all different."""
    matches = [re.fullmatch(r"(.*?)[ _-]*(\d+)", name) for name in names]
    beginnings = {match[1] for match in matches if match}
    numbers = [int(match[2]) for match in matches if match]
    if len(numbers) < len(names) or len(beginnings) > 1 or len(set(numbers)) < len(numbers):
        return None
    return numbers


def count_from(numbers: Sequence[int], classes: int) -> int | None:
    """Whether numbers count classes, each once, from 0 or from 1."""
    for first in (0, 1):
        if sorted(numbers) == list(range(first, first + classes)):
            return first
    return None


def read_metadata(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a `metadata.jsonl`, of which `label` and `class_name` are checked.

    Raises:
        UserError: If it cannot be read, or a line is not as it should be; the message names it.
    """
    try:
        # Not `splitlines`: JSON may have other line separators in its texts.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{path}, line {number}: no object with a file_name")
        label, name = entry.get("label"), entry.get("class_name")
        if type(label) not in (int, type(None)) or type(name) not in (str, type(None)):
            raise UserError(
                f"{path}, line {number}: label must be a whole number and class_name a text"
            )
        entries.append({**entry, "line": number})
    return entries


def _descend(listing: Listing) -> str:
    """The folder that holds classes, or images: below folders that are alone in theirs."""
    inside = ""
    while len(names := listing.folders(inside)) == 1:
        below = _join(inside, names[0])
        # What lies beside a folder of folders is a preview.
        if not listing.folders(below) and (_beside(listing, inside) or not listing.images(below)):
            break
        inside = below
    return inside


def _beside(listing: Listing, inside: str) -> list[str]:
    """The images that lie in a folder itself."""
    paths = [file.path for file in listing.images(inside)]
    return [path for path in paths if path.rpartition("/")[0] == inside]


def _label(
    root: Path, groups: Mapping[str, Sequence[str]], inside: str, notes: Sequence[str]
) -> ClassFolders:
    """Puts classes in the order of the labels that metadata, numbered names or numbers give."""
    names = sorted(groups)
    prefix = f"{inside}/" if inside else ""
    files = {name: sorted(path.removeprefix(prefix) for path in groups[name]) for name in names}
    metadata = epath.Path(root / METADATA)
    described = _describe(metadata, set(names)) if metadata.is_file() else {}
    pairs = [NUMBER_BEFORE.match(name) for name in names]
    shown = [NUMBER_BEFORE.sub("", name) for name in names]
    labels: list[int] | None
    by: str | None
    if any("label" in entry for entry in described.values()):
        labels, shown, by = [described.get(n, {}).get("label", -1) for n in names], names, METADATA
        if set(labels) != set(range(len(names))):
            raise UserError(
                f"{metadata} does not give the {len(names)} class folders the labels 0 to "
                f"{len(names) - 1}, one each"
            )
    elif count_from([int(match[1]) for match in pairs if match], len(names)) is not None:
        labels, by = [int(match[1]) for match in pairs if match], NUMBERED
    else:
        labels, shown = numbers_of(names), names
        by = NUMBERS if count_from(labels or (), len(names)) is not None else None
    order = sorted(range(len(names)), key=(labels or range(len(names))).__getitem__)
    called = [
        described.get(name, {}).get("class_name") or text
        for name, text in zip(names, shown, strict=True)
    ]
    return ClassFolders(
        root,
        [files[names[i]] for i in order],
        [plain(called[i]) for i in order],
        by,
        notes,
    )


def _by_metadata(
    root: Path, files: Sequence[str], inside: str, listing: Listing
) -> ClassFolders | None:
    """Files in no class folders, as metadata label each; `None` where none is labelled.

    Raises:
        UserError: If one is not, or labels do not count the classes from 0.
    """
    metadata = epath.Path(root / METADATA)
    own = [path.removeprefix(f"{inside}/" if inside else "") for path in files]
    entries = {e["file_name"]: e for e in read_metadata(metadata)} if metadata.is_file() else {}
    said = {
        path: (entry.get("label"), entry.get("class_name"))
        for path in own
        if (entry := entries.get(path)) and entry.keys() & {"label", "class_name"}
    }
    if not said:
        return None
    lacking = [path for path in own if path not in said]
    if lacking:
        raise UserError(f"{metadata} says no label of {list_some(lacking)}")
    numbered = all(label is not None for label, _ in said.values())
    classes = sorted(set(said.values()), key=lambda each: each if numbered else (0, each[1] or ""))
    labels = [label for label, _ in classes]
    if numbered and labels != list(range(len(classes))):
        raise UserError(
            f"{metadata} has labels {list_some(list(map(str, labels)))}: expected 0 to "
            f"{len(classes) - 1}, each with one class_name"
        )
    return ClassFolders(
        root,
        [[path for path in own if said[path] == each] for each in classes],
        [plain(name or label) for label, name in classes],
        METADATA if numbered else None,
        listing.notes(),
    )


def _by_table(listing: Listing, inside: str, files: Sequence[str]) -> ClassFolders | None:
    """Files as a table beside them labels each; `None` where there is no such table."""
    found = label_tables.find_labels(listing.root, _above(inside), files)
    if found is None:
        return None
    labels = {file: row.label for file, row in found.rows.items()}
    listing.use(found.path)
    listing.say(f"{listing.root}: {found.path} says which image is of which class")
    numbered = all(name.isdecimal() for name in labels.values())
    classes = sorted(set(labels.values()), key=int if numbered else str)
    prefix = f"{inside}/" if inside else ""
    return ClassFolders(
        listing.root / inside,
        [[path.removeprefix(prefix) for path in files if labels[path] == name] for name in classes],
        [plain(name) for name in classes],
        NUMBERS if numbered else None,
        listing.notes(),
    )


def _above(inside: str) -> list[str]:
    """The folders from the outermost to this one."""
    parts = inside.split("/") if inside else []
    return ["", *("/".join(parts[: i + 1]) for i in range(len(parts)))]


def _describe(path: epath.Path, names: set[str]) -> Mapping[str, Mapping[str, Any]]:
    """What metadata say of each class folder: `label` and `class_name`, if they do."""
    known = {looks(name): name for name in names}
    classes: dict[str, dict[str, Any]] = {}
    for entry in read_metadata(path):
        folder, slash, _ = entry["file_name"].partition("/")
        if not slash:
            continue
        folder = folder if folder in names else known.get(looks(folder), folder)
        said = {key: entry[key] for key in ("label", "class_name") if entry.get(key) is not None}
        if classes.setdefault(folder, said) != said:
            raise UserError(
                f"{path}, line {entry['line']}: {folder} has another label or class_name above"
            )
    return classes


def _explain(root: Path) -> str:
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in _PICKLES:
            return f"{path.name} is a pickle, which can run code; {SAVE_AS_ARRAYS}"
    return "expected distilled.npz or <class>/*.png"


SAVE_AS_ARRAYS = (
    "save its arrays instead: numpy.savez('images.npz', images=..., labels=...), images (n, h, w, "
    "3) in [0, 1] or 8 bits"
)


def _join(inside: str, name: str) -> str:
    return f"{inside}/{name}" if inside else name
