"""After which steps the host looks at devices, alone and among processes."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lgm_jax.stages.lookout import Lookout


class Clock:
    """Steps of a time that is given."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def looks(lookout, clock, seconds, steps, always=()):
    """After which steps it looks, each of which takes so long."""
    found = []
    for step in range(1, steps + 1):
        clock.now += seconds
        if lookout.count(always=step in always, last=step == steps):
            found.append(step)
        assert lookout.agree(0) == 0
    return found


def test_slow_steps_are_all_looked_at_and_fast_ones_about_a_second_apart():
    clock = Clock()
    assert looks(Lookout(clock=clock), clock, 1.5, 5) == [1, 2, 3, 4, 5]
    # 16 take a second; the first ones tell little of those that follow.
    found = looks(Lookout(clock=clock), clock, 1 / 16, 64)
    assert found == [1, 3, 7, 15, 31, 47, 63, 64]
    found = looks(Lookout(clock=clock), clock, 1 / 16, 64, always=(20, 40))
    assert found == [1, 3, 7, 15, 20, 36, 40, 56, 64]


def test_slower_steps_are_looked_at_more_often_again():
    clock = Clock()
    lookout = Lookout(clock=clock)
    assert looks(lookout, clock, 1 / 8, 30) == [1, 3, 7, 15, 23, 30]
    assert looks(lookout, clock, 2.0, 15)[:3] == [8, 9, 10]


def test_one_process_hears_of_its_signal_after_every_step():
    lookout = Lookout(clock=Clock())
    for step in range(1, 4):
        looked = lookout.count(always=False)
        assert looked == (step != 2)
        assert lookout.agree(signal.SIGTERM) == signal.SIGTERM


class Answer:
    """The largest that both processes asked for in a turn, once both have."""

    def __init__(self, asked, turn):
        self.asked, self.turn = asked, turn

    def __array__(self, dtype=None, copy=None):
        while min(map(len, self.asked)) <= self.turn:
            time.sleep(0.001)
        return np.max([each[self.turn] for each in self.asked], axis=0)


def in_processes(run):
    """`run(number, lookout, clock)` in two threads, which share nothing but what they ask."""
    asked, lookouts = ([], []), []
    for own in asked:

        def largest(*numbers, own=own):
            own.append(numbers)
            return Answer(asked, len(own) - 1)

        clock = Clock()
        lookouts.append((Lookout(largest, clock), clock))
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(run, number, *each) for number, each in enumerate(lookouts)]
        found = [each.result(timeout=20) for each in runs]
    return found, asked


def test_processes_look_after_the_same_steps_and_leave_after_the_same():
    def run(number, lookout, clock):
        found = []
        for step in range(1, 101):
            clock.now += 1 / 8 + number / 64
            if lookout.count(always=step == 33, last=step == 100):
                found.append(step)
            if lookout.agree(signal.SIGTERM if number == 1 and step >= 50 else 0):
                return found, step
        raise AssertionError("a signal was lost")

    ((first, left), second), asked = in_processes(run)
    assert second == (first, left)
    # Eight steps a second for one of them, and seven for the other. What was asked at a look is
    # read at the next, and so is the signal.
    assert first == [1, 2, 4, 6, 10, 14, 22, 30, 33, 41, 49, 57, 65]
    assert left == 65
    assert asked[0][-1][0] == 0
    assert asked[1][-1][0] == signal.SIGTERM
    assert len(asked[0]) == len(first)


def test_after_the_last_step_processes_hear_of_what_came_just_before():
    def run(number, lookout, _):
        lookout.count(always=True)
        assert lookout.agree(0) == 0
        lookout.count(always=False, last=True)
        return lookout.agree(signal.SIGTERM if number == 1 else 0)

    assert in_processes(run)[0] == [signal.SIGTERM, signal.SIGTERM]
