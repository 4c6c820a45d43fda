"""What features say about backbones, classes and distilled images, as pure functions of them.

Dimension letters: `n` real images, `s` others, `d` and `e` features of two backbones, `k` classes,
`m` backbones. Everything but what needs gradients is numpy in float64, whatever the features'
dtype: sums over many images, of which small differences matter. Features of zero have a cosine of
zero with all others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key
from scipy import stats

from lgm_jax import objectives
from lgm_jax.errors import UserError
from lgm_jax.flows import class_sums
from lgm_jax.heads import head_gradient_in_parts
from lgm_jax.numerics import nonzero

# Numbers of a table of similarities at a time: bounds memory, and results do not depend on it.
_TABLE = 2**23

# Part of a class's real images that its edge encloses.
EDGE = 0.95


def mutual_knn(
    features_a: Float[np.ndarray, "n d"], features_b: Float[np.ndarray, "n e"], neighbors: int = 10
) -> float:
    """Mutual k-NN alignment of two backbones: the part of nearest neighbours that they share.

    For each image, its k nearest others by cosine similarity in the features of each backbone;
    the number that are in both lists, over k; the mean over images. Backbones that have nothing
    in common reach k / (n - 1) by chance, so values are comparable at the same k and n only.

    Sources: the definition of Huh et al., "The Platonic Representation Hypothesis", arXiv
    2405.07987, whose default of k is 10; used by arXiv 2511.16674, Table 6, which does not say
    its k.

    Args:
        features_a: Features of the first backbone, a row per image.
        features_b: Those of the second, of the same images.
        neighbors: Neighbours of each image, k.

    Raises:
        ValueError: If there are not more than `neighbors` images.
    """
    return shared_neighbors(*(nearest_others(f, neighbors) for f in (features_a, features_b)))


def nearest_others(
    features: Float[np.ndarray, "n d"], count: int
) -> Int[np.ndarray, "n neighbors"]:
    """Of each image, the others of highest cosine similarity to it, in no particular order.

    Args:
        features: A row per image.
        count: Neighbours of each image.

    Raises:
        ValueError: If there are not more than `count` images.
    """
    if count >= len(features):
        raise ValueError(f"{len(features)} images have no {count} neighbours each")
    unit = _unit(features)
    found = np.empty((len(unit), count), np.int64)
    for part in _parts(len(unit), len(unit)):
        similar = unit[part] @ unit.T
        rows = np.arange(len(similar))
        similar[rows, part.start + rows] = -np.inf
        found[part] = np.argpartition(-similar, count - 1, axis=-1)[:, :count]
    return found


def shared_neighbors(
    near_a: Int[np.ndarray, "n neighbors"], near_b: Int[np.ndarray, "n neighbors"]
) -> float:
    """`mutual_knn` of backbones of which the neighbours are known: see `nearest_others`."""
    return float(np.mean((near_a[:, :, None] == near_b[:, None, :]).any(axis=-1)))


def linear_cka(features_a: Float[np.ndarray, "n d"], features_b: Float[np.ndarray, "n e"]) -> float:
    """Linear centred kernel alignment of two backbones, from 0 to 1.

    |BᵀA|² / (|AᵀA| |BᵀB|) in Frobenius norms, of features whose mean is taken off. The same when
    either is rotated, shifted or scaled.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv
    1905.00414.

    Args:
        features_a: Features of the first backbone, a row per image.
        features_b: Those of the second, of the same images.

    Raises:
        UserError: If a backbone has the same features of all images.
    """
    a, b = (f - f.mean(axis=0, keepdims=True) for f in map(_double, (features_a, features_b)))
    if _agree(a, features_a) or _agree(b, features_b):
        raise UserError("features of all images are the same: there is nothing to align")
    cross, own_a, own_b = (np.linalg.norm(x.T @ y) for x, y in ((b, a), (a, a), (b, b)))
    return float(cross**2 / (own_a * own_b))


def nearest_accuracy(
    features_syn: Float[np.ndarray, "s d"],
    labels_syn: Int[np.ndarray, " s"],
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
) -> float:
    """Accuracy in percent of a 1-NN classifier: each image gets the label of the synthetic image
    nearest to it by cosine similarity.

    Args:
        features_syn: Features of the synthetic images.
        labels_syn: Their labels.
        features: Features of images to classify.
        labels: Their labels.
    """
    unit, unit_syn = _unit(features), _unit(features_syn)
    chosen = [
        np.argmax(unit[part] @ unit_syn.T, axis=-1) for part in _parts(len(unit), len(unit_syn))
    ]
    return float(100 * np.mean(labels_syn[np.concatenate(chosen)] == labels))


def normalized_transfer(accuracy: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """1-NN accuracies of images made for one backbone (row) on another (column), in percent of
    what the column's own images reach.

    Source: arXiv 2511.16674, Table 6. It divides by the column's diagonal rather than the row's:
    images made for MoCo-v3 do better on DINOv2 than on MoCo-v3 (its Table 2), and have less than
    100 in Table 6.

    Args:
        accuracy: Accuracies in percent.

    Raises:
        UserError: If a backbone's own images reach nothing.
    """
    own = np.diag(accuracy)[None, :]
    if not np.all(own > 0):
        raise UserError("images made for a backbone have an accuracy of 0 on it: nothing to divide")
    return 100 * accuracy / own


class Correlation(NamedTuple):
    """How two matrices go together, off their diagonals.

    Attributes:
        pearson: Pearson's coefficient; NaN where a matrix is constant or there are less than two
            pairs.
        spearman: Spearman's, of ranks.
        pearson_p: Chance of a coefficient as far from zero among `permutations`.
        spearman_p: Likewise.
        pairs: Ordered pairs of backbones, m (m - 1).
        permutations: Ways of naming the backbones of one matrix that were tried.
        exact: Whether these are all there are.
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
    seed: int = 0,
) -> Correlation:
    """Correlation of two properties of ordered pairs of backbones, and how likely by chance.

    Pairs that share a backbone are not independent, so the test is Mantel's: backbones, not pairs,
    are permuted, in one matrix and by rows and columns alike. Both tests are two-sided. Of m
    backbones there are m! permutations, so that p cannot be below 1 / m!, and where one matrix is
    symmetric and m is 2, all of them give the same.

    Source: Mantel, "The detection of disease clustering and a generalized regression approach",
    Cancer Research 27 (1967).

    Args:
        first: A property of each pair; the diagonal is not looked at.
        second: Another.
        most: Permutations to try; all if there are no more, else these many at random.
        seed: Of the random ones.
    """
    count = len(first)
    off = ~np.eye(count, dtype=bool)
    total = math.factorial(count)
    exact = total <= most
    if exact:
        orders = [np.asarray(order) for order in itertools.permutations(range(count))]
    else:
        rng = np.random.default_rng(seed)
        # The matrices as they are count as one of the draws, so that p is never zero.
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


