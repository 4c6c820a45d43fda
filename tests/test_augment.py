"""Laws of the augmentations. Equality with PyTorch's grid_sample is in parity/."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lgm_jax.augment import PRESETS, Augmentation, augment, center_crop, crop_and_flip, random_box
from tests.emitters import FUSION_EMITTERS

KEYS = jax.random.split(jax.random.key(0), 6)
FULL = (1.0, 1.0)
STILL = Augmentation(flip=0.0, scale=FULL, ratio=FULL, noise=0.0)


def _images(n: int, height: int, width: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(n, height, width, 3)), jnp.float32)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _augment(keys, images, resolution, augmentation):
    return augment(keys, images, resolution, augmentation)


def test_an_image_does_not_depend_on_its_batch():
    images = _images(6, 12, 12)
    whole = _augment(KEYS, images, 8, PRESETS["paper"])
    alone = _augment(KEYS[2:3], images[2:3], 8, PRESETS["paper"])
    # Random draws are the same to the bit; matrix products of another shape round differently.
    np.testing.assert_allclose(alone[0], whole[2], atol=1e-6)


def test_permuting_keys_and_images_permutes_the_result():
    images = _images(6, 12, 12)
    order = np.array([3, 1, 5, 0, 4, 2])
    whole = _augment(KEYS, images, 8, PRESETS["paper"])
    permuted = _augment(KEYS[order], images[order], 8, PRESETS["paper"])
    np.testing.assert_allclose(permuted, whole[order], atol=1e-6)


def test_another_key_gives_another_view():
    images = jnp.broadcast_to(_images(1, 12, 12), (6, 12, 12, 3))
    views = _augment(KEYS, images, 8, PRESETS["paper"])
    for i in range(6):
        for j in range(i):
            assert jnp.max(jnp.abs(views[i] - views[j])) > 0.05


def test_the_full_box_without_flip_or_noise_is_the_identity():
    images = _images(6, 8, 8)
    np.testing.assert_allclose(_augment(KEYS, images, 8, STILL), images, atol=1e-6)


def test_flip_is_the_mirror():
    images = _images(2, 8, 8)
    mirrored = _augment(KEYS[:2], images, 8, Augmentation(1.0, FULL, FULL, 0.0))
    np.testing.assert_allclose(mirrored, images[:, :, ::-1], atol=1e-6)
    box = jnp.asarray([0.1, 0.3, 0.5, 0.6])
    plain, flipped = (crop_and_flip(images[0], box, jnp.float32(f), 7) for f in (0, 1))
    np.testing.assert_allclose(flipped, plain[:, ::-1], atol=1e-6)


def test_flip_has_its_probability():
    keys = jax.random.split(jax.random.key(1), 1000)
    ramp = jnp.broadcast_to(jnp.arange(4.0)[None, None, :, None], (1000, 4, 4, 3))
    result = _augment(keys, ramp, 4, Augmentation(0.3, FULL, FULL, 0.0))
    flipped = jnp.mean(result[:, 0, 0, 0] > 1.5)
    # Four standard errors.
    assert abs(flipped - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)


def test_a_box_of_whole_pixels_copies_them():
    image = _images(1, 8, 6)[0]  # Not square: fractions are of each side.
    box = jnp.asarray([2 / 8, 1 / 6, 4 / 8, 4 / 6])
    np.testing.assert_allclose(
        crop_and_flip(image, box, jnp.float32(0), 4), image[2:6, 1:5], atol=1e-6
    )


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_noise_has_its_probability_mean_and_deviation(mean):
    keys = jax.random.split(jax.random.key(2), 2000)
    grey = jnp.full((2000, 4, 4, 3), 0.25)
    law = Augmentation(0.0, FULL, FULL, noise=0.4, noise_mean=mean, noise_std=0.2)
    noise = np.asarray(_augment(keys, grey, 4, law) - 0.25).reshape(2000, -1)
    noisy = np.abs(noise).max(axis=1) > 1e-5
    assert abs(noisy.mean() - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 2000)
    drawn = noise[noisy]
    assert abs(drawn.mean() - mean) < 4 * 0.2 / np.sqrt(drawn.size)
    assert abs(drawn.std() - 0.2) < 4 * 0.2 / np.sqrt(2 * drawn.size)
    # Not clipped; one draw for every pixel and channel.
    assert np.any((drawn + 0.25 < 0) | (drawn + 0.25 > 1))
    assert len(np.unique(drawn[0])) == drawn.shape[1]


def test_without_noise_none_is_drawn():
    """The random numbers of noise are most of what an augmentation draws: three for each pixel."""

    def text(augmentation: Augmentation) -> str:
        return str(jax.make_jaxpr(lambda k, x: augmentation(k, x, 8))(KEYS, _images(6, 12, 12)))

    noisy, silent = text(Augmentation()), text(Augmentation(noise=0.0))
    bits = re.compile(r"random_bits\[[^\]]*shape=\(8, 8, 3\)")
    # The latter makes normal numbers of uniform ones.
    assert bits.search(noisy)
    assert "erf_inv" in noisy
    assert not bits.search(silent)
    assert "erf_inv" not in silent
    assert "random_bits" in silent


def test_noise_changes_neither_flips_nor_crops():
    images = _images(6, 12, 12)
    silent = _augment(KEYS, images, 8, Augmentation(noise=0.0))
    none = _augment(KEYS, images, 8, Augmentation(noise=1.0, noise_std=0.0))
    np.testing.assert_allclose(silent, none, atol=1e-6)
    noisy = _augment(KEYS, images, 8, Augmentation(noise=1.0))
    assert jnp.min(jnp.max(jnp.abs(noisy - silent), axis=(1, 2, 3))) > 0.1


def test_an_augmentation_of_ones_own_is_called_with_float_images():
    @dataclasses.dataclass(frozen=True)
    class Half:
        def __call__(self, keys, images, resolution):
            assert images.dtype == jnp.float32
            drawn = jax.vmap(lambda key: jax.random.uniform(key))(keys)
            return center_crop(images, resolution) * drawn[:, None, None, None]

    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), np.uint8)
    views = augment(KEYS, jnp.asarray(pixels), 8, Half())
    drawn = np.asarray([jax.random.uniform(key) for key in KEYS])
    expected = pixels[:, 2:10, 2:10] / 255 * drawn[:, None, None, None]
    np.testing.assert_allclose(views, expected, atol=1e-6)


def _torchvision_boxes(count: int, scale, ratio, seed: int) -> np.ndarray:
    """RandomResizedCrop.get_params of a unit square, with real-valued boxes: ten tries."""
    rng = np.random.default_rng(seed)
    boxes = np.empty((count, 4))
    for i in range(count):
        for _ in range(10):
            area = rng.uniform(*scale)
            aspect = np.exp(rng.uniform(*np.log(ratio)))
            width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)
            if width <= 1 and height <= 1:
                boxes[i] = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width
                break
        else:
            boxes[i] = 0, 0, 1, 1
    return boxes


@functools.partial(jax.jit, static_argnums=(1, 2))
def _boxes(keys, scale, ratio):
    return jax.vmap(lambda key: random_box(key, scale, ratio))(keys)


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.3, 1.0), (0.5, 1.5)), ((0.9, 1.0), (0.5, 2.0))],
)
def test_random_box_has_torchvisions_law(scale, ratio):
    count = 10_000
    ours = np.asarray(_boxes(jax.random.split(jax.random.key(3), count), scale, ratio), np.float64)
    theirs = _torchvision_boxes(count, scale, ratio, seed=4)

    def moments(boxes):
        top, left, height, width = boxes.T
        area, aspect = height * width, np.log(width / height)
        # Where the box leaves no room, its relative place is 0 / 0.
        room = np.maximum(1 - boxes[:, 2:], 1e-6)
        down, right = top / room[:, 0], left / room[:, 1]
        whole = (height == 1) & (width == 1)
        features = [area, aspect, top, left, height, width, down, right, whole]
        features += [area**2, aspect**2, top**2, height * width, area * aspect, top * left]
        return np.stack(features, axis=1)

    a, b = moments(ours), moments(theirs)
    error = np.sqrt((a.var(0) + b.var(0)) / count)
    # Five standard errors of the difference of two means.
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 5 * error + 1e-9)


def test_random_boxes_lie_inside_the_image():
    boxes = np.asarray(_boxes(jax.random.split(jax.random.key(5), 5000), (0.08, 1.0), (0.5, 2.0)))
    assert np.all(boxes[:, :2] >= 0)
    assert np.all(boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6)
    area, aspect = boxes[:, 2] * boxes[:, 3], boxes[:, 3] / boxes[:, 2]
    assert area.min() >= 0.08 - 1e-6
    assert area.max() <= 1
    assert aspect.min() >= 0.5 - 1e-5
    assert aspect.max() <= 2 + 1e-5


def test_a_box_that_never_fits_becomes_the_largest_in_the_middle():
    boxes = _boxes(KEYS, (0.9, 1.0), (3.0, 4.0))
    np.testing.assert_allclose(boxes, np.tile([1 / 3, 0, 1 / 3, 1], (6, 1)), rtol=1e-6)


@pytest.mark.parametrize("augmentation", [PRESETS["paper"], None], ids=["paper", "none"])
def test_gradient_to_the_image_matches_finite_differences(augmentation):
    with jax.enable_x64(True):
        images = _images(2, 6, 6).astype(jnp.float64)
        keys = jax.random.split(jax.random.key(0), 2)

        @jax.jit
        def loss(images):
            return jnp.sum(jnp.square(augment(keys, jnp.asarray(images), 5, augmentation)))

        assert loss(images).dtype == jnp.float64
        check_grads(loss, (images,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_no_augmentation_is_the_centre_crop():
    images = _images(2, 11, 8)
    np.testing.assert_array_equal(augment(KEYS[:2], images, 5, None), images[:, 3:8, 2:7])
    np.testing.assert_array_equal(center_crop(images[:, :8], 8), images[:, :8])


def test_centre_crop_refuses_smaller_images():
    with pytest.raises(ValueError, match="cannot crop 9 px from images of 11 x 8"):
        center_crop(_images(1, 11, 8), 9)


_GATHERS = re.compile(r"\b(gather|scatter|dynamic[-_]slice|dynamic[-_]update[-_]slice)\b")


def _texts(function, *args) -> list[str]:
    lowered = jax.jit(function).lower(*args)
    return [lowered.as_text(), lowered.compile(FUSION_EMITTERS).as_text()]


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("gradient", [False, True])
def test_nothing_is_gathered_or_scattered(gradient):
    def loss(images, keys):
        return jnp.sum(jnp.square(augment(keys, images, 8, PRESETS["paper"])))

    function = jax.grad(loss) if gradient else loss
    for text in _texts(function, _images(6, 12, 12), KEYS):
        assert "dot" in text
        assert not _GATHERS.findall(text)


@pytest.mark.usefixtures("compiled_anew")
def test_the_search_for_gathers_would_find_one():
    def loss(image, places):
        return jnp.sum(jax.scipy.ndimage.map_coordinates(image, [places, places], order=1))

    for text in _texts(jax.grad(loss), jnp.ones((8, 8)), jnp.linspace(0.0, 7.0, 5)):
        assert {"scatter"} <= set(_GATHERS.findall(text))


@pytest.mark.slow
def test_views_stay_float32_where_float64_is_possible():
    with jax.enable_x64(True):
        images, keys = _images(2, 8, 8), jax.random.split(jax.random.key(0), 2)
        box = random_box(keys[0], (0.08, 1.0), (3 / 4, 4 / 3))
        results = [augment(keys, images, 6, PRESETS[name]) for name in PRESETS]
        assert {leaf.dtype for leaf in [box, *results]} == {jnp.dtype(jnp.float32)}
