"""Work of the host that goes on while a device is busy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`function(number)`, computed in a thread for the next number while this one is used.

    Right for any order of numbers; to be closed, or used as a context.
    """

    def __init__(self, function: Callable[[int], T], end: int):
        """Starts nothing yet.

        Args:
            function: Of a number.
            end: The first number that will not be asked for.
        """
        self._function, self._end = function, end
        self._threads = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, number: int) -> T:
        """The function's result; raises what it raises."""
        asked, self._next = self._next, None
        if asked is None or asked[0] != number:
            asked = number, self._threads.submit(self._function, number)
        result = asked[1].result()
        if number + 1 < self._end:
            self._next = number + 1, self._threads.submit(self._function, number + 1)
        return result

    def close(self) -> None:
        """Ends the thread."""
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
