"""Which real images stand in for a class: the baselines that distilled images are held against."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

# Random images, those nearest to class means, those nearest to distilled ones, and all.
METHODS = ("random", "centroids", "neighbors", "full")


def random(
    labels: Int[np.ndarray, " n"], ipc: int, num_classes: int, runs: int, seed: int
) -> Int[np.ndarray, "runs images"]:
    """Draws `ipc` images of each class without replacement, anew for each run.

    Args:
        labels: Labels of the training images.
        ipc: Images per class.
        num_classes: Number of classes `k`.
        runs: Independent draws.
        seed: Random seed.

    Returns:
        Indices of training images, class by class.

    Raises:
        ValueError: If a class has fewer than `ipc` images.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    if min(map(len, members)) < ipc:
        raise ValueError(f"a class has fewer than {ipc} images")
    return np.stack(
        [
            np.concatenate([rng.choice(indices, ipc, replace=False) for indices in members])
            for _ in range(runs)
        ]
    )


def centroids(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], ipc: int, num_classes: int
) -> Int[np.ndarray, " images"]:
    """The `ipc` images of each class nearest to the mean of its features, in L2 distance.

    Args:
        features: Features of the training images.
        labels: Their labels.
        ipc: Images per class.
        num_classes: Number of classes `k`.

    Returns:
        Indices of training images, class by class.
    """
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        distances = np.linalg.norm(features[members] - features[members].mean(axis=0), axis=-1)
        chosen.append(members[np.argsort(distances, kind="stable")[:ipc]])
    return np.concatenate(chosen)


def neighbors(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    features_syn: Float[np.ndarray, "s d"],
    labels_syn: Int[np.ndarray, " s"],
) -> Int[np.ndarray, " s"]:
    """The real image of the same class nearest to each synthetic one, by cosine of features.

    Args:
        features: Features of the training images.
        labels: Their labels.
        features_syn: Features of the synthetic images.
        labels_syn: Their labels.

    Returns:
        Indices of training images, one per synthetic image.
    """
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    unit_syn = features_syn / np.linalg.norm(features_syn, axis=-1, keepdims=True)
    cosines = np.where(labels_syn[:, None] == labels[None, :], unit_syn @ unit.T, -np.inf)
    return np.argmax(cosines, axis=-1)
