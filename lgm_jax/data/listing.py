"""Image files below a folder: one rule for every source that reads folders.

Links are followed, wherever they lead: who named the folder made them, and hub caches, git-annex
and DVC consist of them. What comes out of data is another matter: see `check_inside`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lgm_jax.data import formats
from lgm_jax.errors import UserError, list_some
from lgm_jax.names import plain

# What systems, servers and tools leave beside photos, in lower case; hidden entries come on top.
_LEFT_BEHIND = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "lost.dir"),
        *("__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found"),
        *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot"),
        *("network trash folder", "temporary items", "_vti_cnf", "__pycache__", "_gsdata_"),
        *("~snapshot", "@sharebin", "found.000", "found.001"),
    }
)
# Hidden, or of an editor, an office or a synchronisation that is at it.
_PREFIXES = (".", "~$", "~syncthing~")
_UNFINISHED = (
    *("~", ".part", ".partial", ".crdownload", ".download", ".opdownload", ".filepart"),
    *(".aria2", ".!ut", ".!qb", ".tmp", ".temp", ".swp"),
)

_FOLDER, _IMAGE, _LOST = "folder", "image", "a link to no image"

# Why something is left out, in the order in which it is said.
_OTHERS, _BEHIND, _LOOSE, _EMPTY, _CIRCLES = _WHY = (
    "not images",
    "hidden, temporary or a system's",
    "images outside the folders",
    "empty folders",
    "links to folders that are read anyway",
)


class File(NamedTuple):
    """An image: its path below the data folder, with slashes, and bytes; 0 of a lost link."""

    path: str
    size: int


class Listing:
    """Images below a data folder, and the entries that were left out."""

    def __init__(self, root: Path):
        self.root = root
        # What is left out, by why: paths, with the suffixes of files that are no images.
        self._out: dict[str, dict[str, str]] = {why: {} for why in _WHY}
        self._used: set[str] = set()
        self._notes: dict[str, None] = {}
        real = Path(os.path.realpath(root))
        self._above = {_identity(folder) for folder in (real, *real.parents)}

    def folders(self, inside: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; refuses dead links that may be folders."""
        names, dead = [], []
        for kind, path, entry in self._read(inside):
            if kind == _FOLDER:
                if entry.is_symlink() and _identity(entry) in self._above:
                    self._out[_CIRCLES][path] = ""
                else:
                    names.append(entry.name)
            elif kind == _LOST and not formats.suffix_of(entry.name):
                dead.append(f"{path} -> {os.readlink(entry.path)}")
            else:
                self._out[_LOOSE][path] = ""
        if dead:
            raise UserError(
                f"{self.root} has {len(dead)} links that lead nowhere where folders are expected, "
                f"{dead[0]} among them: mend or remove them"
            )
        return names

    def images(self, inside: str) -> list[File]:
        """The images at any depth below a folder, sorted by path; each folder is read once."""
        seen = self._above | {_identity(self.root / inside)}
        found = self._not_loose(list(self._walk(inside, seen)))
        if not found and not self.others(inside):
            self._out[_EMPTY][inside] = ""
        return found

    def beside(self, inside: str = "") -> list[File]:
        """The images that lie in a folder itself, sorted by name."""
        entries = self._read(inside)
        files = [File(path, e.stat().st_size) for kind, path, e in entries if kind == _IMAGE]
        return self._not_loose(files)

    def find(self, name: str) -> File:
        """Returns the file that data name, with slashes or backslashes."""
        check_inside(name, self.root)
        path = name if os.path.lexists(self.root / name) else name.replace("\\", "/")
        try:
            return File(path, os.stat(self.root / path).st_size)
        except OSError as error:
            if os.path.islink(self.root / path):
                return File(path, 0)
            raise UserError(f"{self.root / name} does not exist") from error

    def others(self, inside: str) -> list[str]:
        """The suffixes of files at any depth below a folder that was read that are no images."""
        others = self._out[_OTHERS].items()
        return [suffix for path, suffix in others if path.startswith(f"{inside}/")]

    def use(self, path: str) -> None:
        """Keeps a file that is no image out of the notes."""
        self._used.add(path)

    def say(self, note: str) -> None:
        """Adds to the notes, in which the folder is called by its name alone: they are recorded."""
        name = os.path.basename(os.path.abspath(self.root))
        self._notes[plain(note.replace(str(self.root), name))] = None

    def notes(self) -> list[str]:
        """Returns what was left out, in one line, and what was added by `say`."""
        parts = []
        for why, found in self._out.items():
            paths = {path: suffix for path, suffix in found.items() if path not in self._used}
            kinds = Counter(suffix or "no suffix" for suffix in paths.values()).most_common()
            some = [kind for kind, _ in kinds] if why == _OTHERS else list(paths)
            parts += [f"{why}: {len(paths)} ({list_some(some)})"] if paths else []
        if parts:
            self.say(f"{self.root}: left out: {'; '.join(parts)}")
        return list(self._notes)

    def _not_loose(self, files: list[File]) -> list[File]:
        for file in files:
            self._out[_LOOSE].pop(file.path, None)
        return files

    def _walk(self, inside: str, seen: set[tuple[int, int]]) -> Iterator[File]:
        for kind, path, entry in self._read(inside):
            if kind == _FOLDER:
                identity = _identity(entry)
                if identity in seen:
                    self._out[_CIRCLES][path] = ""
                else:
                    seen.add(identity)
                    yield from self._walk(path, seen)
            else:
                yield File(path, 0 if kind == _LOST else entry.stat().st_size)

    def _read(self, inside: str) -> Iterator[tuple[str, str, os.DirEntry[str]]]:
        """The folders and images in a folder, sorted by name: their kinds, paths and entries."""
        folder = self.root / inside
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot list {folder}: {error.strerror}") from error
        for entry in entries:
            path, suffix = below(inside, entry.name), formats.suffix_of(entry.name)
            lost = entry.is_symlink() and not os.path.exists(entry.path)
            if is_left_behind(entry.name):
                self._out[_BEHIND][path] = ""
            elif not lost and entry.is_dir():
                yield _FOLDER, path, entry
            elif lost and (not suffix or suffix in formats.suffixes()):
                yield _LOST, path, entry
            elif not lost and entry.is_file() and formats.is_image(entry.path):
                yield _IMAGE, path, entry
            else:
                self._out[_OTHERS][path] = suffix


def is_left_behind(name: str) -> bool:
    """Whether a file or folder is hidden, or has a name that systems and tools use."""
    lower = name.lower()
    return lower.startswith(_PREFIXES) or lower.endswith(_UNFINISHED) or lower in _LEFT_BEHIND


def check_inside(name: str, root: Path) -> None:
    """Refuses a path from data, such as a table, that is absolute, goes up, or can be no file's."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or "\0" in name:
        raise UserError(f"{name!r} is no file's path below {root}")
    if parts[0] == "/" or ".." in parts or re.match(r"[A-Za-z]:", parts[0]):
        raise UserError(f"{name} leads out of {root}")


def _identity(folder: os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def below(inside: str, name: str) -> str:
    """Returns the path of an entry of a folder, of which "" is the data folder itself."""
    return f"{inside}/{name}" if inside else name
