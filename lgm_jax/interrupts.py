"""Signals that ask a run to stop: work that can be saved is saved first.

Schedulers send SIGTERM, or SIGUSR1 some time before they kill; people press Ctrl-C, and a terminal
that closes sends SIGHUP.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

# The run saved what it had and wants to be started again (EX_TEMPFAIL of sysexits.h).
REQUEUE = 75
# What shells report for a program that Ctrl-C ended.
CTRL_C = 130
# And for one that wrote to a pipe which nobody reads any more.
PIPE = 141

# Windows knows no SIGUSR1, SIGHUP and SIGPIPE.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
    if hasattr(signal, name)
)
# Python does not let it come; the write fails.
CLOSED_PIPE = getattr(signal, "SIGPIPE", signal.SIGTERM)

_CODES = {signal.SIGINT: CTRL_C, CLOSED_PIPE: PIPE}


class Interrupted(BaseException):
    """A signal asked the run to stop. Not an error, so nothing that handles errors catches it.

    Attributes:
        number: The signal's number.
        exit_code: What to exit with.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = _CODES.get(signal.Signals(number), REQUEUE)


class Interrupts:
    """Turns signals into `Interrupted`, at once or where a loop says that it is ready."""

    def __init__(self) -> None:
        self._deferring = False
        self._pending: int | None = None
        self._agreed: int | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Within, signals raise `Interrupted`; afterwards their handlers are the ones before.

        What this program was started to ignore, as `nohup` has it ignore SIGHUP, it ignores.
        """
        self._pending = self._agreed = None
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(
        self, agree: Callable[[int], int] = lambda number: number
    ) -> Iterator[Callable[[], bool]]:
        """Within, a first signal is only noted; the loop asks for it, saves, and leaves.

        A second one is not waited for: it raises at once.

        Args:
            agree: Of this process's signal, 0 for none, makes that of all processes, so that all
                leave at the same step.

        Yields:
            Whether a signal has come.

        Raises:
            Interrupted: At the end, if one has come.
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
        """As if a signal had come, unless one has."""
        if self._pending is None:
            self._receive(number, None)

    def _receive(self, number: int, _: FrameType | None) -> None:
        # Where another process's signal ends the loop, this one's own may come while it saves.
        ready = self._deferring or self._agreed is not None
        if not ready or self._pending is not None:
            raise Interrupted(number)
        self._pending = number


# Signal handlers are the process's; so is this.
INTERRUPTS = Interrupts()
