"""Work that is done ahead: right for any order of numbers, and none of it is lost."""

from __future__ import annotations

import threading

import pytest

from lgm_jax.prefetch import Ahead


@pytest.mark.parametrize(
    "numbers", [[0, 1, 2, 3], [5, 2, 3, 3, 0], [9, 9, 9], [4, 3, 2, 1], [8, 9, 0, 1]]
)
def test_any_order_of_numbers_has_the_results_of_the_function(numbers):
    with Ahead(lambda number: number**2, 10) as ahead:
        assert [ahead(number) for number in numbers] == [number**2 for number in numbers]


def test_the_next_number_is_computed_while_this_one_is_used():
    started = threading.Event()

    def function(number: int) -> int:
        if number == 4:
            started.set()
        return number

    with Ahead(function, 10) as ahead:
        assert ahead(3) == 3
        assert started.wait(60)


def test_numbers_in_turn_are_computed_once_and_none_from_the_end_on():
    calls = []

    def function(number: int) -> int:
        calls.append(number)
        return number

    with Ahead(function, 4) as ahead:
        for number in range(4):
            assert ahead(number) == number
    assert calls == [0, 1, 2, 3]


def test_an_exception_comes_where_its_number_is_asked_for_and_later_ones_go_on():
    def function(number: int) -> int:
        if number == 2:
            raise OSError("no image 2")
        return number

    with Ahead(function, 10) as ahead:
        # Number 2 is computed already, and fails in silence unless it is asked for.
        assert ahead(1) == 1
        assert ahead(5) == 5
        assert ahead(1) == 1
        with pytest.raises(OSError, match="no image 2"):
            ahead(2)
        with pytest.raises(OSError, match="no image 2"):
            ahead(2)
        assert ahead(3) == 3


def test_closing_ends_the_thread():
    before = set(threading.enumerate())
    with Ahead(lambda number: number, 10) as ahead:
        ahead(0)
        (thread,) = set(threading.enumerate()) - before
    assert not thread.is_alive()
