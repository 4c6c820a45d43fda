"""Checks of the values of config keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lgm_jax import plugins
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.settings import split_list

Check = Callable[[str, Any], object]

# Far above anything useful; products of counts are checked where they are formed.
_LARGEST = 10**7


def between(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> None:
        # Written so that NaN, which compares false with everything, is refused too.
        if not (low <= value <= high):
            raise UserError(f"config.{name} must be from {low:.10g} to {high:.10g}, not {value}")

    return check


def at_least(low: int) -> Check:
    return between(low, _LARGEST)


def above_zero(name: str, value: Any) -> None:
    if not (0 < value <= 1e6):
        raise UserError(f"config.{name} must be above 0, at most 1e6, not {value}")


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


def each(check: Check | None = None, *, some: bool = False, twice: bool = True) -> Check:
    """A list of items that pass a check; perhaps of at least one, perhaps none of them twice."""

    def check_all(name: str, value: Any) -> None:
        items = split_list(value)
        if some and not items:
            raise UserError(f"config.{name} is empty: name at least one")
        for number, item in enumerate(items):
            if check is not None:
                check(name, item)
            if not twice and item in items[:number]:
                raise UserError(f"config.{name} names {item} twice")

    return check_all


def weight(name: str, value: Any) -> None:
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"config.{name} must be numbers, for example 2,1, not {value}") from None
    above_zero(name, number)
