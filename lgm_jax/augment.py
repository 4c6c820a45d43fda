"""Keyed, differentiable augmentations: flip, random resized crop, Gaussian noise.

One key per image decides its augmentation, so that the result does not depend on the batch or the
device. Flip and crop are one linear map, two small matrices per image
(`resample.crop_matrix`); nothing is gathered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from lgm_jax import checks
from lgm_jax.errors import UserError
from lgm_jax.resample import at_least_float32, crop_matrix, resample

# torchvision's RandomResizedCrop draws up to ten boxes and takes the first inside the image.
_TRIES = 10

CROPS = ("inside", "beyond")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A flip, then a crop, then noise.

    Attributes:
        flip: Probability of a horizontal flip.
        scale: Smallest and largest area of the crop, as a fraction of the image's.
        ratio: Smallest and largest width / height of the crop, in pixels.
        noise: Probability of adding Gaussian noise.
        noise_mean: Mean of the noise.
        noise_std: Standard deviation of the noise. The result is not clipped to [0, 1].
        crops: `inside`, torchvision's law: the first of ten boxes that fits into the image, else
            the largest one in its middle whose ratio is allowed. `beyond`, the law of the authors
            of arXiv 2511.16674: one box, which may be wider or higher than the image; its part
            beyond the image is black, and gets noise like the rest. With the default scale and
            ratio, crops have 0.477 and 0.540 of the image's area on average, and 14 % of the
            latter reach beyond a square image.

    Raises:
        UserError: If a value is unknown or out of range.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    noise: float = 0.5
    noise_mean: float = 0.0
    noise_std: float = 0.2
    crops: str = "inside"

    def __post_init__(self) -> None:
        checks.in_range("flip", self.flip, 0, 1)
        checks.interval("scale", self.scale, 1.0)
        checks.interval("ratio", self.ratio, math.inf)
        checks.in_range("noise", self.noise, 0, 1)
        checks.in_range("noise_mean", self.noise_mean, -math.inf)
        checks.in_range("noise_std", self.noise_std, 0)
        checks.one_of("crops", self.crops, CROPS)

    @property
    def idle(self) -> frozenset[str]:
        """Fields without an effect, as the others are set; see `identity`."""
        return frozenset() if self.noise else frozenset({"noise_mean", "noise_std"})

    def __call__(
        self, keys: Key[Array, " n"], images: Float[Array, "n h w 3"], resolution: int
    ) -> Float[Array, "n r r 3"]:
        """Augments images; see `augment`, which takes uint8 images too."""

        def one(key: Key[Array, ""], image: Float[Array, "h w 3"]) -> Float[Array, "r r 3"]:
            key_flip, key_box, key_choice, key_noise = jax.random.split(key, 4)
            dtype, aspect = image.dtype, image.shape[1] / image.shape[0]
            # Places between pixels need more digits than colours do.
            image = at_least_float32(image)
            flip = jax.random.bernoulli(key_flip, self.flip).astype(image.dtype)
            box = random_box(key_box, self.scale, self.ratio, crops=self.crops, aspect=aspect)
            image = crop_and_flip(image, box.astype(image.dtype), flip, resolution)
            if self.noise == 0:
                return image.astype(dtype)
            chosen = jax.random.bernoulli(key_choice, self.noise).astype(image.dtype)
            noise = jax.random.normal(key_noise, image.shape, image.dtype)
            noisy = image + chosen * (self.noise_mean + self.noise_std * noise)
            return noisy.astype(dtype)

        return jax.vmap(one)(keys, images)


Augment = Callable[[Key[Array, " n"], Float[Array, "n h w 3"], int], Float[Array, "n r r 3"]]
"""`augmentation(keys, images, resolution)`, a frozen dataclass such as `Augmentation`."""

PRESETS: Mapping[str, Augmentation | None] = {
    # As the paper describes it; it does not mention crops that leave the image, which the recipes
    # take from the authors' code (`crops="beyond"`).
    "paper": Augmentation(),
    # The authors' code until March 2026, perhaps the one behind the paper's numbers.
    "authors_2025": Augmentation(noise_mean=0.5, crops="beyond"),
    # Mirrored digits are not digits, and a small crop of one may be another.
    "digits": Augmentation(flip=0.0, scale=(0.3, 1.0)),
    "none": None,
}


def augment(
    keys: Key[Array, " n"],
    images: Float[Array, "n h w 3"] | UInt8[Array, "n h w 3"],
    resolution: int,
    augmentation: Augment | None = PRESETS["paper"],
) -> Float[Array, "n r r 3"]:
    """Augments each image with its own key.

    Computed in float32 at least, and rounded to the images' dtype at the end.

    Args:
        keys: One random key per image.
        images: Images in [0, 1], or uint8 ones, of any height and width.
        resolution: Side `r` of the result, in pixels.
        augmentation: The augmentation, called `augmentation(keys, images, resolution)` with float
            images; `None` takes the centre crop.

    Raises:
        UserError: If images are neither floats nor uint8, or smaller than a centre crop.
    """
    images = to_float(images)
    if augmentation is None:
        return center_crop(images, resolution)
    return augmentation(keys, images, resolution)


def to_float(
    images: UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"],
) -> Float[Array, "n h w 3"]:
    """Returns uint8 images as float32 in [0, 1], and float ones unchanged.

    Raises:
        UserError: If images have another dtype, whose range is not known.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype}: give uint8, or floats in [0, 1]")
    return images


