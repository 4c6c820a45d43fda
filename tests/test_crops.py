"""Laws of crops, by their distribution, and views of images of any dtype and shape."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import imagenette_folder, quickstart
from configs import paper as recipes
from lgm_jax import images as image_ops
from lgm_jax import settings
from lgm_jax.augment import Augmentation, augment, center_crop
from lgm_jax.resample import crop_matrix, enlarge_matrix
from tests.marks import slow

COUNT = 4000
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def _places(augmentation: Augmentation, height: int, width: int) -> np.ndarray:
    """Boxes of many crops of an image, in pixels: top, left, height, width.

    Read off ramps, since a box is what the view shows of them.
    """
    rows, columns = jnp.mgrid[:height, :width].astype(jnp.float32) + 0.5
    # Inside the image each ramp is linear; a constant tells how much of a pixel is beyond it.
    ramps = jnp.stack([rows, columns, jnp.ones_like(rows)], axis=-1)
    still = dataclasses.replace(augmentation, flip=0.0, noise=0.0)

    @jax.jit
    def views(keys):
        return augment(keys, jnp.broadcast_to(ramps, (len(keys), *ramps.shape)), 16, still)

    shown = np.asarray(views(jax.random.split(jax.random.key(1), COUNT)), np.float64)
    boxes = []
    for axis in (0, 1):
        lines = shown[:, :, 8] if axis == 0 else shown[:, 8]
        # Away from the borders, where pixels are blended with black.
        inner = lines[..., 2] > 0.999
        slopes, starts = [], []
        for line, kept in zip(lines[..., axis], inner, strict=True):
            slope, start = np.polyfit(np.flatnonzero(kept) + 0.5, line[kept], 1)
            slopes.append(16 * slope)
            starts.append(start)
        boxes += [starts, slopes]
    return np.asarray([boxes[0], boxes[2], boxes[1], boxes[3]]).T


@functools.cache
def _recipe(name: str, preset: str | None):
    if name == "imagenette_folder":
        return settings.make_recipe(imagenette_folder.get_config(), 10, 224)
    if name == "quickstart":
        return settings.make_recipe(quickstart.get_config(), 10, 32)
    return settings.make_recipe(recipes.recipe("dinov2", "in100", preset), 100, 224)


@pytest.mark.parametrize("preset", recipes.PRESETS)
def test_published_presets_crop_by_the_authors_law(preset):
    augmentation = _recipe("dinov2_in100", preset).task.augmentation
    top, left, height, width = (_places(augmentation, 64, 64) / 64).T
    area = height * width
    # Four standard errors; uniform on 0.08 to 1, of which nothing is rejected.
    assert abs(area.mean() - 0.540) < 4 * (0.92 / np.sqrt(12)) / np.sqrt(COUNT)
    beyond = (height > 1 + 1e-4) | (width > 1 + 1e-4)
    assert abs(beyond.mean() - 0.1425) < 4 * np.sqrt(0.1425 * 0.8575 / COUNT)
    # A side that is too long covers the image; another lies inside. Uniformly either way.
    for start, side in ((top, height), (left, width)):
        room = 1 - side
        wide = np.abs(room) > 0.02
        place = start[wide] / room[wide]
        assert place.min() > -0.02
        assert place.max() < 1.02
        assert abs(place.mean() - 0.5) < 4 / np.sqrt(12 * wide.sum())
    outside = ((top < -1e-3) | (left < -1e-3))[beyond]
    assert outside.mean() > 0.8


@pytest.mark.parametrize(
    "augmentation", [Augmentation(), Augmentation(noise_mean=0.5)], ids=["default", "noise"]
)
def test_crops_lie_inside_by_default(augmentation):
    top, left, height, width = (_places(augmentation, 64, 64) / 64).T
    assert abs((height * width).mean() - 0.477) < 4 * 0.26 / np.sqrt(COUNT)
    assert max((top + height).max(), (left + width).max()) < 1 + 1e-3
    assert min(top.min(), left.min()) > -1e-3
    for name in ("quickstart", "imagenette_folder"):
        assert _recipe(name, None).task.augmentation.crops == "inside"


def test_beyond_the_image_crops_are_black_and_get_noise_like_the_rest():
    law = Augmentation(0.0, (0.95, 1.0), (1.3, 1.33), noise=0.0, crops="beyond")
    white = jnp.ones((8, 20, 20, 3))
    keys = jax.random.split(jax.random.key(2), 8)
    views = np.asarray(augment(keys, white, 16, law))
    black = np.all(views == 0, axis=(1, 3))
    # A crop is 1.11 to 1.15 times as wide as the image: 1.6 to 2.1 columns of it are not there.
    assert set(black.sum(axis=1)) <= {1, 2}
    noisy = augment(keys, white, 16, dataclasses.replace(law, noise=1.0, noise_mean=0.5))
    noise = np.asarray(noisy) - views
    missing = np.broadcast_to(black[:, None, :, None], noise.shape)
    assert abs(noise[missing].mean() - 0.5) < 0.05
    assert abs(noise[missing].std() - 0.2) < 0.05
    assert abs(noise[~missing].mean() - 0.5) < 0.05


def _torchvision_boxes(count: int, height: int, width: int, ratio, seed: int) -> np.ndarray:
    """RandomResizedCrop.get_params, with real-valued boxes: ten tries, else the middle."""
    rng = np.random.default_rng(seed)
    boxes = np.empty((count, 4))
    for i in range(count):
        for _ in range(10):
            area = height * width * rng.uniform(*SCALE)
            aspect = np.exp(rng.uniform(*np.log(ratio)))
            w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
            if w <= width and h <= height:
                boxes[i] = rng.uniform(0, height - h), rng.uniform(0, width - w), h, w
                break
        else:
            w = min(width, height * ratio[1])
            h = min(height, w / ratio[0])
            boxes[i] = (height - h) / 2, (width - w) / 2, h, w
    return boxes


@pytest.mark.parametrize(("height", "width"), [(40, 80), slow(96, 32)])
def test_images_that_are_not_square_are_cropped_as_by_torchvision(height, width):
    ours = _places(Augmentation(), height, width)
    theirs = _torchvision_boxes(COUNT, height, width, RATIO, seed=3)

    def moments(boxes):
        top, left, high, wide = boxes.T
        sizes = [np.log(wide / high), high * wide / (height * width), high / height, wide / width]
        places = [top / height, left / width, (top / height) ** 2, (left / width) ** 2]
        return np.stack([*sizes, *places], axis=1)

    a, b = moments(ours), moments(theirs)
    error = np.sqrt((a.var(0) + b.var(0)) / COUNT)
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 5 * error + 1e-4)
    # Ratios are those of pixels, whatever the image's.
    ratios = ours[:, 3] / ours[:, 2]
    assert ratios.min() > 0.745
    assert ratios.max() < 1.34


@pytest.mark.parametrize("law", ["inside", "beyond"])
@pytest.mark.parametrize(("dtype", "digits"), [(jnp.bfloat16, 2**-7), (jnp.float16, 2**-10)])
def test_views_of_half_precision_are_those_of_float32_rounded(dtype, digits, law):
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 97, 97, 3)), dtype)
    keys = jax.random.split(jax.random.key(0), 6)
    augmentation = Augmentation(**({} if law == "inside" else {"crops": law}))
    views = augment(keys, images, 64, augmentation)
    expected = augment(keys, images.astype(jnp.float32), 64, augmentation)
    assert views.dtype == dtype
    np.testing.assert_allclose(views.astype(jnp.float32), expected, rtol=digits, atol=digits)


@pytest.mark.slow
def test_bytes_are_colours():
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
    keys = jax.random.split(jax.random.key(0), 3)
    for augmentation in (Augmentation(), None):
        views = augment(keys, jnp.asarray(images), 12, augmentation)
        expected = augment(keys, jnp.asarray(images, jnp.float32) / 255, 12, augmentation)
        np.testing.assert_allclose(views, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, slow(jnp.float16)])
@pytest.mark.slow
def test_images_decode_in_half_precision_as_in_float32(dtype):
    levels = image_ops.init_pyramid(jax.random.key(0), 2, 100, active=8)
    low = tuple(level.astype(dtype) for level in levels)
    digits = float(jnp.finfo(dtype).eps)
    expected = image_ops.decode(tuple(level.astype(jnp.float32) for level in low))
    found = image_ops.decode(low)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=digits)
    rows = enlarge_matrix(64, 100, dtype).astype(jnp.float32)
    np.testing.assert_allclose(rows, enlarge_matrix(64, 100), atol=digits)
    box = jnp.asarray([0.375, 0.5], dtype)
    np.testing.assert_array_equal(
        crop_matrix(*box, 200, 100), crop_matrix(*box.astype(jnp.float32), 200, 100)
    )
    # One less the margin to black and white is one in this precision.
    grey = jnp.asarray([0.0, 0.5, 1.0], dtype).reshape(1, 1, 1, 3) * jnp.ones((1, 4, 4, 1), dtype)
    back = image_ops.decode(image_ops.from_images(grey, decorrelate=False), decorrelate=False)
    np.testing.assert_allclose(back[0, 0, 0], [0.001, 0.5, 0.999], atol=1e-5)
    np.testing.assert_array_equal(center_crop(grey, 2), grey[:, 1:3, 1:3])


def test_zero_leaves_a_new_level_grey_and_old_ones_paler():
    levels = tuple(jnp.ones_like(v) for v in image_ops.init_pyramid(jax.random.key(0), 1, 8))
    grown = image_ops.grow_pyramid(levels, jax.random.key(1), 2, "zero")
    assert [float(level.mean()) for level in grown[:3]] == pytest.approx([2 / 3, 2 / 3, 0])
