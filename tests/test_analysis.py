"""Laws of alignment, correlation, principal components, outsideness and class means."""

from __future__ import annotations

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA

from lgm_jax import analysis, objectives

# arXiv 2511.16674, Table 6: CLIP, DINOv2, EVA-02, MoCo-v3.
TRANSFER = np.array(
    [
        [100, 69.5, 72.3, 46.6],
        [77.2, 100, 95.5, 91.7],
        [66.1, 86.1, 100, 70.2],
        [57.2, 87.4, 76.8, 100],
    ]
)
ALIGNMENT = np.array(
    [[1, 0.21, 0.26, 0.18], [0.21, 1, 0.39, 0.31], [0.26, 0.39, 1, 0.30], [0.18, 0.31, 0.30, 1]]
)


def _features(seed: int, n: int = 30, d: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def _rotation(seed: int, d: int = 6) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0].astype(np.float32)


def _mutual_knn(a: np.ndarray, b: np.ndarray, count: int = 10) -> float:
    return analysis.shared_neighbors(*(analysis.nearest_others(each, count) for each in (a, b)))


class TestMutualKnn:
    @pytest.mark.parametrize("table", [2**23, 210])
    def test_is_the_part_of_neighbours_in_common(self, monkeypatch, table):
        monkeypatch.setattr(analysis.float64, "TABLE", table)
        a, b = _features(0), _features(1, d=4)
        shared = []
        for i in range(30):
            lists = []
            for f in (a, b):
                cosines = [
                    f[i] @ f[j] / np.linalg.norm(f[i]) / np.linalg.norm(f[j]) for j in range(30)
                ]
                cosines[i] = -2
                lists.append(set(np.argsort(cosines)[-5:]))
            shared.append(len(lists[0] & lists[1]) / 5)
        assert _mutual_knn(a, b, 5) == pytest.approx(np.mean(shared))

    def test_is_one_for_features_that_differ_by_rotation_and_scale(self):
        a = _features(0)
        assert _mutual_knn(a, 3 * a @ _rotation(1)) == 1

    def test_is_at_chance_for_unrelated_features(self):
        found = _mutual_knn(_features(0, 400), _features(1, 400))
        assert found == pytest.approx(10 / 399, abs=0.01)

    def test_needs_more_images_than_neighbours(self):
        with pytest.raises(ValueError, match="5 images have no 5 neighbours"):
            _mutual_knn(_features(0, 5), _features(1, 5), 5)


class TestLinearCka:
    def test_is_the_normalised_alignment_of_centred_kernels(self):
        a, b = _features(0), _features(1, d=4)
        centre = np.eye(30) - 1 / 30
        kernels = [centre @ (f @ f.T).astype(np.float64) @ centre for f in (a, b)]
        (aa, ab), (_, bb) = [[np.sum(k * m) for m in kernels] for k in kernels]
        assert analysis.linear_cka(a, b) == pytest.approx(ab / np.sqrt(aa * bb), abs=1e-6)

    def test_is_one_for_features_that_differ_by_rotation_shift_and_scale(self):
        a = _features(0)
        assert analysis.linear_cka(a, a @ _rotation(1) * 3 + 5) == pytest.approx(1, abs=1e-6)

    def test_is_zero_for_features_that_do_not_vary_together(self):
        a, b = np.zeros((2, 4, 1), np.float32)
        a[:, 0], b[:, 0] = [1, 1, -1, -1], [1, -1, 1, -1]
        assert analysis.linear_cka(a, b) == pytest.approx(0, abs=1e-12)


