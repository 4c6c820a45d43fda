"""Standard output and errors that never raise: closed, full, or unable to show a character."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lgm_jax.interrupts import CLOSED_PIPE, INTERRUPTS, Interrupted

# What stands for a character of ours where the output has none of it.
_PLAIN = {"±": "+-", "…": "..."}
_HANDLER = "lgm_jax.plain"

_failures: list[OSError] = []


def prepare() -> None:
    """Replaces `sys.stdout` and `sys.stderr`; to be called before any file is opened.

    A character that the output's encoding lacks is written in others. Where nobody reads standard
    output any more, or its disk is full, the program is interrupted as by a signal, so that a run
    saves what it has; errors that cannot be told are left out. Streams that were closed when the
    program started lead nowhere: files would take their numbers.
    """
    codecs.register_error(_HANDLER, _replace)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _guard(sys.stdout, 1, _interrupt)
    sys.stderr = _guard(sys.stderr, 2, lambda error: None)


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a program, between `prepare` and `sys.exit`; returns its exit code."""
    try:
        code = main(arguments)
        sys.stdout.flush()
    except Interrupted as interruption:
        code = interruption.exit_code
    if _failures and _failures[0].errno != errno.EPIPE:
        print(f"error: cannot write to standard output: {_failures[0].strerror}", file=sys.stderr)
        return 2
    return code


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    plain = (_PLAIN.get(char, char) for char in lacking)
    text = "".join(char.encode("ascii", "backslashreplace").decode() for char in plain)
    return text, error.end


class _Guarded(io.FileIO):
    """Writes to a stream, or nowhere once that has failed."""

    def __init__(self, number: int, tell: Callable[[OSError], Any]):
        super().__init__(number, "w", closefd=False)
        self._tell = tell

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            self._tell(error)
        return len(data)


def _guard(stream: Any, number: int, tell: Callable[[OSError], Any]) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Guarded(number, tell)),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=_HANDLER,
        # `python -u` lets text through, but below it is a buffer.
        line_buffering=getattr(stream, "line_buffering", True)
        or getattr(stream, "write_through", False),
    )


def _interrupt(error: OSError) -> None:
    _failures.append(error)
    INTERRUPTS.stop(CLOSED_PIPE)
