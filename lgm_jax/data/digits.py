"""scikit-learn's handwritten digits: 1,797 real scans of 8 x 8, enlarged to RGB."""

from __future__ import annotations

import hashlib

import numpy as np

from lgm_jax.data.dataset import ArraySplit, Dataset

RESOLUTION = 32
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SPLIT_SEED = 0


def load_digits(resolution: int = RESOLUTION) -> Dataset:
    """The data set with its fixed, stratified split: train 1,149, validation 288, test 360.

    Scans are enlarged with PIL's bicubic filter and repeated over three channels.

    Args:
        resolution: Side of the images, in pixels.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    scans = scans.reshape(-1, 8, 8).astype(np.float32) * (255 / 16)
    size = (resolution, resolution)
    large = [Image.fromarray(scan).resize(size, Image.Resampling.BICUBIC) for scan in scans]
    grey = np.clip(np.round(np.stack([np.asarray(image) for image in large])), 0, 255)
    images = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    labels = labels.astype(np.int32)

    rest, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=_SPLIT_SEED
    )
    train, val = train_test_split(
        rest, test_size=288, stratify=labels[rest], random_state=_SPLIT_SEED
    )
    splits = {
        name: ArraySplit(images[indices], labels[indices])
        for name, indices in (("train", train), ("val", val), ("test", test))
    }
    digest = hashlib.sha256()
    for split in splits.values():
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
    return Dataset("digits", _NAMES, splits, digest.hexdigest())
