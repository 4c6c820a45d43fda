"""Files that are replaced at once: JSON, text, and arrays."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lgm_jax import schema
from lgm_jax.errors import UserError, explain, naming


def read_json(path: epath.Path, form: schema.Form = dict) -> Any | None:
    """Reads a JSON object; returns `None` if the file does not exist.

    Args:
        form: What it must be; see `schema.Form`.

    Raises:
        UserError: If the file cannot be read, or holds something else.
    """
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return check(path, value, form)


def check(path: epath.Path, value: Any, form: schema.Form) -> Any:
    """Returns the content of a JSON file; raises a `UserError` if it has another form."""
    fault = schema.find_fault(value, form)
    if fault is not None:
        raise UserError(f"{path} is damaged: {fault}")
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


def read_arrays(path: epath.Path, advice: str = "") -> dict[str, np.ndarray]:
    """Reads an `.npz` file; nothing is unpickled."""
    # A broken archive makes zipfile, zlib and NumPy raise almost anything.
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:
        reason = f"{advice} ({explain(error)})" if advice else explain(error)
        raise UserError(f"{path} is damaged: {reason}") from error


def write_arrays(
    path: epath.Path,
    arrays: Mapping[str, Any],
    *,
    compressed: bool = False,
    shared: bool = False,
) -> None:
    """Writes an `.npz` file as `write_json` does; `shared` as for `replacing`."""
    save = np.savez_compressed if compressed else np.savez
    with replacing(path, shared=shared) as temporary, temporary.open("wb") as file:
        save(file, allow_pickle=False, **arrays)


@contextlib.contextmanager
def replacing(path: epath.Path, *, shared: bool = False) -> Iterator[epath.Path]:
    """Yields a temporary file that replaces `path`, once written; creates the folder if need be.

    Args:
        shared: Whether other runs may write the same file at once: each its own temporary one,
            which does not stay after an error, since on a full disk each would leave some more.
    """
    mark = f".{secrets.token_hex(8)}" if shared else ""
    temporary = path.with_name(f"{path.name}{mark}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        except OSError:
            if shared:
                temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
