"""Baselines of distilled images: choices of real images for each class."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lgm_jax.analysis import float64

# Random, typical, look-alike and all real images.
METHODS = ("random", "centroids", "neighbors", "full")

# Images on either side of a table of cosines, which takes 32 MB.
_BLOCK = 2048


def random(
    labels: Int[np.ndarray, " n"], ipc: int, num_classes: int, runs: int, seed: int
) -> Int[np.ndarray, "runs images"]:
    """Draws `ipc` images of each class without replacement, anew for each run.

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
    """Returns the `ipc` images of each class nearest to the mean of its features, in L2 distance.

    Returns:
        Indices of training images, class by class.
    """
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
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

    Of equally near ones, the first. Classes are searched one by one and in blocks, so that memory
    does not grow with the number of pairs.

    Returns:
        Indices of training images, one per synthetic image.

    Raises:
        ValueError: If a synthetic image is of a class without training images.
    """
    order = np.argsort(labels, kind="stable")
    sorted_labels = labels[order]
    nearest = np.empty(len(labels_syn), np.int64)
    for label in np.unique(labels_syn):
        first, last = np.searchsorted(sorted_labels, [label, label + 1])
        if first == last:
            raise ValueError(f"class {label} has no training images")
        members, chosen = order[first:last], np.flatnonzero(labels_syn == label)
        for start in range(0, len(chosen), _BLOCK):
            part = chosen[start : start + _BLOCK]
            nearest[part] = members[_most_alike(features, members, features_syn[part])]
    return nearest


def _most_alike(
    features: Float[np.ndarray, "n d"],
    members: Int[np.ndarray, " m"],
    features_syn: Float[np.ndarray, "s d"],
) -> Int[np.ndarray, " s"]:
    """Returns the places in `members` of the rows of highest cosine, the first of equal ones."""
    best = np.full(len(features_syn), -np.inf, np.float32)
    places = np.zeros(len(features_syn), np.int64)
    unit_syn, rows = float64.unit(features_syn), np.arange(len(features_syn))
    for start in range(0, len(members), _BLOCK):
        unit = float64.unit(features[members[start : start + _BLOCK]])
        # Rounded, so that equal rows tie, whatever the order in which their products are added.
        cosines = (unit_syn @ unit.T).astype(np.float32)
        place = np.argmax(cosines, axis=-1)
        nearer = cosines[rows, place] > best
        best[nearer] = cosines[rows, place][nearer]
        places[nearer] = start + place[nearer]
    return places
