"""Batches of images for a step, decoded ahead of it by worker processes.

A worker decodes a part of a batch at a time, and which one follows from its number alone. So a run
sees the same batches with any number of workers, may begin at any step, and holds in memory two
batches and the two parts that each worker decodes ahead. Workers send pixels through a socket, into
the rows of the batch: shared memory costs a page fault for every 4 KB of every part.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

import cloudpickle
import jax
import numpy as np
from jaxtyping import Int, UInt8

from lgm_jax import checks
from lgm_jax.data.dataset import ArraySplit, Split
from lgm_jax.data.records import PixelRecords, num_cores
from lgm_jax.data.sampling import Crops, Order
from lgm_jax.errors import UserError, explain
from lgm_jax.interrupts import SIGNALS
from lgm_jax.prefetch import Ahead

# Images that a worker decodes between two looks at what to do next: 6 MB at 256 px.
_PART = 32


class HostBatch(NamedTuple):
    """One process's part of a step's batch.

    Attributes:
        numbers: (b,) int32, which images of the whole batch these are: random keys follow from it,
            so that processes may share a batch out as they like.
        indices: (b,) int32, which images of the data set.
    """

    images: UInt8[np.ndarray, "b r r 3"]
    labels: Int[np.ndarray, " b"]
    numbers: Int[np.ndarray, " b"]
    indices: Int[np.ndarray, " b"]


@dataclasses.dataclass(frozen=True)
class Parts:
    """One process's images of every batch of a run.

    Attributes:
        order: Which image is at a position.
        crops: Where it is cropped; `None` for the middle.
        batch: Images per step, of all processes.
        process_index: Which process `p` of `P`; it reads positions `p`, `p + P`, ... of a batch.
        process_count: The number of processes `P`.
    """

    split: Split
    order: Order
    crops: Crops | None
    batch: int
    steps: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        checks.counts(self, "batch", "process_count")
        checks.counts(self, "steps", low=0)
        checks.in_range("process_index", self.process_index, 0, self.process_count - 1, whole=True)

    @property
    def numbers(self) -> Int[np.ndarray, " b"]:
        """Returns the images of a batch that this process reads."""
        return np.arange(self.process_index, self.batch, self.process_count, dtype=np.int32)

    @property
    def rows(self) -> list[slice]:
        """Returns the rows of this process, of a batch, by part."""
        return [slice(start, start + _PART) for start in range(0, len(self.numbers), _PART)]

    def load(
        self, step: int, rows: slice
    ) -> tuple[UInt8[np.ndarray, "b r r 3"], Int[np.ndarray, " b"]]:
        """Images and their indices in the data set, for some of this process's rows of a batch."""
        positions = step * self.batch + self.numbers[rows].astype(np.int64)
        indices = self.order.at(positions)
        places = None if self.crops is None else self.crops.at(positions)
        return self.split.load(indices, places), indices


