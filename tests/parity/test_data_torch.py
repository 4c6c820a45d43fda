"""Images are resized and cropped as torchvision does, on files that a JPEG encoder wrote."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from lgm_jax.data.decode import decode, resize_and_crop


def photo(width, height):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + rng.integers(-12, 12, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (224, 224), (256, 256), (90, 400)])
@pytest.mark.parametrize("place", [None, (0.0, 0.0), (0.37, 0.81), (0.999, 0.999)])
def test_decode_resize_and_crop(size, place):
    source = photo(*size)
    with Image.open(io.BytesIO(source)) as image:
        resized = functional.resize(image.convert("RGB"), 256)
    if place is None:
        cropped = functional.center_crop(resized, 256)
    else:
        # Any of the corners that RandomCrop may draw.
        top, left = (int(p * (s - 255)) for p, s in zip(place, resized.size[::-1], strict=True))
        cropped = functional.crop(resized, top, left, 256, 256)
    expected = functional.pil_to_tensor(cropped).permute(1, 2, 0).numpy().astype(int)
    where = None if place is None else np.asarray(place)
    difference = np.abs(resize_and_crop(decode(source, orient=False), 256, where) - expected)
    # Resampling a part of a wide image sums the filter's weights from elsewhere: measured, one grey
    # level in 0.2 % of the pixels. Tall and square images are equal.
    assert difference.max() <= 1
    assert np.mean(difference > 0) < (0.005 if size[0] > size[1] else 1e-9)
    assert torch.tensor(expected).float().std() > 10
