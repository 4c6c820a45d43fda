"""Features in a plane: the two directions that separate classes best."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

# Real images drawn on the map, and those that its directions are computed from.
_POINTS, _FITTED = 1500, 20_000


@dataclasses.dataclass(frozen=True)
class Map:
    """Features in a plane.

    Attributes:
        real: Features of a sample of the training images.
        labels: Their classes.
        syn: Features of the distilled images that are shown.
        explained: The part of the variance along each axis: of that between classes, relative to
            that within them, where the axes separate classes.
        separates: Whether the axes are those that separate classes best, rather than those along
            which all images spread most.
    """

    real: Float[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]
    syn: Float[np.ndarray, "s 2"]
    explained: Float[np.ndarray, " 2"]
    separates: bool | np.ndarray = False


def make_map(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    features_syn: Float[np.ndarray, "s d"],
) -> Map:
    """Projects features on the two directions that separate classes of real images best.

    They are the first linear discriminants, with the covariance within classes shrunk as by Ledoit
    and Wolf. One class, or classes of one image each, have none: then they are the first principal
    components. The sample that is shown is drawn with a fixed seed, and the largest entry of each
    direction is positive.
    """
    if features.shape[1] == 1:
        # A plane has two directions.
        features, features_syn = (np.pad(x, ((0, 0), (0, 1))) for x in (features, features_syn))
    rng = np.random.default_rng(0)
    rows = _sample(rng, len(labels), _POINTS)
    fitted = _sample(rng, len(labels), _FITTED)
    known, own = features[fitted].astype(np.float64), labels[fitted]
    mean = known.mean(axis=0)
    classes = len(np.unique(own))
    separates = classes > 1 and len(own) - classes > 1
    axes, parts = _discriminants(known - mean, own) if separates else _principal(known - mean)
    largest = axes[[0, 1], np.abs(axes).argmax(axis=1)]
    axes = axes * np.where(largest < 0, -1, 1)[:, None]
    real, syn = ((each - mean[None]) @ axes.T for each in (features[rows], features_syn))
    return Map(
        real.astype(np.float32),
        labels[rows],
        syn.astype(np.float32),
        parts.astype(np.float32),
        separates,
    )


def _sample(rng: np.random.Generator, count: int, most: int) -> Int[np.ndarray, " rows"]:
    if count <= most:
        return np.arange(count)
    return np.sort(rng.choice(count, most, replace=False))


def _principal(
    centred: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "2 d"], Float[np.ndarray, " 2"]]:
    """Returns the first two principal components, and their parts of the variance."""
    values, vectors = np.linalg.eigh(centred.T @ centred)
    parts = np.maximum(values[:-3:-1], 0) / max(values.sum(), 1e-30)
    return vectors.T[:-3:-1], parts


def _discriminants(
    centred: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "2 d"], Float[np.ndarray, " 2"]]:
    """Returns the first two linear discriminants, and their parts of what separates classes."""
    from scipy import linalg
    from sklearn.covariance import ledoit_wolf

    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), centred.shape[1]))
    np.add.at(means, numbers, centred)
    means /= counts[:, None]
    within, _ = ledoit_wolf(centred - means[numbers], assume_centered=True)
    # Features that never vary would make it singular.
    within += np.eye(len(within)) * (1e-9 * np.trace(within) / len(within) + 1e-30)
    weighted = means * np.sqrt(counts / len(labels))[:, None]
    last = len(within) - 1
    values, vectors = linalg.eigh(weighted.T @ weighted, within, subset_by_index=[last - 1, last])
    axes = vectors.T[::-1]
    if len(counts) == 2:
        # Two classes differ in one direction; the other is the widest that is left.
        first = axes[0] / np.linalg.norm(axes[0])
        axes = np.stack([first, _principal(centred - np.outer(centred @ first, first))[0][0]])
    total = np.trace(linalg.solve(within, weighted.T @ weighted, assume_a="pos"))
    return axes, np.maximum(values[::-1], 0) / max(total, 1e-30)
