"""Random views of images: what the two encoders are shown."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lgm_jax.augment import random_box
from lgm_jax.resample import crop_matrix, resample

# Weights of red, green and blue in the brightness of a colour (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# The plane of colours of equal brightness: the I and Q axes of NTSC's YIQ.
_CHROMA = ((0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclasses.dataclass(frozen=True)
class Digits:
    """Views of digits: affine and elastic warp, contrast, blur, noise, a patch, ink and paper.

    Attributes:
        warp: Strength of the geometric part.
    """

    warp: float = 0.8

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "b s s 3"], count: int
    ) -> tuple[tuple[Float[Array, "v b s s 3"], ...], Float[Array, "v b s s"]]:
        """Draws views.

        Args:
            key: Random key of the step.
            images: Images in [0, 1].
            count: Views of each image.

        Returns:
            One group of views of one size, and the warped scans they were made of: no contrast,
            blur, noise or patch.
        """
        view = jax.vmap(functools.partial(_digit, warp=self.warp))
        views, scans = jax.vmap(lambda k: view(jax.random.split(k, len(images)), images))(
            jax.random.split(key, count)
        )
        return (views,), scans


@dataclasses.dataclass(frozen=True)
class Photos:
    """Views of photos, as for MoCo-v3 and DINO: crop, flip, blur, colours, grey, solarisation.

    Attributes:
        side: Pixels of a whole view.
        small: Views of a small part that are added to those of larger parts, as for DINO's
            multi-crop.
        small_side: Pixels of these.
        least: The smallest area of a small view, of the image's.
        most: The area at which small views end and larger ones begin.
    """

    side: int
    small: int = 0
    small_side: int = 48
    least: float = 0.05
    most: float = 0.25

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "b s s 3"], count: int
    ) -> tuple[tuple[Float[Array, "v b r r 3"], ...], None]:
        """Draws `count` views of large parts, and `small` ones of small parts, in two groups."""
        groups = [(count, self.side, (self.most, 1.0))]
        if self.small:
            groups.append((self.small, self.small_side, (self.least, self.most)))
        drawn = []
        for number, (views, side, scale) in enumerate(groups):
            view = jax.vmap(functools.partial(_photo, side=side, scale=scale))
            keys = jax.random.split(jax.random.fold_in(key, number), (views, len(images)))
            drawn.append(jax.vmap(view, in_axes=(0, None))(keys, images))
        return tuple(drawn), None


def _digit(
    key: Key[Array, ""], image: Float[Array, "s s 3"], *, warp: float
) -> tuple[Float[Array, "s s 3"], Float[Array, "s s"]]:
    keys, side = iter(jax.random.split(key, 24)), len(image)

    def uniform(low: float, high: float, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.uniform(next(keys), shape, jnp.float32, low, high)

    angle, shear = uniform(-0.35, 0.35) * warp, uniform(-0.3, 0.3) * warp
    scale = jnp.exp(uniform(-0.35, 0.35, (2,)) * warp)
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    matrix = rotation @ jnp.array([[1.0, 0.0], [0.0, 1.0]]).at[1, 0].set(shear) / scale[:, None]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij"), -1)
    grid = grid.astype(jnp.float32)
    middle = (side - 1) / 2
    where = (grid - middle) @ matrix.T + middle + uniform(-4.0, 4.0, (1, 1, 2)) * warp
    elastic = jax.random.normal(next(keys), (4, 4, 2)) * uniform(0.0, 1.5) * warp
    where += jax.image.resize(elastic, (side, side, 2), "cubic")
    sample: Any = functools.partial(
        jax.scipy.ndimage.map_coordinates, order=1, mode="constant", cval=0.0
    )
    scan = grey = sample(image[..., 0], [where[..., 0], where[..., 1]])

    half = jax.image.resize(grey, (side // 2, side // 2), "linear")
    blurred = jax.image.resize(half, grey.shape, "cubic")
    grey = jnp.where(uniform(0.0, 1.0) < 0.3, blurred, grey)
    grey = jnp.clip(grey, 0.0, 1.0) ** jnp.exp(uniform(-0.5, 0.5))
    # Each channel gets its own ink and paper: distilled images are in colour.
    colored = uniform(0.0, 1.0) < 0.5
    ink, paper = uniform(0.6, 1.1, (1, 1, 3)), uniform(0.0, 0.4, (1, 1, 3))
    ink = jnp.where(colored, ink, ink[..., :1])
    paper = jnp.where(colored, paper, paper[..., :1])
    view = paper + (ink - paper) * grey[..., None]

    corner, size = uniform(0.0, 1.0, (2,)) * side, uniform(3.0, 12.0)
    inside = jnp.all((grid >= corner) & (grid < corner + size), axis=-1, keepdims=True)
    view = jnp.where(inside & (uniform(0.0, 1.0) < 0.3), uniform(0.0, 1.0), view)
    noise = jax.random.normal(next(keys), view.shape) * uniform(0.0, 0.2)
    return view + jnp.where(uniform(0.0, 1.0) < 0.5, noise, 0.0), scan


def _photo(
    key: Key[Array, ""],
    image: Float[Array, "s s 3"],
    *,
    side: int,
    scale: tuple[float, float],
) -> Float[Array, "r r 3"]:
    key_box, key = jax.random.split(key)
    keys = iter(jax.random.split(key, 12))

    def uniform(low: float, high: float) -> jax.Array:
        return jax.random.uniform(next(keys), (), jnp.float32, low, high)

    def chance(probability: float) -> jax.Array:
        return uniform(0.0, 1.0) < probability

    top, left, height, width = random_box(key_box, scale, (3 / 4, 4 / 3))
    flip = chance(0.5).astype(jnp.float32)
    # At 224 px the deviation is 0.1 to 2 pixels. Crop, flip and blur are one matrix for each axis.
    blur = _blur(jnp.where(chance(0.5), uniform(0.1, 2.0), 0.1) * side / 224, side)
    rows = blur @ crop_matrix(top, height, image.shape[0], side)
    start, length = left + flip * width, width * (1 - 2 * flip)
    columns = blur @ crop_matrix(start, length, image.shape[1], side)
    view = resample(image, rows, columns)

    luma = jnp.asarray(LUMA)
    jittered = view * uniform(0.6, 1.4)
    mean = jnp.mean(jittered @ luma)
    jittered = mean + (jittered - mean) * uniform(0.6, 1.4)
    grey = (jittered @ luma)[..., None]
    jittered = grey + (jittered - grey) @ hue(uniform(-0.1, 0.1)) * uniform(0.8, 1.2)
    view = jnp.clip(jnp.where(chance(0.8), jittered, view), 0, 1)
    view = jnp.where(chance(0.2), (view @ luma)[..., None], view)
    return jnp.where(chance(0.1) & (view > 0.5), 1 - view, view)


def _blur(deviation: Float[Array, ""], side: int) -> Float[Array, "r r"]:
    places = jnp.arange(side, dtype=jnp.float32)
    weights = jnp.exp(-(((places[:, None] - places[None, :]) / deviation) ** 2) / 2)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def hue(turn: Float[Array, ""]) -> Float[Array, "3 3"]:
    """Turns colours, as rows, around the axis of greys, by a fraction of the circle."""
    to_yiq = jnp.concatenate([jnp.asarray(LUMA)[None], jnp.asarray(_CHROMA)])
    cos, sin = jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)
    rotation = jnp.stack([1, 0, 0, 0, cos, -sin, 0, sin, cos]).reshape(3, 3)
    return (jnp.linalg.inv(to_yiq) @ rotation @ to_yiq).T
