"""Laws of cosine distances, and of sums that are computed in parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import numerics

D, K = 5, 3


def _tree(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(D, K)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=K), jnp.float32),
    }


def test_cosine_distance_of_opposite_and_orthogonal_trees():
    tree = _tree(1)
    np.testing.assert_allclose(
        numerics.cosine_distance(tree, jax.tree.map(jnp.negative, tree)), 2, rtol=1e-6
    )
    first = {"kernel": jnp.ones((D, K)), "bias": jnp.zeros(K)}
    second = {"kernel": jnp.zeros((D, K)), "bias": jnp.ones(K)}
    assert numerics.cosine_distance(first, second) == 1


def test_cosine_distance_is_of_whole_trees_not_a_mean_over_leaves():
    a, b = _tree(1), _tree(2)
    flat_a, flat_b = (np.concatenate([t["kernel"].ravel(), t["bias"]]) for t in (a, b))
    cosine = flat_a @ flat_b / np.linalg.norm(flat_a) / np.linalg.norm(flat_b)
    np.testing.assert_allclose(numerics.cosine_distance(a, b), 1 - cosine, rtol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_an_all_zero_tree_gives_one_and_a_zero_gradient(which):
    trees = [_tree(1), _tree(2)]
    trees[which] = jax.tree.map(jnp.zeros_like, trees[which])
    with jax.debug_nans(True):
        distance, gradients = jax.value_and_grad(numerics.cosine_distance, argnums=(0, 1))(*trees)
    assert distance == 1
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e3, 1e15])
def test_cosine_distance_does_not_depend_on_scale(scale):
    a, b = _tree(1), _tree(2)
    scaled = jax.tree.map(lambda x: x * scale, a)
    for pair in ((scaled, b), (b, scaled), (scaled, jax.tree.map(lambda x: x * scale, b))):
        np.testing.assert_allclose(
            numerics.cosine_distance(*pair), numerics.cosine_distance(a, b), rtol=1e-5
        )


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 13, 16])
def test_sums_and_gradients_in_parts_are_those_of_the_whole(parts):
    """Also where the parts do not divide the rows, of which some parts then have none."""
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(13, 2)), jnp.float32)
    weights = jnp.asarray(rng.uniform(size=13), jnp.float32)
    # An integer array is padded as well.
    numbers = jnp.arange(13, dtype=jnp.int32)

    def share(scale, a, weights, numbers):
        rows = weights * jnp.sin(scale * jnp.sum(a, axis=1) + numbers)
        return {"sum": jnp.sum(rows), "outer": a.T @ (a * rows[:, None])}

    def total(scale, a, weights):
        sums = numerics.sum_of_parts(share, parts, scale, a, weights, numbers)
        return sums["sum"] + jnp.sum(jnp.cos(sums["outer"])), sums

    def whole(scale, a, weights):
        sums = share(scale, a, weights, numbers)
        return sums["sum"] + jnp.sum(jnp.cos(sums["outer"])), sums

    # What all rows have in common has a gradient too.
    given = jnp.float32(0.7), a, weights
    (ours, slopes), (theirs, expected) = (
        jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True)(*given)
        for function in (total, whole)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), ours, theirs)
    for slope, wanted in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-5)


def test_parts_are_as_few_as_keep_class_scores_within_64_mebibytes():
    for rows, classes in ((1, 2), (100, 10), (1_281_167, 1000), (50_000, 100), (3, 2**30)):
        parts = numerics.num_parts(rows, classes)
        assert parts & (parts - 1) == 0
        one_each = parts >= rows
        assert one_each or -(-rows // parts) * classes * 4 <= 2**26 + 4 * classes
        assert parts == 1 or rows * classes * 4 / (parts / 2) > 2**26
    assert numerics.num_parts(10, 10) == 1
    assert numerics.num_parts(1_281_167, 1000) == 128


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize(("rows", "classes"), [(7, 2), (100_003, 1000), (1_281_167, 1000)])
def test_padded_rows_are_the_least_that_devices_share_part_by_part(devices, rows, classes):
    padded = numerics.padded_rows(rows, classes, devices)
    assert padded >= rows

    def fits(count: int) -> bool:
        return count % (devices * numerics.num_parts(count, classes)) == 0

    assert fits(padded)
    assert not any(fits(count) for count in range(rows, padded))
