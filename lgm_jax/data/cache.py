"""Facts about data sets that are slow to compute, stored on this machine between runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from etils import epath

from lgm_jax import files


def folder() -> Path | None:
    """`$XDG_CACHE_HOME/lgm_jax`, by default `~/.cache/lgm_jax`; `None` if no home is known.

    It may be deleted at any time.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lgm_jax"
    except RuntimeError:
        # As in a container of a user whom the system does not know.
        return None


def compiled() -> Path | None:
    """Returns the folder for compiled programs; `None`, with a note, if nothing can be stored."""
    kept = folder()
    reason = "no home folder is known"
    if kept is not None:
        kept = kept / "compiled"
        reason = f"{kept} cannot be written to"
        try:
            kept.mkdir(parents=True, exist_ok=True)
            if os.access(kept, os.W_OK):
                return kept
        except OSError as error:
            reason = f"{kept}: {error.strerror}"
    said = f"note: programs are compiled anew at every start ({reason}): set XDG_CACHE_HOME"
    print(said, flush=True)
    return None


def remember(kind: str, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns an array from the cache, or computes it and stores it there.

    `key` is the fingerprint of everything that it depends on; the file's name begins with `kind`.
    """
    kept = folder()
    if kept is None:
        return compute()
    path = kept / f"{kind}_{key}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        # Not there, or cut short by a crash, to nothing even.
        value = compute()
    # A machine without a writable home finds it out again next time.
    with (
        contextlib.suppress(OSError),
        files.replacing(epath.Path(path), shared=True) as temporary,
        temporary.open("wb") as file,
    ):
        np.save(file, value)
    return value
