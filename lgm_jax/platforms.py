"""Start JAX's backend, or explain in a line why it does not start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

from lgm_jax.errors import UserError

# The extra to install for each platform of `JAX_PLATFORMS`.
_EXTRAS = {"cuda": "cuda12", "gpu": "cuda12", "tpu": "tpu"}


def start() -> None:
    """Starts the backend that `JAX_PLATFORMS` names, or the best there is."""
    import jax

    # It has no public name.
    from jax._src import xla_bridge

    if not xla_bridge.backends_are_initialized():
        # JAX takes names in small letters, without spaces. Its types lack this value.
        config: Any = jax.config
        config.update("jax_platforms", ",".join(names(config.jax_platforms)))
        if os.environ.get("XLA_FLAGS"):
            _check_flags()
    try:
        jax.devices()
    # RuntimeError, AssertionError and others, for a missing plugin or driver.
    except Exception as error:
        raise UserError(_explain(os.environ.get("JAX_PLATFORMS"), error)) from error


def names(platforms: str | None) -> list[str]:
    """Returns the platforms in a value of `JAX_PLATFORMS`."""
    return [name for word in (platforms or "").split(",") if (name := word.strip().lower())]


def _explain(wanted: str | None, error: Exception) -> str:
    reason = str(error).split("\n")[0] or type(error).__name__
    # Its advice is about the same variable.
    reason = re.sub(r" \(set JAX_PLATFORMS=.*", "", reason)
    if not wanted:
        return f"JAX finds no device: {reason}"
    extras = [_EXTRAS[name] for name in names(wanted) if name in _EXTRAS]
    install = f"install JAX for it (pip install -e '.[{extras[0]}]'), or " if extras else ""
    return (
        f"JAX_PLATFORMS={wanted} does not start here ({reason}): {install}unset JAX_PLATFORMS to "
        "take what there is"
    )


def _check_flags() -> None:
    """Reads `XLA_FLAGS` in another process, since XLA aborts a process at an unknown flag."""
    code = (
        "from jaxlib import xla_client; "
        "xla_client.CompileOptions().executable_build_options.debug_options"
    )
    read = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, errors="replace"
    )
    unknown = re.search(r"Unknown flags? in XLA_FLAGS: *(.*)", read.stderr)
    if read.returncode and unknown:
        raise UserError(
            f"XLA_FLAGS has what this XLA does not know: {unknown[1].strip()}; take it out"
        )
