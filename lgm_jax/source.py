"""The commit of the source that a process runs, where it is known."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

# Git on a network file system may take seconds.
_SECONDS = 10

_METADATA = "setup.cfg"


def commit(package: Path) -> str | None:
    """Returns the commit of a package's files, or `None` if it is not known.

    It is that of the checkout whose root holds the package and the `setup.cfg` with its name, both
    tracked there, followed by `-dirty` if tracked files have changed; or else the commit that pip
    installed. A repository that only encloses the files, such as a user's project with a virtual
    environment in it, does not count.
    """
    package = package.resolve()
    return _checked_out(package) or _installed(package)


def _checked_out(package: Path) -> str | None:
    root = package.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root:
        return None
    files = f"{package.name}/__init__.py", _METADATA
    if _git(root, "ls-files", "--error-unmatch", *files) is None or _name(root) != package.name:
        return None
    head = _git(root, "rev-parse", "--verify", "HEAD")
    # Not `describe --dirty`, which locks the index while someone may want to commit.
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return head and head + ("-dirty" if changed else "")


def _name(root: Path) -> str | None:
    """Returns the name of the project in a folder."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(root / _METADATA, encoding="utf-8")
    except (OSError, UnicodeDecodeError, configparser.Error):
        return None
    return parser.get("metadata", "name", fallback=None)


def _git(root: Path, *command: str) -> str | None:
    """Returns Git's answer in a folder; `None` if it is missing, refuses, or takes too long."""
    # Hooks and editors set variables that name another repository. Those of the configuration may
    # name safe folders.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG")
    }
    try:
        answer = subprocess.run(
            ["git", "--no-optional-locks", *command],
            cwd=root,
            env=environment,
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(answer.stdout).removesuffix("\n")


def _installed(package: Path) -> str | None:
    """Returns the commit that pip recorded (PEP 610) with the installation of the package."""
    for distribution in metadata.distributions(name=package.name):
        if Path(str(distribution.locate_file(package.name))).resolve() != package:
            continue
        try:
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
            return str(origin["vcs_info"]["commit_id"])
        except (ValueError, LookupError, TypeError):
            return None
    return None
