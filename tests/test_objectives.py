"""Laws of the probe loss, its head gradient and the gradient-matching loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lgm_jax import objectives

N, D, K = 7, 5, 3


def _batch(seed: int, n: int = N, dtype: type = np.float32) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, D)), dtype), jnp.asarray(rng.integers(0, K, n))


def _head(seed: int = 0, std: float = 1.0, dtype: type = np.float32) -> objectives.Head:
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


def _opposite(tree):
    return jax.tree.map(jnp.negative, tree)


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


def test_parts_with_the_whole_denominator_add_up_to_the_whole():
    features, labels = _batch(1)
    weights = jnp.asarray([1.0, 2.0, 0.0, 0.5, 1.0, 0.0, 3.0])
    parts = [slice(0, 2), slice(2, 3), slice(3, 7)]  # The middle one has only weight zero.
    for function in (objectives.linear_probe_loss, objectives.head_gradient):
        shares = [
            function(_head(), features[p], labels[p], weights[p], denominator=jnp.sum(weights))
            for p in parts
        ]
        total = jax.tree.map(lambda *s: sum(s), *shares)
        _assert_trees_close(
            total, function(_head(), features, labels, weights), rtol=1e-6, atol=1e-7
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


def test_cosine_distance_of_opposite_and_orthogonal_trees():
    tree = _head(1)
    np.testing.assert_allclose(objectives.cosine_distance(tree, _opposite(tree)), 2, rtol=1e-6)
    first = {"kernel": jnp.ones((D, K)), "bias": jnp.zeros(K)}
    second = {"kernel": jnp.zeros((D, K)), "bias": jnp.ones(K)}
    assert objectives.cosine_distance(first, second) == 1


def test_cosine_distance_is_of_whole_trees_not_a_mean_over_leaves():
    a, b = _head(1), _head(2)
    flat_a, flat_b = (np.concatenate([t["kernel"].ravel(), t["bias"]]) for t in (a, b))
    cosine = flat_a @ flat_b / np.linalg.norm(flat_a) / np.linalg.norm(flat_b)
    np.testing.assert_allclose(objectives.cosine_distance(a, b), 1 - cosine, rtol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_an_all_zero_tree_gives_one_and_a_zero_gradient(which):
    trees = [_head(1), _head(2)]
    trees[which] = jax.tree.map(jnp.zeros_like, trees[which])
    with jax.debug_nans(True):
        distance, gradients = jax.value_and_grad(objectives.cosine_distance, argnums=(0, 1))(*trees)
    assert distance == 1
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e3, 1e15])
def test_cosine_distance_does_not_depend_on_scale(scale):
    a, b = _head(1), _head(2)
    scaled = jax.tree.map(lambda x: x * scale, a)
    for pair in ((scaled, b), (b, scaled), (scaled, jax.tree.map(lambda x: x * scale, b))):
        np.testing.assert_allclose(
            objectives.cosine_distance(*pair), objectives.cosine_distance(a, b), rtol=1e-5
        )


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_to_synthetic_features_matches_finite_differences(soft):
    with jax.enable_x64(True):
        real, labels_real = _batch(1, dtype=np.float64)
        syn, labels_syn = _batch(2, n=4, dtype=np.float64)
        labels_syn = _probabilities(3, 4).astype(jnp.float64) if soft else labels_syn
        weights = jnp.asarray([1.0, 0.5, 2.0, 0.0])
        head = _head(dtype=np.float64)

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


@pytest.mark.parametrize("rows", [3, 5, 20, 21, 64])
def test_head_gradient_in_parts_is_the_head_gradient(rows):
    rng = np.random.default_rng(0)
    head = objectives.init_head(jax.random.key(0), 6, 4, 1.0)
    features = jnp.asarray(rng.normal(size=(20, 6)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, 20), jnp.int32)
    whole = objectives.head_gradient(head, features, labels)
    parts = objectives.head_gradient_in_parts(head, features, labels, rows=rows)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-7)
