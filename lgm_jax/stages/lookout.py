"""The steps after which the host waits for its devices, the same in all processes."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import numpy as np

# Time between two looks at the devices at most, unless a step takes longer.
_SECONDS = 1.0


class Lookout:
    """Decides after which steps the host looks: about every second, or after every longer step.

    A look waits for devices, and several processes all have to look after the same steps. So they
    agree on the number of steps between two looks, along with the signals that they received.

    Args:
        largest: For several processes, the function of `devices.make_largest`.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        largest: Callable[..., jax.Array] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._largest, self._clock, self._seen = largest, clock, clock()
        # Asked at the look before, so that no process waits for the answer.
        self._asked: jax.Array | None = None
        self._every, self._since = 1, 0
        self._looks = self._last = False

    def count(self, *, always: bool, last: bool = False) -> bool:
        """Counts a step.

        Args:
            always: Whether the host looks in any case.

        Returns:
            Whether the host looks after this step.
        """
        self._since += 1
        self._looks, self._last = always or last or self._since >= self._every, last
        return self._looks

    def agree(self, signal: int) -> int:
        """Returns a signal that one of the processes received before the previous look, or 0.

        After the last step it is one that they received until now. A single process gets its own at
        once.

        Args:
            signal: The signal of this process, or 0.
        """
        if not self._looks:
            return signal if self._largest is None else 0
        now = self._clock()
        # At most twice as many: the first steps may be unlike those that follow.
        every = min(2 * self._every, int(_SECONDS * self._since / max(now - self._seen, 1e-9)))
        every, self._seen, self._since = max(1, every), now, 0
        if self._largest is None:
            self._every = every
            return signal
        answers = [] if self._asked is None else [self._asked]
        self._asked = self._largest(signal, every)
        if self._last:
            answers.append(self._asked)
        if not answers:
            return 0
        signal, self._every = (int(number) for number in np.max(jax.device_get(answers), axis=0))
        return signal
