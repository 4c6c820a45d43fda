"""Real images to compare distilled ones with: which are chosen."""

import tracemalloc
import warnings

import numpy as np
import pytest

from lgm_jax import baselines


def test_random_baseline_draws_each_class_without_repeats():
    labels = np.arange(40) % 4
    rows = baselines.random(labels, 3, 4, 5, seed=0)
    assert rows.shape == (5, 12)
    np.testing.assert_array_equal(labels[rows], np.broadcast_to(np.repeat(range(4), 3), (5, 12)))
    assert all(len(set(row)) == 12 for row in rows.tolist())
    assert len({tuple(row) for row in rows.tolist()}) == 5
    np.testing.assert_array_equal(rows, baselines.random(labels, 3, 4, 5, seed=0))
    with pytest.raises(ValueError, match="fewer than 11"):
        baselines.random(labels, 11, 4, 5, seed=0)


def test_centroids_are_the_images_nearest_to_the_mean():
    features = np.array([[0.0], [1.0], [5.0], [10.0], [11.0], [15.0]], np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1])
    # Means 2 and 12: distances 2, 1, 3 and 2, 1, 3.
    np.testing.assert_array_equal(baselines.centroids(features, labels, 1, 2), [1, 4])
    np.testing.assert_array_equal(baselines.centroids(features, labels, 2, 2), [1, 0, 4, 3])


def test_centroids_are_as_many_of_each_class_as_asked_for():
    features, labels = np.ones((5, 2), np.float32), np.asarray([0, 0, 0, 1, 1])
    for ipc, classes in ((3, 2), (1, 3)):
        with pytest.raises(ValueError, match=f"fewer than {ipc}"):
            baselines.centroids(features, labels, ipc, classes)


def test_neighbors_are_of_the_same_class_and_ignore_length():
    features = np.array([[1.0, 0.0], [0.0, 9.0], [1.0, 1.0], [0.1, 0.0]], np.float32)
    labels = np.array([0, 0, 1, 1])
    features_syn = np.array([[1.0, 4.0], [7.0, 0.0]], np.float32)
    chosen = baselines.neighbors(features, labels, features_syn, np.array([0, 1]))
    np.testing.assert_array_equal(chosen, [1, 3])


def test_neighbors_of_many_images_take_little_memory_and_ties_go_to_the_first(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20_000, 8)).astype(np.float32)
    labels = rng.integers(0, 3, 20_000)
    # Every image has a twin of its class, at times far behind it, at times of another length.
    features[10_000:], labels[10_000:] = features[:10_000] * 2, labels[:10_000]
    features_syn = rng.standard_normal((6_000, 8)).astype(np.float32)
    labels_syn = rng.integers(0, 3, 6_000)
    tracemalloc.start()
    chosen = baselines.neighbors(features, labels, features_syn, labels_syn)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A table of all pairs is 480 MB in float32.
    assert peak < 80e6
    unit, unit_syn = (
        x / np.linalg.norm(x, axis=-1, keepdims=True)
        for x in (features[:10_000].astype(np.float64), features_syn.astype(np.float64))
    )
    for start in range(0, 6_000, 500):
        part = slice(start, start + 500)
        same = labels_syn[part, None] == labels[None, :10_000]
        cosines = np.where(same, unit_syn[part] @ unit.T, -np.inf)
        np.testing.assert_array_equal(chosen[part], cosines.argmax(axis=-1))


def test_neighbors_survive_features_of_zero_and_refuse_a_class_without_images():
    features = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    labels = np.array([0, 0, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = baselines.neighbors(features, labels, np.ones((2, 2), np.float32), labels[1:])
    np.testing.assert_array_equal(chosen, [1, 2])
    with pytest.raises(ValueError, match="class 1 has no training images"):
        baselines.neighbors(features, labels, features[:1], np.array([1]))