def test_memory_does_not_grow_with_pairs_of_images():
    features, labels = _features(0, 40_000), np.arange(40_000) % 2
    tracemalloc.start()
    # A table of all pairs of a class is 400 MB as booleans.
    analysis.outsideness(features, labels, features, labels, members=True)
    analysis.nearest_others(features[:6000], 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250e6


class TestNearestAccuracy:
    @pytest.mark.parametrize("table", [2**23, 210])
    def test_gives_the_label_of_highest_cosine(self, monkeypatch, table):
        monkeypatch.setattr(analysis.float64, "TABLE", table)
        syn, real = _features(0, 4), _features(1)
        labels_syn, labels = np.arange(4), np.arange(30) % 4
        cosines = [[x @ z / np.linalg.norm(x) / np.linalg.norm(z) for z in syn] for x in real]
        expected = 100 * np.mean(np.argmax(cosines, axis=1) == labels)
        assert analysis.nearest_accuracy(syn, labels_syn, real, labels) == pytest.approx(expected)

    def test_looks_at_directions_alone(self):
        syn, labels = _features(0, 4), np.arange(4)
        scales = np.float32([[0.1], [10], [1], [3]])
        assert analysis.nearest_accuracy(syn * scales, labels, syn, labels) == 100

    def test_columns_are_divided_by_their_diagonal(self):
        found = analysis.normalized_transfer(np.array([[50.0, 30.0], [20.0, 60.0]]))
        np.testing.assert_allclose(found, [[100, 50], [40, 100]])


class TestCorrelatePairs:
    def test_has_the_coefficient_of_the_papers_table(self):
        found = analysis.correlate_pairs(TRANSFER, ALIGNMENT)
        off = ~np.eye(4, dtype=bool)
        assert found.pearson == pytest.approx(0.83, abs=0.005)
        assert found.pearson == pytest.approx(stats.pearsonr(TRANSFER[off], ALIGNMENT[off])[0])
        assert found.spearman == pytest.approx(stats.spearmanr(TRANSFER[off], ALIGNMENT[off])[0])
        assert (found.pairs, found.permutations, found.exact) == (12, 24, True)
        # Few of the ways of naming four backbones fit as well.
        assert 1 / 24 <= found.pearson_p <= 3 / 24

    def test_p_counts_ways_of_naming_backbones(self):
        found = analysis.correlate_pairs(ALIGNMENT, ALIGNMENT)
        assert found.pearson == pytest.approx(1)
        assert found.pearson_p == found.spearman_p == 1 / 24

    def test_sign_does_not_matter_for_p(self):
        for name in ("pearson_p", "spearman_p"):
            up, down = (
                getattr(analysis.correlate_pairs(TRANSFER, sign * ALIGNMENT), name)
                for sign in (1, -1)
            )
            assert up == down

    def test_random_permutations_come_near_to_all(self):
        rng = np.random.default_rng(0)
        first, second = rng.normal(size=(2, 6, 6))
        every = analysis.correlate_pairs(first, second)
        some = analysis.correlate_pairs(first, second, most=500)
        assert (every.permutations, every.exact, some.exact) == (720, True, False)
        assert some.pearson == every.pearson
        assert some.pearson_p == pytest.approx(every.pearson_p, abs=0.08)

    def test_two_backbones_tell_nothing_of_a_symmetric_property(self):
        symmetric = np.array([[1.0, 0.5], [0.5, 1.0]])
        found = analysis.correlate_pairs(np.array([[100.0, 80.0], [90.0, 100.0]]), symmetric)
        assert found.pairs == 2
        assert np.isnan([found.pearson, found.spearman, found.pearson_p]).all()


class TestPca:
    def test_equals_scikit_learn_up_to_sign(self):
        real, other = _features(0) * np.float32([5, 4, 3, 2, 1, 1]), _features(1, 5)
        ours, theirs = analysis.fit_pca(real, 3), PCA(3).fit(real)
        signs = np.sign(np.sum(ours.directions * theirs.components_, axis=1))
        np.testing.assert_allclose(
            ours.project(other), theirs.transform(other) * signs, rtol=0, atol=1e-4
        )
        np.testing.assert_allclose(ours.share, theirs.explained_variance_ratio_, rtol=1e-5)

    def test_sign_does_not_depend_on_the_images_order(self):
        real = _features(0)
        np.testing.assert_allclose(
            analysis.fit_pca(real).directions, analysis.fit_pca(real[::-1]).directions, atol=1e-9
        )

    def test_refuses_more_components_than_there_are(self):
        with pytest.raises(ValueError, match="have no 7 components"):
            analysis.fit_pca(_features(0), 7)


# Two classes on the x axis, whose images lie 1, 2, ..., 100 above and below their means.
HEIGHTS = np.concatenate([np.arange(1, 101), -np.arange(1, 101)]).astype(np.float64)
REAL = np.concatenate([np.stack([np.full(200, x), HEIGHTS], axis=1) for x in (0.0, 10.0)])
LABELS = np.repeat([0, 1], 200)


class TestOutsideness:
    def test_known_places(self):
        queries = np.array([[10.0, 0.0], [10.0, 50.5], [10.0, -1000.0], [20.0, 0.0]])
        found = analysis.outsideness(queries, np.full(4, 1), REAL, LABELS)
        np.testing.assert_allclose(found.quantile[:3], [0, 0.5, 1], atol=1e-9)
        # The edge: the 95 % quantile of distances 1, 1, 2, 2, ..., 100, 100, own parts left out.
        edge = np.quantile(np.abs(HEIGHTS), 0.95) * 200 / 199
        np.testing.assert_allclose(found.ratio, [0, 50.5 / edge, 1000 / edge, 10 / edge])
        # Beyond its class's mean by as much as that is from the other class.
        assert found.ratio_along[3] > 1.5
        assert found.quantile_along[3] == 1

    def test_the_same_under_rotation_scale_and_shift(self):
        real, queries = _features(0, 40), _features(1, 8)
        labels_real, labels = np.arange(40) % 4, np.arange(8) % 4
        turn = _rotation(2)
        before = analysis.outsideness(queries, labels, real, labels_real)
        after = analysis.outsideness(
            queries @ turn * 2 + 1, labels, real @ turn * 2 + 1, labels_real
        )
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4)

    def test_real_images_as_members_have_uniform_quantiles(self):
        real, labels = _features(0, 40), np.arange(40) % 2
        found = analysis.outsideness(real, labels, real, labels, members=True)
        for quantile in (found.quantile, found.quantile_along):
            for label in range(2):
                np.testing.assert_allclose(
                    np.sort(quantile[labels == label]), np.arange(20) / 20, atol=1e-12
                )

    def test_own_part_of_the_mean_is_left_out_of_members(self):
        real, labels = _features(0, 12), np.arange(12) % 2
        found = analysis.outsideness(real, labels, real, labels, members=True)
        kept = (labels == 0) & (np.arange(12) != 0)
        mean, others = real[kept].mean(axis=0), real[labels == 1].mean(axis=0)
        way = mean - others
        ratios = found.ratio[labels == 0], found.ratio_along[labels == 0]
        # The edge cancels between two images.
        second = (labels == 0) & (np.arange(12) != 2)
        mean_2 = real[second].mean(axis=0)
        distances = np.linalg.norm(real[0] - mean), np.linalg.norm(real[2] - mean_2)
        assert ratios[0][0] / ratios[0][1] == pytest.approx(distances[0] / distances[1], rel=1e-5)
        way_2 = mean_2 - others
        along = (real[0] - others) @ way / (way @ way), (real[2] - others) @ way_2 / (way_2 @ way_2)
        assert ratios[1][0] / ratios[1][1] == pytest.approx(along[0] / along[1], rel=1e-4)


