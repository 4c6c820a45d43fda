"""Parametrisations of synthetic images: a sum of resolutions, decorrelated colour, a sigmoid.

The parameters of `n` images are a tuple of levels, each (n, s, s, 3) float32, from coarse to fine.
A pyramid has the sides 1, 2, 4, ... and the full resolution; plain pixels are the pyramid whose
only level is the full resolution. Every level exists from the start, and the first `active` ones
count: the shapes, and so the compiled step, stay the same while the pyramid grows.

Source: arXiv 2511.16674, section 3; the colour matrix is from Olah et al., "Feature Visualization".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int, Key, UInt8

from lgm_jax import checks
from lgm_jax.augment import to_float
from lgm_jax.errors import UserError
from lgm_jax.resample import at_least_float32, enlarge_matrix, resample

Levels = tuple[Float[Array, "n _ _ 3"], ...]

# Columns are the principal directions of natural colour, scaled by their spread: an equal step in
# every coordinate changes an image the way natural images vary. Scaled to a largest column of 1.
_COLOR = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOR /= np.linalg.norm(_COLOR, axis=0).max()

# Grey is the mean of all three coordinates.
_GREY = np.full((3, 3), 1 / 3)

INITS = ("noise", "zero")
STARTS = (*INITS, "real")

# A sigmoid cannot reach 0 or 1, so `from_images` keeps this far away from them.
_MARGIN = 1e-3


@runtime_checkable
class Parametrisation(Protocol):
    """A frozen dataclass that creates the parameters of images, and decodes images from them.

    Parameters are a pytree of arrays with a leading axis of images. An image depends on its own
    parameters alone, so that devices can share the images.
    """

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""

    def init_params(self, key: Key[Array, ""], num_images: int) -> Any:
        """Returns the parameters of new images; those of image i do not depend on their number."""

    def decode(self, params: Any, step: int | Int[Array, ""]) -> Float[Array, "n r r 3"]:
        """Returns the images in [0, 1] after `step` updates."""


@runtime_checkable
class Growing(Parametrisation, Protocol):
    """A parametrisation whose parameters change their meaning at some steps.

    Optimiser states, which belong to the old meaning, are reset at such a step.
    """

    def grows_at(self, step: int | Int[Array, ""]) -> Any:
        """Returns whether the parameters change after `step` updates, before the next."""

    def grow(self, key: Key[Array, ""], params: Any, step: int | Int[Array, ""]) -> Any:
        """Returns the changed parameters."""

    def side_at(self, step: int) -> int:
        """Returns the side in pixels of the finest detail after `step` updates."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images as plain pixels at full resolution.

    Attributes:
        resolution: Side of the images, in pixels.
        init: `noise`, `zero` for grey images, or `real`: from given images, see `from_images`.
        decorrelate: Whether a pixel's three parameters are decorrelated colours or plain RGB.
        grey: Whether images have no colour, whatever `decorrelate` says.

    Raises:
        UserError: If a value is unknown or out of range.
    """

    resolution: int
    init: str = "noise"
    decorrelate: bool = True
    grey: bool = False

    def __post_init__(self) -> None:
        checks.counts(self, "resolution")
        checks.one_of("init", self.init, STARTS)
        checks.flags(self, "decorrelate", "grey")

    @property
    def idle(self) -> frozenset[str]:
        """Fields without an effect, as the others are set; see `identity`."""
        return frozenset({"decorrelate"}) if self.grey else frozenset()

    def init_params(self, key: Key[Array, ""], num_images: int) -> Levels:
        """Returns the parameters of new images.

        Raises:
            UserError: If `init` is `real`.
        """
        if self.init == "real":
            raise UserError("init=real: give the parameters of images.from_images")
        return init_pyramid(key, num_images, self.resolution, kind="pixels", init=self.init)

    def decode(self, params: Levels, step: int | Int[Array, ""]) -> Float[Array, "n r r 3"]:
        """Returns the images in [0, 1]."""
        return decode(params, decorrelate=self.decorrelate, grey=self.grey)


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """Images as sums of levels from coarse to fine, which join one after the other.

    Attributes:
        resolution: Side of the images, in pixels.
        init: `noise`, or `zero` for grey images.
        decorrelate: As for `Pixels`.
        grey: As for `Pixels`.
        start_resolution: Levels up to this side count from the start.
        grow_every: Steps between two new levels; with 0, all count from the start.
        grow_delay: Steps by which every new level comes later; 1 in the authors' code.

    Raises:
        UserError: If a value is unknown or out of range.
    """

    resolution: int
    init: str = "noise"
    decorrelate: bool = True
    grey: bool = False
    start_resolution: int = 1
    grow_every: int = 200
    grow_delay: int = 0

    def __post_init__(self) -> None:
        checks.counts(self, "resolution", "start_resolution")
        checks.counts(self, "grow_every", "grow_delay", low=0)
        checks.one_of("init", self.init, INITS)
        checks.flags(self, "decorrelate", "grey")

    @property
    def idle(self) -> frozenset[str]:
        """Fields without an effect, as the others are set; see `identity`."""
        growth = () if self.grow_every else ("start_resolution", "grow_delay")
        return frozenset(("decorrelate", *growth) if self.grey else growth)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of all levels."""
        return level_sizes(self.resolution)

    def num_active(self, step: int | Int[Array, ""]) -> Any:
        """Returns the number of levels that count after `step` updates."""
        return num_active(step, self.sizes, self.start_resolution, self.grow_every, self.grow_delay)

    def init_params(self, key: Key[Array, ""], num_images: int) -> Levels:
        """Returns the parameters of new images."""
        return init_pyramid(
            key, num_images, self.resolution, init=self.init, active=self.num_active(0)
        )

    def decode(self, params: Levels, step: int | Int[Array, ""]) -> Float[Array, "n r r 3"]:
        """Returns the images in [0, 1] of the levels that count after `step` updates."""
        active = self.num_active(step)
        return decode(params, active, decorrelate=self.decorrelate, grey=self.grey)

    def grows_at(self, step: int | Int[Array, ""]) -> Any:
        """Returns whether a level joins after `step` updates."""
        return self.num_active(step) > self.num_active(step - 1)

    def grow(self, key: Key[Array, ""], params: Levels, step: int | Int[Array, ""]) -> Levels:
        """Returns the levels with the one that joins after `step` updates."""
        return grow_pyramid(params, key, self.num_active(step) - 1, self.init)

    def side_at(self, step: int) -> int:
        """Returns the side in pixels of the finest level that counts after `step` updates."""
        return self.sizes[self.num_active(step) - 1]


