"""The processes of one run: their numbers, their waits for each other, and their common end.

All run the same program and come to the same waits in the same order. They talk through JAX's
coordination service, which belongs to process 0 and, unlike collectives of devices, lets one wait
for another without a limit of time. A run of one process is the first, and does not wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from lgm_jax.errors import UserError
from lgm_jax.interrupts import SIGNALS, Interrupted
from lgm_jax.meeting import Meeting, meet

T = TypeVar("T")

# JAX waits for so long for a process that has met the others a moment ago.
_CONNECT_SECONDS = 60

# After a process has been silent for so long, JAX ends the others.
_HEARTBEAT_SECONDS = 30

# The pause between two looks at whether another process has ended the run.
_LISTEN_SECONDS = 0.5

# The others wait for so long for process 0 to come to the same end.
_COURTESY_SECONDS = 10.0

# A wait for another process has no limit of its own: if that one dies, JAX ends this one.
_FOREVER_MS = 30 * 24 * 3600 * 1000

_END = "lgm_jax/end"

# What a shell reports for a program that JAX aborts (SIGABRT) because another process died.
LOST = 134

# Words in the errors of the coordination service, gloo and NCCL that a dead process causes.
_DEATHS = re.compile(
    "heartbeat timeout|CoordinationServiceError|Failed to send RPC|UNAVAILABLE|Gloo|NCCL|"
    "Connection closed by peer|Connection reset by peer|Socket closed"
)

_waits = itertools.count()
_ending = threading.Lock()


@dataclasses.dataclass
class _Process:
    """This process, and its line to the coordination service if there are others."""

    client: Any = None
    count: int = 1
    index: int = 0
    connections: Mapping[int, socket.socket] = dataclasses.field(default_factory=dict)


this = _Process()


def count() -> int:
    """The number of processes."""
    return this.count


def index() -> int:
    """The number of this process. On a TPU it may differ from `jax.process_index()`."""
    return this.index


def is_first() -> bool:
    """Whether this process prints and writes for all."""
    return this.index == 0


@contextlib.contextmanager
def joined(meeting: Meeting | None) -> Iterator[None]:
    """Connects this process with the others, before JAX runs; only the first prints."""
    if meeting is None:
        yield
        return
    _join(meeting)
    done = threading.Event()
    listener = threading.Thread(target=_listen, args=(done,), daemon=True)
    listener.start()
    if not is_first():
        # Libraries that are not Python's print too.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    yield
    wait()
    done.set()
    listener.join()


def wait() -> None:
    """Waits until every process has come here."""
    if count() > 1:
        name = f"lgm_jax/wait/{next(_waits)}"
        _patiently(lambda: this.client.wait_at_barrier(name, _FOREVER_MS))


def first_says(value: T) -> T:
    """Returns the value of process 0 in all processes; JSON has to hold it."""
    if count() == 1:
        return value
    client, name = this.client, f"lgm_jax/value/{next(_waits)}"
    if is_first():
        client.key_value_set(name, json.dumps(value))
        return value
    return json.loads(_patiently(lambda: client.blocking_key_value_get(name, _FOREVER_MS)))


def leave(code: int, line: str | None) -> int:
    """Prints a last line on stderr and returns the exit code; ends all of several processes.

    The first to leave decides: the others, wherever they are, end with the same code, and process 0
    prints the line. Where all leave at once, the code and the line are process 0's.
    """
    client = this.client
    if client is None:
        if line:
            print(line, file=sys.stderr)
        return code
    for number in SIGNALS:
        # A scheduler's signals do not reach all processes at once.
        signal.signal(number, signal.SIG_IGN)
    end = json.dumps([code, line])
    if not is_first():
        with contextlib.suppress(RuntimeError):
            client.blocking_key_value_get(_END, int(1000 * _COURTESY_SECONDS))
    with contextlib.suppress(RuntimeError):
        # Fails if another process was faster.
        client.key_value_set(_END, end)
    with contextlib.suppress(RuntimeError):
        # Fails if JAX has closed the connection because another process died.
        end = client.blocking_key_value_get(_END, _FOREVER_MS)
    _end(*json.loads(end))
    return code


def tells_of_death(error: BaseException | None) -> bool:
    """Whether an error was raised, or caused, by the death of another process.

    JAX, which has no class of error for that, ends this process too, but perhaps a moment later.
    """
    while error is not None:
        if count() > 1 and _DEATHS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _join(meeting: Meeting) -> None:
    # Before they meet: from a slow disk, importing may take some of them longer than JAX waits.
    import jax

    # The client that `initialize` creates; it has no public name.
    from jax._src.distributed import global_state

    meeting = meet(meeting)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # No proxy is asked (see `meet`), but JAX would warn of the variable.
    jax.config.update("jax_check_proxy_envs", False)
    # It would handle SIGTERM alone.
    jax.config.update("jax_enable_preemption_service", False)
    # Python does not handle Ctrl-C while this process waits for the others.
    by_python = signal.getsignal(signal.SIGINT)
    if by_python != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        jax.distributed.initialize(
            meeting.address,
            meeting.num_processes,
            meeting.process_id,
            local_device_ids=meeting.local_device_ids,
            initialization_timeout=_CONNECT_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"the processes at {meeting.address} do not connect: {reason}") from error
    finally:
        signal.signal(signal.SIGINT, by_python)
    this.client = global_state.client
    this.count, this.index = global_state.num_processes, global_state.process_id
    this.connections = meeting.connections


def _patiently(call: Callable[[], Any]) -> Any:
    """Waits for a call in another thread, so that this one handles signals meanwhile."""
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(call())
        except RuntimeError as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer.result()


def _listen(done: threading.Event) -> None:
    """Ends this process when another has ended the run, whatever its main thread waits for."""
    while not done.wait(_LISTEN_SECONDS):
        try:
            end = this.client.key_value_try_get(_END)
        except RuntimeError:
            # None has.
            continue
        _end(*json.loads(end))


def _end(code: int, line: str | None) -> None:
    """Ends this process at once; never returns, and runs only once."""
    _ending.acquire()
    if is_first():
        if line:
            print(line, file=sys.stderr)
        # JAX's service ends with this process, and JAX aborts all that are still connected to it. A
        # process that knows of the end may be slow to leave; its connection ends with it.
        deadline = time.monotonic() + _HEARTBEAT_SECONDS
        for connection in this.connections.values():
            with contextlib.suppress(OSError):
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                connection.recv(1)
    # The output may be closed.
    with contextlib.suppress(Interrupted):
        sys.stdout.flush()
    sys.stderr.flush()
    # An orderly exit would wait for the others, which wait for this one.
    os._exit(code)
