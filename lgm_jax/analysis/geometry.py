"""Geometry of features: principal components, and the edges of classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lgm_jax.analysis import float64
from lgm_jax.errors import UserError

# The share of a class's real images that its edge encloses.
EDGE = 0.95


class PCA(NamedTuple):
    """Principal components of a set of features.

    Attributes:
        mean: (d,).
        directions: (components, d) orthonormal rows, by falling variance; the largest entry
            of each, by size, is positive.
        share: (components,), the part of the variance that each explains.
    """

    mean: Float[np.ndarray, " d"]
    directions: Float[np.ndarray, "components d"]
    share: Float[np.ndarray, " components"]

    def project(self, features: Float[np.ndarray, "s d"]) -> Float[np.ndarray, "s components"]:
        """Returns the coordinates of features along the components."""
        return (np.asarray(features, np.float64) - self.mean[None]) @ self.directions.T


def fit_pca(features: Float[np.ndarray, "n d"], components: int = 2) -> PCA:
    """Computes the principal components of real features.

    Source: arXiv 2511.16674, Figure 4.

    Raises:
        ValueError: If there are more components than images or features.
        UserError: If the features of all images are the same.
    """
    if components > min(features.shape):
        raise ValueError(f"{features.shape} features have no {components} components")
    mean = np.asarray(features, np.float64).mean(axis=0)
    centred = np.asarray(features, np.float64) - mean[None]
    if float64.agree(centred, features):
        raise UserError("features of all images are the same: they have no principal components")
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    chosen = directions[:components]
    largest = np.take_along_axis(chosen, np.abs(chosen).argmax(axis=1)[:, None], axis=1)
    return PCA(mean, chosen * np.sign(largest), (sizes**2 / (sizes**2).sum())[:components])


class Outsideness(NamedTuple):
    """The place of each image relative to the edge of its class, a 95 % quantile.

    Attributes:
        quantile: Share of the class's real images that are nearer to the class's mean.
        ratio: Distance to the class's mean over that of the edge: above 1, the image is outside.
        quantile_along: Share of the class's real images that are nearer to the other classes, along
            the class's direction.
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
    """Computes how far images lie within their class, at its edge or beyond it, in two ways.

    By distance to the class's mean: the edge is the radius that encloses 95 % of the class's real
    images. This needs no covariance, which few images cannot estimate. But it counts any oddity of
    an image, also one unrelated to classes.

    Along the class's direction, from the mean of the other classes' means to its own, opposite to
    the flow of `flows.class_flows`. An image beyond the edge there is more typical of its class
    than 95 % of the class's real images: exaggerated, and not merely odd.

    The mean that a real image is compared with leaves out the image itself; real images would
    otherwise seem nearer to it by 1 / n.

    Args:
        features_real: Features of the real images that make up the classes.
        labels_real: Their labels; at least two images of each class, of at least two classes.
        members: Whether the images are themselves among the real ones.

    Raises:
        UserError: If there are fewer images or classes, or the features of a class do not differ
            from each other, or from those of all others on average.
    """
    features, features_real = (
        np.asarray(features, np.float64),
        np.asarray(features_real, np.float64),
    )
    classes = int(max(labels_real.max(), labels.max(initial=0))) + 1
    if classes < 2 or np.bincount(labels_real, minlength=classes).min() < 2:
        raise UserError("classes have edges where there are two of at least two images each")
    means = np.stack([features_real[labels_real == c].mean(axis=0) for c in range(classes)])
    columns = np.empty((4, len(features)))
    for label in np.unique(labels):
        chosen, real = labels == label, features_real[labels_real == label]
        others, own = np.delete(means, label, axis=0).mean(axis=0), 1 / len(real)
        alike = float64.agree(real - means[label], real) or float64.agree(
            means[label] - others, features_real
        )
        real_places = _places(real, means[label], others, own)
        places = _places(features[chosen], means[label], others, own if members else 0.0)
        for row, (place, of_real) in enumerate(zip(places, real_places, strict=True)):
            # A real image is not farther out than itself, whatever the rounding.
            edge = np.quantile(of_real, EDGE)
            if alike or not (np.isfinite(edge) and edge != 0):
                raise UserError(f"features of class {label} have no edge: too many are the same")
            inner = np.searchsorted(np.sort(of_real), place - 1e-9 * np.abs(place))
            columns[2 * row, chosen] = inner / len(of_real)
            columns[2 * row + 1, chosen] = place / edge
    return Outsideness(*columns)


def _places(
    features: np.ndarray, mean: np.ndarray, others: np.ndarray, own: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns distances to a class's mean, and coordinates from the other classes (0) to it (1).

    Args:
        others: The mean of the other classes' means.
        own: The share of each image in the mean, which is left out.
    """
    means = (mean[None] - own * features) / (1 - own)
    ways = means - others[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        along = np.sum((features - others[None]) * ways, axis=-1) / np.sum(ways**2, axis=-1)
    return np.linalg.norm(features - means, axis=-1), along
