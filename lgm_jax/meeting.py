"""How the processes of a run meet, before JAX connects them for good.

JAX waits five minutes in silence for a process that never comes, and aborts. So process 0 first
answers the others itself, on the same port: that all are there, once each, with the same command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

from lgm_jax.errors import UserError

# A scheduler may start some processes minutes after others.
SECONDS = 300.0

# Between two attempts to reach process 0.
_PAUSE_SECONDS = 0.5

# How long a server of names may be out of reach, as while a machine starts.
_NAMING_SECONDS = 30.0

# To connect to an address of process 0, and for whoever connects to it to say who it is.
_GREETING_SECONDS = 5.0
_LONGEST_GREETING = 2**20

_STRANGER = "another program than process 0 answers"

# Keys that may differ from machine to machine.
_OWN = ("data.workers",)


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where processes meet.

    Attributes:
        address: `HOST:PORT` of process 0; `None` if JAX is to find everything by itself, as it
            does under Slurm, Open MPI, GKE and on TPUs.
        num_processes: How many there are.
        process_id: Which one this is, from 0.
        local_device_ids: The devices of this process among those of its machine; `None` for all.
        settings: Values by config key, which all must share.
        connections: To the others, once they have met: those of process 0 to each, by number, and
            of each to process 0. Nothing is sent there any more: their end is a process's end.
    """

    address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: Sequence[int] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    connections: Mapping[int, socket.socket] = dataclasses.field(default_factory=dict)


def read(where: str, num_processes: int | None, process_id: int | None) -> Meeting | None:
    """What `--distributed` and the two flags that belong to it say; `None` for one process.

    Raises:
        UserError: If they do not fit together.
    """
    if where in ("off", "auto"):
        for name, value in (("num_processes", num_processes), ("process_id", process_id)):
            if value is not None:
                raise UserError(
                    f"--{name} is for --distributed=HOST:PORT, but --distributed is {where}"
                )
        return Meeting() if where == "auto" else None
    host, colon, port = where.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            f"--distributed must be off, auto or HOST:PORT, for example 10.0.0.1:9876, not {where}"
        )
    if num_processes is None or process_id is None:
        raise UserError(f"--distributed={where} needs --num_processes=P and --process_id=I")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id must be from 0 to --num_processes - 1, not {process_id} of "
            f"{num_processes}"
        )
    # gRPC takes IPv6 in brackets alone.
    bare = ":" in host and not host.startswith("[")
    return Meeting(f"[{host}]:{port}" if bare else where, num_processes, process_id)


def meet(meeting: Meeting) -> Meeting:
    """Returns once all processes are there, with all that JAX needs to connect them.

    What is waited for is said on stderr.

    Raises:
        UserError: If they cannot meet, do not within `SECONDS`, or do not belong together.
    """
    found = _detect(meeting) if meeting.address is None else meeting
    if found.address is None or found.num_processes is None or found.process_id is None:
        raise ValueError(f"{found} is incomplete")
    if found.num_processes == 1:
        return found
    host, _, port = found.address.rpartition(":")
    # Web proxies, which gRPC would ask, lead nowhere within a cluster.
    spared = [*filter(None, [os.environ.get("no_grpc_proxy")]), host.strip("[]")]  # noqa: SIM112
    os.environ["no_grpc_proxy"] = ",".join(spared)  # noqa: SIM112
    addresses = _resolve(host.strip("[]"), int(port))
    if found.process_id == 0:
        connections = _receive(found, int(port))
    else:
        connections = {0: _join(found, addresses)}
    for connection in connections.values():
        _keep_alive(connection)
    return dataclasses.replace(found, connections=connections)


def _resolve(host: str, port: int) -> list[tuple[str, int]]:
    """The addresses of a machine, a link-local one with its scope.

    Raises:
        UserError: If there is no such machine.
    """
    deadline = time.monotonic() + _NAMING_SECONDS
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            break
        except (OSError, UnicodeError) as error:
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            if not again or time.monotonic() > deadline:
                raise UserError(
                    f"--distributed: no machine is called {host} ({error}): give the name or the "
                    "address of the machine of process 0"
                ) from error
        time.sleep(_PAUSE_SECONDS)
    return [
        (f"{number}%{rest[1]}" if rest and rest[1] else str(number), port)
        for *_, (number, _, *rest) in found
    ]


