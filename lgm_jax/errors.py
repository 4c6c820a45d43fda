"""Errors for users, in one line each."""

import contextlib
import difflib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# If there are more valid names, only similar ones are listed.
_LONG_LIST = 12

# Letters of an unknown name that are repeated at most.
_LONG_NAME = 100

# Names that contain so many letters of an unknown one count as near.
_PART = 3

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""XLA's word in errors of compilers and of devices without enough memory."""

# Limits of the disk, of a user's quota, and of one file (`ulimit -f`).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Errors of permissions, disks and names, which are no bugs of the program.
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.ENOTDIR, errno.EMFILE, errno.ENFILE, errno.ENXIO, errno.ENODEV),
)


class UserError(ValueError):
    """Bad input: a config value, a path, a file or a name that cannot be used.

    The message is one line with the problem and, where possible, what to type instead. `launch.py`
    prints it after `error:` and exits with code 2. In a notebook it is a `ValueError`.
    """


def unknown_name(kind: str, name: str, known: Sequence[str], where: str = "known") -> UserError:
    """Returns an error for a name that is not in a registry, with the nearest names first.

    Args:
        kind: The kind of thing, for example `"backbone"`.
        known: Every valid name; of many, only the near ones are listed, or the first few.
        where: The words before the list of valid names.
    """
    shown = name if len(name) <= _LONG_NAME else f"{name[:_LONG_NAME]}..."
    near = _nearest(name[:_LONG_NAME], known)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    if near and len(known) > _LONG_LIST:
        return UserError(f"unknown {kind} {shown!r}: {hint}")
    listed = f"{where}: {list_some(known, _LONG_LIST)}"
    return UserError(f"unknown {kind} {shown!r}: {f'{hint} ' if hint else ''}{listed}")


def list_some(names: Sequence[str], most: int = 5) -> str:
    """Lists the first names for a message, and the number of others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """Returns at most three names that are close to one, or contain it, in upper or lower case."""
    lower: dict[str, str] = {}
    for each in known:
        lower.setdefault(each.lower(), each)
    asked = name.lower()
    near = difflib.get_close_matches(asked, lower, n=3, cutoff=0.5)
    if len(asked) >= _PART:
        near += sorted((each for each in lower if asked in each and each not in near), key=len)
    return [lower[each] for each in near[:3]]


def find_user_error(error: BaseException | None) -> UserError | None:
    """Returns the `UserError` behind another error: absl and ml_collections wrap ValueErrors."""
    while error is not None:
        # ml_collections raises one of the same type whose message is the traceback.
        if isinstance(error, UserError) and "Traceback (most recent call last)" not in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None


class Full(NamedTuple):
    """A full disk: the system's message, and the file or folder if it is known."""

    message: str
    where: str | None


def find_full(error: BaseException | None) -> Full | None:
    """Returns the full disk behind an error; in Orbax's, only the message shows it."""
    while error is not None:
        for number in _FULL:
            message = os.strerror(number)
            if message in str(error) or (isinstance(error, OSError) and error.errno == number):
                return Full(message, _file(error))
        error = error.__cause__ or error.__context__
    return None


def explain_refusal(error: Exception) -> str | None:
    """Returns a line on a file that the system refuses to read or write, if that is the error."""
    if not isinstance(error, OSError):
        return None
    where = _file(error)
    if where is None or error.errno not in (*_REFUSED, *_FULL):
        return None
    return f"cannot use {where}: {error.strerror}"


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the name of a file to errors of the system within, such as of writing to an open one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def explain(error: BaseException) -> str:
    """Describes an error in one line, in the words of the system or else of the library."""
    message = error.strerror if isinstance(error, OSError) else None
    return " ".join((message or str(error)).split()) or type(error).__name__


def _file(error: BaseException) -> str | None:
    name = error.filename if isinstance(error, OSError) else None
    return None if name is None else os.fsdecode(name)
