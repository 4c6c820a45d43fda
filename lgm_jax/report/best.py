"""The best of several runs, and whether it is better than the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lgm_jax import predictions, runs
from lgm_jax.report.judge import judge, standard_error
from lgm_jax.report.view import RunView


def describe_best(
    titles: Sequence[str], views: Sequence[RunView], probes: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Returns the run with the best distilled images, on the model that most runs share.

    `None` where no model is shared by two runs that are not at fault.

    Args:
        titles: Titles of the runs.
        views: The runs.
        probes: By evaluation backbone, the rows of each run.
    """
    sound = [number for number, view in enumerate(views) if not judge(view.results, view.num_test)]
    counts = Counter(
        name for i in sound for name, entries in probes[i].items() if "distilled" in entries
    )
    shared = [name for name, count in counts.items() if count > 1]
    if not shared:
        return None
    backbone = max(shared, key=lambda name: counts[name])
    entries = {i: probes[i][backbone]["distilled"] for i in sound if backbone in probes[i]}
    entries = {i: entry for i, entry in entries.items() if entry}
    first, second = sorted(entries, key=lambda i: -entries[i]["top1_mean"])[:2]
    difference = entries[first]["top1_mean"] - entries[second]["top1_mean"]
    error = _error(
        [views[i] for i in (first, second)], [entries[i] for i in (first, second)], backbone
    )
    return {
        "title": titles[first],
        "next": titles[second],
        "backbone": backbone,
        "mean": entries[first]["top1_mean"],
        "difference": difference,
        "unsure": error is not None and difference <= 2 * error,
    }


def _error(
    views: Sequence[RunView], entries: Sequence[Mapping[str, Any]], backbone: str
) -> float | None:
    """Returns the standard error of the difference of two runs, in points.

    Of a paired test, if both have predictions for the same test images; `None` where nothing is
    known of these.
    """
    split = f"labels/{entries[0]['split']}"
    key = f"{backbone}/distilled"
    stored = [predictions.load(view.path / runs.PREDICTIONS) for view in views]
    if all({split, key} <= set(arrays) for arrays in stored):
        labels = [arrays[split] for arrays in stored]
        if (
            np.array_equal(labels[0], labels[1])
            and len({v.data.get("fingerprint") for v in views}) == 1
        ):
            right = [arrays[key] == labels[0][None, :] for arrays in stored]
            return predictions.compare(right[0], right[1])["standard_error"]
    images = views[0].num_test
    return standard_error(entries, images) if images else None
