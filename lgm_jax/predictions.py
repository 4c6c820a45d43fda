"""The classes that probes name for the test images, and what follows: by class, and by pairs.

`predictions.npz` in a run folder has an array (runs, n) for each probe, `BACKBONE/METHOD`, or
`BACKBONE/TARGETS/METHOD` with a teacher, and the right classes (n,) of each split, `labels/SPLIT`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from lgm_jax import files

Named = Int[np.ndarray, "runs n"]


def add(
    path: epath.Path,
    backbone: str,
    method: str,
    named: Named,
    split: str,
    labels: Int[np.ndarray, " n"],
) -> None:
    """Adds the classes that a row's probes name, -1 for none, to the file, or replaces them."""
    arrays = load(path)
    arrays |= {f"{backbone}/{method}": named, f"labels/{split}": labels}
    small = {
        # Signed, where no class at all is named too.
        key: value.astype(np.min_scalar_type(-1 - max(0, int(value.max()))))
        for key, value in arrays.items()
    }
    files.write_arrays(path, small, compressed=True)


def describe(
    path: epath.Path,
    entries: Mapping[str, Mapping[str, Any]],
    backbone: str,
    labels: Int[np.ndarray, " n"],
    num_classes: int,
) -> dict[str, dict[str, Any]]:
    """Returns accuracies by class of some rows of results, and tests of their differences.

    Predictions whose accuracies are not those of a row belong to other probes, and are left out.

    Args:
        path: The file of predictions; rows without any, as of earlier versions, have no accuracies
            by class.
        entries: The rows of one evaluation backbone, by method.

    Returns:
        By method, `per_class`, the top-1 accuracy of each class in percent; `confusion`, for
        distilled and for all real images; and `against`, by the method of each later row, its test
        against that row. `None` where there are no predictions.
    """
    arrays = load(path)
    found = {}
    for method, entry in entries.items():
        named = arrays.get(f"{backbone}/{method}")
        if named is not None and named.shape[1:] == labels.shape:
            runs = 100 * (named == labels[None, :]).mean(axis=1)
            if len(runs) == len(entry["top1_runs"]) and np.allclose(
                runs, entry["top1_runs"], atol=1e-3
            ):
                found[method] = named.astype(np.int64)
    correct = {method: named == labels[None, :] for method, named in found.items()}
    rows: dict[str, dict[str, Any]] = {}
    for number, method in enumerate(entries):
        rows[method] = {"per_class": None, "confusion": None, "against": None}
        if method not in found:
            continue
        rows[method]["per_class"] = by_class(found[method], labels, num_classes)
        # With a thousand classes it has many entries.
        if method in ("distilled", "full"):
            rows[method]["confusion"] = confusion(found[method], labels)
        rows[method]["against"] = {
            other: compare(correct[method], correct[other])
            for other in list(entries)[number + 1 :]
            if other in found
        }
    return rows


def by_class(named: Named, labels: Int[np.ndarray, " n"], num_classes: int) -> list[float | None]:
    """Returns the top-1 accuracy of each class, in percent; `None` for one without images."""
    counts = np.bincount(labels, minlength=num_classes)
    right = (named == labels[None, :]).mean(axis=0)
    hits = np.bincount(labels, weights=right, minlength=num_classes)
    return [
        round(100 * hit / count, 3) if count else None
        for hit, count in zip(hits.tolist(), counts.tolist(), strict=True)
    ]


def confusion(named: Named, labels: Int[np.ndarray, " n"]) -> dict[str, list[Any]]:
    """Returns the entries of the confusion matrix that are not zero.

    Returns:
        Columns `class` and `named`, indices of classes (-1 for images that no class was named for),
        and `images`, the mean number over runs.
    """
    pairs = np.stack([np.broadcast_to(labels, named.shape), named], axis=-1).reshape(-1, 2)
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    return {
        "class": unique[:, 0].tolist(),
        "named": unique[:, 1].tolist(),
        "images": [round(count / len(named), 2) for count in counts.tolist()],
    }


def compare(a: Bool[np.ndarray, "runs n"], b: Bool[np.ndarray, "other n"]) -> dict[str, float]:
    """Tests whether two rows differ in accuracy, on the same test images.

    With one probe each this is McNemar's test, z² = (a not b - b not a)² / (a not b + b not a).
    Otherwise an image counts by its mean over runs, and the spread of the runs is added.

    Args:
        a: Whether each image is named rightly, by run.
        b: The same for the other row, whose number of runs may differ.

    Returns:
        `difference` and its `standard_error` in points, and the two-sided `p` of no difference.

    Source: Q. McNemar, Psychometrika 12, 1947.
    """
    each = a.mean(axis=0) - b.mean(axis=0)
    variance = float(np.sum(each**2)) / len(each) ** 2
    for runs in (a, b):
        if len(runs) > 1:
            variance += float(np.var(runs.mean(axis=1), ddof=1)) / len(runs)
    difference, error = float(each.mean()), math.sqrt(variance)
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error else 1.0
    return {
        "difference": round(100 * difference, 4),
        "standard_error": round(100 * error, 4),
        "p": float(f"{p:.3g}"),
    }


def load(path: epath.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of the file; none if there is no file."""
    advice = "delete it; probes then have no accuracies by class, until they are trained anew"
    return files.read_arrays(path, advice) if path.exists() else {}
