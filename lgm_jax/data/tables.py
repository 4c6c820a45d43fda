"""Tables as any program saves them: CSV with commas, semicolons or tabs, with or without a mark."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from lgm_jax.data import formats
from lgm_jax.errors import UserError


def read_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not empty, with their lines; cells without spaces around.

    Raises:
        UserError: If it is no text.
    """
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
