"""Laws of the probe loss, its head gradient, and what images are distilled by."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from sklearn.kernel_ridge import KernelRidge

from lgm_jax import flows, heads, objectives
from tests.marks import slow

N, D, K = 7, 5, 3


def _batch(seed: int, n: int = N, dtype: type = np.float32) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, D)), dtype), jnp.asarray(rng.integers(0, K, n))


def _head(seed: int = 0, std: float = 1.0, dtype: type = np.float32) -> heads.Head:
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(std * rng.normal(size=(D, K)), dtype),
        "bias": jnp.asarray(std * rng.normal(size=K), dtype),
    }


def _probabilities(seed: int, n: int = N) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(K), n), jnp.float32)


def _closed_form(head, features, targets, weights) -> dict[str, np.ndarray]:
    """Fᵀ(P - Y) and its column sums, weighted, in float64 NumPy."""
    kernel, bias, features, targets, weights = (
        np.asarray(a, np.float64)
        for a in (head["kernel"], head["bias"], features, targets, weights)
    )
    scores = features @ kernel + bias
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    residual = (exp / exp.sum(-1, keepdims=True) - targets) * weights[:, None] / weights.sum()
    return {"kernel": features.T @ residual, "bias": residual.sum(0)}


def _assert_trees_close(actual, expected, **tolerance) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_head_gradient_has_the_closed_form(soft, weighted):
    features, labels = _batch(1)
    labels = _probabilities(2) if soft else labels
    targets = labels if soft else np.eye(K)[labels]
    weights = jnp.asarray([1.0, 2.0, 0.0, 0.5, 1.0, 0.0, 3.0]) if weighted else None
    gradient = objectives.head_gradient(_head(), features, labels, weights)
    expected = _closed_form(_head(), features, targets, np.ones(N) if weights is None else weights)
    _assert_trees_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_loss_of_a_zero_head_is_log_k():
    features, labels = _batch(1)
    head = jax.tree.map(jnp.zeros_like, _head())
    np.testing.assert_allclose(
        objectives.linear_probe_loss(head, features, labels), np.log(K), rtol=1e-6
    )


def test_integer_labels_equal_one_hot_labels():
    features, labels = _batch(1)
    for function in (objectives.linear_probe_loss, objectives.head_gradient):
        _assert_trees_close(
            function(_head(), features, labels),
            function(_head(), features, jax.nn.one_hot(labels, K)),
            rtol=1e-6,
            atol=1e-7,
        )


def test_weight_zero_leaves_an_image_out_whatever_it_holds():
    features, labels = _batch(1)
    features = features.at[4:].set(1e6)
    weights = jnp.asarray([1.0] * 4 + [0.0] * 3)
    for function in (objectives.linear_probe_loss, objectives.head_gradient):
        _assert_trees_close(
            function(_head(), features, labels, weights),
            function(_head(), features[:4], labels[:4]),
            rtol=1e-6,
            atol=1e-7,
        )


def test_identical_sets_give_zero_loss_and_a_finite_gradient():
    features, labels = _batch(1)
    order = np.random.default_rng(0).permutation(N)
    loss, gradient = jax.value_and_grad(objectives.gradient_matching_loss, argnums=1)(
        _head(), features[order], labels[order], features, labels
    )
    assert abs(loss) < 1e-6
    # Zero is the minimum. Rounding is relative to the gradient between unlike sets, about 0.1.
    assert jnp.max(jnp.abs(gradient)) < 1e-6


def test_swapped_labels_of_two_classes_give_two():
    features, _ = _batch(1)
    labels = jnp.asarray([0, 1, 1, 0, 1, 0, 0])
    head = {"kernel": jnp.zeros((D, 2)), "bias": jnp.zeros(2)}
    loss = objectives.gradient_matching_loss(head, features, 1 - labels, features, labels)
    np.testing.assert_allclose(loss, 2, rtol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_to_synthetic_features_matches_finite_differences(soft):
    with jax.enable_x64(True):
        real, labels_real = _batch(1, dtype=np.float64)
        syn, labels_syn = _batch(2, n=4, dtype=np.float64)
        labels_syn = _probabilities(3, 4).astype(jnp.float64) if soft else labels_syn
        weights = jnp.asarray([1.0, 0.5, 2.0, 0.0])
        head = _head(dtype=np.float64)

        @jax.jit
        def loss(features):
            return objectives.gradient_matching_loss(
                head, jnp.asarray(features), labels_syn, real, labels_real, weights_syn=weights
            )

        assert loss(syn).dtype == jnp.float64
        check_grads(loss, (syn,), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


def test_unlike_sets_have_a_gradient():
    real, labels_real = _batch(1)
    syn, labels_syn = _batch(2)
    loss, gradient = jax.value_and_grad(objectives.gradient_matching_loss, argnums=1)(
        _head(), syn, labels_syn, real, labels_real
    )
    assert 0.1 < loss < 2
    assert jnp.max(jnp.abs(gradient)) > 1e-3


def test_everything_stays_float32_where_float64_is_possible():
    with jax.enable_x64(True):
        features, labels = _batch(1)
        head = objectives.init_head(jax.random.key(0), D, K)
        results = [
            head,
            objectives.logits(head, features),
            objectives.linear_probe_loss(head, features, labels),
            objectives.head_gradient(head, features, _probabilities(2)),
            objectives.cosine_distance(head, head),
            jax.grad(objectives.gradient_matching_loss, argnums=1)(
                head, features, labels, features[:2], labels[:2]
            ),
        ]
        assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}


def test_init_head_is_normal_with_a_zero_bias():
    head = objectives.init_head(jax.random.key(0), 200, 100, std=0.01)
    assert head["kernel"].shape == (200, 100)
    assert jnp.all(head["bias"] == 0)
    # Standard errors over 20,000 draws: 7e-5 of the mean, 5e-5 of the standard deviation.
    assert abs(jnp.mean(head["kernel"])) < 3e-4
    assert abs(jnp.std(head["kernel"]) - 0.01) < 2e-4
    assert jnp.any(head["kernel"] != objectives.init_head(jax.random.key(1), 200, 100)["kernel"])


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 20, 21])
def test_head_gradient_in_parts_is_the_head_gradient(parts):
    rng = np.random.default_rng(0)
    head = objectives.init_head(jax.random.key(0), 6, 4, 1.0)
    features = jnp.asarray(rng.normal(size=(20, 6)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, 20), jnp.int32)
    whole = objectives.head_gradient(head, features, labels)
    ours = objectives.head_gradient(head, features, labels, parts=parts)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(ours[name], whole[name], rtol=1e-5, atol=1e-7)


# Statistical flow matching.


def _flows(features, labels, weights=None) -> np.ndarray:
    """Mean of the other classes' means minus the own one, class by class, in float64 NumPy."""
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    means = [
        np.average(features[labels == c], axis=0, weights=weights[labels == c]) for c in range(K)
    ]
    others = [np.mean([means[j] for j in range(K) if j != c], axis=0) for c in range(K)]
    return np.stack(others) - np.stack(means)


