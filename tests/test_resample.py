"""Laws of resampling by matrices. Equality with PyTorch is in parity/."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax.backbones import load
from lgm_jax.errors import UserError
from lgm_jax.resample import crop_matrix, enlarge_matrix, resample
from tests.backbone_folders import draw_images

SIZES = [(1, 8), (2, 224), (7, 30), (128, 256), (8, 8)]


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_enlarging_keeps_constants(small, large):
    matrix = enlarge_matrix(small, large)
    assert matrix.shape == (large, small)
    assert jnp.all(matrix >= 0)
    np.testing.assert_allclose(jnp.sum(matrix, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_enlarging_keeps_ramps_between_the_first_and_last_centre(small, large):
    centers = (np.arange(large) + 0.5) / large * small - 0.5
    expected = np.clip(centers, 0, small - 1)
    ramp = enlarge_matrix(small, large) @ jnp.arange(small, dtype=jnp.float32)
    np.testing.assert_allclose(ramp, expected, rtol=1e-5, atol=1e-5)


def test_enlarging_to_the_same_size_is_the_identity():
    np.testing.assert_array_equal(enlarge_matrix(9, 9), np.eye(9))


def test_cropping_everything_is_the_identity_and_backwards_is_the_mirror():
    zero, one = jnp.zeros(()), jnp.ones(())
    np.testing.assert_allclose(crop_matrix(zero, one, 9, 9), np.eye(9), atol=1e-6)
    np.testing.assert_allclose(crop_matrix(one, -one, 9, 9), np.eye(9)[::-1], atol=1e-6)


def test_cropping_whole_pixels_copies_them():
    matrix = crop_matrix(jnp.asarray(3 / 8), jnp.asarray(4 / 8), 8, 4)
    np.testing.assert_allclose(matrix, np.eye(8)[3:7], atol=1e-6)


def test_cropping_blends_with_black_beyond_the_last_centre():
    # Two outputs per input pixel: the outermost centre lies a quarter pixel beyond the first one.
    matrix = crop_matrix(jnp.zeros(()), jnp.ones(()), 4, 8)
    np.testing.assert_allclose(matrix[0], [0.75, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(matrix[1], [0.75, 0.25, 0, 0], atol=1e-6)
    np.testing.assert_allclose(matrix[-1], [0, 0, 0, 0.75], atol=1e-6)


def test_resample_is_rows_times_image_times_columns():
    rng = np.random.default_rng(0)
    image, rows, columns = rng.normal(size=(5, 7, 3)), rng.normal(size=(4, 5)), np.eye(7)[:2]
    result = resample(*(jnp.asarray(a, jnp.float32) for a in (image, rows, columns)))
    expected = np.stack([rows @ image[:, :, c] @ columns.T for c in range(3)], axis=-1)
    assert result.shape == (4, 2, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_matrices_have_the_precision_of_their_arguments():
    with jax.enable_x64(True):
        assert enlarge_matrix(3, 5).dtype == jnp.float32
        assert enlarge_matrix(3, 5, jnp.float64).dtype == jnp.float64
        for dtype in (jnp.float32, jnp.float64):
            start, size = jnp.zeros((), dtype), jnp.ones((), dtype)
            assert crop_matrix(start, size, 3, 5).dtype == dtype


def test_images_of_another_side_are_resized_to_the_backbones(vit_folder):
    native, same = load(vit_folder), load(vit_folder, resolution=16, resize="images")
    assert same.fingerprint == native.fingerprint
    seeing = load(vit_folder, resolution=40, resize="images")
    assert (seeing.resolution, seeing.spec.resolution) == (40, 16)
    assert seeing.fingerprint not in (
        native.fingerprint,
        load(vit_folder, resolution=40).fingerprint,
        load(vit_folder, resolution=24, resize="images").fingerprint,
    )
    large = draw_images(2, 40)
    # torchvision's and PIL's filter: a triangle that is as much wider as the image shrinks.
    small = np.stack([_shrink(_shrink(image, 16).swapaxes(0, 1), 16) for image in large])
    small = jnp.asarray(small.swapaxes(1, 2), jnp.float32)
    np.testing.assert_allclose(
        seeing.apply(seeing.params, large),
        native.apply(native.params, small),
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(UserError, match="takes images of 40 x 40 x 3"):
        seeing.apply(seeing.params, small)
    with pytest.raises(UserError, match="resize"):
        load(vit_folder, resize="both")


def _shrink(image, side):
    """Along the first axis."""
    scale = len(image) / side
    middles = (np.arange(side) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(len(image)) - middles[:, None]) / scale)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("os,shc->ohc", weights, np.asarray(image, np.float64))
