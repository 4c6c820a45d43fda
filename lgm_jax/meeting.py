"""The meeting of a run's processes, before JAX connects them.

JAX waits five minutes in silence for a missing process, and aborts. So process 0 first answers the
others itself, on the same port, once all are there, once each, with the same command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lgm_jax.errors import UserError

# A scheduler may start some processes minutes after others.
SECONDS = 300.0

# The pause between two attempts to reach process 0.
PAUSE_SECONDS = 0.5

# To connect to an address of process 0, and for a connection there to identify itself.
GREETING_SECONDS = 5.0

# Before what processes send each other, which tells them from other programs.
_MARK = b"lgm_jax "
_LONGEST = 2**20

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
    num_processes: int = 1
    process_id: int = 0
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
    if not 0 <= process_id < num_processes:
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
    if meeting.num_processes == 1:
        return meeting
    host, _, port = str(meeting.address).rpartition(":")
    host = host.strip("[]")
    # Web proxies, which gRPC would ask, lead nowhere within a cluster.
    direct = [*filter(None, [os.environ.get("no_grpc_proxy")]), host]  # noqa: SIM112
    os.environ["no_grpc_proxy"] = ",".join(direct)  # noqa: SIM112
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--distributed: no machine is called {host} ({error}): give the name or the address "
            "of the machine of process 0"
        ) from error
    if meeting.process_id == 0:
        connections = _receive(meeting, int(port))
    else:
        connections = {0: _join(meeting, host, int(port))}
    return dataclasses.replace(meeting, connections=connections)


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
    return Meeting(address, processes, number, devices, meeting.settings)


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
    awaited, deadline = range(1, meeting.num_processes), time.monotonic() + SECONDS
    heard: list[socket.socket] = []
    present: dict[int, socket.socket] = {}
    refusal = ""
    with server:
        _announce(awaited, meeting)
        while not refusal and len(_alive(present)) < len(awaited):
            left = deadline - time.monotonic()
            came = _accept(server, max(0.001, left))
            # One that was started again comes a second time.
            present = _alive(present)
            if came is not None:
                greeting, other = came
                refusal = _refuse(meeting, greeting, present)
                heard.append(other)
                present[greeting["process"]] = other
            elif left <= 0:
                absent = _named([number for number in awaited if number not in present])
                refusal = (
                    f"{absent} of {meeting.num_processes} did not come to {meeting.address} within "
                    f"{SECONDS:.0f} s: start all with the same command, and let them reach that "
                    "port"
                )
    for other in heard:
        with contextlib.suppress(OSError):
            other.settimeout(GREETING_SECONDS)
            _send(other, refusal)
        if refusal or other not in present.values():
            other.close()
    if refusal:
        raise UserError(refusal)
    return present


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
    return socket.create_server(("", port), backlog=1024)


def _accept(server: socket.socket, seconds: float) -> tuple[Any, socket.socket] | None:
    """Returns the next greeting and its connection; `None` if none comes, or a stranger."""
    server.settimeout(seconds)
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        other = opened.enter_context(server.accept()[0])
        greeting = _hear(other, GREETING_SECONDS)
        if greeting is not None:
            opened.pop_all()
            return greeting, other
    return None


def _refuse(meeting: Meeting, greeting: Mapping[str, Any], present: Mapping[int, Any]) -> str:
    """Returns why a process does not belong here; an empty text if it does."""
    number, own = greeting["process"], _greeting(meeting)
    theirs, ours = greeting["settings"], own["settings"]
    if greeting["processes"] != own["processes"]:
        counts = f"--num_processes={greeting['processes']}, not {own['processes']}"
        reason = f"process {number} has {counts}"
    elif number in present:
        reason = f"two processes have --process_id={number}"
    elif theirs != ours:
        differ = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        values = [f"{key} is {theirs.get(key)} there, not {ours.get(key)}" for key in differ]
        reason = f"process {number} has another config: {'; '.join(values)}"
    else:
        return ""
    return f"{reason}: start all with the same command"


def _alive(present: Mapping[int, socket.socket]) -> dict[int, socket.socket]:
    """Returns the connections to processes that have not ended: they send nothing more but that."""
    alive = {}
    for number, other in present.items():
        other.setblocking(False)
        try:
            other.recv(1)
        except BlockingIOError:
            alive[number] = other
        except OSError:
            pass
    return alive


def _join(meeting: Meeting, host: str, port: int) -> socket.socket:
    """Asks process 0 for admission until it answers; returns the connection to it."""
    deadline = time.monotonic() + SECONDS
    reason = ""
    _announce([0], meeting)
    while (left := deadline - time.monotonic()) > 0:
        refusal = None
        try:
            timeout = min(left, GREETING_SECONDS)
            with socket.create_connection((host, port), timeout=timeout) as connection:
                _send(connection, _greeting(meeting))
                # Process 0 names those that are missing, when its own time is up.
                refusal = _hear(connection, left + GREETING_SECONDS)
                if refusal == "":
                    return connection.dup()
                reason = "it ended, or another program answers"
        except OSError as error:
            reason = error.strerror or str(error)
        if refusal is not None:
            raise UserError(refusal)
        time.sleep(PAUSE_SECONDS)
    raise UserError(
        f"process 0 did not answer at {meeting.address} within {SECONDS:.0f} s ({reason}): start "
        "it there, and let the others reach its port"
    )


def _greeting(meeting: Meeting) -> dict[str, Any]:
    """Returns what a process says of itself, as it arrives."""
    settings = {key: value for key, value in meeting.settings.items() if key not in _OF_MACHINES}
    return {
        "process": meeting.process_id,
        "processes": meeting.num_processes,
        "settings": json.loads(json.dumps(settings, default=str)),
    }


def _send(connection: socket.socket, message: Any) -> None:
    connection.sendall(_MARK + json.dumps(message).encode() + b"\n")


def _hear(connection: socket.socket, seconds: float) -> Any:
    """Returns the message of another process; `None` from another program, or one that ended."""
    connection.settimeout(seconds)
    with connection.makefile("rb") as file:
        line = file.readline(_LONGEST)
    whole = line.startswith(_MARK) and line.endswith(b"\n")
    return json.loads(line.removeprefix(_MARK)) if whole else None


def _announce(awaited: Sequence[int], meeting: Meeting) -> None:
    where = f"{_named(awaited)} of {meeting.num_processes} at {meeting.address}"
    print(f"waiting for {where}, for up to {SECONDS:.0f} s", file=sys.stderr, flush=True)


def _named(numbers: Sequence[int]) -> str:
    """Names processes by their numbers, the first few of many."""
    words = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"process{'es' if len(numbers) > 1 else ''} {words}"