def _every_class(seed: int, n: int) -> tuple[jax.Array, jax.Array]:
    """A batch that has images of every class."""
    features, _ = _batch(seed, n)
    return features, jnp.arange(n, dtype=jnp.int32) % K


def _flow_loss(syn, labels_syn, real, labels_real, *weights):
    return objectives.flow_matching_loss(syn, labels_syn, real, labels_real, K, *weights)


def test_flow_matching_loss_is_the_cosine_distance_of_flows():
    syn, real = _every_class(1, 6), _every_class(2, 11)
    weights = jnp.asarray([1.0, 2.0, 0.5, 1.0, 0.0, 3.0])
    a, b = _flows(*syn, weights).ravel(), _flows(*real).ravel()
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(_flow_loss(*syn, *real, weights), 1 - cosine, rtol=1e-5)


def test_flows_are_centred_class_means():
    features, labels = _every_class(1, 7)
    found = flows.class_flows(flows.class_sums(features, labels, K), jnp.ones(K))
    np.testing.assert_allclose(found, _flows(features, labels), rtol=1e-5, atol=1e-6)
    means = np.stack([np.asarray(features)[np.asarray(labels) == c].mean(0) for c in range(K)])
    np.testing.assert_allclose(found, K / (K - 1) * (means.mean(0) - means), rtol=1e-5, atol=1e-6)


def test_identical_sets_have_no_flow_distance():
    features, labels = _every_class(1, 9)
    loss, gradient = jax.value_and_grad(_flow_loss)(features[::-1], labels[::-1], features, labels)
    assert abs(loss) < 1e-6
    assert jnp.max(jnp.abs(gradient)) < 1e-6