PARAMETRISATIONS: Mapping[str, type[Parametrisation]] = {"pyramid": Pyramid, "pixels": Pixels}
"""Parametrisations by their names in configs."""


def level_sizes(resolution: int, kind: str = "pyramid") -> tuple[int, ...]:
    """Returns the sides of the levels: 1, 2, 4, ... below `resolution`, then `resolution`.

    Args:
        resolution: Side of the images, in pixels; need not be a power of two.
        kind: `pyramid`, or `pixels` for the full resolution alone.

    Raises:
        UserError: If the kind is unknown or the resolution out of range.
    """
    checks.one_of("kind", kind, list(PARAMETRISATIONS))
    checks.in_range("resolution", resolution, 1, whole=True)
    if kind == "pixels":
        return (resolution,)
    powers = range((resolution - 1).bit_length())
    return (*(2**power for power in powers), resolution)


def num_active(
    step: int | Int[Array, ""],
    sizes: Sequence[int],
    start_resolution: int,
    grow_every: int,
    grow_delay: int = 0,
) -> int | Int[Array, ""]:
    """Returns the number of levels that count at a step.

    Args:
        start_resolution: Levels up to this side count from the start (at least one does).
        grow_every: Updates between two new levels; with 0, all count from the start.
        grow_delay: Updates by which every new level comes later.
    """
    if grow_every == 0:
        return len(sizes)
    start = max(1, sum(size <= start_resolution for size in sizes))
    if isinstance(step, int):
        return min(start + max(0, step - grow_delay) // grow_every, len(sizes))
    return jnp.minimum(start + jnp.maximum(0, step - grow_delay) // grow_every, len(sizes))


def grow_interval(
    steps: int, sizes: Sequence[int], start_resolution: int, until: float, grow_delay: int = 0
) -> int:
    """Returns the `grow_every` with which all levels count after a part of the steps.

    With 5,000 steps, 256 px and a part of 0.32 it is the paper's 200.

    Args:
        start_resolution: As for `num_active`, and so `grow_delay`.
        until: Part of the steps, above 0 and at most 1.

    Returns:
        At least 1, and such that the last level counts for one update at least; 0, which is all
        levels at once, where there are fewer updates than it takes to grow them one by one.
    """
    levels = len(sizes) - int(num_active(0, sizes, start_resolution, 1))
    if levels == 0:
        return 0
    return max(0, min(max(1, round(until * steps / levels)), (steps - 1 - grow_delay) // levels))


def init_pyramid(
    key: Key[Array, ""],
    num_images: int,
    resolution: int,
    *,
    kind: str = "pyramid",
    init: str = "noise",
    active: int = 1,
) -> Levels:
    """Draws new images: active levels from N(0, 1) / active; the others are zero.

    Each image has a key of its own, folded from its index, so that it does not depend on the number
    of images.

    Args:
        resolution: Side of the images, in pixels.
        kind: `pyramid` or `pixels`.
        init: `noise`, or `zero` for grey images.
        active: Number of levels that count at the start.

    Raises:
        UserError: If `kind` or `init` is unknown.
    """
    checks.one_of("init", init, INITS)
    sizes = level_sizes(resolution, kind)
    if init == "zero":
        return tuple(jnp.zeros((num_images, size, size, 3), jnp.float32) for size in sizes)
    levels = _noise(key, num_images, sizes)
    return tuple(level * (i < active) / active for i, level in enumerate(levels))


def grow_pyramid(
    levels: Levels, key: Key[Array, ""], active: int | Int[Array, ""], init: str = "noise"
) -> Levels:
    """Adds a level: the old ones are scaled by active / (active + 1), the new one is drawn.

    The optimiser's state belongs to the old scale and has to be reset. `active` may be traced.

    Args:
        levels: All levels, of which the first `active` count.
        active: Number of levels that count before growing.
        init: `noise` draws the new level from N(0, 1) / (active + 1). `zero` leaves it zero, so
            that images are paler after growing, by active / (active + 1) before the sigmoid. In the
            authors' code they keep their colours: a new level starts from the mean of the enlarged
            others.

    Raises:
        UserError: If `init` is unknown.
    """
    checks.one_of("init", init, INITS)
    count = jnp.asarray(active, jnp.promote_types(levels[0].dtype, jnp.float32))
    noise = _noise(key, levels[0].shape[0], [level.shape[1] for level in levels])

    def grow(i: int, level: Array) -> Array:
        new = noise[i] / (count + 1) if init == "noise" else jnp.zeros_like(level)
        return jnp.where(
            i < active, level * (count / (count + 1)), jnp.where(i == active, new, level)
        ).astype(level.dtype)

    return tuple(grow(i, level) for i, level in enumerate(levels))


def decode(
    levels: Levels,
    active: int | Int[Array, ""] | None = None,
    *,
    decorrelate: bool = True,
    grey: bool = False,
) -> Float[Array, "n h w 3"]:
    """Renders images in [0, 1]: enlarge and sum the active levels, map colours, sigmoid(2x).

    Args:
        levels: All levels; the last one has the full resolution.
        active: Number of levels that count; all by default. The others get a zero gradient.
        decorrelate: Whether a parameter's three channels are decorrelated colours or plain RGB.
        grey: Whether images have no colour, whatever `decorrelate` says.

    Returns:
        Images of the levels' dtype; computed in float32 at least.
    """
    resolution, dtype = levels[-1].shape[1], levels[0].dtype
    levels = tuple(map(at_least_float32, levels))
    total = jnp.zeros((), levels[0].dtype)
    for i, level in enumerate(levels):
        if active is not None:
            level = jnp.where(i < active, level, 0)
        if level.shape[1] != resolution:
            matrix = enlarge_matrix(level.shape[1], resolution, level.dtype)
            level = jax.vmap(functools.partial(resample, rows=matrix, columns=matrix))(level)
        total = total + level
    if grey or decorrelate:
        color = jnp.asarray(_GREY if grey else _COLOR, total.dtype)
        total = jnp.einsum("...i,oi->...o", total, color, precision=Precision.HIGHEST)
    return jax.nn.sigmoid(2 * total).astype(dtype)


def from_images(
    images: Float[Array, "n h w 3"] | UInt8[Array, "n h w 3"],
    *,
    decorrelate: bool = True,
    grey: bool = False,
) -> Levels:
    """Returns pixel parameters that `decode` to given images, but for values near black or white.

    These end 0.001 away from black and white.

    Args:
        images: Square images in [0, 1], or uint8 ones.
        grey: The argument of `decode`; if true, colours are lost.
    """
    # In half precision, 1 - margin would be 1.
    clipped = jnp.clip(at_least_float32(to_float(images)), _MARGIN, 1 - _MARGIN)
    total = (jnp.log(clipped) - jnp.log1p(-clipped)) / 2
    if decorrelate and not grey:
        inverse = jnp.asarray(np.linalg.inv(_COLOR), total.dtype)
        total = jnp.einsum("...i,oi->...o", total, inverse, precision=Precision.HIGHEST)
    return (total,)


def _noise(key: Key[Array, ""], num_images: int, sizes: Sequence[int]) -> Levels:
    def one(index: Int[Array, ""]) -> tuple[Float[Array, "_ _ 3"], ...]:
        keys = jax.random.split(jax.random.fold_in(key, index), len(sizes))
        return tuple(
            jax.random.normal(keys[i], (size, size, 3), jnp.float32) for i, size in enumerate(sizes)
        )

    return jax.vmap(one)(jnp.arange(num_images))
