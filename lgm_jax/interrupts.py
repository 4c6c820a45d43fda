"""Signals that stop a run after it has saved its work.

Schedulers send SIGTERM, or SIGUSR1 some time before they kill; people press Ctrl-C, and a terminal
that closes sends SIGHUP.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

# The run saved its state and is to be started again (EX_TEMPFAIL of sysexits.h).
REQUEUE = 75
# As shells report a program that Ctrl-C ended, and one that wrote to a closed pipe.
CTRL_C, PIPE = 130, 141

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
# Python ignores it; the write fails.
CLOSED_PIPE = signal.SIGPIPE

_CODES = {signal.SIGINT: CTRL_C, CLOSED_PIPE: PIPE}


class Interrupted(BaseException):
    """A signal stopped the run. No `Exception`, so that no handler of errors catches it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = _CODES.get(signal.Signals(number), REQUEUE)


class Interrupts:
    """Turns signals into `Interrupted`, at once, or at the end of a loop's step."""

    def __init__(self) -> None:
        self._deferring = False
        self._pending: int | None = None
        self._agreed: int | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Makes signals raise `Interrupted` within; restores the handlers afterwards.

        Signals that the program was started to ignore, as `nohup` does with SIGHUP, stay ignored.
        """
        self._pending = self._agreed = None
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._receive) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(
        self, agree: Callable[[int], int] = lambda number: number
    ) -> Iterator[Callable[[], bool]]:
        """Only notes a first signal within; the loop asks for it, saves, and leaves.

        A second signal raises at once, and the first at the end.

        Args:
            agree: Turns this process's signal, 0 for none, into that of all processes, so that all
                leave at the same step.

        Yields:
            A function that returns whether a signal has come.
        """
        self._deferring = True

        def interrupted() -> bool:
            self._agreed = agree(self._pending or 0) or None
            return self._agreed is not None

        try:
            yield interrupted
        finally:
            self._deferring = False
        number = self._pending or self._agreed
        if number is not None:
            raise Interrupted(number)

    def stop(self, number: int) -> None:
        """Acts as for a signal, unless one has come already."""
        if self._pending is None:
            self._receive(number, None)

    def _receive(self, number: int, _: FrameType | None) -> None:
        # After another process's signal, this one's may come while it saves.
        ready = self._deferring or self._agreed is not None
        if not ready or self._pending is not None:
            raise Interrupted(number)
        self._pending = number


# One for the process, as its signal handlers.
INTERRUPTS = Interrupts()
