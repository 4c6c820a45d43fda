"""Tables as any program saves them: CSV with commas, semicolons or tabs, and lines of JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from etils import epath

from lgm_jax.data import formats, listing
from lgm_jax.data.labels import is_called_label
from lgm_jax.data.split_names import splits_within
from lgm_jax.errors import UserError

_SUFFIXES = (".csv", ".tsv", ".jsonl")
# Names of columns of files, the likelier first.
_FILES = (
    *("file_name", "filename", "file", "image", "image_name", "image_id", "image_path", "path"),
    *("img", "img_filename", "id"),
)
# Names of columns of class names; of labels, `labels.is_called_label` knows.
_NAMES = ("class_name", "class name", "classname", "label_name", "category_name", "species")
# Names of columns of groups and of splits.
_GROUPS = ("group", "groups", "group_name")
_SPLITS = ("split", "subset", "partition", "set", "fold")
# What files that label images are called, of whatever kind they are.
_LABELS = re.compile(r"(?:^|[\W_])(?:labels?|metadata|annotations?|targets?|truth)(?:$|[\W_])")
# Kaggle's tables of answers that are yet to be given: sample_submission, whose labels are made up.
_ANSWERS = "submission"
_WRITE = "a labels.csv with the columns file_name and label"
_APART = "say which, as in train/1.jpg, or give each folder a table of its own"


class Row(NamedTuple):
    """A table's cells on an image; "" where it has none."""

    label: str
    group: str = ""
    split: str = ""


class LabelTable(NamedTuple):
    """A table: its path below the root, rows by image, and files that it names and do not exist."""

    path: str
    rows: Mapping[str, Row]
    missing: Sequence[str]


def find_table(
    root: Path, inside: str, files: Sequence[str], split: str = "", others: Sequence[str] = ()
) -> LabelTable | None:
    """Returns the table that names images, `files` of a folder; `None` if none does.

    It lies in `inside`, the folder of the images, or above it, up to `root`. Above, names that
    `others`, the images of other splits, have too are those of the split that it is called after.
    """
    own, theirs = (_names_of(each, _up_to(inside)) for each in (files, others))
    found = []
    for path in _others(root, inside):
        known, called = own, splits_within(path.stem)
        if split not in called and path.parent != root / inside:
            apart = {way: file for way, file in own.items() if way not in theirs}
            known = apart if called else dict.fromkeys(own, "") | apart
        if path.suffix.lower() in _SUFFIXES and _ANSWERS not in path.stem.lower():
            rows, missing = _read_labels(path, known)
            if rows:
                found.append(LabelTable(path.relative_to(root).as_posix(), rows, missing))
    if len(found) > 1:
        both = " and ".join(table.path for table in found)
        raise UserError(f"{root}: both {both} name the images: keep one of them")
    return found[0] if found else None


def refuse_others(root: Path, inside: str) -> None:
    """Refuses to number images by their files' names beside a file that may say otherwise."""
    for path in _others(root, inside):
        if _LABELS.search(path.stem.lower()):
            raise UserError(
                f"{path} may say which image is of which class, but is not read: write {_WRITE}, "
                "put the images of each class into a folder of its own, or move it away"
            )


def read_rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table that are not empty, with their lines.

    Cells are without spaces around, by the names of columns in lower case; "" where a row has none,
    or a list. Under "" is what a row has behind its columns; columns without a name are left out.
    """
    found: list[tuple[int, dict[Any, Any]]]
    if table.suffix.lower() == ".jsonl":
        found = [*read_objects(table)]
        names = dict.fromkeys(name for _, row in found for name in row)
        found = [(line, names | row) for line, row in found]
    else:
        text = read_text(table).lstrip("\r\n")
        head = text.partition("\n")[0]
        reader = csv.DictReader(
            io.StringIO(text, newline=""), restval="", delimiter=max(",;\t", key=head.count)
        )
        try:
            heads = [name for each in reader.fieldnames or () if (name := _text(each).lower())]
            if twice := [name for name in dict.fromkeys(heads) if heads.count(name) > 1]:
                raise UserError(f"{table} has two columns {twice[0]!r}: keep one of them")
            found = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise UserError(f"{table}, line {reader.line_num}: {error}") from error
    rows = []
    for line, row in found:
        behind = "".join(map(_text, row.pop(None, ())))
        cells = {_text(name).lower(): _text(cell) for name, cell in row.items()}
        rows.append((line, cells | {"": behind}))
    # Programs write rows of separators alone below a table.
    return [(line, row) for line, row in rows if any(row.values())]


def read_objects(table: Path | epath.Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of lines of JSON, with their lines."""
    objects = []
    # Not `splitlines`: JSON may have other line separators in its texts.
    for line, source in enumerate(read_text(table).split("\n"), 1):
        if source.strip():
            try:
                stored = json.loads(source)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{table}, line {line}: not JSON: {error}") from error
            if not isinstance(stored, dict):
                raise UserError(f"{table}, line {line}: no JSON object")
            objects.append((line, stored))
    return objects


