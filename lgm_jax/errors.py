"""The one exception type whose message is meant for the person who typed the command."""

import difflib
import errno
import os
from collections.abc import Sequence

# Past this many valid names, only the near ones are listed.
_LONG_LIST = 12

# Letters of an unknown name that are repeated.
_LONG_NAME = 100

# Letters that are enough to be looked for within names.
_PART = 3

# Of the disk, of what a user may have of it, and of one file (`ulimit -f`).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Bad input: a config value, a path, a file or a name that cannot be used.

    The message is one line that says what is wrong and, where possible, what to type instead.
    `launch.py` prints it after `error:` and exits with code 2.
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


def find_full(error: BaseException | None) -> str | None:
    """What the system said to a write that found no space, if this is one or was caused by one.

    Orbax's storage says so in words only.
    """
    while error is not None:
        for number in _FULL:
            said = os.strerror(number)
            if said in str(error) or (isinstance(error, OSError) and error.errno == number):
                return said
        error = error.__cause__ or error.__context__
    return None
