"""What is slow to find out about a data set, remembered on this machine between runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


def folder() -> Path:
    """`$XDG_CACHE_HOME/lgm_jax`, by default `~/.cache/lgm_jax`. It may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lgm_jax"


def remember(kind: str, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array from the cache, or computed and then kept there.

    Args:
        kind: What it is, for the file's name.
        key: Fingerprint of everything it depends on.
        compute: Finds it out.
    """
    path = folder() / f"{kind}_{key}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        # Not there, or cut short by a crash.
        value = compute()
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, value, allow_pickle=False)
        temporary.replace(path)
    except OSError:
        # A machine without a writable home finds it out again next time.
        with contextlib.suppress(OSError):
            temporary.unlink()
    return value
