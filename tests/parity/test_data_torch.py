"""Images are resized and cropped as torchvision does, on files that a JPEG encoder wrote."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from lgm_jax.data.decode import decode, resize_and_crop

ROOT = Path(__file__).parents[2]


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


@pytest.mark.slow
@pytest.mark.heavy
def test_loader_benchmark_runs(tmp_path):
    for name in ("cat", "dog"):
        for i in range(5):
            path = tmp_path / "photos" / "train" / name / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(60, 50))
            test = tmp_path / "photos" / "test" / name / f"{i}.JPEG"
            test.parent.mkdir(parents=True, exist_ok=True)
            test.write_bytes(photo(60, 50))
    command = [sys.executable, "benchmarks/loader.py", str(tmp_path / "photos"), "--rounds=1"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["images"] == 8
    # Ratios of so few photos may round to nothing.
    assert all(rate > 0 for name, rate in result.items() if name.endswith("_per_second"))
    assert result["largest_difference"] <= 1
