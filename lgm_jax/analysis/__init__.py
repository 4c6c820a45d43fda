"""Analyses of backbones, classes and distilled images, as pure functions of features.

Dimension letters: `n` real images, `s` others, `d` and `e` features of two backbones, `k` classes,
`m` backbones. Functions without gradients are NumPy in float64, whatever the features' dtype, since
small differences of sums over many images matter. Features of zero have a cosine of zero with all
others.
"""

from lgm_jax.analysis.alignment import (
    Correlation,
    correlate_pairs,
    linear_cka,
    nearest_accuracy,
    nearest_others,
    normalized_transfer,
    shared_neighbors,
)
from lgm_jax.analysis.geometry import EDGE, PCA, Outsideness, fit_pca, outsideness
from lgm_jax.analysis.optima import ClassMeansShare, class_means_share, optimal_features

__all__ = [
    "EDGE",
    "PCA",
    "ClassMeansShare",
    "Correlation",
    "Outsideness",
    "class_means_share",
    "correlate_pairs",
    "fit_pca",
    "linear_cka",
    "nearest_accuracy",
    "nearest_others",
    "normalized_transfer",
    "optimal_features",
    "outsideness",
    "shared_neighbors",
]
