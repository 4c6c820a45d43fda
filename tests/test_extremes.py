"""Objectives of what is degenerate, against float64 NumPy: nothing is NaN or off by a percent."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import objectives
from lgm_jax.errors import UserError
from tests.marks import slow

K, D, RIDGE, TEMPERATURE = 5, 12, 0.1, 0.2


def _set(seed: int, n: int, shift: float = 0.0, scale: float = 1.0):
    """Features of a few classes, all with the same mean, which may be large beside the rest."""
    rng, labels = np.random.default_rng(seed), np.arange(n) % K
    centres = np.random.default_rng(9).normal(size=(K, D))
    features = 0.5 * centres[labels] + rng.normal(size=(n, D)) + shift * np.linspace(1, 2, D)
    return jnp.asarray(scale * features, jnp.float32), jnp.asarray(labels)


HEAD = {
    "kernel": jnp.asarray(0.01 * np.random.default_rng(3).normal(size=(D, K)), jnp.float32),
    "bias": jnp.zeros(K, jnp.float32),
}


def _lgm(syn, labels_syn, real, labels_real, *weights):
    return objectives.gradient_matching_loss(HEAD, syn, labels_syn, real, labels_real, *weights)


def _sfm(syn, labels_syn, real, labels_real, *weights):
    return objectives.flow_matching_loss(syn, labels_syn, real, labels_real, K, *weights)


def _clp(syn, labels_syn, real, labels_real, *weights):
    return objectives.closed_form_probe_loss(
        syn, labels_syn, real, labels_real, K, RIDGE, TEMPERATURE, *weights
    )


@functools.cache
def _loss_and_slope(loss):
    """A loss and its gradient by the first features, compiled once for all tests."""
    return jax.jit(jax.value_and_grad(loss))


LOSSES = {"lgm": _lgm, "sfm": _sfm, "clp": _clp}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def _softmax(scores):
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def _reference(name: str, syn, labels_syn, real, labels_real) -> float:
    """The loss, in float64 NumPy, as its definition has it."""
    syn, real = np.asarray(syn, np.float64), np.asarray(real, np.float64)
    one_hot = np.eye(K)
    if name == "clp":
        strength = RIDGE * np.sum(syn**2) / K
        targets = one_hot[labels_syn]
        kernel = np.linalg.solve(syn.T @ syn + strength * np.eye(D), syn.T @ targets)
        chosen = _softmax(real @ kernel / TEMPERATURE)[np.arange(len(real)), labels_real]
        return -np.log(chosen).mean()
    vectors = []
    for features, labels in ((syn, labels_syn), (real, labels_real)):
        if name == "sfm":
            means = np.stack([features[labels == c].mean(0) for c in range(K)])
            vectors.append((means.mean(0) - means).ravel())
        else:
            residual = _softmax(features @ np.asarray(HEAD["kernel"], np.float64)) - one_hot[labels]
            kernel = features.T @ residual / len(features)
            vectors.append(np.concatenate([kernel.ravel(), residual.mean(0)]))
    a, b = (vector / np.linalg.norm(vector) for vector in vectors)
    return 0.5 * np.sum((a - b) ** 2)


@pytest.mark.parametrize("shift", [slow(10.0), slow(100.0), 1000.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_large_shared_mean_takes_no_digits_from_the_loss(name, shift):
    sets = *_set(1, 2 * K, shift), *_set(2, 100, shift)
    numpy_sets = [np.asarray(array) for array in sets]
    # What is left of a loss once a mean of 1,000 is in all features; measured: 1e-4.
    np.testing.assert_allclose(LOSSES[name](*sets), _reference(name, *numpy_sets), rtol=1e-3)


@pytest.mark.parametrize("shift", [slow(100.0), 1000.0])
@pytest.mark.parametrize("n", [2 * K, slow(4 * K)])
@pytest.mark.parametrize("name", ["lgm", slow("sfm"), slow("clp")])
def test_a_large_shared_mean_takes_no_digits_from_the_gradient(name, n, shift):
    def slope(sets):
        return np.asarray(jax.jit(jax.grad(LOSSES[name]))(*sets), np.float64)

    sets = *_set(1, n, shift), *_set(2, 100, shift)
    found = slope(sets)
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64 if a.ndim > 1 else None) for a in map(np.asarray, sets)]
        expected = slope(wide)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    # Measured: 4e-4 with a mean of 1,000, where features themselves have four digits of a class.
    assert error < 2e-3


@pytest.mark.parametrize("n", [K, 10 * K])
def test_a_large_shared_mean_takes_no_digits_from_a_ridge_head(n):
    """In sample space and in feature space, with a ridge as small as differences of features."""
    features, labels = _set(1, n, 100.0)
    head = objectives.ridge_head(features, labels, K, 1e-4)["kernel"]
    wide, targets = np.asarray(features, np.float64), np.eye(K)[labels]
    strength = 1e-4 * np.sum(wide**2) / K
    expected = np.linalg.solve(wide.T @ wide + strength * np.eye(D), wide.T @ targets)
    # Measured: 4e-6; 6e-4 and more where the mean is not taken off.
    assert np.linalg.norm(head - expected) < 5e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
@pytest.mark.parametrize("name", ["sfm", "clp"])
def test_the_size_of_features_is_nothing_to_flows_and_closed_form_probes(name, scale):
    plain = _loss_and_slope(LOSSES[name])(*_set(1, 2 * K), *_set(2, 100))
    loss, slope = _loss_and_slope(LOSSES[name])(
        *_set(1, 2 * K, scale=scale), *_set(2, 100, scale=scale)
    )
    np.testing.assert_allclose(loss, plain[0], rtol=1e-5)
    expected = np.asarray(plain[1], np.float64)
    error = np.asarray(slope, np.float64) * scale - expected
    assert np.linalg.norm(error) < 1e-4 * np.linalg.norm(expected)


@each_loss
@pytest.mark.parametrize("which", ["synthetic", "real"])
def test_a_set_without_weight_has_no_say(loss, which):
    sets = *_set(1, 2 * K), *_set(2, 20)
    weights = [jnp.ones(2 * K), jnp.ones(20)]
    weights[which == "real"] = jnp.zeros_like(weights[which == "real"])
    value, slope = _loss_and_slope(loss)(*sets, *weights)
    # Nothing to match is at a distance of one; a head of zero is as good as chance.
    expected = {_lgm: 1, _sfm: 1, _clp: 0 if which == "real" else np.log(K)}[loss]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(slope, np.zeros_like(slope))


@each_loss
def test_rows_without_weight_count_for_nothing_even_if_they_are_not_finite(loss):
    (syn, labels_syn), real = _set(1, 2 * K), _set(2, 20)
    weights = jnp.asarray([1.0] * 7 + [0.0] * 3)
    expected = _loss_and_slope(loss)(syn[:7], labels_syn[:7], *real)
    spoilt = syn.at[7].set(jnp.nan).at[8].set(jnp.inf)
    value, slope = _loss_and_slope(loss)(spoilt, labels_syn, *real, weights)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(slope[:7], expected[1], rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(slope[7:], 0)


@each_loss
@pytest.mark.parametrize("features", [0.0, 3.0])
def test_features_that_are_all_the_same_have_a_finite_loss_and_gradient(loss, features):
    same = jnp.full((2 * K, D), features)
    labels = jnp.arange(2 * K) % K
    for sets in ((same, labels, *_set(2, 20)), (*_set(1, 2 * K), same, labels), (same, labels) * 2):
        value, slope = _loss_and_slope(loss)(*sets)
        assert np.isfinite(value)
        assert np.all(np.isfinite(slope))


@each_loss
def test_one_image_has_a_finite_loss_and_gradient(loss):
    value, slope = _loss_and_slope(loss)(*_set(1, 1), *_set(2, 20))
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


def test_soft_labels_of_one_class_are_certain():
    features, labels = jnp.ones((4, D)), jnp.ones((4, 1))
    head = {"kernel": jnp.ones((D, 1)), "bias": jnp.ones(1)}
    losses = [
        objectives.linear_probe_loss(head, features, labels),
        objectives.closed_form_probe_loss(features, labels, features, jnp.zeros(4, int), 1),
        objectives.flow_matching_loss(features, labels, features, jnp.zeros(4, int), 1) - 1,
        objectives.gradient_matching_loss(head, features, labels, features, labels) - 1,
    ]
    np.testing.assert_allclose(losses, np.zeros(4), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@each_loss
def test_features_of_half_precision_are_treated_as_float32(loss, dtype):
    (syn, labels_syn), (real, labels_real) = _set(1, 2 * K, scale=200.0), _set(2, 20, scale=200.0)
    syn, real = syn.astype(dtype), real.astype(dtype)
    expected = loss(syn.astype("float32"), labels_syn, real.astype("float32"), labels_real)
    found = loss(syn, labels_syn, real, labels_real)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def _head(features, labels, weights=None):
    return objectives.ridge_head(features, labels, K, RIDGE, weights)["kernel"]


@pytest.mark.parametrize("n", [K, 4 * K])
@pytest.mark.parametrize("times", [slow(2), slow(3), 20])
def test_a_ridge_means_the_same_however_often_images_are_seen(n, times):
    """In sample space and in feature space, and across the border between them."""
    features, labels = _set(1, n)
    often = _head(jnp.tile(features, (times, 1)), jnp.tile(labels, times))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    close(often, _head(features, labels))
    close(_head(features, labels, jnp.full(n, float(times))), _head(features, labels))
    some = jnp.asarray(np.arange(n) % 2 + 1, jnp.float32)
    repeated = np.repeat(np.arange(n), np.arange(n) % 2 + 1)
    close(_head(features, labels, some), _head(features[repeated], labels[repeated]))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ridge_and_a_temperature_are_above_zero(value):
    sets = *_set(1, 2 * K), *_set(2, 20)
    with pytest.raises(UserError, match="ridge must be above 0"):
        objectives.closed_form_probe_loss(*sets, K, ridge=value)
    with pytest.raises(UserError, match="temperature must be above 0"):
        objectives.closed_form_probe_loss(*sets, K, temperature=value)
