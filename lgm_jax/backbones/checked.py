"""Dataclasses whose annotations are checked, for what is read from files of others."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from lgm_jax import checks
from lgm_jax.errors import UserError, unknown_name

LARGEST = 2**16
"""More than any size of a network."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """A dataclass that refuses values which its annotations do not allow.

    Whole numbers are at least 1, or 0 where that is the default; other numbers are above zero.

    Raises:
        UserError: Naming the field.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), hints[field.name], field.default)

    @classmethod
    def from_dict(cls, values: Any) -> Any:
        """The inverse of `dataclasses.asdict`, also through JSON."""
        if not isinstance(values, Mapping):
            raise UserError(f"{cls.__name__} must be an object, not {values!r:.50}")
        hints, parts, fields = typing.get_type_hints(cls), dict(values), dataclasses.fields(cls)
        known = [field.name for field in fields]
        for name in set(parts) - set(known):
            raise unknown_name(cls.__name__, str(name), known)
        for name, value in parts.items():
            kind = _kinds(hints[name])[0]
            if isinstance(kind, type) and issubclass(kind, Checked) and value is not None:
                parts[name] = kind.from_dict(value)
            elif isinstance(value, list):
                parts[name] = tuple(value)
        for field in fields:
            if field.name in parts:
                _check(field.name, parts[field.name], hints[field.name], field.default)
            elif field.default is dataclasses.MISSING:
                raise UserError(f"{cls.__name__} has no {field.name}")
        return cls(**parts)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _check(name: str, value: Any, hint: Any, default: Any) -> None:
    kinds = _kinds(hint)
    if value is None and type(None) in kinds:
        return
    kind = kinds[0]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        checks.one_of(name, value, arguments)
    elif origin is tuple:
        fits = isinstance(value, tuple) and value
        if not fits or (... not in arguments and len(value) != len(arguments)):
            raise UserError(f"{name} must be a list of numbers, not {value!r:.50}")
        for each in value:
            _check(name, each, arguments[0], dataclasses.MISSING)
    elif kind is int:
        checks.in_range(name, value, 0 if default == 0 else 1, LARGEST, whole=True)
    elif kind is float:
        checks.in_range(name, value, 0, 1e12)
        checks.positive(name, value)
    elif not isinstance(value, kind):
        what = "true or false" if kind is bool else f"a {kind.__name__}"
        raise UserError(f"{name} must be {what}, not {value!r:.50}")
