"""Which commit of this project's source a process runs, where that can be known."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

# Git on a network file system may take seconds, and nothing is worth waiting longer for.
_SECONDS = 10

_METADATA = "setup.cfg"


def commit(package: Path) -> str | None:
    """Returns the commit that a package's files are of, or `None` if that is not known.

    It is that of the checkout whose root holds the package and the `setup.cfg` that names it, both
    tracked there, with `-dirty` behind it if tracked files were changed since; or else the one that
    pip installed the package from. A repository that merely encloses the files, such as a user's
    own project with a copy or a virtual environment in it, says nothing about them.

    Args:
        package: The folder of the package.
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
    # Never a tag, which may be moved.
    return _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None


def _name(root: Path) -> str | None:
    """What the project in a folder is called."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(root / _METADATA, encoding="utf-8")
    except (OSError, UnicodeDecodeError, configparser.Error):
        return None
    return parser.get("metadata", "name", fallback=None)


def _git(root: Path, *command: str) -> str | None:
    """What Git answers in a folder; `None` if it is missing, refuses, or takes too long."""
    # Such variables, as a hook or an editor sets them, name another repository than the folder's.
    # Those of the configuration may name folders that are safe.
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
    """The commit that pip recorded (PEP 610) with the installation that holds the package."""
    for distribution in metadata.distributions(name=package.name):
        if Path(str(distribution.locate_file(package.name))).resolve() != package:
            continue
        try:
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
            return str(origin["vcs_info"]["commit_id"])
        except (ValueError, LookupError, TypeError):
            return None
    return None
