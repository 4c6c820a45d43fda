"""The one exception type whose message is meant for the person who typed the command."""

import difflib
import errno
import os

# Past this many valid names, only the near ones are listed.
_LONG_LIST = 12

# Of the disk, of what a user may have of it, and of one file (`ulimit -f`).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Bad input: a config value, a path, a file or a name that cannot be used.

    The message is one line that says what is wrong and, where possible, what to type instead.
    `launch.py` prints it after `error:` and exits with code 2.
    """


def unknown_name(kind: str, name: str, known: list[str], where: str = "known") -> UserError:
    """An error for a name that is not in a registry, with the nearest names first.

    Args:
        kind: What is being looked up, for example `"backbone"`.
        name: What was asked for.
        known: Every valid name.
        where: How to introduce the list of valid names.
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near and len(known) > _LONG_LIST:
        return UserError(f"unknown {kind} {name!r}: did you mean {' or '.join(near)}?")
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}{where}: {', '.join(known)}")


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