class Loader:
    """Batches by step number; fast where steps follow one another, and right for any.

    To be closed, or used as a context, since it has processes.
    """

    def __init__(self, parts: Parts, workers: int | None = None):
        """Starts nothing yet.

        Args:
            workers: Processes that decode, by default one for each core but that which drives the
                device; with 0, or where images are in memory, of which every process would need a
                copy, threads of this process do.
        """
        stored = getattr(parts.split, "records", parts.split)
        workers = max(1, num_cores() - 1) if workers is None else workers
        self.workers = 0 if isinstance(stored, ArraySplit | PixelRecords) else workers
        self._parts = parts
        self._ahead = Ahead(self._read, parts.steps)
        # The reading thread alone starts workers and lets go of their connections, which it may be
        # reading; the one that closes only kills them meanwhile. The lock is for the list and flag.
        self._lock, self._closed = threading.Lock(), False
        self._running: list[tuple[SpawnProcess, Connection]] = []
        self._turns: Iterator[Connection] = iter(())
        self._next_step = 0

    def __call__(self, step: int) -> HostBatch:
        """The batch of a step."""
        return self._ahead(step)

    def close(self) -> None:
        """Ends the workers, and what is read ahead."""
        with self._lock:
            self._closed = True
            _kill(self._running)
        # It finds that its workers have died.
        self._ahead.close()
        self._end_workers()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, step: int) -> HostBatch:
        numbers = self._parts.numbers
        if not len(numbers):
            raise ValueError("a process without images in the batch")
        if self.workers:
            images, indices = self._receive(step)
        else:
            images, indices = self._parts.load(step, slice(None))
        return HostBatch(images, self._parts.split.labels[indices], numbers, indices)

    def _receive(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            if not self._running or step != self._next_step:
                self._start_workers(step)
            self._next_step = step + 1
            images, indices = None, np.empty(len(self._parts.numbers), np.int32)
            for rows in self._parts.rows:
                connection = next(self._turns)
                reply = connection.recv()
                if isinstance(reply, Exception):
                    raise reply
                indices[rows], shape = reply
                if images is None:
                    images = np.empty((len(indices), *shape), np.uint8)
                connection.recv_bytes_into(images[rows].reshape(-1))
        except Exception as error:
            # The next call starts anew.
            self._end_workers()
            if isinstance(error, EOFError | ConnectionError):
                what = "a process that decodes images died, perhaps for lack of memory"
            elif isinstance(error, OSError):
                what = f"processes that decode images cannot be started ({explain(error)})"
            else:
                raise
            advice = "lower config.data.workers; 0 decodes in threads"
            raise UserError(f"{what}: {advice}") from error
        assert images is not None
        return images, indices

    def _start_workers(self, step: int) -> None:
        self._end_workers()
        # multiprocessing's own end of a program waits for workers that nobody has ended. Without
        # workers, a loader that nobody closes is freed with its images.
        atexit.register(self._end_workers)
        started = start_workers(self._parts, step, self.workers)
        with self._lock:
            self._running = started
            if self._closed:
                _kill(started)
        self._turns = itertools.cycle([connection for _, connection in started])

    def _end_workers(self) -> None:
        with self._lock:
            running, self._running = self._running, []
        _end(running)
        atexit.unregister(self._end_workers)


def start_workers(parts: Parts, step: int, count: int) -> list[tuple[SpawnProcess, Connection]]:
    """Workers that decode all parts from a step on; each sends every `count`th, in its turn."""
    # A fork would lose the threads of this process. cloudpickle takes classes of notebooks too.
    spawn, content = multiprocessing.get_context("spawn"), cloudpickle.dumps(parts)
    started: list[tuple[SpawnProcess, Connection]] = []
    # Terminals and schedulers signal every process; the run's own saves, and ends the others. What
    # multiprocessing starts beside them would let signals through again.
    resource_tracker.ensure_running()
    try:
        with _blocking_signals():
            for worker in range(count):
                ours, theirs = spawn.Pipe()
                first = step * len(parts.rows) + worker
                process = spawn.Process(target=_work, args=(theirs, first, count), daemon=True)
                process.start()
                started.append((process, ours))
                theirs.close()
        for _, connection in started:
            connection.send_bytes(content)
    except BaseException:
        # The program would wait for them at its end.
        _end(started)
        raise
    return started


def _kill(workers: Sequence[tuple[SpawnProcess, Connection]]) -> None:
    for process, _ in workers:
        # They are deaf to anything less.
        process.kill()


def _end(workers: Sequence[tuple[SpawnProcess, Connection]]) -> None:
    _kill(workers)
    for process, connection in workers:
        process.join()
        connection.close()


@contextlib.contextmanager
def _blocking_signals() -> Iterator[None]:
    """Has the threads and processes that start meanwhile begin deaf to signals."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, first: int, count: int) -> None:
    """Decodes and sends every `count`th part from the first on, while somebody receives."""
    # Keeps off the accelerator.
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(EOFError, OSError):
        parts: Parts = cloudpickle.loads(connection.recv_bytes())
        numbers = range(first, parts.steps * len(parts.rows), count)

        def load(turn: int) -> tuple[np.ndarray, np.ndarray] | Exception:
            step, part = divmod(numbers[turn], len(parts.rows))
            try:
                return parts.load(step, parts.rows[part])
            except UserError as error:
                return error
            except Exception as error:
                # Its class, and what it holds, may not pickle.
                return RuntimeError("".join(traceback.format_exception(error)))

        with Ahead(load, len(numbers)) as ahead:
            for turn in range(len(numbers)):
                found = ahead(turn)
                if isinstance(found, Exception):
                    connection.send(found)
                    break
                images, indices = found
                connection.send((indices, images.shape[1:]))
                connection.send_bytes(images.reshape(-1).data)