def _detect(meeting: Meeting) -> Meeting:
    """The meeting that JAX finds in the environment.

    Raises:
        UserError: If it finds none, or a part of one.
    """
    # It has no public name.
    from jax._src.clusters import ClusterEnv

    by_hand = "give --distributed=HOST:PORT --num_processes=P --process_id=I"
    try:
        address, processes, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(SECONDS)
        )
    # Of variables that are missing, are no numbers, or name machines that do not answer.
    except Exception as error:
        reason = str(error).split("\n")[0]
        what = f"{reason} is not set" if isinstance(error, KeyError) else reason
        raise UserError(
            f"--distributed=auto finds a part of what Slurm, Open MPI, GKE or a TPU set ({what}): "
            f"start with their launcher, or {by_hand}"
        ) from error
    if address is None or processes is None or number is None:
        if "OMPI_COMM_WORLD_SIZE" in os.environ:
            raise UserError(
                "--distributed=auto does not know where to meet under Open MPI 5 and later: give "
                "--distributed=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
                "--process_id=$OMPI_COMM_WORLD_RANK, in a shell that mpirun starts"
            )
        raise UserError(
            "--distributed=auto finds no launcher of processes here: use Slurm's srun, Open MPI 4, "
            f"GKE or a TPU, or {by_hand}"
        )
    return dataclasses.replace(
        meeting,
        address=address,
        num_processes=processes,
        process_id=number,
        local_device_ids=devices,
    )


