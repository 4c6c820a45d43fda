"""Tables as any program saves them: CSV with commas, semicolons or tabs, and lines of JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from lgm_jax.data import formats
from lgm_jax.errors import UserError


def read_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not empty, with their lines; cells without spaces around.

    Of lines of JSON, the first row has the names of columns.

    Raises:
        UserError: If it is no text, or a line is no object of JSON.
    """
    text = read_text(table)
    if table.suffix.lower() == ".jsonl":
        yield from _read_objects(table, text)
        return
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        for row in reader:
            # Programs write rows of separators alone below a table.
            if any(row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: {error}") from error


def _read_objects(table: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    objects = []
    # Not `splitlines`: JSON may have other line separators in its texts.
    for line, source in enumerate(text.split("\n"), 1):
        if source.strip():
            try:
                stored = json.loads(source)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{table}, line {line}: not JSON: {error}") from error
            if not isinstance(stored, dict):
                raise UserError(f"{table}, line {line}: no JSON object")
            objects.append((line, stored))
    names = list(dict.fromkeys(name for _, stored in objects for name in stored))
    if names:
        yield 0, names
    for line, stored in objects:
        cells = (stored.get(name) for name in names)
        yield line, ["" if cell is None else str(cell).strip() for cell in cells]


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        UserError: If it is no text.
    """
    try:
        if reason := formats.explain_file(path):
            raise UserError(f"cannot read {path}: {reason}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: save it in UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def whole(text: str) -> str:
    """A cell, without what programs write behind whole numbers where others are missing: `1.0`."""
    number, point, zeros = text.partition(".")
    return number if point and number.isdecimal() and not zeros.strip("0") else text
