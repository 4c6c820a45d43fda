"""scikit-learn's handwritten digits: 1,797 real scans of 8 x 8, enlarged to RGB."""

from __future__ import annotations

import hashlib

import numpy as np

from lgm_jax.data.dataset import ArraySplit, Dataset, digest

RESOLUTION = 32
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SPLIT_SEED = 0

_PARITIES = ("even", "odd")
# What black becomes; white stays white. One is brighter: backbones that were trained on grey digits
# see next to nothing of hue alone.
_TINTS = {"yellow": (200, 200, 0), "blue": (0, 0, 160)}
_MISLEADING = 0.95
_TINT_SEED = 0


def load_digits(resolution: int = RESOLUTION) -> Dataset:
    """The data set with its fixed, stratified split: train 1,149, validation 288, test 360.

    Scans are enlarged with PIL's bicubic filter to `resolution` pixels a side, and repeated over
    three channels.
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
    whole = ArraySplit(images, labels)
    splits = {"train": whole.take(train), "val": whole.take(val), "test": whole.take(test)}
    stored = b"".join(s.images.tobytes() + s.labels.tobytes() for s in splits.values())
    return Dataset("digits", _NAMES, splits, hashlib.sha256(stored).hexdigest())


def load_spurious_digits(resolution: int = RESOLUTION) -> Dataset:
    """The digits on backgrounds that mislead, with the same classes and splits as `load_digits`.

    Black is tinted yellow or blue. In `train`, 95 % of the images of each even digit are yellow and
    95 % of those of each odd one blue; in `val` and `test`, half of every class are yellow, so that
    the tint tells nothing. Which ones is drawn with a fixed seed. Groups are parity x tint, from 0:
    even on yellow, even on blue, odd on yellow, odd on blue.

    A small stand-in for Waterbirds (arXiv 1911.08731), whose `train` has 95 % of its birds before
    the background of their kind, and whose other splits are balanced.
    """
    plain, splits = load_digits(resolution), {}
    rng = np.random.default_rng(_TINT_SEED)
    for name, split in plain.splits.items():
        assert isinstance(split, ArraySplit)
        share = _MISLEADING if name == "train" else 0.5
        # Of each class, this share has the tint of its parity.
        tints = np.empty(len(split.labels), np.int32)
        for label in np.unique(split.labels):
            members = rng.permutation(np.flatnonzero(split.labels == label))
            own = round(share * len(members))
            tints[members[:own]], tints[members[own:]] = label % 2, 1 - label % 2
        # From a tint to white, as the scan from black.
        colour = np.asarray(list(_TINTS.values()), np.float32)[tints][:, None, None, :]
        images = np.round(colour + (1 - colour / 255) * split.images).astype(np.uint8)
        groups = split.labels % 2 * len(_TINTS) + tints
        splits[name] = ArraySplit(images, split.labels, groups.astype(np.int32))
    group_names = [f"{parity} on {tint}" for parity in _PARITIES for tint in _TINTS]
    facts = [array for split in splits.values() for array in (split.images, split.groups)]
    fingerprint = digest(plain.fingerprint, group_names, *facts)
    return Dataset("digits_spurious", plain.class_names, splits, fingerprint, group_names)
