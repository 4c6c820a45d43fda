"""Locks on folders, which the system releases however their process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from lgm_jax import paths

NAME = ".lock"

# Network file systems without locks raise others: ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL, EPERM.
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class Held(Exception):
    """Another process holds the lock; the message names it as far as it is known."""


class Unsupported(Exception):
    """The file system has no locks; the message says why."""


class Lock:
    """An exclusive lock on a file, which is created if it does not exist, and stays.

    The file names the process and the machine that locked it last, for people: the file of a dead
    process is no lock.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Takes the lock; never waits. Raises `Held`, `Unsupported`, or an `OSError`."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(file, 512).decode(errors="replace").split()
            os.close(file)
            if error.errno in _HELD:
                raise Held(" on ".join(holder[:2])) from error
            raise Unsupported(error.strerror or str(error)) from error
        self._file = file
        # The lock holds on a full disk, too.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()}\n{socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def in_use(folder: epath.Path) -> bool:
    """Returns whether another process holds the lock of a folder at this moment."""
    if not folder.is_dir() or paths.is_bucket(folder):
        return False
    lock = Lock(Path(folder / NAME))
    try:
        with contextlib.suppress(Unsupported):
            lock.acquire()
    except Held:
        return True
    lock.release()
    return False


@contextlib.contextmanager
def alone_in(folder: epath.Path) -> Iterator[None]:
    """Holds the lock of a folder within, after waiting for it; does nothing where there is none."""
    lock = Lock(Path(folder / NAME))
    # Buckets have no locks.
    waits = not paths.is_bucket(folder)
    while waits:
        try:
            with contextlib.suppress(Unsupported):
                lock.acquire()
            waits = False
        except Held:
            time.sleep(0.1)
    try:
        yield
    finally:
        lock.release()
