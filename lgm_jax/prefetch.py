"""Prefetch results of the host while a device is busy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """A function of numbers whose next result is computed in a thread while this one is used.

    Any order of numbers is right; to be closed, or used as a context.
    """

    def __init__(self, function: Callable[[int], T], end: int):
        """Starts nothing yet; `end` is the first number that is never needed."""
        self._function, self._end = function, end
        self._threads = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, number: int) -> T:
        """Returns the function's result, or raises its error."""
        pending, self._next = self._next, None
        if pending is None or pending[0] != number:
            pending = number, self._threads.submit(self._function, number)
        result = pending[1].result()
        if number + 1 < self._end:
            self._next = number + 1, self._threads.submit(self._function, number + 1)
        return result

    def close(self) -> None:
        """Ends the thread."""
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
