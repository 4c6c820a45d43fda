"""Baselines of distilled images: choices of real images for each class."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lgm_jax.analysis import float64

# Random, typical, look-alike and all real images.
METHODS = ("random", "centroids", "neighbors", "full")


def random(
    labels: Int[np.ndarray, " n"], ipc: int, num_classes: int, runs: int, seed: int
) -> Int[np.ndarray, "runs images"]:
    """Draws `ipc` images of each class without replacement, anew for each run.

    Returns:
        Indices of training images, class by class.

    Raises:
        ValueError: If a class has fewer than `ipc` images.
    """
    rng, members = np.random.default_rng(seed), _members(labels, ipc, num_classes)
    return np.stack(
        [
            np.concatenate([rng.choice(indices, ipc, replace=False) for indices in members])
            for _ in range(runs)
        ]
    )


def centroids(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], ipc: int, num_classes: int
) -> Int[np.ndarray, " images"]:
    """Returns the `ipc` images of each class nearest to the mean of its features, in L2 distance.

    Returns:
        Indices of training images, class by class.

    Raises:
        ValueError: If a class has fewer than `ipc` images.
    """
    chosen = []
    for members in _members(labels, ipc, num_classes):
        # In float64: a mean that all images share may be large beside the distances.
        rows = features[members].astype(np.float64)
        distances = np.linalg.norm(rows - rows.mean(axis=0), axis=-1)
        chosen.append(members[np.argsort(distances, kind="stable")[:ipc]])
    return np.concatenate(chosen)


def neighbors(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    features_syn: Float[np.ndarray, "s d"],
    labels_syn: Int[np.ndarray, " s"],
) -> Int[np.ndarray, " s"]:
    """Returns the real image of the same class nearest to each synthetic one, by cosine.

    Of equally near ones, the first.

    Returns:
        Indices of training images, one per synthetic image.

    Raises:
        ValueError: If a synthetic image is of a class without training images.
    """
    nearest = np.empty(len(labels_syn), np.int64)
    for label in np.unique(labels_syn):
        members, chosen = np.flatnonzero(labels == label), np.flatnonzero(labels_syn == label)
        if not len(members):
            raise ValueError(f"class {label} has no training images")
        unit = float64.unit(features[members])
        # A table and its rounded copy.
        for part in float64.parts(len(chosen), 2 * len(members)):
            rows = chosen[part]
            # Rounded, so that equal rows tie, whatever the order in which their products are added.
            cosines = (float64.unit(features_syn[rows]) @ unit.T).astype(np.float32)
            nearest[rows] = members[np.argmax(cosines, axis=-1)]
    return nearest


def _members(
    labels: Int[np.ndarray, " n"], ipc: int, num_classes: int
) -> list[Int[np.ndarray, " m"]]:
    """Returns the indices of each class's images, of which there must be `ipc`."""
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    if min(map(len, members)) < ipc:
        raise ValueError(f"a class has fewer than {ipc} images")
    return members
