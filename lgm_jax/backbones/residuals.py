"""Equal layers that are scanned, and the activations that they keep for the gradient.

Their parameters are stacked along a leading axis: compile time does not grow with their number.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

Module = TypeVar("Module", bound=nnx.Module)
Residuals = Literal["all", "products"]

RESIDUALS: tuple[Residuals, ...] = ("all", "products")
"""All that the gradient needs, or the products with weights alone.

Most of what a block keeps is cheap to compute anew from its products with weights: norms,
activations, and by XLA the scores of attention.
"""

# JAX's name of cuDNN's forward pass, which returns what its backward pass reads: the result, and a
# sum for each row of scores. To keep them moves half the bytes of another forward pass.
_CUDNN = "dot_product_attention_fwd_wrapper"


def stack(make: Callable[[nnx.Rngs], Module], count: int, rngs: nnx.Rngs) -> Module:
    """Returns `count` layers as one module, whose parameters have a leading axis of them."""
    stacked: Any = nnx.vmap(make, in_axes=(0,), out_axes=0)
    return nnx.split_rngs(splits=count)(stacked)(rngs)


def scan(
    layers: nnx.Module, x: Array, *shared: Any, residuals: Residuals = "all", last: int = 1
) -> Array:
    """Applies stacked layers one after another; returns the outputs of the `last` ones, stacked.

    Each is called with what the one before returns, and what they share.
    """
    definition, stacked = nnx.split(layers)

    def layer(x: Array, params: nnx.State) -> Array:
        module: Any = nnx.merge(definition, params)
        return module(x, *shared)

    if residuals == "products":
        # The compiler merges nothing into another turn of the scan, so it need not be kept from it.
        layer = jax.checkpoint(layer, policy=_is_product, prevent_cse=False)
    if last == 1:
        return jax.lax.scan(lambda x, params: (layer(x, params), None), x, stacked)[0][None]

    def each(
        carry: tuple[Array, Array], numbered: tuple[nnx.State, Array]
    ) -> tuple[tuple[Array, Array], None]:
        params, slot = numbered
        x = layer(carry[0], params)
        return (x, jax.lax.dynamic_update_index_in_dim(carry[1], x, slot, 0)), None

    # One scan: parts of the stacked parameters would be copies of them. Early layers' outputs go
    # where the first one that is kept overwrites them.
    count = len(jax.tree.leaves(stacked)[0])
    slots = jnp.maximum(jnp.arange(count) - (count - last), 0)
    kept = jnp.zeros_like(x, shape=(last, *x.shape))
    return jax.lax.scan(each, (x, kept), (stacked, slots))[0][1]


def offered(network: Any) -> Sequence[Residuals]:
    """Returns the choices of a backbone, or its outline; a handmade one may have none."""
    return RESIDUALS if "residuals" in inspect.signature(network.apply).parameters else ("all",)


def keeping(network: Any, residuals: Residuals) -> Any:
    """A backbone, or its outline, whose `apply` keeps so much for its gradient."""
    if residuals == "all":
        return network
    return dataclasses.replace(network, apply=functools.partial(network.apply, residuals=residuals))


def _is_product(primitive: Any, *shapes: Any, **parameters: Any) -> bool:
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive.name == _CUDNN or bool(products(primitive, *shapes, **parameters))
