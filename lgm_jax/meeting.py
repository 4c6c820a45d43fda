"""The meeting of a run's processes, before JAX connects them.

JAX waits five minutes in silence for a missing process, and aborts. So process 0 first answers the
others itself, on the same port, once all are there, once each, with the same command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from lgm_jax.errors import UserError

# A scheduler may start some processes minutes after others.
SECONDS = 300.0

# The pause between two attempts to reach process 0.
PAUSE_SECONDS = 0.5

# The pause between two looks of process 0 at the others.
_LOOK_SECONDS = 0.05

# A server of names may be out of reach for so long, as while a machine starts.
NAMING_SECONDS = 30.0

# To connect to an address of process 0, and for a connection there to identify itself.
GREETING_SECONDS = 5.0
_LONGEST_GREETING = 2**20

_STRANGER = "another program than process 0 answers"

# Keys whose values may differ between machines.
_OF_MACHINES = ("data.workers",)


@dataclasses.dataclass(frozen=True)
class Meeting:
    """The place and the participants of a meeting.

    Attributes:
        address: `HOST:PORT` of process 0; `None` if JAX is to find everything by itself, as it
            does under Slurm, Open MPI, GKE and on TPUs.
        process_id: The number of this one, from 0.
        local_device_ids: The devices of this process among those of its machine; `None` for all.
        settings: Values by config key, which all must share.
        connections: Connections by number of the process, once they have met: of process 0 to each,
            of the others to process 0. Nothing more is sent there: their end is a process's end.
    """

    address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: Sequence[int] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    connections: Mapping[int, socket.socket] = dataclasses.field(default_factory=dict)


def read(where: str, num_processes: int | None, process_id: int | None) -> Meeting | None:
    """Reads `--distributed` and its two flags; returns `None` for a run of one process."""
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
    """Waits for all processes, with a line on stderr; returns a complete meeting for JAX."""
    if meeting.address is None:
        meeting = _detect(meeting)
    if meeting.address is None or meeting.num_processes is None or meeting.process_id is None:
        raise ValueError(f"{meeting} is incomplete")
    if meeting.num_processes == 1:
        return meeting
    host, _, port = meeting.address.rpartition(":")
    # Web proxies, which gRPC would ask, lead nowhere within a cluster.
    direct = [*filter(None, [os.environ.get("no_grpc_proxy")]), host.strip("[]")]  # noqa: SIM112
    os.environ["no_grpc_proxy"] = ",".join(direct)  # noqa: SIM112
    addresses = _resolve(host.strip("[]"), int(port))
    if meeting.process_id == 0:
        connections = _receive(meeting, int(port))
    else:
        connections = {0: _join(meeting, addresses)}
    for connection in connections.values():
        _keep_alive(connection)
    return dataclasses.replace(meeting, connections=connections)


def _resolve(host: str, port: int) -> list[tuple[str, int]]:
    """Returns the addresses of a machine, a link-local one with its scope."""
    deadline = time.monotonic() + NAMING_SECONDS
    while True:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            break
        except (OSError, UnicodeError) as error:
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            if not again or time.monotonic() > deadline:
                raise UserError(
                    f"--distributed: no machine is called {host} ({error}): give the name or the "
                    "address of the machine of process 0"
                ) from error
        time.sleep(PAUSE_SECONDS)
    return [
        (f"{number}%{rest[1]}" if rest and rest[1] else str(number), port)
        for *_, (number, _, *rest) in infos
    ]


def _detect(meeting: Meeting) -> Meeting:
    """Returns the meeting that the environment describes, as JAX reads it."""
    # It has no public name.
    from jax._src.clusters import ClusterEnv

    by_hand = "give --distributed=HOST:PORT --num_processes=P --process_id=I"
    try:
        address, processes, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(SECONDS)
        )
    # Variables may be missing, be no numbers, or name machines that do not answer.
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
    """Has the system probe an idle connection every minute: firewalls forget those."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        # Not all systems have both.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), 60)


def _receive(meeting: Meeting, port: int) -> dict[int, socket.socket]:
    """Waits, as process 0, for all others, and accepts or refuses them.

    Returns:
        A connection to each by its number; JAX's service does not mind them on its port.
    """
    try:
        server = _listen(port)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}): name another in "
            "--distributed, on all of them"
        ) from error
    count = meeting.num_processes or 1
    present: dict[int, socket.socket] = {}
    with server, contextlib.closing(_greetings(server)) as greetings:
        _announce(range(1, count), meeting)
        try:
            for other, greeting in greetings:
                number = _admit(meeting, other, greeting, present)
                if number is None:
                    other.close()
                else:
                    present[number] = other
                present = {n: other for n, other in present.items() if not _is_gone(other)}
                if len(present) == count - 1:
                    break
            else:
                present = {n: other for n, other in present.items() if not _is_gone(other)}
                absent = [number for number in range(1, count) if number not in present]
                raise UserError(
                    f"{_named(absent)} of {count} did not come to {meeting.address} within "
                    f"{SECONDS:.0f} s: start all with the same command, and let them reach that "
                    "port"
                )
        except UserError as error:
            _answer(present.values(), str(error))
            for other in present.values():
                other.close()
            raise
    _answer(present.values(), "")
    return present


