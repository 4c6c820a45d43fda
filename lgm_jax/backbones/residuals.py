"""Activations that a network keeps for the gradient, and those that it recomputes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

Residuals = Literal["all", "products"]

RESIDUALS: tuple[Residuals, ...] = ("all", "products")
"""All that the gradient needs, or the products with weights alone."""

# JAX's name of cuDNN's forward pass, which returns what its backward pass reads: the result, and a
# sum for each row of scores. To keep them moves half the bytes of another forward pass.
_CUDNN = "dot_product_attention_fwd_wrapper"


def keep(residuals: Residuals, block: Callable[..., Any]) -> Callable[..., Any]:
    """The body of a scan that keeps so much for its gradient; what it computes stays the same.

    Most of what a block keeps is cheap to compute anew from its products with weights: norms,
    activations, and by XLA the scores of attention.
    """
    if residuals == "all":
        return block
    # The compiler merges nothing into another turn of the scan, so it need not be kept from it.
    return jax.checkpoint(block, policy=_is_product, prevent_cse=False)


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
