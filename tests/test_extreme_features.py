"""Probes, baselines and analyses of degenerate features: refused, or computed soundly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import analysis, baselines, probe
from lgm_jax.errors import UserError

K, D = 4, 6


def _features(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng, labels = np.random.default_rng(seed), np.arange(n) % K
    features = np.random.default_rng(9).normal(size=(K, D))[labels] + rng.normal(size=(n, D))
    return features.astype(np.float32), labels


def _lbfgs(features: np.ndarray, labels: np.ndarray, ridge: float = 0.01) -> dict[str, np.ndarray]:
    protocol = probe.Protocol(
        epochs=60,
        batch=1,
        runs=1,
        crop=1,
        augment="none",
        augmentation=None,
        solver="lbfgs",
        ridge=ridge,
    )
    found = probe.fit(jax.random.key(0), features, labels, K, protocol)
    return {name: np.asarray(leaf[0], np.float64) for name, leaf in found.heads.items()}


# Measured, of the largest penalty: 1e-6, 2e-6 and 5e-4; 0.4 of the last, whose ridge is as small as
# differences beside the mean, where the mean is not taken off.
@pytest.mark.parametrize(
    ("shift", "ridge", "tolerance"), [(0.0, 0.01, 1e-3), (300.0, 0.01, 1e-3), (300.0, 1e-5, 5e-3)]
)
def test_the_probe_by_lbfgs_is_at_its_minimum_whatever_the_mean(shift, ridge, tolerance):
    features, labels = _features(10 * K)
    features = features + np.float32(shift)
    head, wide = _lbfgs(features, labels, ridge), features.astype(np.float64)
    scale = 1 / np.sqrt(np.mean(wide**2))
    # In float64, and of a head that takes the mean off, as it is the same function.
    middle = wide.mean(0)
    scores = (wide - middle) @ head["kernel"] + (head["bias"] + middle @ head["kernel"])
    exp = np.exp(scores - scores.max(1, keepdims=True))
    residual = (exp / exp.sum(1, keepdims=True) - np.eye(K)[labels]) / len(labels)
    penalty = ridge * head["kernel"] / scale**2
    gradient = (wide - middle).T @ residual + penalty
    assert np.abs(gradient).max() < tolerance * np.abs(penalty).max() + 1e-6
    # A bias is not penalised; by its rounding alone, as large as the mean, is it off.
    assert np.abs(residual.sum(0)).max() < 1e-4


def test_features_of_float64_are_computed_in_where_jax_has_it():
    features, labels = _features(10 * K)
    with jax.enable_x64(True):
        wide, narrow = _lbfgs(features.astype(np.float64), labels), _lbfgs(features, labels)
    # Of 60 iterations.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), wide, narrow)
    assert np.any(wide["kernel"] != wide["kernel"].astype(np.float32))


def test_class_means_of_features_in_half_precision_lose_no_more_digits():
    features, labels = _features(10 * K)
    halved = jnp.asarray(features + np.float32(5), jnp.bfloat16)
    found, expected = (
        analysis.class_means_share(
            jax.random.key(0), each, jnp.asarray(labels), K, head_std=0.1, heads=2
        )
        for each in (halved, halved.astype(jnp.float32))
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_features_in_half_precision_lose_no_more_digits_in_the_probe():
    features, labels = _features(10 * K)
    halved = jnp.asarray(features + np.float32(5), jnp.bfloat16)
    found, expected = _lbfgs(halved, labels), _lbfgs(np.asarray(halved, np.float32), labels)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_probe_of_features_of_zero_is_finite():
    head = _lbfgs(np.zeros((2 * K, D), np.float32), np.arange(2 * K) % K)
    assert np.all(head["kernel"] == 0)
    assert np.all(np.isfinite(head["bias"]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_centroids_are_the_nearest_in_float64(dtype):
    features, labels = _features(50 * K)
    features = (400 * features if dtype == np.float16 else features + 30_000).astype(dtype)
    wide = features.astype(np.float64)
    expected = []
    for label in range(K):
        members = np.flatnonzero(labels == label)
        distances = np.linalg.norm(wide[members] - wide[members].mean(0), axis=1)
        expected.append(members[np.argsort(distances, kind="stable")[:5]])
    found = baselines.centroids(features, labels, 5, K)
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_features_of_zero_are_like_no_others():
    features, labels = _features(5 * K)
    features[0] = 0
    # A row that points away from all others of its class has a cosine below zero with them.
    alone = -features[labels == 0].sum(0, keepdims=True)
    chosen = baselines.neighbors(features, labels, alone, np.zeros(1, int))
    others = (
        features[labels == 0]
        / np.maximum(np.linalg.norm(features[labels == 0], axis=1), 1e-9)[:, None]
    )
    assert chosen[0] == np.flatnonzero(labels == 0)[np.argmax(others @ alone[0])]
    near = analysis.nearest_others(features, 3)
    assert all(i not in row for i, row in enumerate(near))
    accuracy = analysis.nearest_accuracy(features, labels, features[1:], labels[1:])
    assert accuracy == 100


@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("value", [3.0, 0.1, 1 / 3, 1e-5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_analyses_refuse_features_that_do_not_differ(value, n, dtype):
    """Also where the mean of the same numbers is another one, by its rounding."""
    features, labels = _features(n * K)
    same = np.full((n * K, D), value, dtype)
    with pytest.raises(UserError, match="nothing to align"):
        analysis.linear_cka(features, same)
    with pytest.raises(UserError, match="no principal components"):
        analysis.fit_pca(same)
    with pytest.raises(UserError, match="no edge"):
        analysis.outsideness(features, labels, same, labels)
    some = np.where(labels[:, None] == 1, same, features)
    with pytest.raises(UserError, match="class 1 have no edge"):
        analysis.outsideness(features, labels, some, labels)


@pytest.mark.parametrize("shift", [0.0, 1.0, 30.0])
def test_analyses_take_features_that_hardly_differ(shift):
    features, labels = _features(10 * K)
    features = np.float32(shift) + np.float32(1e-5) * features
    assert analysis.linear_cka(features, features) == pytest.approx(1)
    assert analysis.fit_pca(features).share[0] > 0
    assert np.all(np.isfinite(analysis.outsideness(features, labels, features, labels)))


def test_analyses_refuse_what_they_cannot_measure():
    features, labels = _features(2 * K)
    with pytest.raises(UserError, match="two images each"):
        analysis.outsideness(features, labels, features[:K], labels[:K])
    with pytest.raises(UserError, match="two images each"):
        # Of a class that no real image is of.
        analysis.outsideness(features, labels + 1, features, labels)
    with pytest.raises(UserError, match="accuracy of 0"):
        analysis.normalized_transfer(np.asarray([[0.0, 1.0], [2.0, 3.0]]))
    with pytest.raises(UserError, match="no length to keep"):
        analysis.optimal_features(lambda z: jnp.sum(z**2), jnp.zeros((2, D)), steps=1)


@pytest.mark.parametrize("features", [0.0, 3.0])
def test_class_means_explain_features_that_are_all_the_same(features):
    labels = jnp.asarray(np.arange(2 * K) % K)
    same = jnp.full((2 * K, D), features)
    shares = analysis.class_means_share(jax.random.key(0), same, labels, K, head_std=0.1, heads=2)
    assert all(np.all(np.isfinite(values)) for values in shares)
