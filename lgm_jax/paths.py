"""Folders as people type them, and under names that every library reads as they are."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import tempfile
from pathlib import Path

from etils import epath

from lgm_jax.errors import UserError, explain

# No character of a URL's syntax, of a pattern of file names or of a variable, and none that UTF-8
# does not have.
_PLAIN = re.compile(r"[\w ./@+=,-]+")


def locate(folder: str | os.PathLike[str]) -> epath.Path:
    """A folder or bucket as it was typed; `~` is expanded.

    Raises:
        UserError: If nobody knows the home folder, or an address cannot be read: no installed
            package knows such ones, or the service is out of reach or refuses.
    """
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
    """Looks at an address for a first time; whatever keeps it from being read is raised."""
    import fsspec

    scheme, _, rest = os.fspath(address).partition("://")
    if not rest:
        raise ValueError("it names no bucket")
    # By default a process sees a folder, and the sizes of its files, as they were when it first
    # looked, whatever other processes have written since.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    # It logs the tracebacks of errors, before it raises these.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    address.exists()


def is_bucket(folder: epath.PathLike) -> bool:
    """Whether a folder is an address, such as `gs://bucket/runs`."""
    return "://" in os.fspath(folder)


def name(folder: epath.Path) -> str:
    """The last part of a folder's path, of `.` and `..` too."""
    return folder.name if is_bucket(folder) else os.path.basename(os.path.abspath(folder))


def alias(folder: epath.PathLike) -> epath.Path:
    """A folder under a name that libraries take as it is: itself, or a link to it.

    Some read `#`, `?` and `%` as parts of a URL, `[` and `*` as a pattern of names, `$` as a
    variable, or take UTF-8 alone. The link lies in the system's folder for temporary files, always
    under the same name, so that what a library keeps by name is found again.

    Args:
        folder: An existing folder, or one in a bucket.

    Raises:
        UserError: If it needs a link, and none can be made.
    """
    if is_bucket(folder) or os.name != "posix":
        return epath.Path(folder)
    path = os.path.realpath(folder)
    if _PLAIN.fullmatch(path):
        return epath.Path(path)
    link = Path(_links(path), hashlib.sha256(os.fsencode(path)).hexdigest()[:16])
    try:
        if not (link.is_symlink() and os.readlink(link) == path):
            # Never without a link, for another process may use it.
            temporary = link.with_suffix(f".{os.getpid()}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(path)
            temporary.replace(link)
    except OSError as error:
        raise _no_link(path, f"{link}: {error.strerror}") from error
    return epath.Path(link)


def _links(path: str) -> str:
    """The folder of links, which nobody else can write to."""
    try:
        # The user's number, for the system's folder is everybody's.
        folder = os.path.join(tempfile.gettempdir(), f"lgm_jax-{os.getuid()}")
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
    except OSError as error:
        raise _no_link(path, str(error)) from error
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not own or found.st_mode & 0o022 or not _PLAIN.fullmatch(folder):
        raise _no_link(path, f"{folder} is not fit for it")
    return folder


def _no_link(path: str, reason: str) -> UserError:
    return UserError(
        f"{path} has characters that libraries misread, and needs a link in the folder for "
        f"temporary files ({reason}): set TMPDIR to a plain name, or name another folder"
    )