def test_flow_distance_does_not_see_shifts_scales_and_common_rotations():
    syn, real = _every_class(1, 6), _every_class(2, 11)
    expected = _flow_loss(*syn, *real)
    rotation = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0], "float32")
    shift = jnp.arange(1.0, D + 1)[None]
    changed = [
        (3 * syn[0] + shift, real[0]),
        (syn[0], 0.2 * real[0] - shift),
        (syn[0] @ rotation, real[0] @ rotation),
    ]
    for a, b in changed:
        np.testing.assert_allclose(_flow_loss(a, syn[1], b, real[1]), expected, rtol=1e-4)
    # One that is turned around flows the other way.
    np.testing.assert_allclose(_flow_loss(-syn[0], syn[1], *real), 2 - expected, rtol=1e-5)


def test_classes_that_the_real_batch_lacks_are_left_out_of_both_sets():
    syn, real = _every_class(1, 6), _every_class(2, 12)
    lacking = real[1] != 1
    loss, gradient = jax.value_and_grad(_flow_loss)(*syn, real[0][lacking], real[1][lacking])
    weights = (syn[1] != 1).astype(jnp.float32)
    np.testing.assert_allclose(loss, _flow_loss(*syn, real[0], real[1], weights, lacking * 1.0))
    assert jnp.all(gradient[syn[1] == 1] == 0)
    assert jnp.all(jnp.any(gradient[syn[1] != 1] != 0, axis=1))
    # With one class left nothing flows.
    assert _flow_loss(*syn, real[0][:1], real[1][:1]) == 1


@pytest.mark.parametrize("parts", [1, 2, 4, 12, 13])
def test_class_sums_in_parts_are_the_class_sums(parts):
    features, labels = _batch(3, 13)
    weights = jnp.asarray(np.random.default_rng(4).uniform(size=13), jnp.float32)
    sums = flows.class_sums(features, labels, K, weights, parts=parts)
    table = np.eye(K)[np.asarray(labels)] * np.asarray(weights)[:, None]
    np.testing.assert_allclose(sums.features, table.T @ np.asarray(features), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums.weights, table.sum(0), rtol=1e-5)


def test_class_means_stand_for_their_classes():
    """So a run over all features can keep k of them."""
    syn, real = _every_class(1, 6), _every_class(2, 13)
    sums = flows.class_sums(*real, K)
    means = sums.features / sums.weights[:, None]
    np.testing.assert_allclose(
        _flow_loss(*syn, means, jnp.arange(K)), _flow_loss(*syn, *real), rtol=1e-5
    )


# The closed-form linear probe.


def _probe_loss(syn, labels_syn, real, labels_real, ridge=0.1, temperature=0.5, weights=None):
    return objectives.closed_form_probe_loss(
        syn, labels_syn, real, labels_real, K, ridge, temperature, weights
    )


@pytest.mark.parametrize("n", [3, 20])
def test_ridge_head_is_kernel_ridge_regression(n):
    """With fewer images than features, and with more."""
    features, labels = _every_class(1, n)
    head = objectives.ridge_head(features, labels, K, ridge=0.1)
    strength = 0.1 * np.sum(np.asarray(features, np.float64) ** 2) / K
    targets = np.eye(K)[np.asarray(labels)]
    model = KernelRidge(alpha=strength, kernel="linear").fit(np.asarray(features), targets)
    others, _ = _batch(5, 8)
    scores = objectives.logits(head, others)
    np.testing.assert_allclose(scores, model.predict(np.asarray(others)), rtol=1e-4, atol=1e-5)
    assert jnp.all(head["bias"] == 0)


def test_ridge_head_takes_probabilities_and_weights():
    features, labels = _every_class(1, 9)
    plain = objectives.ridge_head(features, labels, K, 0.1)
    soft = objectives.ridge_head(features, jax.nn.one_hot(labels, K), K, 0.1)
    _assert_trees_close(soft, plain, rtol=1e-6)
    weights = jnp.asarray([1.0] * 6 + [0.0] * 3)
    spoilt = features.at[6:].set(100.0)
    _assert_trees_close(
        objectives.ridge_head(spoilt, labels, K, 0.1, weights),
        objectives.ridge_head(features[:6], labels[:6], K, 0.1),
        rtol=1e-5,
        atol=1e-7,
    )


