"""Paths of folders and buckets, and links with plain names for libraries that need them."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from pathlib import Path

from etils import epath

from lgm_jax.errors import UserError, explain

# No characters of URLs, patterns of file names or variables, and none that UTF-8 lacks.
_PLAIN = re.compile(r"[\w ./@+=,-]+")


def locate(folder: str | os.PathLike[str]) -> epath.Path:
    """Returns the path of a folder or bucket that can be reached, as it was typed; expands `~`."""
    text = os.path.expanduser(folder)
    if Path(text).parts[:1] == ("~",):
        raise UserError(f"{text}: no home folder is known: set HOME, or name the folder in full")
    try:
        path = epath.Path(text)
        if is_bucket(path):
            _reach(path)
    # Each file system of epath fails in its own way.
    except Exception as error:
        raise UserError(
            f"{text} is no folder, and no address that can be read here: {explain(error)}"
        ) from error
    return path


def _reach(address: epath.Path) -> None:
    """Reads an address for the first time; raises what prevents it."""
    import fsspec

    scheme, _, rest = os.fspath(address).partition("://")
    if not rest:
        raise ValueError("it names no bucket")
    # By default a process caches the content of a folder, and misses what others write.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    # It logs the tracebacks of errors before it raises them.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    address.exists()


def is_bucket(folder: epath.PathLike) -> bool:
    """Returns whether a folder is an address, such as `gs://bucket/runs`."""
    return "://" in os.fspath(folder)


def name(folder: epath.Path) -> str:
    """Returns the last part of a folder's path, for `.` and `..` too."""
    return folder.name if is_bucket(folder) else os.path.basename(os.path.abspath(folder))


def alias(folder: epath.PathLike) -> epath.Path:
    """Returns a folder, or an address of a bucket, with a plain name: itself, or a link to it.

    Some libraries read `#`, `?` and `%` as parts of a URL, `[` and `*` as a pattern of names, `$`
    as a variable, or accept only UTF-8. The link lies in the system's folder for temporary files,
    always under the same name, which libraries may store.
    """
    if is_bucket(folder):
        return epath.Path(folder)
    path = os.path.realpath(folder)
    if _PLAIN.fullmatch(path):
        return epath.Path(path)
    try:
        # With the user's number, since all users share the system's folder.
        links = Path(tempfile.gettempdir(), f"lgm_jax-{os.getuid()}")
        links.mkdir(0o700, exist_ok=True)
        status = links.lstat()
        others_write = status.st_uid != os.getuid() or status.st_mode & 0o022
        if others_write or not _PLAIN.fullmatch(os.fspath(links)):
            raise OSError(f"{links} cannot hold it")
        link = links / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        if not (link.is_symlink() and os.readlink(link) == path):
            # At no time without a link, for another process may use it.
            temporary = link.with_suffix(f".{os.getpid()}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(path)
            temporary.replace(link)
    except OSError as error:
        raise UserError(
            f"{path} has characters that libraries misread, and needs a link in the folder for "
            f"temporary files ({error}): set TMPDIR to a plain name, or name another folder"
        ) from error
    return epath.Path(link)
