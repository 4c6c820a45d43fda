"""The images of a step, as a function of their position in the run.

Position `p` is image number `p % batch` of step `p // batch`, so the data's state is the step
number alone, and any number of processes can share a step's batch. `shuffle` takes entry `p % n` of
the shuffle of epoch `p // n`; `balanced` takes an image of class `p % k`, so a step's batch holds
equally many images of each class, or one more of some, each class going through shuffles of its
own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from lgm_jax import checks

SAMPLINGS = ("shuffle", "balanced")

# Rounds of mixing in a shuffle that is not made. Measured: after eight, chi-square tests of 20,000
# shuffles of 2 to 13 images tell them from random ones no more; after six, those of 3 images.
_ROUNDS = 8

# Epochs whose shuffles are kept: a batch may span two.
_EPOCHS_KEPT = 2


class _Draw:
    """A random key, as bits: keys do not pickle.

    What is drawn is drawn by the CPU where JAX has it: on an accelerator it would wait for the step
    that is under way, and so would the images.
    """

    def __init__(self, key: Key[Array, ""]):
        self._words, self._impl = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)

    @contextlib.contextmanager
    def _on_host(self) -> Iterator[Key[Array, ""]]:
        try:
            host = jax.local_devices(backend="cpu")[0]
        except RuntimeError:
            host = None
        with jax.default_device(host):
            yield jax.random.wrap_key_data(jnp.asarray(self._words), impl=self._impl)


class Order(_Draw):
    """The images at some positions. Pickles.

    What it keeps does not grow: the shuffles of two epochs, or the images of each class.
    """

    def __init__(
        self,
        sampling: str,
        key: Key[Array, ""],
        labels: Int[np.ndarray, " n"],
        num_classes: int,
        *,
        made: bool = True,
    ):
        """Draws nothing yet.

        Args:
            key: Random key of the run's real images.
            num_classes: Number of classes, each of which has an image.
            made: For `shuffle`: whether the shuffle of an epoch is made, which takes time in
                proportion to the images, or each of its entries found on its own, in another order.
        """
        checks.one_of("sampling", sampling, SAMPLINGS)
        super().__init__(key)
        self._num_images, self._balanced = len(labels), sampling == "balanced"
        self._made = made
        self._epochs: dict[int, np.ndarray] = {}
        if self._balanced:
            self._members = np.argsort(labels, kind="stable").astype(np.int32)
            self._counts = np.bincount(labels, minlength=num_classes).astype(np.int32)
            self._starts = np.cumsum(self._counts) - self._counts

    def at(self, positions: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Indices of the images at some positions, in any order."""
        if self._balanced:
            with self._on_host() as key:
                found = _find_in_classes(key, positions.astype(np.int32), self._counts)
                labels, entries = np.asarray(found)
            return self._members[self._starts[labels] + entries]
        epochs, entries = np.divmod(positions, self._num_images)
        indices = np.empty(len(positions), np.int32)
        for epoch in np.unique(epochs).tolist():
            drawn, here = self._epoch(epoch), epochs == epoch
            if drawn.ndim == 1:
                indices[here] = drawn[entries[here]]
            else:
                # All of them, so that one compiled shape serves every batch.
                with self._on_host():
                    found = _find(drawn, entries.astype(np.uint32), np.uint32(self._num_images))
                    indices[here] = np.asarray(found)[here]
        return indices

    def _epoch(self, epoch: int) -> np.ndarray:
        """The shuffle of an epoch, or the words that decide it."""
        if epoch in self._epochs:
            return self._epochs[epoch]
        with self._on_host() as key:
            draw = _epoch_order if self._made else _epoch_words
            drawn = np.asarray(draw(key, jnp.int32(epoch), self._num_images))
        # In one step, as threads may share this.
        self._epochs = {**dict(list(self._epochs.items())[1 - _EPOCHS_KEPT :]), epoch: drawn}
        return drawn


class Crops(_Draw):
    """The place of the crop of an image at a position. Pickles."""

    def at(self, positions: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b 2"]:
        """Uniform in [0, 1), vertically and horizontally, one for each position."""
        with self._on_host() as key:
            return np.asarray(_uniform(key, jnp.asarray(positions, jnp.int32)), np.float64)


class Choices(_Draw):
    """Returns which of several views a step sees of each of its images."""

    def at(self, step: int, count: int, views: int) -> Int[np.ndarray, " count"]:
        """A number below `views` for each image of a step."""
        with self._on_host() as key:
            drawn = jax.random.randint(jax.random.fold_in(key, step), (count,), 0, views)
            return np.asarray(drawn)


@functools.partial(jax.jit, static_argnums=2)
def _epoch_order(key: Key[Array, ""], epoch: Int[Array, ""], num_images: int) -> Int[Array, " n"]:
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_images)


@functools.partial(jax.jit, static_argnums=2)
def _epoch_words(
    key: Key[Array, ""], epoch: Int[Array, ""], num_images: int
) -> UInt32[Array, "rounds 2"]:
    return jax.random.bits(jax.random.fold_in(key, epoch), (_ROUNDS, 2), jnp.uint32)


@jax.jit
def _find_in_classes(
    key: Key[Array, ""], positions: Int[Array, " b"], counts: Int[Array, " k"]
) -> Int[Array, "2 b"]:
    """The classes of positions, and which entry of its class's images each is."""

    def find(position: Int[Array, ""]) -> Int[Array, " 2"]:
        label, number = position % counts.shape[0], position // counts.shape[0]
        count = counts[label]
        words = _epoch_words(jax.random.fold_in(key, label), number // count, 0)
        entry = _shuffled(words, (number % count).astype(jnp.uint32), count.astype(jnp.uint32))
        return jnp.stack([label, entry.astype(jnp.int32)])

    return jax.vmap(find, out_axes=1)(positions)


@jax.jit
def _uniform(key: Key[Array, ""], positions: Int[Array, " b"]) -> Float[Array, "b 2"]:
    return jax.vmap(lambda position: jax.random.uniform(jax.random.fold_in(key, position), (2,)))(
        positions
    )


def _shuffled(
    words: UInt32[Array, "rounds 2"], place: UInt32[Array, ""], length: UInt32[Array, ""]
) -> UInt32[Array, ""]:
    """Returns the entry, below `length`, at a place of a shuffle, without making the shuffle.

    Each round is one to one on the numbers of as many bits as the largest place has: a product with
    an odd number and a sum, both random `words` and modulo a power of two, then a shift added by
    exclusive or. A result that is no entry goes round again until it is one ("cycle walking", Black
    and Rogaway, Ciphers with Arbitrary Finite Domains, 2002), less than once on average.
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


_find = jax.jit(jax.vmap(_shuffled, in_axes=(None, 0, None)))