def test_closed_form_probe_loss_is_the_cross_entropy_of_tempered_scores():
    syn, real = _every_class(1, 4), _every_class(2, 11)
    scores = objectives.logits(objectives.ridge_head(*syn, K, 0.1), real[0])
    exp = np.exp(np.asarray(scores, np.float64) / 0.5)
    chosen = (exp / exp.sum(1, keepdims=True))[np.arange(11), np.asarray(real[1])]
    np.testing.assert_allclose(_probe_loss(*syn, *real), -np.log(chosen).mean(), rtol=1e-5)


def test_closed_form_probe_does_not_see_common_scales_and_rotations_but_sees_shifts():
    syn, real = _every_class(1, 4), _every_class(2, 11)
    expected = _probe_loss(*syn, *real)
    rotation = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0], "float32")
    for change in (lambda z: 30 * z, lambda z: z / 30, lambda z: z @ rotation):
        loss = _probe_loss(change(syn[0]), syn[1], change(real[0]), real[1])
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
    shifted = _probe_loss(syn[0] + 1, syn[1], real[0] + 1, real[1])
    assert abs(shifted - expected) > 1e-3


def test_a_cold_closed_form_probe_of_separate_classes_has_no_loss():
    features, labels = 5 * jnp.eye(K, D), jnp.arange(K)
    assert _probe_loss(features, labels, features, labels, 1e-3, 0.01) < 1e-6
    confused = _probe_loss(features, labels, features, (labels + 1) % K, 1e-3, 0.01)
    np.testing.assert_allclose(confused, 1 / (1 + 1e-3) / 0.01, rtol=1e-3)


@pytest.mark.parametrize("parts", [1, 2, 4, 13, 14])
def test_probe_loss_in_parts_is_the_probe_loss(parts):
    features, labels = _batch(3, 13)
    weights = jnp.asarray(np.random.default_rng(4).uniform(size=13), jnp.float32)

    def in_parts(head):
        return objectives.linear_probe_loss(head, features, labels, weights, parts=parts)

    ours, slope = jax.value_and_grad(in_parts)(_head())
    expected, expected_slope = jax.value_and_grad(objectives.linear_probe_loss)(
        _head(), features, labels, weights
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    _assert_trees_close(slope, expected_slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", [_flow_loss, _probe_loss])
@pytest.mark.parametrize("n", [3, slow(8)])
def test_gradients_of_rivals_match_finite_differences(loss, n):
    with jax.enable_x64(True):
        real, labels_real = _batch(1, 30, dtype=np.float64)
        syn, _ = _batch(2, n, dtype=np.float64)
        labels_syn = jnp.arange(n) % K

        @jax.jit
        def of_features(features):
            return loss(jnp.asarray(features), labels_syn, real, labels_real)

        assert of_features(syn).dtype == jnp.float64
        assert jnp.max(jnp.abs(jax.grad(of_features)(syn))) > 1e-3
        check_grads(of_features, (syn,), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("loss", [_flow_loss, _probe_loss])
@pytest.mark.slow
def test_rivals_stay_float32_and_ask_for_full_precision(loss):
    syn, real = _every_class(1, 4), _every_class(2, 11)
    with jax.enable_x64(True):
        assert jax.grad(loss)(*syn, *real).dtype == jnp.float32
    text = str(jax.make_jaxpr(jax.grad(loss))(*syn, *real))
    products = text.count("dot_general[")
    assert products >= 2
    assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


# Soft labels.


@pytest.mark.parametrize("loss", [_flow_loss, _probe_loss])
@pytest.mark.slow
def test_rivals_take_probabilities_and_have_a_gradient_in_them(loss):
    (syn, labels), real = _every_class(1, 6), _every_class(2, 11)
    np.testing.assert_allclose(
        loss(syn, jax.nn.one_hot(labels, K), *real), loss(syn, labels, *real), rtol=1e-6
    )
    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in (syn, real[0])]
        logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, K)))

        def of_logits(logits):
            labels = jax.nn.softmax(jnp.asarray(logits))
            return loss(wide[0], labels, wide[1], real[1])

        assert jnp.max(jnp.abs(jax.grad(of_logits)(logits))) > 1e-3
        check_grads(of_logits, (logits,), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


@pytest.mark.slow
def test_head_gradient_in_parts_takes_probabilities():
    features, labels = _batch(1)[0], _probabilities(2)
    _assert_trees_close(
        objectives.head_gradient(_head(), features, labels, parts=3),
        objectives.head_gradient(_head(), features, labels),
        rtol=1e-5,
        atol=1e-7,
    )
