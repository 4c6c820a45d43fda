"""Show progress: a bar on a terminal, plain lines or nothing elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import psutil
from tqdm import tqdm

from lgm_jax import hosts

T = TypeVar("T")

# What fits 80 columns with a loss, a speed and a memory behind it.
_BAR = "{desc} {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"


def is_logged(step: int, steps: int, every: int) -> bool:
    """Returns whether a step's loss is logged: the first, the last, and at least twenty between.

    Args:
        step: Number of the update, from 1.
        steps: Updates in all; with fewer than forty, all are logged.
        every: Steps between two logged ones at most.
    """
    return step in (1, steps) or step % min(every, max(1, steps // 20)) == 0


def progress(items: Sequence[T], label: str) -> Iterator[T]:
    """Iterates with a bar that disappears at the end; without one where stderr is no terminal."""
    return iter(
        tqdm(items, desc=label, disable=_disable(), leave=False, dynamic_ncols=True, delay=1.0)
    )


class StepProgress:
    """The display of the distillation loop: step, loss, speed, time left, memory.

    Memory is that of the fullest device, or of the process where devices do not count theirs. It
    never waits for a device: losses are numbers, and the allocator counts memory.
    """

    def __init__(self, start: int, steps: int, images_per_step: int, devices: Sequence[Any] = ()):
        """Starts the clock of a process that begins after `start` updates."""
        self._start, self._steps = start, steps
        self._clock = self._compiled = time.perf_counter()
        self._images, self._devices = images_per_step, devices
        self._shown = 0
        self._bar = tqdm(
            initial=start,
            total=steps,
            desc="compiling",
            disable=_disable(),
            dynamic_ncols=True,
            bar_format=_BAR,
        )
        if self._bar.disable:
            print("compiling the step", flush=True)

    def advance(self) -> None:
        """Counts one update, whose program is compiled now."""
        if self._compiled == self._clock:
            self._compiled = time.perf_counter()
            self._bar.set_description_str("distill", refresh=False)
        self._bar.update()

    def report(self, step: int, loss: float) -> float:
        """Shows the loss; returns steps per second of this process, without the time to compile."""
        now, done = time.perf_counter(), step - self._start
        rate = done / (now - (self._compiled if done > 1 else self._clock))
        used, memory = _memory(self._devices)
        images = f"{rate * self._images:.3g} images/s"
        self._bar.set_postfix_str(f"loss {loss:.4f}" + (f"  {images}  {memory}" * (done > 1)))
        if self._bar.disable:
            line = f"step {step}/{self._steps}  loss {loss:.4f}"
            if done > 1:
                left = (self._steps - step) / rate
                line += f"  {rate:.2f} steps/s  {images}  {left:.0f} s left"
            # Again after it has grown by a tenth.
            if used > 1.1 * self._shown:
                self._shown, line = used, f"{line}  {memory}"
            print(line, flush=True)
        return rate

    def close(self) -> None:
        """Leaves the finished bar on the terminal."""
        self._bar.close()


def _memory(devices: Sequence[Any]) -> tuple[int, str]:
    """Returns the bytes of this process and its fullest device together, and one as text."""
    used = psutil.Process().memory_info().rss
    text = f"{used / 1e9:.1f} GB"
    # CPUs do not count.
    counted = [stats for stats in (device.memory_stats() for device in devices) if stats]
    if not counted:
        return used, text
    peak, limit = max((s.get("peak_bytes_in_use", 0), s.get("bytes_limit", 0)) for s in counted)
    of = f" of {limit / 1e9:.0f}" if limit else ""
    return used + peak, f"{peak / 1e9:.1f}{of} GB"


def _disable() -> bool | None:
    """Returns tqdm's `disable`: no bar where stderr is no terminal, and one for all processes."""
    return None if hosts.is_first() else True