class TestClassMeansShare:
    labels = np.arange(30) % 3

    def _share(self, features: np.ndarray, head_std: float) -> analysis.ClassMeansShare:
        return analysis.class_means_share(
            jax.random.key(0),
            jnp.asarray(features),
            jnp.asarray(self.labels),
            3,
            head_std=head_std,
            heads=4,
        )

    def test_is_all_for_features_equal_to_their_class_means(self):
        found = self._share(_features(0, 3)[self.labels], 1.0)
        for part in (found.cosine, found.share, found.rest):
            np.testing.assert_allclose(part, 1, atol=1e-6)

    def test_is_that_of_features_replaced_by_means(self):
        features = _features(0) + np.float32(0.5)
        means = np.stack([features[self.labels == c].mean(axis=0) for c in range(3)])
        overall = np.broadcast_to(features.mean(axis=0), features.shape)
        found = self._share(features, 1.0)
        for i, key in enumerate(jax.random.split(jax.random.key(0), 4)):
            head = objectives.init_head(key, 6, 3, 1.0)
            real, known, common = (
                np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
                for gradient in (
                    objectives.head_gradient(head, jnp.asarray(f), jnp.asarray(self.labels))
                    for f in (features, means[self.labels], overall)
                )
            )
            size, left, left_by_overall = (
                np.sum(v**2) for v in (real, real - known, real - common)
            )
            cosine = real @ known / np.linalg.norm(real) / np.linalg.norm(known)
            assert found.cosine[i] == pytest.approx(cosine, abs=1e-5)
            assert found.share[i] == pytest.approx(1 - left / size, abs=1e-5)
            assert found.overall[i] == pytest.approx(1 - left_by_overall / size, abs=1e-5)
            assert found.rest[i] == pytest.approx(1 - left / left_by_overall, abs=1e-5)

    def test_falls_as_the_softmax_leaves_uniform(self):
        small, large = (self._share(_features(0), std) for std in (1e-4, 1.0))
        np.testing.assert_allclose(small.cosine, 1, atol=1e-5)
        np.testing.assert_allclose(small.share, 1, atol=1e-3)
        assert np.all(large.share < 0.99)


class TestOptimalFeatures:
    def test_are_class_means_for_what_matches_class_means(self):
        rng = np.random.default_rng(0)
        labels = np.arange(60) % 3
        features = jnp.asarray(_features(0, 60) + 2 * np.eye(6, dtype=np.float32)[labels])
        means = jnp.stack([features[labels == c].mean(axis=0) for c in range(3)])
        start = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
        start *= jnp.linalg.norm(means, axis=1, keepdims=True) / jnp.linalg.norm(
            start, axis=1, keepdims=True
        )
        goal = means / jnp.linalg.norm(means, axis=1, keepdims=True)

        def loss(rows):
            return -jnp.sum(rows * goal)

        found, last = analysis.optimal_features(loss, start, steps=200)
        np.testing.assert_allclose(found, means, atol=1e-3)
        assert float(last) == pytest.approx(float(loss(means)), rel=1e-6)

    def test_beat_class_means_at_the_closed_form_probe(self):
        labels = jnp.arange(90) % 3
        features = jnp.asarray(_features(1, 90) + np.eye(6, dtype=np.float32)[labels])
        means = jnp.stack([features[labels == c].mean(axis=0) for c in range(3)])

        def loss(rows):
            return objectives.closed_form_probe_loss(
                rows, jnp.arange(3), features, labels, 3, ridge=0.1, temperature=0.3
            )

        found, last = analysis.optimal_features(loss, means)
        assert float(last) < 0.9 * float(loss(means))
        lengths, wanted = (np.linalg.norm(rows, axis=1) for rows in (found, means))
        np.testing.assert_allclose(lengths, wanted, rtol=1e-5)
