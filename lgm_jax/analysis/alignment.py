"""Alignment of backbones: shared neighbours, CKA, how images transfer, and their correlation."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lgm_jax.analysis import float64
from lgm_jax.errors import UserError


def nearest_others(
    features: Float[np.ndarray, "n d"], count: int
) -> Int[np.ndarray, "n neighbors"]:
    """Returns the images of highest cosine similarity to each image, in no particular order.

    Args:
        count: Number of neighbours of each image.

    Raises:
        ValueError: If there are not more than `count` images.
    """
    if count >= len(features):
        raise ValueError(f"{len(features)} images have no {count} neighbours each")
    unit = float64.unit(features)
    nearest = np.empty((len(unit), count), np.int64)
    for part in float64.parts(len(unit), len(unit)):
        similar = unit[part] @ unit.T
        rows = np.arange(len(similar))
        similar[rows, part.start + rows] = -np.inf
        nearest[part] = np.argpartition(-similar, count - 1, axis=-1)[:, :count]
    return nearest


def shared_neighbors(
    near_a: Int[np.ndarray, "n neighbors"], near_b: Int[np.ndarray, "n neighbors"]
) -> float:
    """Computes mutual k-NN alignment of two backbones: the share of common nearest neighbours.

    For each image, the number of its k `nearest_others` that both backbones name, over k; the mean
    over images. Unrelated backbones reach k / (n - 1) by chance, so values are comparable at the
    same k and n only.

    Sources: the definition of Huh et al., "The Platonic Representation Hypothesis", arXiv
    2405.07987, whose default of k is 10; used by arXiv 2511.16674, Table 6, which does not say
    its k.
    """
    return float(np.mean((near_a[:, :, None] == near_b[:, None, :]).any(axis=-1)))


def linear_cka(features_a: Float[np.ndarray, "n d"], features_b: Float[np.ndarray, "n e"]) -> float:
    """Computes the linear centred kernel alignment of two backbones, from 0 to 1.

    |BᵀA|² / (|AᵀA| |BᵀB|) in Frobenius norms, for centred features. Rotations, shifts and scales of
    either change nothing.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv
    1905.00414.

    Args:
        features_a: Features of the first backbone, a row per image.
        features_b: Features of the same images by the second.

    Raises:
        UserError: If a backbone has the same features for all images.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    a, b = a - a.mean(axis=0, keepdims=True), b - b.mean(axis=0, keepdims=True)
    if float64.agree(a, features_a) or float64.agree(b, features_b):
        raise UserError("features of all images are the same: there is nothing to align")
    cross, own_a, own_b = (np.linalg.norm(x.T @ y) for x, y in ((b, a), (a, a), (b, b)))
    return float(cross**2 / (own_a * own_b))


def nearest_accuracy(
    features_syn: Float[np.ndarray, "s d"],
    labels_syn: Int[np.ndarray, " s"],
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
) -> float:
    """Computes the accuracy in percent of a 1-NN classifier by cosine similarity.

    Each image gets the label of the synthetic image nearest to it.
    """
    unit, unit_syn = float64.unit(features), float64.unit(features_syn)
    chosen = [
        np.argmax(unit[part] @ unit_syn.T, axis=-1)
        for part in float64.parts(len(unit), len(unit_syn))
    ]
    return float(100 * np.mean(labels_syn[np.concatenate(chosen)] == labels))


def normalized_transfer(accuracy: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """Normalises accuracies of images made for one backbone (row) on another (column), in percent.

    They are divided by the accuracy of the column's own images, its diagonal.

    Source: arXiv 2511.16674, Table 6. It divides by the column's diagonal rather than the row's:
    images made for MoCo-v3 do better on DINOv2 than on MoCo-v3 (its Table 2), and have less than
    100 in Table 6.

    Args:
        accuracy: 1-NN accuracies in percent.

    Raises:
        UserError: If a backbone's own images have an accuracy of 0.
    """
    own = np.diag(accuracy)[None, :]
    if not np.all(own > 0):
        raise UserError("images made for a backbone have an accuracy of 0 on it: nothing to divide")
    return 100 * accuracy / own


class Correlation(NamedTuple):
    """The correlation of two matrices off their diagonals.

    Attributes:
        pearson: Pearson's coefficient; NaN where a matrix is constant or there are less than two
            pairs.
        spearman: Spearman's coefficient, of ranks.
        pearson_p: Share of permutations with a Pearson coefficient as far from zero.
        spearman_p: Share of permutations with a Spearman coefficient as far from zero.
        pairs: Number of ordered pairs of backbones, m (m - 1).
        permutations: Number of permutations of the backbones of one matrix.
        exact: Whether these are all permutations.
    """

    pearson: float
    spearman: float
    pearson_p: float
    spearman_p: float
    pairs: int
    permutations: int
    exact: bool


def correlate_pairs(
    first: Float[np.ndarray, "m m"],
    second: Float[np.ndarray, "m m"],
    *,
    most: int = 10_000,
) -> Correlation:
    """Correlates two properties of ordered pairs of backbones, with a permutation test.

    Pairs that share a backbone are not independent, so the test is Mantel's: backbones, not pairs,
    are permuted, in one matrix, rows and columns alike. Both tests are two-sided. There are m!
    permutations of m backbones, so that p cannot be below 1 / m!; where one matrix is symmetric and
    m is 2, all of them have the same coefficient.

    Source: Mantel, "The detection of disease clustering and a generalized regression approach",
    Cancer Research 27 (1967).

    Args:
        first: A property of each pair; the diagonal is ignored.
        most: Number of permutations at most; if there are more, as many are drawn at random.
    """
    count = len(first)
    off = ~np.eye(count, dtype=bool)
    total = math.factorial(count)
    exact = total <= most
    if exact:
        orders = [np.asarray(order) for order in itertools.permutations(range(count))]
    else:
        rng = np.random.default_rng(0)
        # With the identity, so that p is never zero.
        orders = [np.arange(count), *(rng.permutation(count) for _ in range(most - 1))]
    pairs = count * (count - 1)
    x = first[off]
    if pairs < 2 or np.ptp(x) == 0 or np.ptp(second[off]) == 0:
        nothing = float("nan")
        return Correlation(nothing, nothing, nothing, nothing, pairs, len(orders), exact)
    # Importing it takes a second, at every start of the program.
    from scipy import stats

    permuted = np.stack([second[np.ix_(order, order)][off] for order in orders])
    pearson = _correlations(x, permuted)
    spearman = _correlations(stats.rankdata(x), stats.rankdata(permuted, axis=-1))
    return Correlation(
        float(pearson[0]),
        float(spearman[0]),
        _p_value(pearson),
        _p_value(spearman),
        pairs,
        len(orders),
        exact,
    )


def _correlations(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns Pearson's coefficient of x with every row."""
    x, rows = x - x.mean(), rows - rows.mean(axis=1, keepdims=True)
    return rows @ x / (np.linalg.norm(rows, axis=1) * np.linalg.norm(x))


def _p_value(coefficients: np.ndarray) -> float:
    """Returns the share of coefficients at least as far from zero as the first."""
    return float(np.mean(np.abs(coefficients) >= np.abs(coefficients[0]) - 1e-12))
