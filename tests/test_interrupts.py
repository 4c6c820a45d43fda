"""Signals: at once where nothing is to be saved, after saving where something is."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lgm_jax.interrupts import SIGNALS, Interrupted, Interrupts
from lgm_jax.stages.distilling import make_agree

ROOT = Path(__file__).parents[1]
SHORT = ["--config.steps=10", "--config.stages=distill,probe,report", "--config.image_every=5"]


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_stops_at_once_outside_a_loop(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped, Interrupts().handled():
        send(number)
    assert stopped.value.exit_code == (130 if number == signal.SIGINT else 75)
    assert signal.getsignal(number) is before


class Answer:
    """The largest number that processes give in a turn, once it is asked for."""

    def __init__(self, given, turn):
        self.given, self.turn = given, turn

    def __int__(self):
        return int(max(numbers[self.turn] for numbers in self.given))


def test_processes_hear_of_a_signal_after_the_same_step():
    given = [], []

    def largest(own, number):
        own.append(number)
        return Answer(given, len(own) - 1)

    agree = [make_agree(functools.partial(largest, own)) for own in given]
    steps = [(0, 0), (0, signal.SIGTERM), (0, 0), (0, 0)]
    heard = [[ask(number) for ask, number in zip(agree, step, strict=True)] for step in steps]
    assert heard == [[0, 0], [0, 0], [signal.SIGTERM] * 2, [0, 0]]
    # A single process, at once.
    assert make_agree(None)(signal.SIGTERM) == signal.SIGTERM


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes_stops_a_run_unless_nohup_says_otherwise(ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with Interrupts().handled():
            # Not sent: it would end a program that does not handle it.
            handler = signal.getsignal(signal.SIGHUP)
            assert (handler == signal.SIG_IGN) if ignored else callable(handler)
        assert Interrupted(signal.SIGHUP).exit_code == 75
    finally:
        signal.signal(signal.SIGHUP, before)


def test_loop_hears_of_a_signal_and_leaves_when_ready():
    interrupts, done = Interrupts(), []

    def loop():
        with interrupts.deferred() as interrupted:
            for number in range(5):
                if number == 2:
                    send(signal.SIGTERM)
                done.append(number)
                if interrupted():
                    break
        done.append("not reached")

    with interrupts.handled(), pytest.raises(Interrupted, match="SIGTERM"):
        loop()
    assert done == [0, 1, 2]


def test_second_signal_is_not_waited_for():
    interrupts, done = Interrupts(), []

    def loop():
        with interrupts.deferred():
            send(signal.SIGINT)
            done.append("first")
            send(signal.SIGINT)
            done.append("second")

    with interrupts.handled(), pytest.raises(Interrupted):
        loop()
    assert done == ["first"]


def test_loop_leaves_for_a_signal_to_another_process_and_waits_for_its_own():
    interrupts, done = Interrupts(), []

    def loop():
        given = iter([0, 0, signal.SIGTERM])
        with interrupts.deferred(lambda own: max(own, next(given))) as interrupted:
            while not interrupted():
                done.append("step")
            # A scheduler's own signal comes late, and saving is not cut short.
            send(signal.SIGTERM)
            done.append("saved")

    with interrupts.handled(), pytest.raises(Interrupted) as stopped:
        loop()
    assert str(stopped.value) == "SIGTERM"
    assert done == ["step", "step", "saved"]


def test_late_signal_is_noted_after_the_loop_too():
    interrupts = Interrupts()
    with interrupts.handled():
        with (
            pytest.raises(Interrupted),
            interrupts.deferred(lambda own: signal.SIGTERM) as interrupted,
        ):
            assert interrupted()
        send(signal.SIGTERM)
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)


def test_nothing_that_handles_errors_swallows_it():
    assert not issubclass(Interrupted, Exception)


@pytest.mark.slow
def test_killed_runs_end_as_one_left_alone(tmp_path):
    """`tools/kill_runs.py` in short; its 50 kills are for people to wait for."""
    arguments = ["tools/kill_runs.py", "--kills=1", f"--out={tmp_path / 'runs'}", "--", *SHORT]
    # A process that is killed as it writes there leaves half of a program.
    caching = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | caching,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "all ended as the one left alone" in process.stdout
