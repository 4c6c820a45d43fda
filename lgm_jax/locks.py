"""Locks on folders, which the system frees however their process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from lgm_jax import paths

try:
    import fcntl
except ImportError:
    # Windows.
    fcntl = None  # type: ignore[assignment]


NAME = ".lock"

# Between two looks at a folder that is held for a moment.
_RETRY_SECONDS = 0.1

# Whatever else is raised, network file systems raise where they have no locks: ENOLCK, ENOSYS,
# EOPNOTSUPP, EINVAL, EPERM.
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class Held(Exception):
    """Another process holds the lock; the message names it as far as it is known."""


class Unsupported(Exception):
    """The file system, or the operating system, has no locks; the message says why."""


class Lock:
    """An exclusive lock on a file, which is made if need be and left where it is.

    What the file holds, the process and the machine that locked it last, is for people: a file that
    a dead process has left locks nobody out.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Takes the lock; never waits.

        Raises:
            Held: If another process has it.
            Unsupported: If there are no locks here.
            OSError: If the file cannot be made.
        """
        if fcntl is None:
            raise Unsupported("this system has no flock")
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
        # On a full disk too, the lock is a lock.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()}\n{socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Frees the lock, if it is held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def in_use(folder: epath.Path) -> bool:
    """Whether another process holds a folder at this moment, as far as its lock says."""
    if not folder.is_dir() or paths.is_bucket(folder):
        return False
    lock = Lock(Path(folder / NAME))
    try:
        lock.acquire()
    except Held:
        return True
    except Unsupported:
        return False
    lock.release()
    return False


@contextlib.contextmanager
def alone_in(folder: epath.Path) -> Iterator[None]:
    """Within, no other process that asks for it is in a folder; waits for the one that is.

    Where there are no locks, there is nothing to wait for.
    """
    lock = Lock(Path(folder / NAME))
    while not paths.is_bucket(folder):
        try:
            lock.acquire()
        except Held:
            time.sleep(_RETRY_SECONDS)
        except Unsupported:
            break
        else:
            break
    try:
        yield
    finally:
        lock.release()