class PCA(NamedTuple):
    """Principal components of a set of features.

    Attributes:
        mean: (d,).
        directions: (components, d) orthonormal rows, by falling variance; of each, the entry
            largest in size is positive.
        share: (components,), the part of the variance that each explains.
    """

    mean: Float[np.ndarray, " d"]
    directions: Float[np.ndarray, "components d"]
    share: Float[np.ndarray, " components"]

    def project(self, features: Float[np.ndarray, "s d"]) -> Float[np.ndarray, "s components"]:
        """Coordinates of features, of the same backbone, along the components."""
        return (_double(features) - self.mean[None]) @ self.directions.T


def fit_pca(features: Float[np.ndarray, "n d"], components: int = 2) -> PCA:
    """Principal components of real features, onto which those of other images are projected.

    Source: arXiv 2511.16674, Figure 4.

    Args:
        features: Features of real images.
        components: How many.

    Raises:
        ValueError: If there are more components than images or features.
        UserError: If features of all images are the same.
    """
    if components > min(features.shape):
        raise ValueError(f"{features.shape} features have no {components} components")
    mean = _double(features).mean(axis=0)
    centred = _double(features) - mean[None]
    if _agree(centred, features):
        raise UserError("features of all images are the same: they have no principal components")
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    kept = directions[:components]
    largest = np.take_along_axis(kept, np.abs(kept).argmax(axis=1)[:, None], axis=1)
    return PCA(mean, kept * np.sign(largest), (sizes**2 / (sizes**2).sum())[:components])


class Outsideness(NamedTuple):
    """How far out of its class each image lies. Edges are the classes' 95 % quantiles.

    Attributes:
        quantile: Part of the class's real images that are nearer to the class's mean.
        ratio: Distance to the class's mean over that of the edge: above 1, the image is outside.
        quantile_along: Part of the class's real images that are less far away from the other
            classes, along the class's direction.
        ratio_along: Coordinate in that direction over that of the edge; 0 is the other classes.
    """

    quantile: Float[np.ndarray, " s"]
    ratio: Float[np.ndarray, " s"]
    quantile_along: Float[np.ndarray, " s"]
    ratio_along: Float[np.ndarray, " s"]