def _greetings(server: socket.socket) -> Generator[tuple[socket.socket, bytes]]:
    """Yields connections within `SECONDS`, with their first lines: a silent one delays no other."""
    greetings: queue.SimpleQueue[tuple[socket.socket, bytes]] = queue.SimpleQueue()

    def hear(other: socket.socket) -> None:
        line = b""
        with contextlib.suppress(OSError):
            line = _read_line(other, time.monotonic() + GREETING_SECONDS)
        greetings.put((other, line))

    deadline = time.monotonic() + SECONDS
    server.settimeout(_LOOK_SECONDS)
    silent = set()
    try:
        while time.monotonic() < deadline:
            # No other may come, or be gone again.
            with contextlib.suppress(OSError):
                other, _ = server.accept()
                silent.add(other)
                threading.Thread(target=hear, args=(other,), daemon=True).start()
            while not greetings.empty():
                other, line = greetings.get()
                silent.discard(other)
                yield other, line
    finally:
        for other in silent:
            other.close()


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
    """Returns the number of a process; `None` for a stranger."""
    try:
        fields = json.loads(greeting)
        number, count = int(fields["process"]), int(fields["processes"])
        settings = dict(fields["settings"])
    # A scan of ports, or a process that died.
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    own = _shared(meeting)
    differ = [key for key in {**own, **settings} if own.get(key) != settings.get(key)]
    if count != meeting.num_processes:
        reason = f"process {number} has --num_processes={count}, not {meeting.num_processes}"
    elif number == meeting.process_id or (number in present and not _is_gone(present[number])):
        reason = f"two processes have --process_id={number}"
    elif differ:
        values = [f"{key} is {settings.get(key)} there, not {own.get(key)}" for key in differ]
        reason = f"process {number} has another config: {'; '.join(values)}"
    else:
        return number
    refusal = f"{reason}: start all with the same command"
    _answer([other], refusal)
    other.close()
    raise UserError(refusal)


def _join(meeting: Meeting, addresses: Sequence[Any]) -> socket.socket:
    """Asks process 0 for admission until it answers; returns the connection to it."""
    greeting = {
        "process": meeting.process_id,
        "processes": meeting.num_processes,
        "settings": _shared(meeting),
    }
    deadline = time.monotonic() + SECONDS
    reason = ""
    _announce([0], meeting)
    while (left := deadline - time.monotonic()) > 0:
        for address in addresses:
            try:
                # An address that a firewall swallows leaves time for the next one.
                timeout = min(left, GREETING_SECONDS)
                with socket.create_connection(address, timeout=timeout) as connection:
                    connection.sendall(json.dumps(greeting).encode() + b"\n")
                    # Process 0 names the missing ones.
                    answer = _read_line(connection, deadline + GREETING_SECONDS)
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
        time.sleep(PAUSE_SECONDS)
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


def _answer(others: Iterable[socket.socket], refusal: str) -> None:
    for other in others:
        with contextlib.suppress(OSError):
            other.settimeout(GREETING_SECONDS)
            other.sendall(_answer_line(refusal))


def _answer_line(refusal: str) -> bytes:
    """Returns the answer to a process: why it is refused, or an empty text if it is not."""
    return json.dumps({"refused": refusal}).encode() + b"\n"


def _is_gone(other: socket.socket) -> bool:
    """Returns whether a process that waited has ended, and may have been started again."""
    other.setblocking(False)
    try:
        # It sends nothing more: this is its end.
        other.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _shared(meeting: Meeting) -> dict[str, Any]:
    """Returns the settings that all must share, as they arrive."""
    shared = {key: value for key, value in meeting.settings.items() if key not in _OF_MACHINES}
    return json.loads(json.dumps(shared, default=str))


def _announce(awaited: Sequence[int], meeting: Meeting) -> None:
    where = f"{_named(awaited)} of {meeting.num_processes} at {meeting.address}"
    print(f"waiting for {where}, for up to {SECONDS:.0f} s", file=sys.stderr, flush=True)


def _named(numbers: Sequence[int]) -> str:
    """Names processes by their numbers, the first few of many."""
    words = [str(number) for number in numbers]
    text = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
    return f"process{'es' if len(words) > 1 else ''} {text}"
