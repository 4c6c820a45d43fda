"""Floating-point operations of a computation, counted without running it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of the matrix products and factorisations of a function; loops count each turn.

    Args:
        function: Of arrays.
        arguments: Of which only shapes and types count.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            sizes = equation.invars[0].aval.shape
            summed = math.prod(sizes[axis] for axis in contracted)
            total += 2.0 * summed * math.prod(equation.outvars[0].aval.shape)
        elif name == "cholesky":
            *batch, _, side = equation.invars[0].aval.shape
            total += math.prod(batch) * side**3 / 3
        elif name == "triangular_solve":
            side = equation.invars[0].aval.shape[-1]
            total += float(side * math.prod(equation.outvars[0].aval.shape))
        turns = _turns(name, parameters)
        # Of branches the dearest, of which one is taken.
        inner = [_count(each) for value in parameters.values() for each in _jaxprs(value)]
        total += turns * (max(inner, default=0.0) if name == "cond" else sum(inner))
    return total


def _turns(name: str, parameters: Any) -> int:
    """How often what is within an operation is computed."""
    if name == "pallas_call":
        return math.prod(parameters["grid_mapping"].grid)
    return parameters.get("length", 1) if name == "scan" else 1


def _jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    if isinstance(value, tuple | list):
        return [each for item in value for each in _jaxprs(item)]
    return []
