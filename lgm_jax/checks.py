"""Checks of the values of options and arguments.

Dataclasses of options call them in `__post_init__`, so that a notebook and the command line refuse
the same, and functions with such arguments do. Each raises a `UserError` for another value.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lgm_jax.errors import UserError, unknown_name


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Checks that a value is one of some names."""
    if not isinstance(value, str) or value not in known:
        raise unknown_name(name, str(value), list(known), "one of")


def in_range(
    name: str, value: Any, low: int | float, high: int | float = math.inf, *, whole: bool = False
) -> None:
    """Checks that a value is a finite number, whole if asked, within limits that are included."""
    kind = numbers.Integral if whole else numbers.Real
    # Written so that NaN, which compares false with everything, is refused too.
    number = isinstance(value, kind) and not isinstance(value, bool)
    if number and low <= value <= high and math.isfinite(value):
        return
    limits = f" from {low:g} to {high:g}"
    if high == math.inf:
        limits = "" if low == -math.inf else f" of at least {low:g}"
    raise UserError(f"{name} must be a {'whole ' * whole}number{limits}, not {value!r:.50}")


def counts(owner: Any, *names: str, low: int = 1) -> None:
    """Checks that fields of a dataclass are whole numbers of at least `low`."""
    for name in names:
        in_range(name, getattr(owner, name), low, whole=True)


def positive(name: str, value: Any) -> None:
    """Checks that a number is finite and above zero; a traced one, of unknown value, passes."""
    if isinstance(value, jax.core.Tracer):
        return
    number = isinstance(value, numbers.Real | jax.Array) and not isinstance(value, bool)
    if not (number and 0 < value < math.inf):
        raise UserError(f"{name} must be above 0, not {value!r}")


def interval(name: str, value: Any, high: int | float) -> None:
    """Checks that a value is a tuple of two numbers above zero, in order and within a limit."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise UserError(f"{name} must be a tuple of two numbers, not {value!r}")
    for number in value:
        in_range(name, number, 0, high)
        positive(name, number)
    if value[0] > value[1]:
        raise UserError(f"{name} must not fall, as from {value[0]:g} to {value[1]:g}")


def flags(owner: Any, *names: str) -> None:
    """Checks that fields of a dataclass are booleans."""
    for name in names:
        if not isinstance(getattr(owner, name), bool):
            raise UserError(f"{name} must be True or False, not {getattr(owner, name)!r}")


def classes(labels: Any, num_classes: int, *, each: bool = False) -> None:
    """Checks that labels are classes, and perhaps that each class has one."""
    found = np.unique(labels)
    if len(found) and not 0 <= found[0] <= found[-1] < num_classes:
        raise UserError(f"labels must be from 0 to {num_classes - 1}")
    if each and len(found) < num_classes:
        raise UserError(f"{num_classes - len(found)} of {num_classes} classes have no image")
