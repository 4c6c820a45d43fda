"""Activations: JAX's values and derivatives, in the memory of one array."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax.backbones.activations import ACTIVATIONS

POINTS = np.concatenate([np.linspace(-9, 9, 1801), [0.0, 1e-30, 3e4, -3e4]])

# As JAX has them: values, and derivatives by its own rules.
REFERENCE = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}

names = pytest.mark.parametrize("name", list(ACTIVATIONS))


def slope(function):
    return jax.grad(lambda x: function(x).sum())


@names
def test_values_are_jaxs_to_the_last_bit(name):
    for dtype in ("float32", "bfloat16", "float16"):
        x = jnp.asarray(POINTS, dtype)
        ours, theirs = ACTIVATIONS[name](x), REFERENCE[name](x)
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_array_equal(ours, theirs)


@names
def test_derivatives_are_right_in_float64(name):
    ours, theirs = slope(ACTIVATIONS[name]), slope(REFERENCE[name])
    with jax.enable_x64(True):
        x = jnp.asarray(POINTS, jnp.float64)
        for one, other in ((ours, theirs), (slope(ours), slope(theirs))):
            np.testing.assert_allclose(jax.jit(one)(x), jax.jit(other)(x), rtol=0, atol=1e-12)


@names
def test_slopes_of_half_precision_are_rounded_once(name):
    """JAX's own rules round at every operation and are off by two to four times as much."""
    for dtype in ("bfloat16", "float16"):
        x = jnp.asarray(POINTS, dtype)
        with jax.enable_x64(True):
            exact = jax.jit(slope(REFERENCE[name]))(x.astype(jnp.float64))
        computed = jax.jit(slope(ACTIVATIONS[name]))(x)
        assert computed.dtype == dtype
        error = np.abs(np.asarray(computed, np.float64) - np.asarray(exact))
        # Half of the spacing of numbers between 1 and 2, as the largest slopes are.
        assert error.max() < 1.01 * float(jnp.finfo(dtype).eps) / 2


@names
def test_directions_and_batches_are_differentiated_alike(name):
    function, x = ACTIVATIONS[name], jnp.linspace(-3, 3, 12).reshape(3, 4)
    ones = jnp.ones_like(x)

    @jax.jit
    def derivatives(x):
        _, forward = jax.jvp(function, (x,), (ones,))
        _, over_reverse = jax.jvp(slope(function), (x,), (ones,))
        kept = slope(lambda x: jax.checkpoint(jax.vmap(function))(x))(x)
        return (slope(function)(x), forward, kept), (slope(slope(function))(x), over_reverse)

    for same in derivatives(x):
        for other in same[1:]:
            np.testing.assert_allclose(other, same[0], rtol=0, atol=1e-6)
