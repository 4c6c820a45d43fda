"""The one exception type whose message is meant for the person who typed the command."""

import contextlib
import difflib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Past this many valid names, only the near ones are listed.
_LONG_LIST = 12

# Letters of an unknown name that are repeated.
_LONG_NAME = 100

# Letters that are enough to be looked for within names.
_PART = 3

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""What XLA calls its errors, of compilers and of devices, where memory does not suffice."""

# Of the disk, of what a user may have of it, and of one file (`ulimit -f`).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Rights, disks and names: nothing that the program could have known.
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.ENOTDIR, errno.EMFILE, errno.ENFILE, errno.ENXIO, errno.ENODEV),
)


class UserError(ValueError):
    """Bad input: a config value, a path, a file or a name that cannot be used.

    The message is one line that says what is wrong and, where possible, what to type instead.
    `launch.py` prints it after `error:` and exits with code 2. In a notebook it is a `ValueError`:
    what catches those around a call of this package must let this one pass first.
    """


def unknown_name(kind: str, name: str, known: Sequence[str], where: str = "known") -> UserError:
    """An error for a name that is not in a registry, with the nearest names first.

    Args:
        kind: What is being looked up, for example `"backbone"`.
        name: What was asked for.
        known: Every valid name; of many, only the near ones are listed, or the first few.
        where: How to introduce the list of valid names.
    """
    shown = name if len(name) <= _LONG_NAME else f"{name[:_LONG_NAME]}..."
    near = _nearest(name[:_LONG_NAME], known)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    if near and len(known) > _LONG_LIST:
        return UserError(f"unknown {kind} {shown!r}: {hint}")
    listed = f"{where}: {list_some(known, _LONG_LIST)}"
    return UserError(f"unknown {kind} {shown!r}: {f'{hint} ' if hint else ''}{listed}")


def list_some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, for a message, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """At most three names that are nearly this one, in other letters' case too, or hold it."""
    lower: dict[str, str] = {}
    for each in known:
        lower.setdefault(each.lower(), each)
    asked = name.lower()
    near = difflib.get_close_matches(asked, lower, n=3, cutoff=0.5)
    if len(asked) >= _PART:
        near += sorted((each for each in lower if asked in each and each not in near), key=len)
    return [lower[each] for each in near[:3]]


def find_user_error(error: BaseException | None) -> UserError | None:
    """The error with a message of ours behind another: absl and ml_collections wrap ValueErrors."""
    while error is not None:
        # ml_collections makes one of the same type, whose message is the traceback.
        if isinstance(error, UserError) and "Traceback (most recent call last)" not in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None


class Full(NamedTuple):
    """Where no space is left: what the system said, and the file or folder if it is known."""

    said: str
    where: str | None


def find_full(error: BaseException | None) -> Full | None:
    """What the system said to a write that found no space, if this is one or was caused by one.

    Orbax's storage says so in words only.
    """
    while error is not None:
        for number in _FULL:
            said = os.strerror(number)
            if said in str(error) or (isinstance(error, OSError) and error.errno == number):
                return Full(said, _file(error))
        error = error.__cause__ or error.__context__
    return None


def explain_refusal(error: Exception) -> str | None:
    """A line on a file that the system, not this program, does not let anybody use, if it is one.

    What is full is `find_full`'s within a run, which knows what of it is lost.
    """
    if not isinstance(error, OSError):
        return None
    where = _file(error)
    if where is None or error.errno not in (*_REFUSED, *_FULL):
        return None
    return f"cannot use {where}: {error.strerror}"


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within, errors of the system name the file, also those of writing to an open one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def explain(error: BaseException) -> str:
    """An error in one line: in the system's words, or else in those of the library."""
    said = error.strerror if isinstance(error, OSError) else None
    return " ".join((said or str(error)).split()) or type(error).__name__


def _file(error: BaseException) -> str | None:
    name = error.filename if isinstance(error, OSError) else None
    return None if name is None else os.fsdecode(name)
