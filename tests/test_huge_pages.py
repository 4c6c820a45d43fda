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
        ({"JAX_PLATFORMS": " CPU"}, ["nvidiactl"], f"{TUNABLE}=1"),
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


def wanted_by(environ):
    """The environment that this machine asks for, if it has no accelerator."""
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    said = mode.read_text() if mode.exists() else ""
    return huge_pages.environment(environ, os.confstr("CS_GNU_LIBC_VERSION"), said, [])


def test_program_goes_on_with_its_arguments_and_input(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys; from lgm_jax import huge_pages; huge_pages.start_again();"
        "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], sys.stdin.read())"
    )
    environ = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environ["JAX_PLATFORMS"] = "cpu"
    environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, program, "a b", "--c"],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    printed, _ = process.communicate("words")
    assert process.returncode == 0
    tunables = (wanted_by(environ) or {}).get("GLIBC_TUNABLES")
    assert printed == f"{process.pid} {tunables} ['a b', '--c'] words\n"


def test_only_a_program_of_its_own_starts_again(monkeypatch):
    started = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(huge_pages, "environment", lambda *_: {"A": "1"})
    monkeypatch.setattr(os, "execve", lambda *said: started.append(said))
    monkeypatch.setattr(sys, "argv", ["launch.py", "--config=c.py"])
    # As %run in a notebook has it.
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ipykernel_launcher", "-f", "k.json"])
    huge_pages.start_again()
    assert started == []
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "launch.py", "--config=c.py"])
    huge_pages.start_again()
    arguments = [sys.executable, "-u", "launch.py", "--config=c.py"]
    assert started == [(sys.executable, arguments, {"A": "1"})]
    monkeypatch.setattr(sys, "argv", ["site-packages/lgm_jax/recipes/launch.py", "--config=c.py"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "lgm_jax", "--config=c.py"])
    huge_pages.start_again()
    assert started[1:] == [(sys.executable, [sys.executable, *sys.orig_argv[1:]], {"A": "1"})]


def test_program_goes_on_where_it_cannot_start_again(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(huge_pages, "environment", lambda *_: {"A": "1"})
    monkeypatch.setattr(os, "execve", refuse)
    monkeypatch.setattr(sys, "orig_argv", ["python", *sys.argv])
    huge_pages.start_again()
