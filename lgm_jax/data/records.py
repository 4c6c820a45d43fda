"""Images as their source stores them, by number, and splits that decode them when asked to."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from lgm_jax.data.dataset import Places
from lgm_jax.data.decode import BadImageError, decode, resize_and_crop
from lgm_jax.errors import UserError
from lgm_jax.names import plain

T = TypeVar("T")


@runtime_checkable
class Records(Protocol):
    """Stored images. Pickles, so that worker processes can have one."""

    @property
    def where(self) -> str | Path: ...

    def read(self, number: int) -> bytes | np.ndarray:
        """A file's bytes, or pixels (h, w), (h, w, 3) or (h, w, 4) uint8; raises `OSError`."""
        ...

    def name(self, number: int) -> str:
        """Returns the name of an image in messages and results: never an absolute path."""
        ...


@dataclasses.dataclass(frozen=True)
class FileRecords:
    """Image files below a folder: paths, with slashes, and sizes in bytes, if known."""

    where: Path
    files: Sequence[str]
    sizes: Sequence[int] = ()

    def read(self, number: int) -> bytes:
        return (self.where / self.files[number]).read_bytes()

    def name(self, number: int) -> str:
        return plain(self.files[number])

    def dead_links(self, numbers: Int[np.ndarray, " n"]) -> list[str]:
        """Those of some files that are links to nowhere, and where to."""
        empty = numbers[np.asarray(self.sizes)[numbers] == 0]
        paths = [self.where / self.files[number] for number in empty]
        return [
            f"{plain(path.relative_to(self.where))} -> {plain(os.readlink(path))}"
            for path in paths
            if path.is_symlink() and not os.path.exists(path)
        ]


@dataclasses.dataclass(frozen=True)
class PixelRecords:
    """Images in memory, of one size: (n, h, w) or (n, h, w, c) uint8."""

    where: str
    images: UInt8[np.ndarray, "n h w *c"]

    def read(self, number: int) -> UInt8[np.ndarray, "h w *c"]:
        return self.images[number]

    def name(self, number: int) -> str:
        return f"image {number}"


@dataclasses.dataclass(frozen=True)
class ImageSplit:
    """A split whose images are decoded when asked for.

    Attributes:
        records: The stored images, perhaps more than the split has.
        rows: (n,) Which of them it has.
        resolution: Side `r` of the images that `load` returns, in pixels.
    """

    records: Records
    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    resolution: int
    orient: bool = False
    groups: Int[np.ndarray, " n"] | None = None

    def load(
        self, indices: Int[np.ndarray, " b"], places: Places | None = None
    ) -> UInt8[np.ndarray, "b r r 3"]:
        """Decodes images in threads; see `decode` and `resize_and_crop`."""
        images = np.empty((len(indices), self.resolution, self.resolution, 3), np.uint8)

        def fill(i: int) -> None:
            place = None if places is None else places[i]
            try:
                images[i] = resize_and_crop(self._decode(indices[i]), self.resolution, place)
            except BadImageError as error:
                name = f"{self.records.where}/{self.name(indices[i])}"
                raise UserError(f"cannot read image {name}: {error}") from error

        _in_threads(fill, range(len(indices)))
        return images

    def name(self, index: int | np.integer) -> str:
        """Returns the name of an image: never an absolute path."""
        return self.records.name(int(self.rows[index]))

    def take(self, rows: Int[np.ndarray, " m"]) -> ImageSplit:
        """The split that has only these images, in this order."""
        groups = None if self.groups is None else self.groups[rows]
        return dataclasses.replace(
            self, rows=self.rows[rows], labels=self.labels[rows], groups=groups
        )

    def faults(self, indices: Int[np.ndarray, " b"]) -> list[str | None]:
        """Why images cannot be decoded; `None` of those that can."""

        def find(index: int) -> str | None:
            try:
                self._decode(index)
            except BadImageError as error:
                return str(error)
            return None

        return _in_threads(find, indices.tolist())

    def _decode(self, index: int | np.integer) -> Image.Image | UInt8[np.ndarray, "h w 3"]:
        try:
            source = self.records.read(int(self.rows[index]))
        except OSError as error:
            raise BadImageError(error.strerror or str(error)) from error
        return decode(source, orient=self.orient, name=self.name(index))


def _in_threads(function: Callable[[int], T], items: Sequence[int]) -> list[T]:
    """Maps in as many threads as there are cores; decoding and resizing release the GIL."""
    # There are as many worker processes as there are cores to use.
    if len(items) < 2 or multiprocessing.parent_process() is not None:
        return [function(item) for item in items]
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(function, items))


def num_cores() -> int:
    """Cores that this process may use."""
    # Containers and schedulers give a process fewer cores than the machine has; macOS cannot say.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
