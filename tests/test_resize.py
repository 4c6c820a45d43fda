"""Resizing by products of matrices: PIL's images, bit for bit."""

import numpy as np
import pytest
from PIL import Image

from lgm_jax.data.resize import MOST, resize


@pytest.mark.parametrize(
    ("width", "height", "side"),
    [
        (500, 375, 256),
        (375, 333, 256),
        (640, 480, 224),
        (257, 256, 256),
        (256, 256, 256),
        # Enlarged, and of sides that blocks do not divide.
        (90, 61, 100),
        (31, 7, 30),
        (3, 2, 5),
        # As much smaller as may be.
        (1200, 1024, 256),
    ],
)
@pytest.mark.parametrize("kind", ["noise", "smooth", "flat"])
def test_pixels_are_those_of_pil(width, height, side, kind):
    rng = np.random.default_rng(width)
    shape = (height, width, 3)
    pixels = rng.integers(0, 256, shape, np.uint8)
    if kind == "smooth":
        pixels = np.indices(shape).sum(0).astype(np.uint8) // 2
    if kind == "flat":
        # Half of the sums are ties.
        pixels = np.where(rng.integers(0, 2, shape) > 0, 255, 254).astype(np.uint8)
    kept = side * height / int(side * width / height) * width / height
    assert height <= MOST * side
    for left in (0.0, (width - kept) / 3, width - kept):
        box = (left, 0.0, left + kept, float(height))
        expected = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, box=box)
        np.testing.assert_array_equal(resize(pixels, side, box), np.asarray(expected))