def _keep_alive(connection: socket.socket) -> None:
    """Has the system look at an idle connection every minute: firewalls forget those."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        # Not all systems have both.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), 60)


def _receive(meeting: Meeting, port: int) -> dict[int, socket.socket]:
    """Process 0: waits for all others, and tells them to go on, or why not.

    Returns:
        A connection to each by its number, which JAX's service does not mind on its port.
    """
    try:
        server = _listen(port)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}): name another in "
            "--distributed, on all of them"
        ) from error
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as opened:
        opened.enter_context(server)
        _tell(range(1, _count(meeting)), meeting)
        greetings = opened.enter_context(contextlib.closing(_greetings(server)))
        try:
            while len(present := _still_there(present)) < _count(meeting) - 1:
                other, greeting = next(greetings, (None, b""))
                if other is None:
                    raise _missing(meeting, present)
                opened.enter_context(other)
                number = _admit(meeting, other, greeting, present)
                if number is None:
                    other.close()
                else:
                    present[number] = other
        except UserError as error:
            _answer(present.values(), str(error))
            raise
        _answer(present.values(), "")
        # All that came are closed here.
        return {number: other.dup() for number, other in present.items()}


def _greetings(server: socket.socket) -> Generator[tuple[socket.socket, bytes]]:
    """Who connects within `SECONDS`, with the line it says: one that says none delays no other."""
    deadline = time.monotonic() + SECONDS
    silent: dict[socket.socket, tuple[float, bytearray]] = {}
    server.setblocking(False)
    with selectors.DefaultSelector() as heard:
        heard.register(server, selectors.EVENT_READ)

        def take(other: socket.socket) -> bytes:
            heard.unregister(other)
            return bytes(silent.pop(other)[1])

        try:
            while (now := time.monotonic()) < deadline:
                for other in [other for other, (until, _) in silent.items() if until < now]:
                    take(other)
                    other.close()
                for ready, _ in heard.select(min(deadline - now, _PAUSE_SECONDS)):
                    if ready.fileobj is server:
                        # It may be gone again.
                        with contextlib.suppress(OSError):
                            other, _ = server.accept()
                            other.setblocking(False)
                            silent[other] = now + _GREETING_SECONDS, bytearray()
                            heard.register(other, selectors.EVENT_READ)
                    elif _is_whole(other := cast(socket.socket, ready.fileobj), silent[other][1]):
                        yield other, take(other)
        finally:
            for other in silent:
                other.close()


def _is_whole(other: socket.socket, line: bytearray) -> bool:
    """Adds what has come to a line; returns whether no more is to come."""
    try:
        part = other.recv(2**16)
    except OSError:
        return True
    line += part
    return not part or b"\n" in part or len(line) >= _LONGEST_GREETING


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
    return socket.create_server(("", port), backlog=1024)


def _admit(
    meeting: Meeting, other: socket.socket, greeting: bytes, present: Mapping[int, socket.socket]
) -> int | None:
    """Which process this is; `None` for a stranger.

    Raises:
        UserError: If it does not belong to this run.
    """
    try:
        said = json.loads(greeting)
        number, count = int(said["process"]), int(said["processes"])
        settings = dict(said["settings"])
    # A scan of ports, or a process that died.
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    reason = None
    if count != meeting.num_processes:
        reason = f"process {number} has --num_processes={count}, not {meeting.num_processes}"
    elif number == meeting.process_id or (number in present and not _is_gone(present[number])):
        reason = f"two processes have --process_id={number}"
    else:
        own = _shared(meeting)
        differ = [key for key in {**own, **settings} if own.get(key) != settings.get(key)]
        if differ:
            values = [f"{key} is {settings.get(key)} there, not {own.get(key)}" for key in differ]
            reason = f"process {number} has another config: {'; '.join(values)}"
    if reason is None:
        return number
    _answer([other], f"{reason}: start all with the same command")
    raise UserError(f"{reason}: start all with the same command")


def _join(meeting: Meeting, addresses: Sequence[Any]) -> socket.socket:
    """Another process: asks process 0 whether to go on, until it answers; the connection to it."""
    greeting = {
        "process": meeting.process_id,
        "processes": meeting.num_processes,
        "settings": _shared(meeting),
    }
    deadline = time.monotonic() + SECONDS
    reason = ""
    _tell([0], meeting)
    while (left := deadline - time.monotonic()) > 0:
        for address in addresses:
            try:
                # An address that a firewall swallows leaves time for the next one.
                timeout = min(left, _GREETING_SECONDS)
                with socket.create_connection(address, timeout=timeout) as connection:
                    connection.sendall(json.dumps(greeting).encode() + b"\n")
                    # Process 0 knows who did not come.
                    answer = _read_line(connection, deadline + _GREETING_SECONDS)
                    if answer == _answer_line(""):
                        return connection.dup()
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            if not answer:
                reason = "it ended"
                continue
            try:
                refused = json.loads(answer)["refused"]
            except (ValueError, LookupError, TypeError, RecursionError):
                # It may be the same run's, which ends because this process was started again.
                if reason != _STRANGER:
                    print(f"note: {_STRANGER} at {meeting.address}", file=sys.stderr, flush=True)
                reason = _STRANGER
                continue
            raise UserError(refused)
        time.sleep(_PAUSE_SECONDS)
    raise UserError(
        f"process 0 did not answer at {meeting.address} within {SECONDS:.0f} s ({reason}): start "
        "it there, and let the others reach its port"
    )


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    line = bytearray()
    while b"\n" not in line and len(line) < _LONGEST_GREETING:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(2**16)
        if not part:
            break
        line += part
    return bytes(line)


def _answer(others: Any, refused: str) -> None:
    for other in others:
        with contextlib.suppress(OSError):
            other.settimeout(_GREETING_SECONDS)
            other.sendall(_answer_line(refused))


def _answer_line(refused: str) -> bytes:
    """What a process is refused for, or, if that is empty, that it may go on."""
    return json.dumps({"refused": refused}).encode() + b"\n"


def _still_there(present: Mapping[int, socket.socket]) -> dict[int, socket.socket]:
    return {number: other for number, other in present.items() if not _is_gone(other)}


def _is_gone(other: socket.socket) -> bool:
    """Whether a process that waited has ended, and may have been started again."""
    other.setblocking(False)
    try:
        # It has nothing more to say: this is its end.
        other.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _shared(meeting: Meeting) -> dict[str, Any]:
    """Settings as they arrive."""
    kept = {key: value for key, value in meeting.settings.items() if key not in _OWN}
    return json.loads(json.dumps(kept, default=str))


def _count(meeting: Meeting) -> int:
    return meeting.num_processes or 1


def _tell(awaited: Sequence[int], meeting: Meeting) -> None:
    where = f"{_named(awaited)} of {_count(meeting)} at {meeting.address}"
    print(f"waiting for {where}, for up to {SECONDS:.0f} s", file=sys.stderr, flush=True)


def _missing(meeting: Meeting, present: Mapping[int, Any]) -> UserError:
    absent = [number for number in range(1, _count(meeting)) if number not in present]
    return UserError(
        f"{_named(absent)} of {_count(meeting)} did not come to {meeting.address} within "
        f"{SECONDS:.0f} s: start all with the same command, and let them reach that port"
    )


def _named(numbers: Sequence[int]) -> str:
    """In words: the first few."""
    words = [str(number) for number in numbers]
    text = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
    return f"process{'es' if len(words) > 1 else ''} {text}"
