"""The terminal: output that never raises, errors of one line, and arguments."""

from __future__ import annotations

import argparse
import codecs
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lgm_jax import __version__
from lgm_jax.errors import UserError
from lgm_jax.interrupts import CLOSED_PIPE, INTERRUPTS, Interrupted

Main = Callable[[Sequence[str]], int]

# Replacements of characters that the output's encoding may lack.
_PLAIN = {"±": "+-", "…": "..."}
_HANDLER = "lgm_jax.plain"

_failures: list[OSError] = []


def prepare() -> None:
    """Replaces `sys.stdout` and `sys.stderr`; to be called before any file is opened.

    A character that the output's encoding lacks is replaced. If standard output is closed, or its
    disk is full, the program is interrupted as by a signal, so that a run saves its state; errors
    that cannot be written are dropped. Streams that were closed when the program started are
    opened on the null device: files would take their numbers.
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


def run(main: Main, arguments: Sequence[str]) -> int:
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


def greet(arguments: Sequence[str]) -> None:
    """Prints a first line of a run at once, since the imports take seconds.

    Of several processes, the first alone prints, once it is known which that is.
    """
    flags = {argument.lstrip("-").partition("=")[0] for argument in arguments}
    if "workdir" in flags and "distributed" not in flags:
        print(f"lgm_jax {__version__}", flush=True)


def bold(text: str) -> str:
    """Returns a text in bold where standard output is a terminal, unless NO_COLOR is set."""
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    return text if plain else f"\x1b[1m{text}\x1b[0m"


def one_line_errors(main: Main) -> Main:
    """Makes a `UserError` of a program one line on stderr and exit code 2."""

    @functools.wraps(main)
    def run_main(arguments: Sequence[str]) -> int:
        try:
            return main(arguments)
        except UserError as error:
            print(f"error: {error}".replace("\n", " "), file=sys.stderr)
            return 2

    return run_main


class Parser(argparse.ArgumentParser):
    """A parser of arguments that raises `UserError` for bad ones."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = (_PLAIN.get(char, char) for char in error.object[error.start : error.end])
    text = "".join(char.encode("ascii", "backslashreplace").decode() for char in plain)
    return text, error.end


class _Guarded(io.FileIO):
    """Writes to a stream, or nowhere once that has failed."""

    def __init__(self, number: int, on_error: Callable[[OSError], Any]):
        super().__init__(number, "w", closefd=False)
        self._on_error = on_error

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            self._on_error(error)
        return len(data)


def _guard(stream: Any, number: int, on_error: Callable[[OSError], Any]) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Guarded(number, on_error)),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=_HANDLER,
        # `python -u` lets text through, but below it is a buffer.
        line_buffering=getattr(stream, "line_buffering", True)
        or getattr(stream, "write_through", False),
    )


def _interrupt(error: OSError) -> None:
    _failures.append(error)
    INTERRUPTS.stop(CLOSED_PIPE)
