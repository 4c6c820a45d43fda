"""Which images a step sees: one global shuffle per epoch, indexed by global position.

Image number `p` of a run is entry `p % n` of the shuffle of epoch `p // n`, so the data's state is
the step number alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def batch_indices(
    key: Key[Array, ""], step: int | Int[Array, ""], batch: int, num_images: int
) -> Int[Array, " batch"]:
    """Indices of the images of one step.

    Every image comes once per epoch; a batch may span two epochs, or many if it is larger than
    the data set.

    Args:
        key: Random key of the run's real images.
        step: Number of the step; may be traced.
        batch: Images per step.
        num_images: Size of the data set.
    """
    positions = jnp.asarray(step, jnp.int32) * batch + jnp.arange(batch, dtype=jnp.int32)
    first_epoch = positions[0] // num_images
    spanned = (batch + num_images - 2) // num_images + 1
    orders = jax.vmap(
        lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), num_images)
    )(first_epoch + jnp.arange(spanned, dtype=jnp.int32))
    return orders[positions // num_images - first_epoch, positions % num_images]
