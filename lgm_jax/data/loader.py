"""Batches of images for a step, decoded ahead of it by worker processes, with Grain.

A worker decodes a part of a batch at a time, and which one follows from its number alone. So a run
sees the same batches with any number of workers, may begin at any step, and holds in memory one
batch and the few parts that are decoded ahead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from lgm_jax import checks
from lgm_jax.data.dataset import ArraySplit, Split
from lgm_jax.data.records import ImageSplit, num_cores
from lgm_jax.data.sampling import Crops, Order
from lgm_jax.errors import UserError
from lgm_jax.interrupts import SIGNALS

# Images that a worker decodes between two looks at what to do next: 6 MB at 256 px.
_PART = 32

# Parts that each worker holds ready.
_AHEAD = 2


class HostBatch(NamedTuple):
    """One process's part of a step's batch.

    Attributes:
        images: (b, r, r, 3) uint8.
        labels: (b,) int32.
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
    """What workers read from: entry `i` holds a few images of one process's part of a batch.

    Attributes:
        split: The images.
        order: Which image is at a position.
        crops: Where it is cropped; `None` for the middle.
        batch: Images per step, of all processes.
        steps: Steps of the run.
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
        """Which images of a batch are this process's."""
        return np.arange(self.process_index, self.batch, self.process_count, dtype=np.int32)

    @property
    def per_step(self) -> int:
        """Entries of one step."""
        return -(-len(self.numbers) // _PART)

    def __len__(self) -> int:
        return self.steps * self.per_step

    def __getitem__(self, entry: int) -> dict[str, np.ndarray]:
        """Images (b, r, r, 3) uint8 and their indices (b,).

        Raises:
            UserError: If an image cannot be read; the message names it.
        """
        step, part = divmod(entry, self.per_step)
        numbers = self.numbers[part * _PART : (part + 1) * _PART]
        positions = step * self.batch + numbers.astype(np.int64)
        indices = self.order.at(positions)
        places = None if self.crops is None else self.crops.at(positions)
        return {"images": self.split.load(indices, places), "indices": indices}


class Loader:
    """Batches by step number; fast where steps follow one another, and right for any.

    To be closed, or used as a context, since it has processes.

    Attributes:
        workers: How many.
    """

    def __init__(self, parts: Parts, workers: int):
        """Starts nothing yet.

        Args:
            parts: The batches.
            workers: Processes that decode; with 0, threads of this process do, and they do where
                the images are in memory, which every process would need a copy of.
        """
        held = isinstance(parts.split, ArraySplit)
        held |= isinstance(parts.split, ImageSplit) and parts.split.held
        self.workers = 0 if held else workers
        self._parts = parts
        self._iterator: Any = None
        self._started = False
        self._next_step = 0

    def __call__(self, step: int) -> HostBatch:
        """The batch of a step.

        Raises:
            UserError: If an image cannot be read or a worker dies.
        """
        if self._iterator is None or step != self._next_step:
            self.close()
            self._iterator = iter(_read(self._parts, step, self.workers))
            self._started = False
        self._next_step = step + 1
        numbers = self._parts.numbers
        images, indices = None, np.empty(len(numbers), np.int32)
        done = 0
        for part in self._take():
            found = part["images"]
            if images is None:
                images = np.empty((len(numbers), *found.shape[1:]), np.uint8)
            images[done : done + len(found)] = found
            indices[done : done + len(found)] = part["indices"]
            done += len(found)
        if images is None:
            raise ValueError("a process without images in the batch")
        return HostBatch(images, self._parts.split.labels[indices], numbers, indices)

    def close(self) -> None:
        """Ends the workers."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            # What was decoded ahead is in shared memory, and in cycles.
            gc.collect()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self) -> Iterator[dict[str, np.ndarray]]:
        for _ in range(self._parts.per_step):
            try:
                if self._started:
                    yield next(self._iterator)
                else:
                    self._started = True
                    yield _first(self._iterator, self.workers)
            except RuntimeError as error:
                if "terminated unexpectedly" not in str(error):
                    raise
                raise UserError(
                    "a process that decodes images died, perhaps for lack of memory (shared memory "
                    "in a container): lower config.data.workers; 0 decodes in threads"
                ) from error


def default_workers() -> int:
    """All cores but the one that drives the device."""
    return max(1, num_cores() - 1)


def _read(parts: Parts, step: int, workers: int) -> Any:
    """Grain's data set of the parts from a step on."""
    # It takes a second to import, and most runs do without.
    import grain

    # Grain looks at flags of its own, which a program that does without absl's has not parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    source = grain.MapDataset.source(parts)[step * parts.per_step :]
    if not workers:
        # One thread to wait for the many that `load` has.
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
        return source.to_iter_dataset(ahead)
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
    return source.to_iter_dataset(alone).mp_prefetch(processes, worker_init_fn=_begin_worker)


def _first(iterator: Any, workers: int) -> dict[str, np.ndarray]:
    """The first part, for which the workers start, so that they ignore what asks a run to stop.

    Terminals and schedulers signal every process; the run's own saves, and ends the others.
    """
    before = set(multiprocessing.active_children())
    with _blocking_signals(), ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, iterator)
        while not first.done() and len(set(multiprocessing.active_children()) - before) < workers:
            time.sleep(0.01)
    return first.result()


@contextlib.contextmanager
def _blocking_signals() -> Iterator[None]:
    """Has the threads and processes that start meanwhile begin deaf to signals."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(worker: int, workers: int) -> None:
    """Keeps a worker off the accelerator, and from outliving the run."""
    jax.config.update("jax_platforms", "cpu")
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """Waits for the run's process, which may be killed before it can end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
