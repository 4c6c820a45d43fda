"""Descriptions of dataclasses of settings, as JSON and as hashes, which outlive the code.

A description leaves out every field at its default. So a field that is added later, with a default
that keeps the earlier behaviour, changes no description, and earlier records stay valid. The price
is a rule: **the default of a released field never changes, and a released field without a default
never gets one.** A new meaning is a new value or a new name. A test pins the defaults.

A field that changes no result is declared `field(compare=False)`, as for `==`. A property `idle` of
the dataclass, a set of names, has the fields without an effect as the others are set, such as the
temperature of an objective that is not chosen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np


def describe(value: Any) -> Any:
    """Describes a value by JSON types: equally for equal meanings, and else differently.

    Args:
        value: A dataclass, or a mapping (of string keys), sequence, set, array, dtype, number,
            string or `None`, nested in any way. A dataclass becomes its class's name (of classes
            that are not of this package, `package.module:Name`), under `type`, and its fields that
            are not at their default; fields with `compare=False` and `idle` ones never show. A
            whole number is the same as an int and as a float; an array is its dtype, shape and
            hash.

    Raises:
        TypeError: If something in it has no description: a function, an object without one, a
            path (which means something else on another machine).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": _name(type(value)), **_changed(value)}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"only mappings with string keys have a description, not {value!r}")
        return {key: describe(value[key]) for key in sorted(value)}
    if isinstance(value, Set):
        return sorted((describe(item) for item in value), key=_canonical)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [describe(item) for item in value]
    # Types that stand for a dtype: NumPy's, and JAX's such as `jnp.bfloat16`.
    if isinstance(value, np.dtype) or (isinstance(value, type) and hasattr(value, "dtype")):
        return np.dtype(value).name
    if hasattr(value, "__array__") and hasattr(value, "dtype") and hasattr(value, "shape"):
        return _array(np.asarray(value))
    raise TypeError(f"{type(value).__name__} {value!r:.80} has no description")


def digest(value: Any) -> str:
    """Returns the SHA-256 of a value's description, 64 hexadecimal digits; see `describe`."""
    return hashlib.sha256(_canonical(describe(value)).encode()).hexdigest()


def _name(kind: type) -> str:
    """Returns the name of a class, with its module unless it is of this package."""
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return kind.__name__
    return f"{kind.__module__}:{kind.__qualname__}"


def _changed(value: Any) -> dict[str, Any]:
    """Describes the fields that are not at their default."""
    changed = {}
    idle: frozenset[str] = getattr(value, "idle", frozenset())
    for field in dataclasses.fields(value):
        if not field.compare or field.name in idle:
            continue
        if field.name == "type":
            raise TypeError(f"{type(value).__name__}.type: that key stands for the class's name")
        here = describe(getattr(value, field.name))
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        # Not the values: True equals 1, and arrays have no single answer.
        if default is dataclasses.MISSING or _canonical(here) != _canonical(describe(default)):
            changed[field.name] = here
    return changed


def _number(value: int | float) -> int | float | str:
    if isinstance(value, float) and not np.isfinite(value):
        # JSON has no such numbers.
        return str(value)
    # Every whole number up to 2^53 is a float too.
    return int(value) if value == int(value) and abs(value) <= 2**53 else value


def _array(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.hasobject:
        raise TypeError("an array of objects has no description")
    # The same bytes on machines of either byte order.
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    content = hashlib.sha256(little.tobytes()).hexdigest()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": content}


def _canonical(description: Any) -> str:
    return json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
