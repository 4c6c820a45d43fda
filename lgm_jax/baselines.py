"""Which real images stand in for a class: the baselines that distilled images are held against."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


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
