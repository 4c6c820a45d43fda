"""Keyed, differentiable augmentations: flip, random resized crop, Gaussian noise.

One key per image decides everything that happens to it, so an augmented image does not depend on
the batch or the device it is in. Flip and crop are one linear map, two small matrices per image
(`resample.crop_matrix`); nothing is gathered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lgm_jax.resample import crop_matrix, resample

# torchvision's RandomResizedCrop draws up to ten boxes and takes the first inside the image.
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What happens to an image, in this order: flip, crop, noise.

    Attributes:
        flip: Probability of a horizontal flip.
        scale: Smallest and largest area of the crop, as a fraction of the image's.
        ratio: Smallest and largest width / height of the crop.
        noise: Probability of adding Gaussian noise.
        noise_mean: Mean of the noise.
        noise_std: Standard deviation of the noise. The result is not clipped to [0, 1].
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    noise: float = 0.5
    noise_mean: float = 0.0
    noise_std: float = 0.2

    @property
    def idle(self) -> frozenset[str]:
        """Fields that change nothing as the others are; see `identity`."""
        return frozenset() if self.noise else frozenset({"noise_mean", "noise_std"})


PRESETS: Mapping[str, Augmentation | None] = {
    # As the paper describes it, and as the authors' code does since March 2026.
    "paper": Augmentation(),
    # The authors' code until March 2026, perhaps the one behind the paper's numbers.
    "authors_2025": Augmentation(noise_mean=0.5),
    # Mirrored digits are not digits, and a small crop of one may be another.
    "digits": Augmentation(flip=0.0, scale=(0.3, 1.0)),
    "none": None,
}


def augment(
    keys: Key[Array, " n"],
    images: Float[Array, "n h w 3"],
    resolution: int,
    augmentation: Augmentation | None = PRESETS["paper"],
) -> Float[Array, "n r r 3"]:
    """Augments each image with its own key.

    Args:
        keys: One random key per image.
        images: Images in [0, 1].
        resolution: Side `r` of the result, in pixels.
        augmentation: What to do; `None` takes the centre crop.
    """
    if augmentation is None:
        return center_crop(images, resolution)
    return jax.vmap(lambda key, image: _augment(key, image, resolution, augmentation))(keys, images)


def center_crop(images: Float[Array, "n h w 3"], resolution: int) -> Float[Array, "n r r 3"]:
    """The middle `resolution` x `resolution` pixels of each image, as torchvision's CenterCrop.

    Raises:
        ValueError: If the images are smaller than that.
    """
    height, width = images.shape[1:3]
    if min(height, width) < resolution:
        raise ValueError(f"cannot crop {resolution} px from images of {height} x {width}")
    top, left = round((height - resolution) / 2), round((width - resolution) / 2)
    return images[:, top : top + resolution, left : left + resolution]


def random_box(
    key: Key[Array, ""], scale: tuple[float, float], ratio: tuple[float, float]
) -> Float[Array, " 4"]:
    """Draws a crop box of a square image: top, left, height, width as fractions of its side.

    The law of torchvision's RandomResizedCrop with real-valued boxes: area uniform, aspect ratio
    log-uniform, position uniform; the first of ten draws that fits, else the whole image.
    """
    key_area, key_ratio, key_place = jax.random.split(key, 3)
    area = jax.random.uniform(key_area, (_TRIES,), jnp.float32, scale[0], scale[1])
    log_low, log_high = jnp.log(jnp.asarray(ratio, jnp.float32))
    aspect = jnp.exp(jax.random.uniform(key_ratio, (_TRIES,), jnp.float32, log_low, log_high))
    widths, heights = jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)
    fits = (widths <= 1) & (heights <= 1)
    # One-hot of the first fit; all zero if none.
    first = (fits & (jnp.cumsum(fits) == 1)).astype(jnp.float32)
    found = jnp.sum(first)
    width = jnp.sum(first * widths) + (1 - found)
    height = jnp.sum(first * heights) + (1 - found)
    place = jax.random.uniform(key_place, (2,), jnp.float32)
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
        image: The image.
        box: Top, left, height and width as fractions of the image's sides.
        flip: 1 to mirror, 0 not to.
        resolution: Side of the result, in pixels.
    """
    top, left, height, width = box
    rows = crop_matrix(top, height, image.shape[0], resolution)
    columns = crop_matrix(left + flip * width, width * (1 - 2 * flip), image.shape[1], resolution)
    return resample(image, rows, columns)


def _augment(
    key: Key[Array, ""], image: Float[Array, "h w 3"], resolution: int, augmentation: Augmentation
) -> Float[Array, "r r 3"]:
    key_flip, key_box, key_choice, key_noise = jax.random.split(key, 4)
    flip = jax.random.bernoulli(key_flip, augmentation.flip).astype(image.dtype)
    box = random_box(key_box, augmentation.scale, augmentation.ratio).astype(image.dtype)
    image = crop_and_flip(image, box, flip, resolution)
    chosen = jax.random.bernoulli(key_choice, augmentation.noise).astype(image.dtype)
    noise = jax.random.normal(key_noise, image.shape, image.dtype)
    return image + chosen * (augmentation.noise_mean + augmentation.noise_std * noise)
