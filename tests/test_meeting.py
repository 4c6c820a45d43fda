"""Processes that do not find each other, or do not belong together: a line, and soon."""

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import launch
from lgm_jax import meeting
from lgm_jax.errors import UserError
from tests.marks import slow

ROOT = Path(__file__).parents[1]
QUICK = "--config=configs/quickstart.py:quick"


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(tmp_path, *arguments):
    command = [sys.executable, "launch.py", QUICK, f"--workdir={tmp_path / 'run'}", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_host_that_does_not_resolve_is_one_line(tmp_path):
    arguments = ["--distributed=no-such-host.invalid:9876", "--num_processes=2", "--process_id=1"]
    process = start(tmp_path, *arguments)
    try:
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 2
    assert err.decode().startswith("error: --distributed: no machine is called no-such-host")
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("number", [0, slow(1)])
def test_what_is_waited_for_is_said_at_once(number, tmp_path):
    address = free_address()
    meet = [f"--distributed={address}", "--num_processes=2", f"--process_id={number}"]
    process = start(tmp_path, *meet)
    try:
        ready, _, _ = select.select([process.stderr], [], [], 300)
        assert ready, "nothing was said for five minutes"
        line = process.stderr.readline().decode()
        assert line.startswith(f"waiting for process {1 - number} of 2 at {address}, for up to")
    finally:
        process.kill()
        process.communicate()


def gather(monkeypatch, *processes, seconds=20.0, address=None):
    """Lets processes meet, each in a thread; gives what each was refused for, or `None`."""
    monkeypatch.setattr(meeting, "SECONDS", seconds)
    address, said = address or free_address(), [None] * len(processes)

    def meet(place, number, count, settings):
        try:
            met = meeting.meet(meeting.Meeting(address, count, number, settings=settings))
            for connection in met.connections.values():
                connection.close()
        except UserError as error:
            said[place] = str(error)

    threads = [
        threading.Thread(target=meet, args=(place, *process))
        for place, process in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def begin(monkeypatch, address, said):
    """Process 0 of two, in a thread; what it is refused for, or `None`, is added to `said`."""
    first = threading.Thread(
        target=lambda: said.extend(gather(monkeypatch, (0, 2, {}), address=address))
    )
    first.start()
    return first


def connect(address):
    """To process 0, which may not listen yet."""
    host, port = address.split(":")
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((host, int(port)))
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_all_that_belong_together_meet(monkeypatch):
    settings = [{"seed": 0, "data.workers": number} for number in range(3)]
    processes = [(number, 3, settings[number]) for number in (2, 0, 1)]
    assert gather(monkeypatch, *processes) == [None] * 3


def test_who_did_not_come_is_named_on_all(monkeypatch):
    said = gather(monkeypatch, (0, 4, {}), (2, 4, {}), seconds=4.0)
    assert said[0].startswith("processes 1, 3 of 4 did not come to 127.0.0.1:")
    assert "within 4 s" in said[0]
    assert said[1] == said[0]
    (alone,) = gather(monkeypatch, (1, 2, {}), seconds=1.0)
    assert alone.startswith("process 0 did not answer at 127.0.0.1:")
    assert "within 1 s (Connection refused)" in alone


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ((1, 3, {"seed": 0}), "process 1 has --num_processes=3, not 2"),
        ((0, 2, {"seed": 0}), None),
        ((1, 2, {"seed": 5}), "process 1 has another config: seed is 5 there, not 0"),
        ((1, 2, {"seed": 0, "ipc": 2}), "process 1 has another config: ipc is 2 there, not None"),
    ],
)
def test_who_does_not_belong_there_is_told(other, reason, monkeypatch):
    # Two processes 0 meet nobody, and wait to the end.
    seconds = 3.0 if reason is None else 20.0
    said = gather(monkeypatch, (0, 2, {"seed": 0}), other, seconds=seconds)
    if reason is None:
        # Both are process 0, of which one has the port.
        assert any("cannot listen on port" in text for text in said)
    else:
        assert said == [f"{reason}: start all with the same command"] * 2


