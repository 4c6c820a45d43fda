"""Checks of the values of config keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from lgm_jax import backbones, data, plugins
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.settings import split_list

Check = Callable[[str, Any], None]

# Far above anything useful; products of counts are checked where they are formed.
_LARGEST = 10**7


def at_least(low: int, high: int = _LARGEST) -> Check:
    return _range(low, high, f"from {low} to {high}")


def above(low: float) -> Check:
    return _range(math.nextafter(low, math.inf), 1e6, f"above {low:g}, at most 1e6")


def between(low: float, high: float) -> Check:
    return _range(low, high, f"between {low:g} and {high:g}")


def one_of(*values: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in values:
            raise unknown_name(f"config.{name}", value, list(values), "one of")

    return check


def named(kind: str, known: Iterable[str]) -> Check:
    """One of ours by its name, or another as `package.module:Name`."""

    def check(name: str, value: Any) -> None:
        if ":" in value:
            plugins.resolve(kind, value, {})
        else:
            one_of(*known)(name, value)

    return check


def any_of(*values: str) -> Check:
    def check(name: str, value: Any) -> None:
        for item in split_list(value):
            one_of(*values)(name, item)

    return check


def some_of(*values: str) -> Check:
    def check(name: str, value: Any) -> None:
        any_of(*values)(name, value)
        if not split_list(value):
            raise UserError(f"config.{name} is empty: name some of {', '.join(values)}")

    return check


def pooling(name: str, value: Any) -> None:
    """Refuses what is no pooling of a backbone."""
    backbones.check_pooling(value)


def different(name: str, value: Any) -> None:
    """A `Check`: a list of at least one item, none twice."""
    if not split_list(value):
        raise UserError(f"config.{name} is empty: name at least one")
    none_twice(name, value)


def none_twice(name: str, value: Any) -> None:
    """A `Check`: a list, no item of it twice."""
    items = split_list(value)
    twice = next((item for item in items if items.count(item) > 1), None)
    if twice is not None:
        raise UserError(f"config.{name} names {twice} twice")


def weights(name: str, value: Any) -> None:
    """A `Check`: a list of positive numbers."""
    for item in split_list(value):
        try:
            number = float(item)
        except ValueError:
            raise UserError(
                f"config.{name} must be numbers, for example 2,1, not {value}"
            ) from None
        above(0)(name, number)


def data_name(name: str, value: Any) -> None:
    """A `Check`: a data source that exists, by name."""
    data.get_source(value)


def _range(low: float, high: float, text: str) -> Check:
    def check(name: str, value: Any) -> None:
        # Written so that NaN, which compares false with everything, is refused too.
        if not (low <= value <= high):
            raise UserError(f"config.{name} must be {text}, not {value}")

    return check
