"""Things that a config names: one of ours by its name, another by `package.module:Name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from lgm_jax.errors import UserError, unknown_name

T = TypeVar("T")


def resolve(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Returns what a name stands for.

    Args:
        kind: What is looked up, for messages.
        name: A key of `known`, or `package.module:Name` for what is imported from there; modules in
            the current folder are found too.
        known: Ours.

    Raises:
        UserError: If there is nothing of that name.
    """
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise unknown_name(kind, name, list(known), "package.module:Name, or one of")
    if "" not in sys.path:
        sys.path.append("")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    # A module of somebody else's may raise anything.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{kind} {name!r} cannot be imported: {reason}") from error
    return found


def make(kind: str, name: str, known: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Returns what the class or function of a name makes of some options.

    Raises:
        UserError: If there is nothing of that name, or it does not take the options.
    """
    factory = resolve(kind, name, known)
    try:
        return factory(**options)
    except TypeError as error:
        raise UserError(f"{kind} {name!r} does not take its options: {error}") from error
