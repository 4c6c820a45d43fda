"""Tables as any program saves them: CSV with commas, semicolons or tabs, and lines of JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from etils import epath

from lgm_jax.data import formats, listing
from lgm_jax.data.labels import is_called_label
from lgm_jax.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")
# Names of columns of files, where these are without suffix.
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
_WRITE = "a labels.csv with the columns file_name and label"


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
    root: Path, folders: Sequence[str], files: Sequence[str], suffixes: Sequence[str] = SUFFIXES
) -> LabelTable | None:
    """Returns the table in one of some folders below `root` that names images; `None` if none does.

    The innermost of `folders` holds the images, `files`.
    """
    known = _names_of(files, folders)
    found = []
    for path in _others(root, folders):
        if path.suffix.lower() in suffixes:
            rows, missing = _read_labels(path, known)
            if rows:
                found.append(LabelTable(path.relative_to(root).as_posix(), rows, missing))
    if len(found) > 1:
        both = " and ".join(table.path for table in found)
        raise UserError(f"{root}: both {both} name the images: keep one of them")
    return found[0] if found else None


def refuse_others(root: Path, folders: Sequence[str]) -> None:
    """Refuses to number images by their files' names beside a file that may say otherwise."""
    for path in _others(root, folders):
        if _LABELS.search(path.stem.lower()):
            raise UserError(
                f"{path} may say which image is of which class, but is not read: write {_WRITE}, "
                "put the images of each class into a folder of its own, or move it away"
            )


def read_columns(
    table: Path, columns: Sequence[str], expected: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows of a table with their lines, by names of columns; missing cells are empty."""
    if not table.is_file():
        raise UserError(f"{table.parent} has no {table.name}: expected {expected}")
    rows = read_rows(table)
    names = [name.lower() for name in next(rows, (0, []))[1]]
    lacking = sorted(set(columns) - set(names))
    if lacking:
        raise UserError(f"{table} has no column {lacking[0]}: expected {expected}")
    for line, cells in rows:
        row = dict(zip(names, cells, strict=False))
        yield line, {name: row.get(name, "") for name in columns}


def read_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not empty, with their lines; cells without spaces around.

    Of lines of JSON, the first row has the names of columns.
    """
    if table.suffix.lower() == ".jsonl":
        objects = read_objects(table)
        names = list(dict.fromkeys(name for _, stored in objects for name in stored))
        yield from [(0, names)] if names else []
        for line, stored in objects:
            cells = (stored.get(name) for name in names)
            yield line, ["" if cell is None else str(cell).strip() for cell in cells]
        return
    text = read_text(table)
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        for row in reader:
            # Programs write rows of separators alone below a table.
            if any(row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: {error}") from error


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


def _others(root: Path, folders: Sequence[str]) -> list[Path]:
    """The files in these folders that are no images and were not left behind."""
    return [
        path
        for folder in dict.fromkeys(folders)
        for path in sorted((root / folder).iterdir())
        if path.is_file() and not formats.is_image(path) and not listing.is_left_behind(path.name)
    ]


def _names_of(files: Sequence[str], folders: Sequence[str]) -> Mapping[str, str]:
    """Paths of images by the names that a table may use: with or without the folders."""
    called: dict[str, set[str]] = {}
    for file in files:
        inside = {file.removeprefix(f"{folder}/") for folder in folders}
        for way in {file, PurePosixPath(file).name, *inside}:
            called.setdefault(way, set()).add(file)
    return {way: paths.pop() for way, paths in called.items() if len(paths) == 1}


def _read_labels(table: Path, known: Mapping[str, str]) -> tuple[dict[str, Row], list[str]]:
    """The rows of a table by image, and files that do not exist; both may be empty."""
    try:
        rows = list(read_rows(table))
    except UserError:
        # A log in another encoding is nobody's concern.
        if _LABELS.search(table.stem.lower()):
            raise
        return {}, []
    columns = list(itertools.zip_longest(*(cells for _, cells in rows), fillvalue=""))
    head = [column[0].lower() for column in columns]
    hits = [sum(_path(cell) in known for cell in column) for column in columns]
    files = hits.index(max(hits)) if any(hits) else None
    if files is None:
        # Numbers of images may be those of anything, unless the columns say what they are.
        files = next((i for i, name in enumerate(head) if name in _FILES), None)
        known = {str(PurePosixPath(way).with_suffix("")): file for way, file in known.items()}
        if files is None or not any(_path(cell) in known for cell in columns[files][1:]):
            return {}, []
    elif _path(columns[files][0]) in known:
        head = [""] * len(head)
    used = _find_columns(head, files, table)
    labelled: dict[str, Row] = {}
    missing = []
    for number in range(1 if any(head) else 0, len(rows)):
        name = columns[files][number]
        file = known.get(_path(name))
        row = Row(*("" if i is None else whole(columns[i][number]) for i in used))
        if file is None:
            missing.append(name)
        elif labelled.setdefault(file, row) != row:
            raise UserError(f"{table}, line {rows[number][0]}: {file} has another class above")
    return labelled, missing


def _find_columns(head: Sequence[str], files: int, table: Path) -> tuple[int | None, ...]:
    """The columns of classes, groups and splits; `files` has the images."""
    others = [i for i in range(len(head)) if i != files]
    group, split = (
        next((i for i in others if head[i] in names), None) for names in (_GROUPS, _SPLITS)
    )
    others = [i for i in others if i not in (group, split)]
    named = [i for i in others if head[i] in _NAMES]
    called = [i for i in others if is_called_label(head[i])]
    for found in (named, called, others):
        if len(found) == 1:
            return found[0], group, split
    raise UserError(
        f"{table} names the images, but which column has their classes is ambiguous: write {_WRITE}"
    )


def _path(cell: str) -> str:
    return cell.replace("\\", "/").removeprefix("./")
