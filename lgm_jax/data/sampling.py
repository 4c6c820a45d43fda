"""Which images a step sees, as a function of their position in the run.

Position `p` is image number `p % batch` of step `p // batch`, so the data's state is the step
number alone, and any number of processes can share a step's batch. Images come in one of two ways:

- `shuffle`: position `p` is entry `p % n` of the shuffle of epoch `p // n`.
- `balanced`: position `p` is of class `p % k`, so a step's batch holds equally many images of each
  class, or one more of some. Each class goes through shuffles of its own, one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from lgm_jax import checks

SAMPLINGS = ("shuffle", "balanced")

# Rounds of mixing in the shuffle of a class. Measured: after eight, chi-square tests of 20,000
# shuffles of 2 to 13 images tell them from random ones no more; after six, those of 3 images.
_ROUNDS = 8

# Epochs whose shuffles the host keeps: a batch may span two.
_EPOCHS_KEPT = 2


class Classes(NamedTuple):
    """The images of each class.

    Attributes:
        images: (n,) Their indices, class by class.
        starts: (k,) Where each class begins among them.
        counts: (k,) How many it has.
    """

    images: Int[Array, " n"]
    starts: Int[Array, " k"]
    counts: Int[Array, " k"]


def step_indices(
    sampling: str,
    key: Key[Array, ""],
    step: int | Int[Array, ""],
    batch: int,
    labels: Int[Array, " n"],
    num_classes: int,
) -> Int[Array, " batch"]:
    """Indices of the images of one step.

    Args:
        sampling: One of `SAMPLINGS`.
        key: Random key of the run's real images.
        step: Number of the step; may be traced.
        batch: Images per step.
        labels: Of all images; may be traced.
        num_classes: Number of classes `k`, each of which has an image.

    Raises:
        UserError: If the sampling is unknown.
    """
    checks.one_of("sampling", sampling, SAMPLINGS)
    if sampling == "shuffle":
        return batch_indices(key, step, batch, labels.shape[0])
    positions = jnp.asarray(step, jnp.int32) * batch + jnp.arange(batch, dtype=jnp.int32)
    return balanced_indices(key, positions, group(labels, num_classes))


def batch_indices(
    key: Key[Array, ""], step: int | Int[Array, ""], batch: int, num_images: int
) -> Int[Array, " batch"]:
    """Indices of the images of one step, sampled by `shuffle`.

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
    orders = jax.vmap(lambda epoch: _epoch_order(key, epoch, num_images))(
        first_epoch + jnp.arange(spanned, dtype=jnp.int32)
    )
    return orders[positions // num_images - first_epoch, positions % num_images]


def balanced_indices(
    key: Key[Array, ""], positions: Int[Array, " b"], classes: Classes
) -> Int[Array, " b"]:
    """Indices of the images at some positions, sampled by `balanced`.

    Every image of a class comes once per epoch of that class.

    Args:
        key: Random key of the run's real images.
        positions: Any, in any order.
        classes: Every class has an image.
    """
    num_classes = classes.counts.shape[0]

    def pick(position: Int[Array, ""]) -> Int[Array, ""]:
        label, number = position % num_classes, position // num_classes
        count = classes.counts[label]
        shuffle_key = jax.random.fold_in(jax.random.fold_in(key, label), number // count)
        words = jax.random.bits(shuffle_key, (_ROUNDS, 2), jnp.uint32)
        entry = _shuffled(words, (number % count).astype(jnp.uint32), count.astype(jnp.uint32))
        return classes.images[classes.starts[label] + entry.astype(jnp.int32)]

    return jax.vmap(pick)(positions)


def group(labels: Int[Array, " n"], num_classes: int) -> Classes:
    """The images of each class, in their order in the data set."""
    counts = jnp.bincount(labels, length=num_classes).astype(jnp.int32)
    images = jnp.argsort(labels, stable=True).astype(jnp.int32)
    return Classes(images, jnp.cumsum(counts) - counts, counts)


class Order:
    """The same on the host, for a few positions at a time. Pickles.

    What it keeps does not grow: the shuffles of two epochs, or the images of each class.
    """

    def __init__(
        self, sampling: str, key: Key[Array, ""], labels: Int[np.ndarray, " n"], num_classes: int
    ):
        """As `step_indices`."""
        checks.one_of("sampling", sampling, SAMPLINGS)
        # Keys do not pickle; their bits do.
        self._words, self._impl = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
        self._num_images = len(labels)
        self._grouped = None
        if sampling == "balanced":
            self._grouped = jax.tree.map(np.asarray, group(jnp.asarray(labels), num_classes))
        self._shuffles: dict[int, np.ndarray] = {}

    def at(self, positions: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Indices of the images at some positions."""
        key = jax.random.wrap_key_data(jnp.asarray(self._words), impl=self._impl)
        if self._grouped is not None:
            chosen = _balanced(key, jnp.asarray(positions, jnp.int32), self._grouped)
            return np.asarray(chosen)
        epochs, entries = np.divmod(positions, self._num_images)
        indices = np.empty(len(positions), np.int32)
        for epoch in np.unique(epochs).tolist():
            indices[epochs == epoch] = self._shuffle(key, epoch)[entries[epochs == epoch]]
        return indices

    def _shuffle(self, key: Key[Array, ""], epoch: int) -> Int[np.ndarray, " n"]:
        if epoch not in self._shuffles:
            order = np.asarray(_order(key, jnp.int32(epoch), self._num_images))
            # In one step, as threads may share this.
            kept = dict(list(self._shuffles.items())[1 - _EPOCHS_KEPT :])
            self._shuffles = {**kept, epoch: order}
            return order
        return self._shuffles[epoch]


class Crops:
    """Where an image at a position is cropped once its shorter side fits. Pickles."""

    def __init__(self, key: Key[Array, ""]):
        """From the random key of the run's crops."""
        self._words, self._impl = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)

    def at(self, positions: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b 2"]:
        """Uniform in [0, 1), vertically and horizontally, one for each position."""
        key = jax.random.wrap_key_data(jnp.asarray(self._words), impl=self._impl)
        return np.asarray(_uniform(key, jnp.asarray(positions, jnp.int32)), np.float64)


def _epoch_order(
    key: Key[Array, ""], epoch: Int[Array, ""], num_images: int
) -> Int[Array, " num_images"]:
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_images)


_order = jax.jit(_epoch_order, static_argnums=2)
_balanced = jax.jit(balanced_indices)


@jax.jit
def _uniform(key: Key[Array, ""], positions: Int[Array, " b"]) -> Float[Array, "b 2"]:
    return jax.vmap(lambda position: jax.random.uniform(jax.random.fold_in(key, position), (2,)))(
        positions
    )


def _shuffled(
    words: UInt32[Array, "rounds 2"], place: UInt32[Array, ""], length: UInt32[Array, ""]
) -> UInt32[Array, ""]:
    """Which of `length` entries comes at a place of a shuffle, without making the shuffle.

    Each round is one to one on the numbers of as many bits as the largest place has: a product
    with an odd number and a sum, both modulo a power of two, then a shift added by exclusive or.
    A result that is no entry goes round again until it is one ("cycle walking", Black and Rogaway,
    Ciphers with Arbitrary Finite Domains, 2002), less than once on average.

    Args:
        words: Random; they decide the shuffle.
        place: Below `length`.
        length: Entries of the shuffle.
    """
    mask = length - 1
    for shift in (1, 2, 4, 8, 16):
        mask |= mask >> shift
    half = jnp.maximum(1, (jax.lax.population_count(mask) + 1) // 2)

    def mix_once(number: Int[Array, ""], value: UInt32[Array, ""]) -> UInt32[Array, ""]:
        factor, summand = words[number]
        value = (value * (factor | 1) + summand) & mask
        return value ^ (value >> half)

    def mix(value: UInt32[Array, ""]) -> UInt32[Array, ""]:
        return jax.lax.fori_loop(0, words.shape[0], mix_once, value)

    return jax.lax.while_loop(lambda value: value >= length, mix, mix(place))
