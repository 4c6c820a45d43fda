"""Equal layers, their parameters stacked along a leading axis and scanned.

Compile time then does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array

Module = TypeVar("Module", bound=nnx.Module)


def stack(make: Callable[[nnx.Rngs], Module], count: int, rngs: nnx.Rngs) -> Module:
    """Returns `count` layers as one module, whose parameters have a leading axis of them."""
    stacked: Any = nnx.vmap(make, in_axes=(0,), out_axes=0)
    return nnx.split_rngs(splits=count)(stacked)(rngs)


def apply(layers: nnx.Module, x: Array) -> Array:
    """Applies stacked layers one after another."""
    definition, stacked = nnx.split(layers)

    def each(x: Array, params: nnx.State) -> tuple[Array, None]:
        layer: Any = nnx.merge(definition, params)
        return layer(x), None

    return jax.lax.scan(each, x, stacked)[0]
