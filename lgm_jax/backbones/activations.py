"""Nonlinearities of the backbones' MLPs.

Each has a derivative of its own, so that a gradient keeps one array of the input's size and dtype
for it, whatever the formula is made of: a tanh GELU left to JAX keeps five.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
Elementwise = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def _keeping_slope(function: Elementwise) -> Elementwise:
    """A function of each element, of which a gradient keeps the slope alone.

    The slope is computed in float32 at least and rounded once, and can be differentiated again.
    """

    @jax.custom_jvp
    def activation(x: Float[Array, "..."]) -> Float[Array, "..."]:
        return function(x)

    @activation.defjvp
    def differentiate(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (x,), (tangent,) = primals, tangents
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        _, slope = jax.jvp(function, (wide,), (jnp.ones_like(wide),))
        return activation(x), slope.astype(x.dtype) * tangent

    return activation


@jax.custom_jvp
def _erfc(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jax.lax.erfc`, whose own derivative JAX 0.12 refuses inside `jax.shard_map`."""
    return jax.lax.erfc(x)


_erfc.defjvps(lambda tangent, _, x: -2 / np.sqrt(np.pi).astype(x.dtype) * jnp.exp(-x * x) * tangent)


def _gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Φ(x), as `jax.nn.gelu(x, approximate=False)` computes it; its slope is Φ(x) + x φ(x)."""
    return 0.5 * x * _erfc(-x * np.sqrt(0.5).astype(x.dtype))


ACTIVATIONS: Mapping[Activation, Elementwise] = {
    # JAX's default is the tanh approximation, PyTorch's the exact function.
    "gelu": _keeping_slope(_gelu),
    "gelu_tanh": _keeping_slope(lambda x: jax.nn.gelu(x, approximate=True)),
    "quick_gelu": _keeping_slope(lambda x: x * jax.nn.sigmoid(1.702 * x)),
    "silu": _keeping_slope(jax.nn.silu),
}


@jax.custom_vjp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0), of which a gradient keeps a byte for each number: whether it is positive.

    JAX's own keeps the zeros beside it as well. Has no derivative in forward mode.
    """
    return jnp.maximum(x, 0)


relu.defvjp(
    lambda x: (relu(x), x > 0),
    lambda positive, gradient: (jnp.where(positive, gradient, 0),),
)
