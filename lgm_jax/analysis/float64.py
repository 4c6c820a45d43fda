"""Features in float64: normalisation, rounding, and tables in parts."""

from __future__ import annotations

import numpy as np

# Numbers in a part of a table of similarities, which bound memory and change no result.
TABLE = 2**23


def unit(features: np.ndarray) -> np.ndarray:
    """Returns features of length 1 in float64; features of zero stay."""
    features = np.asarray(features, np.float64)
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def agree(differences: np.ndarray, features: np.ndarray) -> bool:
    """Returns whether differences of features from their mean are rounding errors of the mean."""
    rounding = len(features) * np.finfo(np.float64).eps
    return bool(np.abs(differences).max() <= rounding * np.abs(features).max())


def parts(rows: int, columns: int) -> list[slice]:
    """Splits the rows of a table into parts of little memory."""
    step = max(1, TABLE // columns)
    return [slice(start, start + step) for start in range(0, rows, step)]
