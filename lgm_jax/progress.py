"""Progress on long work: a bar on a terminal, plain lines or silence elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from lgm_jax import hosts

T = TypeVar("T")


def progress(items: Sequence[T], label: str) -> Iterator[T]:
    """Iterates with a bar that disappears when done, and none where stderr is no terminal."""
    return iter(
        tqdm(items, desc=label, disable=_disable(), leave=False, dynamic_ncols=True, delay=1.0)
    )


class StepProgress:
    """The display of the distillation loop: step, loss, steps per second, time left."""

    def __init__(self, start: int, steps: int):
        """Starts the clock.

        Args:
            start: Updates made before this process began.
            steps: Updates to have been made at the end.
        """
        self._start, self._steps, self._clock = start, steps, time.perf_counter()
        self._bar = tqdm(
            initial=start,
            total=steps,
            desc="distill",
            unit="step",
            disable=_disable(),
            dynamic_ncols=True,
        )

    def advance(self) -> None:
        """Counts one update."""
        self._bar.update()

    def report(self, step: int, loss: float) -> float:
        """Shows the loss.

        Returns:
            Steps per second of this process so far.
        """
        rate = (step - self._start) / (time.perf_counter() - self._clock)
        self._bar.set_postfix(loss=f"{loss:.4f}")
        if self._bar.disable:
            left = (self._steps - step) / rate
            where = f"step {step}/{self._steps}"
            print(f"{where}  loss {loss:.4f}  {rate:.2f} steps/s  {left:.0f} s left", flush=True)
        return rate

    def close(self) -> None:
        """Leaves the finished bar on the terminal."""
        self._bar.close()


def _disable() -> bool | None:
    """No bar where stderr is no terminal, and one for all processes."""
    return None if hosts.is_first() else True
