"""Finds the config that the command line names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lgm_jax import paths
from lgm_jax.errors import UserError, unknown_name

_FOLDERS = ("configs", "configs/experiments")

# Recipes of the paper that had files of their own.
_MOVED = re.compile(
    "(clip|dino|dinov2|eva02|mocov3)_(birds|fruits|cats|imagenette|imagewoof|in10_[a-e]|cub|dogs|"
    "flowers|food|artbench|spawrious|waterbirds)"
)


def find(named: str) -> str:
    """`FILE[:ARG]` with a file that exists and has a `get_config()`.

    Args:
        named: What was typed: a path from the current folder, from that of `launch.py`, or from
            one that holds this project's configs; `.py` may be left out.

    Raises:
        UserError: If there is none, with the names of those that are near.
    """
    name = named.partition(":")[0]
    if not name:
        raise UserError("no config: add --config=configs/quickstart.py, or see --help")
    # The argument begins at the first colon, unless that is in the name of a folder.
    ends = [*(place for place, letter in enumerate(named) if letter == ":"), len(named)]
    found = ((path, named[end:]) for end in ends for path in _candidates(named[:end]))
    path, argument = next((each for each in found if each[0].is_file()), (None, ""))
    if path is None and (moved := _MOVED.fullmatch(Path(name).stem)):
        words = ",".join(filter(None, [*moved.groups(), named.partition(":")[2]]))
        raise UserError(f"config file {name} is gone: it is configs/paper.py:{words} now")
    if path is None and Path(name).is_dir():
        raise UserError(f"config file {name} is a folder: name a file, as configs/quickstart.py")
    if path is None:
        raise unknown_name("config file", name, _known(name))
    if not _is_config(path):
        raise UserError(f"config file {path} is no Python file with a get_config()")
    if ":" in os.fspath(path):
        # A colon ends a file's name.
        path = Path(paths.alias(path.parent), path.name)
    return f"{path}{argument}"


def _root() -> Path:
    return Path(__file__).parents[1]


def _candidates(name: str) -> Iterator[Path]:
    typed = Path(os.path.expanduser(name))
    for folder in (Path(), _root(), *(_root() / each for each in _FOLDERS)):
        yield folder / typed
        if not typed.suffix:
            yield folder / f"{typed}.py"


def _known(name: str) -> list[str]:
    """Names of configs as they may be typed here, in the way in which this one was."""
    ours = [
        path.relative_to(_root())
        for folder in _FOLDERS
        for path in sorted((_root() / folder).glob("*.py"))
        if _is_config(path)
    ]
    parent = Path(os.path.expanduser(name)).parent
    beside = sorted(parent.glob("*.py")) if parent.is_dir() else []
    theirs = [str(path) for path in beside if path.name[:1] != "_" and not _is_ours(path)]
    if parent == Path():
        return [path.stem if not Path(name).suffix else path.name for path in ours]
    return [*map(str, theirs), *map(str, ours)]


def _is_config(path: Path) -> bool:
    if path.suffix != ".py":
        return False
    content = path.read_text(encoding="utf-8", errors="replace")
    return re.search(r"^(def )?get_config\b", content, re.M) is not None


def _is_ours(path: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(_root())
