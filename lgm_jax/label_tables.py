"""Tables beside images that say which image is of which class, as many programs write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lgm_jax.errors import UserError, list_some

_SUFFIXES = (".csv", ".tsv")
# Names of columns of files, where these are without suffix.
_FILES = (
    *("file_name", "filename", "file", "image", "image_name", "image_id", "image_path", "path"),
    *("img", "img_filename", "id"),
)
# Names of columns of class names; of labels, `data.labels.is_called_label` knows.
_NAMES = ("class_name", "class name", "classname", "label_name", "category_name", "species")
# Names of columns of splits and of groups.
_SPLITS = ("split", "subset", "partition", "set", "fold")
_GROUPS = ("group", "groups", "group_name")
# What files that label images are called, of whatever kind they are.
_LABELS = re.compile(r"(?:^|[\W_])(?:labels?|metadata|annotations?|targets?|truth)(?:$|[\W_])")
_WRITE = "a labels.csv with the columns file_name and label"


class Row(NamedTuple):
    """What a table says of an image; "" where it says nothing."""

    label: str
    group: str = ""
    split: str = ""


class LabelTable(NamedTuple):
    """A table of images.

    Attributes:
        path: The table, below the root.
        rows: By image, what the table says of it.
        missing: Files that the table names and that are not there.
    """

    path: str
    rows: Mapping[str, Row]
    missing: Sequence[str]


def find_labels(root: Path, folders: Sequence[str], files: Sequence[str]) -> LabelTable | None:
    """The table that labels all images, if there is one; see `find_table`.

    Raises:
        UserError: Likewise, or if it does not label all images.
    """
    found = find_table(root, folders, files)
    if found is None:
        return None
    lacking = [file for file in files if file not in found.rows or not found.rows[file].label]
    if lacking:
        raise UserError(f"{root / found.path} says no class of {list_some(lacking)}")
    return found


def find_table(
    root: Path, folders: Sequence[str], files: Sequence[str], suffixes: Sequence[str] = _SUFFIXES
) -> LabelTable | None:
    """The table that names images, if there is one.

    Args:
        root: The folder that everything lies in.
        folders: Where a table may lie, below `root`; the innermost holds the images.
        files: The images, below `root`.
        suffixes: Of tables.

    Returns:
        The table; `None` if none names an image.

    Raises:
        UserError: If it cannot be told what it says, or several name the images.
    """
    known = _names_of(files, folders)
    found = []
    for path in _beside(root, folders):
        if path.suffix.lower() in suffixes:
            rows, missing = _read(path, known)
            if rows:
                found.append(LabelTable(path.relative_to(root).as_posix(), rows, missing))
    if len(found) > 1:
        tables = " and ".join(table.path for table in found)
        raise UserError(f"{root}: both {tables} name the images: keep one of them")
    return found[0] if found else None


def refuse_others(root: Path, folders: Sequence[str]) -> None:
    """Refuses to number images by their files' names beside a file that may say otherwise.

    Raises:
        UserError: If there is one, by its name.
    """
    for path in _beside(root, folders):
        if _LABELS.search(path.stem.lower()):
            raise UserError(
                f"{path} may say which image is of which class, but is not read: write {_WRITE}, "
                "put the images of each class into a folder of its own, or move it away"
            )


def _beside(root: Path, folders: Sequence[str]) -> list[Path]:
    """The files in these folders that are no images and were not left behind."""
    from lgm_jax.data import formats, listing

    return [
        path
        for folder in dict.fromkeys(folders)
        for path in sorted((root / folder).iterdir())
        if path.is_file() and not formats.is_image(path) and not listing.is_left_behind(path.name)
    ]


def _names_of(files: Sequence[str], folders: Sequence[str]) -> Mapping[str, str]:
    """From what a table may call an image to its path: with or without the folders."""
    called: dict[str, set[str]] = {}
    for file in files:
        inside = {file.removeprefix(f"{folder}/") for folder in folders}
        for way in {file, PurePosixPath(file).name, *inside}:
            called.setdefault(way, set()).add(file)
    return {way: paths.pop() for way, paths in called.items() if len(paths) == 1}


def _read(table: Path, known: Mapping[str, str]) -> tuple[dict[str, Row], list[str]]:
    """From images to what a table says of them, nothing if it names none; and files not there.

    Raises:
        UserError: If it cannot be told which column has the classes, or it says two of an image.
    """
    from lgm_jax.data import tables

    try:
        rows = list(tables.read_rows(table))
    except UserError:
        # A log in another encoding is nobody's concern.
        if _LABELS.search(table.stem.lower()):
            raise
        return {}, []
    width = max((len(cells) for _, cells in rows), default=0)
    cells = [[*row, *[""] * (width - len(row))] for _, row in rows]
    head = [cell.lower() for cell in cells[0]] if cells else []
    hits = [sum(_plain(row[i]) in known for row in cells) for i in range(width)]
    if not any(hits):
        # Numbers of images may be those of anything, unless the columns say what they are.
        files = next((i for i in range(width) if head[i] in _FILES), None)
        known = {str(PurePosixPath(way).with_suffix("")): file for way, file in known.items()}
        if files is None or not any(_plain(row[files]) in known for row in cells[1:]):
            return {}, []
    else:
        files = hits.index(max(hits))
        head = [] if _plain(cells[0][files]) in known else head
    columns = _find_columns(head, files, width, table)
    said: dict[str, Row] = {}
    missing = []
    for (line, _), row in list(zip(rows, cells, strict=True))[1 if head else 0 :]:
        file = known.get(_plain(row[files]))
        told = Row(*("" if column is None else tables.whole(row[column]) for column in columns))
        if file is None:
            missing.append(row[files])
        elif said.setdefault(file, told) != told:
            raise UserError(f"{table}, line {line}: {file} has another class above")
    return said, missing


def _find_columns(
    head: Sequence[str], files: int, width: int, table: Path
) -> tuple[int, int | None, int | None]:
    """The columns of classes, groups and splits."""
    from lgm_jax.data.labels import is_called_label

    group, split = (
        next((i for i in range(width) if i != files and head and head[i] in names), None)
        for names in (_GROUPS, _SPLITS)
    )
    others = [i for i in range(width) if i not in (files, group, split)]
    named = [i for i in others if head and head[i] in _NAMES]
    called = [i for i in others if head and is_called_label(head[i])]
    for found in (named, called, others):
        if len(found) == 1:
            return found[0], group, split
    raise UserError(
        f"{table} names the images, but it cannot be told which column has their classes: write "
        f"{_WRITE}"
    )


def _plain(cell: str) -> str:
    return cell.replace("\\", "/").removeprefix("./")