def outsideness(
    features: Float[np.ndarray, "s d"],
    labels: Int[np.ndarray, " s"],
    features_real: Float[np.ndarray, "n d"],
    labels_real: Int[np.ndarray, " n"],
    *,
    members: bool = False,
) -> Outsideness:
    """Whether images lie within their class, at its edge or beyond it, in two ways.

    By distance to the class's mean: the edge is the radius that encloses 95 % of the class's real
    images. This needs no covariance, of which a class of fewer images than features has no good
    estimate. But it counts any oddity of an image, also one that has nothing to do with classes.

    Along the class's direction, from the mean of the other classes' means to its own: what the
    flows of `objectives.class_flows` point against. An image beyond the edge there is more of its
    class than 95 % of the class's real images are: exaggerated, and not merely odd.

    A real image's own part of the class's mean is left out of the mean that it is held against;
    else real images would seem nearer to it than others are, by 1 / n.

    Args:
        features: Features of images.
        labels: Their labels.
        features_real: Features of the real images that make up the classes.
        labels_real: Their labels; at least two images of each class, of at least two classes.
        members: Whether the images are themselves among the real ones.

    Raises:
        UserError: If there are fewer images or classes, or the features of a class do not differ
            from each other, or from those of all others on average.
    """
    features, features_real = _double(features), _double(features_real)
    classes = int(labels_real.max()) + 1
    if classes < 2 or np.bincount(labels_real, minlength=classes).min() < 2:
        raise UserError("classes have edges where there are two of at least two images each")
    means = np.stack([features_real[labels_real == c].mean(axis=0) for c in range(classes)])
    found = np.empty((4, len(features)))
    for label in np.unique(labels):
        chosen, real = labels == label, features_real[labels_real == label]
        others, own = np.delete(means, label, axis=0).mean(axis=0), 1 / len(real)
        alike = _agree(real - means[label], real) or _agree(means[label] - others, features_real)
        real_places = _places(real, means[label], others, own)
        places = _places(features[chosen], means[label], others, own if members else 0.0)
        for row, (place, of_real) in enumerate(zip(places, real_places, strict=True)):
            # A real image is not farther out than itself, whatever the rounding.
            edge = np.quantile(of_real, EDGE)
            if alike or not (np.isfinite(edge) and edge != 0):
                raise UserError(f"features of class {label} have no edge: too many are the same")
            inner = np.searchsorted(np.sort(of_real), place - 1e-9 * np.abs(place))
            found[2 * row, chosen] = inner / len(of_real)
            found[2 * row + 1, chosen] = place / edge
    return Outsideness(*found)


class ClassMeansShare(NamedTuple):
    """What class means know of the head gradient, for each random head.

    Attributes:
        cosine: Cosine of the head gradient and the one of class means.
        share: 1 - |g - m|² / |g|²: the part of the head gradient g that the one of class means, m,
            explains; below 0 where m is farther from g than zero is.
        overall: Likewise, for the gradient o of features all replaced by the mean of all images.
        rest: 1 - |g - m|² / |g - o|²: of what that leaves, the part that class means explain.
    """

    cosine: Float[Array, " heads"]
    share: Float[Array, " heads"]
    overall: Float[Array, " heads"]
    rest: Float[Array, " heads"]


def class_means_share(
    key: Key[Array, ""],
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    num_classes: int,
    *,
    head_std: float,
    heads: int,
) -> ClassMeansShare:
    """Does the head gradient see more than class means? It is held against the gradient of the
    same head on features that are each replaced by the mean of its class.

    With small heads the softmax is near uniform, and the gradient is linear in the features: only
    their class means count. With larger ones it is not; but then most of it may be what all images
    have in common, which a head takes for one class: hence the share of the overall mean.

    Source: the gradient of arXiv 2511.16674; that class means alone may do is what arXiv
    2602.05391 rests on.

    Args:
        key: Random key of the heads.
        features: Features of real images.
        labels: Their labels.
        num_classes: Number of classes `k`.
        head_std: Standard deviation of the random heads' kernels.
        heads: Random heads to draw.

    Returns:
        Features that are all zero have a head gradient of their biases alone, which class means
        explain; where a gradient is zero, shares are 0.
    """
    sums = class_sums(features, labels, num_classes)
    means = sums.features / jnp.maximum(sums.weights, 1)[:, None]
    overall = jnp.broadcast_to(jnp.mean(features, axis=0, keepdims=True), means.shape)

    def explained(rest: Array, whole: Array) -> Array:
        return jnp.where(whole > 0, 1 - rest / nonzero(whole), 0)

    def compare(key: Key[Array, ""]) -> tuple[Array, Array, Array, Array]:
        head = objectives.init_head(key, features.shape[1], num_classes, head_std)
        # The mean of a class counts once for each of its images.
        classes = jnp.arange(num_classes)
        whole, known, common = (
            ravel_pytree(gradient)[0]
            for gradient in (
                head_gradient_in_parts(head, features, labels),
                objectives.head_gradient(head, means, classes, sums.weights),
                objectives.head_gradient(head, overall, classes, sums.weights),
            )
        )
        size, left, left_by_overall = (
            jnp.sum(vector**2) for vector in (whole, whole - known, whole - common)
        )
        cosine = 1 - objectives.cosine_distance(whole, known)
        return (
            cosine,
            explained(left, size),
            explained(left_by_overall, size),
            explained(left, left_by_overall),
        )

    return ClassMeansShare(*jax.lax.map(compare, jax.random.split(key, heads)))


