"""Objects that a config names: built-in ones, or others by `package.module:Name`."""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from lgm_jax.errors import UserError, unknown_name

T = TypeVar("T")


def resolve(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Returns a known object, or that of `package.module:Name`, also from the current folder."""
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise unknown_name(kind, name, list(known), "package.module:Name, or one of")
    if "" not in sys.path:
        sys.path.append("")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    # Other people's modules may raise anything.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{kind} {name!r} cannot be imported: {reason}") from error


def make(kind: str, name: str, known: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Calls the class or function of a name with some options."""
    factory = resolve(kind, name, known)
    try:
        return factory(**options)
    except TypeError as error:
        raise UserError(f"{kind} {name!r} does not take its options: {error}") from error
