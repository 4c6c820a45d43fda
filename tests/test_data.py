"""The embedded digits, the list of sources, and splits in memory."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import pytest

from lgm_jax.data import ArraySplit, Dataset, Split, in_memory, load_dataset
from lgm_jax.data.digits import load_spurious_digits
from lgm_jax.errors import UserError
from tests.photos import load_folder, write_classes

RESOLUTION = 8


@functools.cache
def digits() -> Dataset:
    return load_dataset("digits", resolution=32)


class TestDigits:
    def test_split_sizes_and_content_are_fixed(self):
        sizes = {name: len(split.labels) for name, split in digits().splits.items()}
        assert sizes == {"train": 1149, "val": 288, "test": 360}
        assert digits().fingerprint == (
            "c875aaf2b02da7e4939f08a8e2eecd55396e41848ed0550f90d263ce83d945d0"
        )
        assert digits().num_classes == 10

    def test_splits_are_stratified(self):
        counts = [np.bincount(split.labels, minlength=10) for split in digits().splits.values()]
        total = np.sum(counts, axis=0)
        for count in counts:
            assert np.all(np.abs(count - total * count.sum() / 1797) < 1)

    def test_splits_are_disjoint(self):
        images = np.concatenate(
            [split.load(np.arange(len(split.labels))) for split in digits().splits.values()]
        )
        assert images.shape == (1797, 32, 32, 3)
        assert images.dtype == np.uint8
        # All 1,797 scans differ, and so must those of three disjoint splits.
        assert len({image.tobytes() for image in images}) == 1797

    def test_resolution_enlarges_the_scans_directly(self):
        small = load_dataset("digits", resolution=8)
        image = small.splits["train"].load(np.arange(3))
        assert image.shape == (3, 8, 8, 3)
        # At 8 px nothing is resampled: the 17 levels of the scans.
        assert set(np.unique(image)) <= set(np.round(np.arange(17) * 255 / 16).astype(np.uint8))
        assert small.fingerprint != digits().fingerprint
        np.testing.assert_array_equal(small.splits["test"].labels, digits().splits["test"].labels)


@functools.cache
def spurious() -> Dataset:
    return load_dataset("digits_spurious", resolution=8)


class TestSpuriousDigits:
    def test_tint_goes_with_parity_in_train_and_with_nothing_elsewhere(self):
        for name, split in spurious().splits.items():
            share = 0.95 if name == "train" else 0.5
            for label in range(10):
                tints = split.groups[split.labels == label] % 2
                own = np.sum(tints == label % 2)
                assert abs(own - share * len(tints)) <= 0.5

    def test_groups_are_parity_and_tint(self):
        expected = ["even on yellow", "even on blue", "odd on yellow", "odd on blue"]
        assert spurious().group_names == expected
        split = spurious().splits["test"]
        np.testing.assert_array_equal(split.groups // 2, split.labels % 2)
        # The darkest pixel of each image shows the tint.
        darkest = split.images.min(axis=(1, 2))
        np.testing.assert_array_equal(darkest[:, 2] > darkest[:, 0], split.groups % 2 == 1)

    def test_the_digits_are_the_plain_ones(self):
        plain = load_dataset("digits", resolution=8)
        for name, split in spurious().splits.items():
            same = plain.splits[name]
            np.testing.assert_array_equal(split.labels, same.labels)
            # Yellow has no blue, and blue no red.
            for tint, channel in ((0, 2), (1, 0)):
                of_tint = split.groups % 2 == tint
                np.testing.assert_array_equal(
                    split.images[of_tint][..., channel], same.images[of_tint][..., channel]
                )

    def test_is_always_the_same(self):
        again = load_spurious_digits(8)
        assert again.fingerprint == spurious().fingerprint
        assert again.fingerprint != load_dataset("digits", resolution=8).fingerprint


class TestRegistry:
    def test_unknown_name_suggests_a_known_one(self):
        with pytest.raises(UserError, match="unknown data set 'digit': did you mean digits"):
            load_dataset("digit", resolution=8)

    def test_folder_needs_a_folder(self):
        with pytest.raises(UserError, match=r"set --config\.data\.folder="):
            load_dataset("folder", resolution=8)

    def test_a_folder_is_not_silently_ignored(self):
        with pytest.raises(UserError, match=r"set --config\.data\.name=folder"):
            load_dataset("digits", folder="photos", resolution=8)

    def test_folder_arguments_arrive(self, tmp_path):
        write_classes(tmp_path, 10)
        by_name = load_dataset("folder", folder=str(tmp_path), resolution=8, seed=3)
        assert by_name.fingerprint == load_folder(tmp_path, resolution=8, seed=3).fingerprint


class TestInMemory:
    def test_equals_loading(self, tmp_path, capsys):
        write_classes(tmp_path, 10)
        split = load_folder(tmp_path, resolution=8).splits["train"]
        everything = np.arange(len(split.labels))
        held = in_memory(split, limit_bytes=len(everything) * 8 * 8 * 3, progress="train")
        np.testing.assert_array_equal(held.images, split.load(everything))
        np.testing.assert_array_equal(held.labels, split.labels)
        assert capsys.readouterr().err == ""

    def test_more_than_one_batch(self):
        class Counted:
            labels = np.arange(300, dtype=np.int32)
            groups = None

            def take(self, rows: np.ndarray) -> Split:
                raise NotImplementedError

            def load(self, indices: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
                return np.broadcast_to(indices[:, None, None, None] % 256, (len(indices), 2, 2, 3))

        held = in_memory(Counted(), limit_bytes=10**6)
        np.testing.assert_array_equal(held.images[:, 0, 0, 0], np.arange(300) % 256)

    def test_refuses_before_decoding(self):
        class Large:
            labels = np.zeros(10**6, np.int32)
            groups = None

            def take(self, rows: np.ndarray) -> Split:
                raise NotImplementedError

            def load(self, indices: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
                assert len(indices) <= 1
                return np.zeros((len(indices), 224, 224, 3), np.uint8)

        with pytest.raises(UserError, match="take 151 GB of memory, more than the limit of 8 GB"):
            in_memory(Large(), limit_bytes=8 * 10**9)

    def test_limit_is_inclusive(self):
        split = ArraySplit(np.zeros((5, 2, 2, 3), np.uint8), np.zeros(5, np.int32))
        assert in_memory(split, limit_bytes=60).images.nbytes == 60
        with pytest.raises(UserError, match="5 images of 2 px"):
            in_memory(split, limit_bytes=59)


def test_split_is_hashed_once_with_its_soft_labels():
    images, labels = np.zeros((2, 2, 2, 3), np.float32), np.arange(2, dtype=np.int32)
    soft = np.full((2, 2), 0.5, np.float32)
    hard, softly = ArraySplit(images, labels), ArraySplit(images, labels, probabilities=soft)
    stored = images.tobytes() + labels.tobytes()
    assert hard.fingerprint == hashlib.sha256(stored).hexdigest()
    assert softly.fingerprint == hashlib.sha256(stored + soft.tobytes()).hexdigest()
    assert hard.fingerprint is hard.fingerprint
