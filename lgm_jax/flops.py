"""Floating-point operations of a computation, counted without running it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Products of JAX's primitives of fused attention: in the forward pass the scores and the result; in
# the backward pass the scores again and four gradients.
_FUSED = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


class Kind(NamedTuple):
    """A kind of products: those that must not be rounded, as float32 is by default, are `exact`.

    `path` has the names of JAX's transformations and primitives around it, from the outermost.
    """

    dtype: str
    exact: bool
    path: str


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """Counts operations of matrix products, convolutions and factorisations, in loops each turn."""
    return sum(count_by_kind(jax.make_jaxpr(function)(*arguments)).values())


def count_by_kind(traced: Any) -> Mapping[Kind, float]:
    """Counts the operations by kind, of all devices together."""
    return _count(traced.jaxpr, "")


def _count(jaxpr: Any, path: str) -> dict[Kind, float]:
    total: dict[Kind, float] = defaultdict(float)
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inside = f"{path}/{equation.source_info.name_stack}/{name}"
        operations = _operations(name, parameters, equation)
        if operations:
            dtype = equation.invars[0].aval.dtype
            exact = parameters.get("precision") == (jax.lax.Precision.HIGHEST,) * 2
            total[Kind(jnp.dtype(dtype).name, exact, inside)] += operations
        # Of branches, the dearest counts.
        bodies = [body for value in parameters.values() for body in _jaxprs(value)]
        inner = [_count(body, inside) for body in bodies]
        if name == "cond":
            inner = sorted(inner, key=lambda counted: sum(counted.values()))[-1:]
        turns = 1
        if name == "scan":
            turns = parameters["length"]
        elif name == "shard_map":
            turns = parameters["mesh"].size
        elif name == "pallas_call":
            turns = math.prod(parameters["grid_mapping"].grid)
        for counted in inner:
            for kind, each in counted.items():
                total[kind] += turns * each
    return total


def _operations(name: str, parameters: Mapping[str, Any], equation: Any) -> float:
    """Returns the operations of a primitive without those of functions within."""
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        sizes = equation.invars[0].aval.shape
        summed = math.prod(sizes[axis] for axis in contracted)
        return 2.0 * summed * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        each = math.prod(kernel) / kernel[parameters["dimension_numbers"].rhs_spec[0]]
        # The gradient of a stride has zeros between its pixels, which are not multiplied.
        each /= math.prod(parameters["lhs_dilation"])
        return 2.0 * each * math.prod(equation.outvars[0].aval.shape)
    if name == "cholesky":
        *batch, _, side = equation.invars[0].aval.shape
        return math.prod(batch) * side**3 / 3
    if name == "triangular_solve":
        side = equation.invars[0].aval.shape[-1]
        return float(side * math.prod(equation.outvars[0].aval.shape))
    if name in _FUSED:
        tokens = equation.invars[1].aval.shape[1]
        return 2.0 * _FUSED[name] * tokens * math.prod(equation.invars[0].aval.shape)
    return 0.0


def _jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    if isinstance(value, tuple | list):
        return [each for item in value for each in _jaxprs(item)]
    return []
