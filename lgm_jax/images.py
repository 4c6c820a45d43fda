"""How synthetic images are parametrised: a sum of resolutions, decorrelated colour, a sigmoid.

The parameters of `n` images are a tuple of levels, each (n, s, s, 3) float32, from coarse to fine.
A pyramid has the sides 1, 2, 4, ... and the full resolution; plain pixels are the pyramid whose
only level is the full resolution. Every level exists from the start and `active` says how many
count: the shapes, and so the compiled step, stay the same while the pyramid grows.

Source: arXiv 2511.16674, section 3; the colour matrix is from Olah et al., "Feature Visualization".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int, Key

from lgm_jax import checks
from lgm_jax.augment import to_float
from lgm_jax.resample import at_least_float32, enlarge_matrix, resample

Levels = tuple[Float[Array, "n _ _ 3"], ...]

# Columns are the principal directions of natural colour, scaled by their spread: an equal step in
# every coordinate changes an image the way natural images vary. Scaled to a largest column of 1.
_COLOR = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOR /= np.linalg.norm(_COLOR, axis=0).max()

# Grey is the mean of all three coordinates, of which each then changes an image in the same way.
_GREY = np.full((3, 3), 1 / 3)

KINDS = ("pyramid", "pixels")
INITS = ("noise", "zero")

# A sigmoid cannot reach 0 or 1, so `from_images` keeps this far away from them.
_MARGIN = 1e-3


def level_sizes(resolution: int, kind: str = "pyramid") -> tuple[int, ...]:
    """Sides of the levels, coarse to fine: 1, 2, 4, ... below `resolution`, then `resolution`.

    Args:
        resolution: Side of the images, in pixels; need not be a power of two.
        kind: `pyramid`, or `pixels` for the full resolution alone.

    Raises:
        UserError: If the kind is unknown, or the resolution no number of pixels.
    """
    checks.one_of("kind", kind, KINDS)
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
    """How many levels count at a step.

    Args:
        step: Number of updates already made.
        sizes: Sides of all levels.
        start_resolution: Levels up to this side count from the start (at least one does).
        grow_every: Updates between one new level and the next; 0 activates all from the start.
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
    """Returns `grow_every` by which all levels count after a part of the steps.

    With 5,000 steps, 256 px and a part of 0.32 it is the paper's 200.

    Args:
        steps: Updates in all.
        sizes: Sides of all levels.
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
    """New images: active levels drawn from N(0, 1) / active, the others zero.

    Each image has a key of its own, folded from its index, so that a part of a larger set of
    images is the same wherever it is drawn.

    Args:
        key: Random key.
        num_images: Number of images `n`.
        resolution: Side of the images, in pixels.
        kind: `pyramid` or `pixels`.
        init: `noise`, or `zero` for grey images.
        active: How many levels count at the start.

    Raises:
        UserError: If `kind` or `init` is unknown.
    """
    checks.one_of("init", init, INITS)
    sizes = level_sizes(resolution, kind)
    if init == "zero":
        return tuple(jnp.zeros((num_images, size, size, 3), jnp.float32) for size in sizes)
    return tuple(
        level * (i < active) / active for i, level in enumerate(_noise(key, num_images, sizes))
    )


def grow_pyramid(
    levels: Levels, key: Key[Array, ""], active: int | Int[Array, ""], init: str = "noise"
) -> Levels:
    """Makes one more level count: old ones are scaled by active / (active + 1), the new one drawn.

    The optimiser's state belongs to the old levels' scale and has to be created anew. Compiles
    once: `active` may be traced.

    Args:
        levels: All levels, of which the first `active` count.
        key: Random key.
        active: How many levels count before growing.
        init: `noise` draws the new level from N(0, 1) / (active + 1). `zero` leaves it zero, so
            that images are paler after growing, by active / (active + 1) before the sigmoid; those
            of the authors' code keep their colours, since its new level starts from the mean of the
            enlarged others.

    Raises:
        UserError: If `init` is unknown.
    """
    checks.one_of("init", init, INITS)
    count = jnp.asarray(active, jnp.promote_types(levels[0].dtype, jnp.float32))
    sizes = [level.shape[1] for level in levels]
    noise = _noise(key, levels[0].shape[0], sizes)

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
        active: How many count; all by default. The others get a zero gradient.
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
        total = total + _enlarge(level, resolution)
    if grey or decorrelate:
        color = jnp.asarray(_GREY if grey else _COLOR, total.dtype)
        total = jnp.einsum("...i,oi->...o", total, color, precision=Precision.HIGHEST)
    return jax.nn.sigmoid(2 * total).astype(dtype)


def from_images(
    images: Float[Array, "n h w 3"], *, decorrelate: bool = True, grey: bool = False
) -> Levels:
    """Pixel parameters that `decode` to given images, up to values within 0.001 of black or white.

    Args:
        images: Square images in [0, 1], or uint8 ones.
        decorrelate: As will be given to `decode`.
        grey: As will be given to `decode`, and whose colours are then lost.
    """
    # In half precision, one less the margin is one.
    clipped = jnp.clip(at_least_float32(to_float(images)), _MARGIN, 1 - _MARGIN)
    total = (jnp.log(clipped) - jnp.log1p(-clipped)) / 2
    if decorrelate and not grey:
        inverse = jnp.asarray(np.linalg.inv(_COLOR), total.dtype)
        total = jnp.einsum("...i,oi->...o", total, inverse, precision=Precision.HIGHEST)
    return (total,)


def _enlarge(level: Float[Array, "n s s 3"], resolution: int) -> Float[Array, "n r r 3"]:
    if level.shape[1] == resolution:
        return level
    matrix = enlarge_matrix(level.shape[1], resolution, level.dtype)
    return jax.vmap(functools.partial(resample, rows=matrix, columns=matrix))(level)


def _noise(key: Key[Array, ""], num_images: int, sizes: Sequence[int]) -> Levels:
    def one(index: Int[Array, ""]) -> tuple[Float[Array, "_ _ 3"], ...]:
        keys = jax.random.split(jax.random.fold_in(key, index), len(sizes))
        return tuple(
            jax.random.normal(keys[i], (size, size, 3), jnp.float32) for i, size in enumerate(sizes)
        )

    return jax.vmap(one)(jnp.arange(num_images))