def center_crop(images: Float[Array, "n h w 3"], resolution: int) -> Float[Array, "n r r 3"]:
    """Returns the middle `resolution` x `resolution` pixels, as torchvision's CenterCrop.

    Raises:
        ValueError: If the images are smaller than that.
    """
    height, width = images.shape[1:3]
    if min(height, width) < resolution:
        raise ValueError(f"cannot crop {resolution} px from images of {height} x {width}")
    top, left = round((height - resolution) / 2), round((width - resolution) / 2)
    return images[:, top : top + resolution, left : left + resolution]


def random_box(
    key: Key[Array, ""],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *,
    crops: str = "inside",
    aspect: float = 1.0,
) -> Float[Array, " 4"]:
    """Draws a crop box: top, left, height and width as fractions of the image's sides.

    The area is uniform and width / height log-uniform. The place is uniform among those within the
    image, or, for a side that is longer than the image's, among those that cover it.

    Args:
        aspect: Width / height of the image; for the others see `Augmentation`.
    """
    checks.one_of("crops", crops, CROPS)
    key_area, key_ratio, key_place = jax.random.split(key, 3)
    # The fractions of the sides of a wide image are those of a square one with a smaller ratio.
    low, high = ratio[0] / aspect, ratio[1] / aspect
    area = jax.random.uniform(key_area, (_TRIES,), jnp.float32, scale[0], scale[1])
    log_low, log_high = jnp.log(jnp.asarray((low, high), jnp.float32))
    sides = jnp.exp(jax.random.uniform(key_ratio, (_TRIES,), jnp.float32, log_low, log_high))
    widths, heights = jnp.sqrt(area * sides), jnp.sqrt(area / sides)
    fits = (widths <= 1) & (heights <= 1)
    if crops == "beyond":
        fits = jnp.ones_like(fits)
    # One-hot of the first fit; all zero if none.
    first = (fits & (jnp.cumsum(fits) == 1)).astype(jnp.float32)
    any_fits = jnp.sum(first)
    width = jnp.sum(first * widths) + (1 - any_fits) * min(1.0, high)
    height = jnp.sum(first * heights) + (1 - any_fits) * min(1.0, 1 / low)
    place = jnp.where(any_fits > 0, jax.random.uniform(key_place, (2,), jnp.float32), 0.5)
    return jnp.stack([place[0] * (1 - height), place[1] * (1 - width), height, width])


def crop_and_flip(
    image: Float[Array, "h w 3"],
    box: Float[Array, " 4"],
    flip: Float[Array, ""],
    resolution: int,
) -> Float[Array, "r r 3"]:
    """Resamples a box of an image, mirrored if `flip` is one.

    Equal to PyTorch's `grid_sample(image, affine_grid(...))`, bilinear, zero padding.

    Args:
        box: Top, left, height and width as fractions of the image's sides.
        flip: 1 to mirror, 0 not to.
        resolution: Side of the result, in pixels.
    """
    top, left, height, width = box
    rows = crop_matrix(top, height, image.shape[0], resolution)
    columns = crop_matrix(left + flip * width, width * (1 - 2 * flip), image.shape[1], resolution)
    return resample(image, rows, columns)