def optimal_features(
    loss: Callable[[Float[Array, "s d"]], Float[Array, ""]],
    start: Float[Array, "s d"],
    *,
    steps: int = 600,
    learning_rate: float = 0.2,
) -> tuple[Float[Array, "s d"], Float[Array, ""]]:
    """Features that lower an objective most, whatever images would have them.

    What a probe makes of them is about the best that images distilled by that objective come to,
    and takes seconds to know: a way to choose, for example, ridge and temperature of the
    closed-form probe. By Adam with a cosine schedule, each row kept as long as it is at the start,
    for the norm at the end of most backbones lets no image choose its length.

    Args:
        loss: Of features, a row per image, differentiable.
        start: Where to begin, for example at class means, as long as real features are.
        steps: Updates.
        learning_rate: Adam's, at first.

    Returns:
        The features, and their loss.

    Raises:
        UserError: If a row to start from is zero.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    lengths = jnp.linalg.norm(start, axis=1, keepdims=True)
    if not bool(jnp.all(lengths > 0)):
        raise UserError("a row to start from is zero: it has no length to keep")

    def scale(free: Float[Array, "s d"]) -> Float[Array, "s d"]:
        return free * lengths / jnp.linalg.norm(free, axis=1, keepdims=True)

    def update(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        free, state = carry
        gradient = jax.grad(lambda rows: loss(scale(rows)))(free)
        changes, state = optimizer.update(gradient, state)
        return (optax.apply_updates(free, changes), state), None

    @jax.jit
    def run(free: Float[Array, "s d"]) -> Float[Array, "s d"]:
        (free, _), _ = jax.lax.scan(update, (free, optimizer.init(free)), length=steps)
        return scale(free)

    found = run(start)
    return found, loss(found)


def _places(
    features: np.ndarray, mean: np.ndarray, others: np.ndarray, own: float
) -> tuple[np.ndarray, np.ndarray]:
    """Distances to a class's mean, and coordinates from the other classes (0) to it (1).

    Args:
        features: Of images.
        mean: The class's.
        others: The mean of the other classes' means.
        own: The part of the mean that is each image's own, which is left out.
    """
    means = (mean[None] - own * features) / (1 - own)
    ways = means - others[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        along = np.sum((features - others[None]) * ways, axis=-1) / np.sum(ways**2, axis=-1)
    return np.linalg.norm(features - means, axis=-1), along


def _correlations(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pearson's coefficient of x with every row."""
    x, rows = x - x.mean(), rows - rows.mean(axis=1, keepdims=True)
    return rows @ x / (np.linalg.norm(rows, axis=1) * np.linalg.norm(x))


def _ranks_of_rows(values: np.ndarray) -> np.ndarray:
    return stats.rankdata(values, axis=-1)


def _p_value(coefficients: np.ndarray) -> float:
    """Part of the coefficients at least as far from zero as the first, rounding aside."""
    return float(np.mean(np.abs(coefficients) >= np.abs(coefficients[0]) - 1e-12))


def _parts(rows: int, columns: int) -> list[slice]:
    """Rows of a table, so few at a time that it takes little memory."""
    step = max(1, _TABLE // columns)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _agree(differences: np.ndarray, features: np.ndarray) -> bool:
    """Whether differences of features from their mean are no more than the mean's rounding."""
    rounding = len(features) * np.finfo(np.float64).eps
    return bool(np.abs(differences).max() <= rounding * np.abs(features).max())


def _unit(features: np.ndarray) -> np.ndarray:
    features = _double(features)
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def _double(features: np.ndarray) -> np.ndarray:
    return np.asarray(features, np.float64)