def test_two_with_one_number_are_told_and_one_that_came_again_is_not(monkeypatch):
    said = gather(monkeypatch, (0, 3, {}), (1, 3, {}), (1, 3, {}))
    assert said == ["two processes have --process_id=1: start all with the same command"] * 3
    address = free_address()
    result = []
    waiting = begin(monkeypatch, address, result)
    greeting = b'{"process": 1, "processes": 2, "settings": {}}\n'
    for hello in (b"GET / HTTP/1.1\r\n", greeting[:9]):
        with connect(address) as stranger:
            stranger.sendall(hello)
    assert gather(monkeypatch, (1, 2, {}), address=address) == [None]
    waiting.join()
    assert result == [None]


def test_strangers_that_say_little_or_nothing_delay_nobody(monkeypatch):
    # Whoever waits for one of them comes too late.
    monkeypatch.setattr(meeting, "GREETING_SECONDS", 60.0)
    address, said, over = free_address(), [], threading.Event()
    first = begin(monkeypatch, address, said)
    strangers = [connect(address) for _ in range(20)]

    def mumble():
        while not over.wait(0.1):
            for stranger in strangers[::2]:
                # Process 0 may have hung up.
                try:
                    stranger.sendall(b"{")
                except OSError:
                    return

    mumbling = threading.Thread(target=mumble)
    mumbling.start()
    try:
        assert gather(monkeypatch, (1, 2, {}), address=address) == [None]
        first.join()
        assert said == [None]
    finally:
        over.set()
        mumbling.join()
        for stranger in strangers:
            stranger.close()


def test_a_stranger_that_never_ends_is_hung_up_on(monkeypatch):
    monkeypatch.setattr(meeting, "GREETING_SECONDS", 0.5)
    address, said = free_address(), []
    first = begin(monkeypatch, address, said)
    with connect(address) as stranger, contextlib.suppress(ConnectionError):
        for _ in range(100):
            stranger.sendall(b"{")
            time.sleep(0.05)
        pytest.fail("it is still heard after ten times what it had")
    assert gather(monkeypatch, (1, 2, {}), address=address) == [None]
    first.join()
    assert said == [None]


@pytest.mark.parametrize(
    "greeting",
    [
        b"[" * 100_000,
        b'{"process": Infinity, "processes": 2, "settings": {}}',
        b'{"process": 1, "processes": 2, "settings": 7}',
        b"\xff\xfe",
        b"",
    ],
)
def test_no_greeting_ends_process_0(greeting, monkeypatch):
    address, said = free_address(), []
    first = begin(monkeypatch, address, said)
    with connect(address) as stranger:
        stranger.sendall(greeting + b"\n")
        assert gather(monkeypatch, (1, 2, {}), address=address) == [None]
    first.join()
    assert said == [None]


