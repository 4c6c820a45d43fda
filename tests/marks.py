"""Marks of tests."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Values of parameters with which a test is slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def heavy(*values: Any) -> Any:
    """Values of parameters with which a test is slow, and not for CI."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.heavy])
