"""Nested parameters from flat ones."""

from __future__ import annotations

from typing import Any


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts of values by path, whose parts a slash divides."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        leaf = nested
        *parents, name = path.split("/")
        for parent in parents:
            leaf = leaf.setdefault(parent, {})
        leaf[name] = value
    return nested
