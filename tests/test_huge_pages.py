"""Huge pages: where a program starts itself again for them, and where it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lgm_jax import huge_pages

MODE = "always [madvise] never\n"
TUNABLE = "glibc.malloc.hugetlb"


@pytest.mark.parametrize(
    ("before", "accelerators", "after"),
    [
        ({}, [], f"{TUNABLE}=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, [], f"glibc.malloc.check=3:{TUNABLE}=1"),
        ({"JAX_PLATFORMS": "cpu"}, ["nvidiactl"], f"{TUNABLE}=1"),
    ],
)
def test_huge_pages_are_asked_for_on_a_cpu(before, accelerators, after):
    given = {"HOME": "/home/me", **before}
    changed = huge_pages.environment(given, "glibc 2.35", MODE, accelerators)
    assert changed == {**given, "GLIBC_TUNABLES": after}


@pytest.mark.parametrize(
    ("before", "libc", "mode", "accelerators"),
    [
        # It is on without, or not to be had.
        ({}, "glibc 2.36", "[always] madvise never\n", []),
        ({}, "glibc 2.36", "always madvise [never]\n", []),
        ({}, "glibc 2.36", "", []),
        ({}, "glibc 2.31", MODE, []),
        ({}, "", MODE, []),
        # It is decided: by the user, or by an earlier start, which must not go on for ever.
        ({"GLIBC_TUNABLES": f"{TUNABLE}=0"}, "glibc 2.36", MODE, []),
        ({"GLIBC_TUNABLES": f"{TUNABLE}=1"}, "glibc 2.36", MODE, []),
        ({}, "glibc 2.36", MODE, ["nvidiactl"]),
        ({"JAX_PLATFORMS": "cuda,cpu"}, "glibc 2.36", MODE, ["nvidiactl"]),
    ],
)
def test_nothing_is_started_again_in_vain(before, libc, mode, accelerators):
    assert huge_pages.environment(before, libc, mode, accelerators) is None


def test_program_goes_on_with_its_arguments_and_input():
    code = (
        "import os, sys; from lgm_jax import huge_pages; huge_pages.start_again();"
        "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], sys.stdin.read())"
    )
    environ = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environ["JAX_PLATFORMS"] = "cpu"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "a b", "--c"],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    printed, _ = process.communicate("words")
    assert process.returncode == 0
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    wanted = huge_pages.environment(
        environ, os.confstr("CS_GNU_LIBC_VERSION"), mode.read_text() if mode.exists() else "", []
    )
    tunables = (wanted or {}).get("GLIBC_TUNABLES")
    assert printed == f"{process.pid} {tunables} ['a b', '--c'] words\n"