@pytest.mark.slow
def test_another_program_that_answers_byte_by_byte_is_given_up(monkeypatch):
    monkeypatch.setattr(meeting, "GREETING_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def mumble():
            other, _ = server.accept()
            with other, contextlib.suppress(OSError):
                for _ in range(600):
                    other.sendall(b"x")
                    time.sleep(0.1)

        stranger = threading.Thread(target=mumble)
        stranger.start()
        began = time.monotonic()
        (said,) = gather(monkeypatch, (1, 2, {}), seconds=1.0, address=address)
        took = time.monotonic() - began
        stranger.join()
    assert said.startswith(f"process 0 did not answer at {address} within 1 s")
    # It would go on for a minute.
    assert took < 30


def test_a_server_of_names_that_is_late_is_asked_again(monkeypatch):
    asked, resolve = [], socket.getaddrinfo

    def late(host, *arguments, **options):
        if host == "127.0.0.1":
            return resolve(host, *arguments, **options)
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(meeting, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", late)
    port = free_address().split(":")[1]
    said = gather(monkeypatch, (0, 2, {}), (1, 2, {}), address=f"head:{port}")
    assert said == [None, None]
    assert asked.count("head") >= 3
    monkeypatch.setattr(meeting, "NAMING_SECONDS", 0.1)
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: (_ for _ in ()).throw(socket.gaierror(socket.EAI_AGAIN, "Temporary")),
    )
    (alone,) = gather(monkeypatch, (1, 2, {}), address=f"head:{port}")
    assert alone.startswith("--distributed: no machine is called head ([Errno -3] Temporary)")


def test_a_link_local_address_keeps_its_scope(monkeypatch):
    tried = []

    def refuse(address, timeout):
        tried.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    name = socket.if_indextoname(1)
    address = f"[fe80::1%{name}]:9876"
    gather(monkeypatch, (1, 2, {}), seconds=1.0, address=address)
    assert set(tried) == {("fe80::1%1", 9876)}
    for where in (address, address.replace("[", "").replace("]", "")):
        # gRPC, by which JAX connects, wants brackets.
        assert meeting.read(where, 2, 1).address == address


def test_who_dies_before_jax_connects_costs_no_five_minutes():
    address = free_address()
    program = (
        "from lgm_jax import hosts, meeting\n"
        "assert hosts._CONNECT_SECONDS <= 60\n"
        "hosts._CONNECT_SECONDS = 2\n"
        f"with hosts.joined(meeting.Meeting({address!r}, 2, 0)):\n"
        "    raise AssertionError('alone')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        process.stderr.readline()
        with connect(address) as other:
            other.sendall(b'{"process": 1, "processes": 2, "settings": {}}\n')
            assert other.recv(100) == b'{"refused": ""}\n'
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGABRT
    assert b"another task died" in err


def test_another_program_at_the_port_is_waited_out_and_said(monkeypatch, capsys):
    """The run that ends because a process of it was started again, for one."""
    address = free_address()
    host, port = address.split(":")

    def answer_twice():
        with socket.create_server((host, int(port))) as server:
            server.settimeout(30)
            listening.set()
            for _ in range(2):
                other, _ = server.accept()
                with other:
                    other.sendall(b"SSH-2.0-none\r\n")
                    other.recv(2**16)

    listening, said = threading.Event(), []
    stranger = threading.Thread(target=answer_twice)
    stranger.start()
    assert listening.wait(60)
    waiting = threading.Thread(
        target=lambda: said.extend(gather(monkeypatch, (1, 2, {}), address=address))
    )
    waiting.start()
    stranger.join()
    assert gather(monkeypatch, (0, 2, {}), address=address) == [None]
    waiting.join()
    assert said == [None]
    line = f"note: another program than process 0 answers at {address}\n"
    assert capsys.readouterr().err.count(line) == 1


def test_an_address_that_never_answers_leaves_time_for_the_next(monkeypatch):
    tried = []
    connect = socket.create_connection

    def swallow(address, timeout):
        tried.append(timeout)
        if address[0] == "192.0.2.1":
            raise TimeoutError("timed out")
        return connect(address, timeout)

    address = free_address()
    port = int(address.split(":")[1])
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
        for host in ("192.0.2.1", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", swallow)
    processes = [(number, 2, {}) for number in range(2)]
    assert gather(monkeypatch, *processes, seconds=200.0, address=address) == [None, None]
    assert max(tried) <= 10


def test_many_open_files_are_no_obstacle(monkeypatch):
    """As process 0 of a thousand has: `select` takes no file above the 1024th."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1300
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip("this machine does not let a process open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert gather(monkeypatch, (0, 2, {}), (1, 2, {})) == [None, None]
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_port_in_use_is_named(monkeypatch):
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (said,) = gather(monkeypatch, (0, 2, {}), address=address)
    assert "cannot listen on port" in said
    assert "name another in --distributed" in said


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"},
            ("finds a part", "OMPI_COMM_WORLD_SIZE' is not set"),
        ),
        ({"OMPI_MCA_orte_hnp_uri": "nonsense"}, ("finds a part",)),
        ({"SLURM_JOB_ID": "7"}, ("finds no launcher", "srun")),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]"}, ("srun",)),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "PRTE_LAUNCHED": "1"},
            ("Open MPI 5", "--process_id=$OMPI_COMM_WORLD_RANK"),
        ),
        ({}, ("finds no launcher", "give --distributed=HOST:PORT")),
    ],
)
def test_a_launcher_that_says_half_is_told_of(variables, words, tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith(("OMPI_", "SLURM_", "PRTE_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.main(["launch.py", QUICK, f"--workdir={tmp_path}", "--distributed=auto"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --distributed=auto ")
    assert said.count("\n") == 1
    assert all(word in said for word in words), said
