"""Huge pages for programs on CPUs, whose steps allocate gigabytes anew, 4 KiB at a time otherwise.

With glibc's tunable `glibc.malloc.hugetlb=1`, `malloc` asks Linux for pages of 2 MiB where it may
(`transparent_hugepage/enabled` is `madvise`). A program reads it when it starts, so this one starts
itself again. For measurements, see `docs/benchmarks.md`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"

# NVIDIA, AMD, TPU: steps run there, and huge pages gain nothing.
_ACCELERATORS = ("nvidiactl", "kfd", "accel0", "accel", "vfio/0")


def start_again() -> None:
    """Replaces this process by one with huge pages, where the system has them.

    To be called first: the program starts from its beginning, under the same process id. It is left
    alone within another program, and where `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` is set.
    """
    if not sys.platform.startswith("linux") or not sys.executable:
        return
    # With a notebook's %run, for example, the notebook's kernel would start again.
    as_module = ["-m", "lgm_jax", *sys.argv[1:]]
    if not any(sys.orig_argv[-len(typed) :] == typed for typed in (sys.argv, as_module)):
        return
    # Without huge pages it is slower, and no worse.
    with contextlib.suppress(OSError, ValueError):
        devices = [name for name in _ACCELERATORS if Path("/dev", name).exists()]
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
        mode = _MODE.read_text() if _MODE.exists() else ""
        changed = environment(os.environ, libc, mode, devices)
        if changed is not None:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)


def environment(
    environ: Mapping[str, str], libc: str, mode: str, accelerators: Sequence[str]
) -> dict[str, str] | None:
    """Returns the environment to start again with; `None` if that is not wanted.

    Args:
        libc: The C library and its version, such as `glibc 2.36`.
        mode: Linux's setting of transparent huge pages, such as `always [madvise] never`.
    """
    version = re.fullmatch(r"glibc (\d+)\.(\d+).*", libc)
    # The first version with the tunable.
    tunable = version is not None and tuple(map(int, version.groups())) >= (2, 35)
    set_already = environ.get(_VARIABLE, "")
    on_cpu = not accelerators or environ.get("JAX_PLATFORMS", "").strip().lower() == "cpu"
    if not tunable or "[madvise]" not in mode or _TUNABLE in set_already or not on_cpu:
        return None
    tunables = [*filter(None, set_already.split(":")), f"{_TUNABLE}=1"]
    return {**environ, _VARIABLE: ":".join(tunables)}
