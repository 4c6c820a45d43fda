"""Files of trained heads, so that they are trained once."""

from __future__ import annotations

import io
import secrets
import zipfile
from collections.abc import Callable

import numpy as np
from etils import epath

from lgm_jax import hosts
from lgm_jax.errors import UserError, naming
from lgm_jax.solvers import Trained


def kept(path: epath.Path, train: Callable[[], Trained]) -> Trained:
    """Returns the heads of a file; trains and writes them if it is missing or damaged.

    Of several processes, all are to call it: they train together, and each writes, for the folder
    may be one of its machine alone.

    Args:
        path: The file, `.npz`, whose name tells what the heads depend on.

    Raises:
        UserError: If the file cannot be written, or if process 0 has it and this one does not.
    """
    found = _read(path)
    if hosts.first_says(found is not None):
        if found is None:
            raise UserError(f"process {hosts.index()} cannot read {path}, which process 0 can")
        return found
    trained = train()
    _write(path, trained)
    return trained


def _read(path: epath.Path) -> Trained | None:
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            heads = {name: arrays[name] for name in ("kernel", "bias")}
            return Trained(heads, arrays.get("losses"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        print(f"note: {path} is damaged; its heads are trained again", flush=True)
        return None


def _write(path: epath.Path, trained: Trained) -> None:
    losses = {} if trained.losses is None else {"losses": trained.losses}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **trained.heads, **losses)
    # Runs that share a folder may write the same heads at once.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)