def read_text(path: Path | epath.Path) -> str:
    """The text of a file in UTF-8, without a byte order mark."""
    try:
        content = path.read_bytes()
        if reason := formats.explain(content):
            raise UserError(f"cannot read {path}: {reason}")
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: save it in UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def whole(text: str) -> str:
    """A cell, where programs have made `1.0` of 1, since other cells are missing."""
    number, point, zeros = text.partition(".")
    return number if point and number.isdecimal() and not zeros.strip("0") else text


def _up_to(inside: str) -> list[str]:
    """The folders from the outermost, "", to this one."""
    parts = inside.split("/") if inside else []
    return ["/".join(parts[:i]) for i in range(len(parts) + 1)]


def _others(root: Path, inside: str) -> list[Path]:
    """The files in these folders that are no images and were not left behind."""
    return [
        path
        for folder in _up_to(inside)
        for path in sorted((root / folder).iterdir())
        if path.is_file() and not formats.is_image(path) and not listing.is_left_behind(path.name)
    ]


def _names_of(files: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """Paths of images by the names that a table may use: with or without folders and suffix."""
    called: dict[str, set[str]] = {}
    for file in files:
        inside = {file.removeprefix(f"{folder}/") for folder in folders}
        for way in {file, PurePosixPath(file).name, *inside}:
            called.setdefault(way, set()).add(file)
    one = {way: paths.pop() for way, paths in called.items() if len(paths) == 1}
    return {str(PurePosixPath(way).with_suffix("")): file for way, file in one.items()} | one


def _read_labels(table: Path, known: dict[str, str]) -> tuple[dict[str, Row], list[str]]:
    """The rows of a table by image, and files that do not exist; both may be empty.

    `known` has images by their names, "" for a name that an image of another split has, too.
    """
    try:
        rows = read_rows(table)
    except UserError:
        # A log in another encoding is nobody's concern.
        if _LABELS.search(table.stem.lower()):
            raise
        return {}, []
    head = list(rows[0][1]) if rows else []
    # Of several such columns, that which names most images; numbers may be those of anything.
    hits = {
        name: sum(_path(row[name]) in known for _, row in rows) for name in _FILES if name in head
    }
    files = max(hits, key=hits.__getitem__, default="")
    if not hits.get(files):
        return {}, []
    group, split = (
        next((name for name in names if name in head), "") for names in (_GROUPS, _SPLITS)
    )
    others = [name for name in head if name and name not in (files, group, split)]
    named = [name for name in others if name in _NAMES]
    called = [name for name in others if is_called_label(name)]
    label = next((found[0] for found in (named, called, others) if len(found) == 1), None)
    for column in called if len(named) == 1 else ():
        # One name of two labels: they are two classes, or labels of something else.
        pairs = {(row[named[0]], row[column]) for _, row in rows if row[column]}
        if len({name for name, _ in pairs}) < len(pairs):
            label = None
    if label is None:
        raise UserError(
            f"{table} names the images, but which column has their classes is ambiguous: write "
            f"{_WRITE}"
        )
    labelled: dict[str, Row] = {}
    missing = []
    for line, cells in rows:
        where, file = f"{table}, line {line}", known.get(_path(cells[files]))
        if file == "":
            raise UserError(
                f"{where}: images of several splits are called {cells[files]}: {_APART}"
            )
        if file and cells[""]:
            raise UserError(
                f"{where}: more cells than columns: put text that has a comma in quotes"
            )
        row = Row(*(whole(cells.get(name, "")) for name in (label, group, split)))
        if file is None:
            missing.append(cells[files])
        elif labelled.setdefault(file, row) != row:
            raise UserError(f"{where}: {file} has another class above")
    return labelled, missing


def _path(cell: str) -> str:
    return cell.replace("\\", "/").removeprefix("./")


def _text(cell: object) -> str:
    return "" if cell is None or isinstance(cell, list | dict) else str(cell).strip()
