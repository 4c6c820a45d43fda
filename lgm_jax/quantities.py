"""Numbers for people: with few digits, a prefix and a unit."""

from __future__ import annotations

from collections.abc import Mapping


def listed(parts: Mapping[str, float | int], unit: str) -> str:
    """Values by name, with their unit."""
    return ", ".join(f"{name} {si(value)}{unit}" for name, value in parts.items())


def si(value: float | int) -> str:
    """Three digits and a prefix."""
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def duration(seconds: float) -> str:
    """Two digits and a unit."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:.2g} h"
