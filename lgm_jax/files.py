"""JSON and text files that are replaced at once."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from lgm_jax.errors import UserError, naming


def read_json(path: epath.Path) -> Any | None:
    """Reads a JSON object; returns `None` if the file does not exist.

    Raises:
        UserError: If the file cannot be read, or holds no JSON object.
    """
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return value


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file such that a reader sees the old content or the new, never a part.

    Lists of numbers are written on one line.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False)
    # No string has a line break within.
    text = re.sub(r"\[\n([^\[\]{}\"]+)\n *\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    with replacing(path) as temporary:
        write_text(temporary, text + "\n")


def write_text(path: Path | epath.Path, text: str) -> None:
    """Writes UTF-8, with escapes as in JSON for surrogates, as names of files may have."""
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[epath.Path]:
    """Yields a temporary file that replaces `path` once it is written without an error."""
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        yield temporary
        temporary.replace(path)
