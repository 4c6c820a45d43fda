"""Correlation of properties of pairs of backbones, with a permutation test."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


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
    permuted = np.stack([second[np.ix_(order, order)][off] for order in orders])
    pearson, spearman = (
        _correlations(rank(x), rank(permuted)) for rank in (np.asarray, _ranks_of_rows)
    )
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


def _ranks_of_rows(values: np.ndarray) -> np.ndarray:
    # Importing it takes a second, at every start of the program.
    from scipy import stats

    return stats.rankdata(values, axis=-1)


def _p_value(coefficients: np.ndarray) -> float:
    """Returns the share of coefficients at least as far from zero as the first."""
    return float(np.mean(np.abs(coefficients) >= np.abs(coefficients[0]) - 1e-12))
