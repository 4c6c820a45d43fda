"""Accuracies of classifiers by evaluation backbone and by group, and how they were trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lgm_jax.report import charts, words
from lgm_jax.report.judge import contradicts, gap
from lgm_jax.report.table import title_taught
from lgm_jax.report.vocabulary import TITLES


def describe_accuracies(
    probes: Mapping[str, Mapping[str, Any]],
    made_for: Sequence[str],
    num_classes: int,
    num_test: int | None = None,
) -> list[dict[str, Any]]:
    """Returns dots with error bars for each evaluation backbone, in percent of their axis' width.

    Args:
        probes: `probe` of `results.json`; backbones that images were made for come first.
        made_for: Names of these backbones.
        num_classes: Number of classes, from which the accuracy of guessing follows.
        num_test: Images that accuracies were measured on, if known.
    """
    if not probes:
        return []
    guess = words.guess(num_classes)
    spans = {
        name: {
            method: (
                max(0.0, entry["top1_mean"] - (entry["top1_std"] or 0.0)),
                min(100.0, entry["top1_mean"] + (entry["top1_std"] or 0.0)),
            )
            for method, entry in entries.items()
        }
        for name, entries in probes.items()
    }
    every = [span for methods in spans.values() for span in methods.values()]
    low, high = charts.percent_range([a for a, _ in every], [b for _, b in every], guess)

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    # Closer ones where one of three lies beyond an end.
    ticks = next(
        inside
        for about in (3, 4)
        if len(inside := [tick for tick in charts.ticks(low, high, about) if low <= tick <= high])
        > 2
    )
    return [
        {
            **_describe_backbone(entries, spans[name], at, num_test),
            "backbone": name,
            "mine": name in made_for,
            "ticks": [(charts.number(tick), at(tick)) for tick in ticks],
            "guess": at(guess) if low <= guess <= high else None,
        }
        for name, entries in probes.items()
    ]


def _describe_backbone(
    entries: Mapping[str, Any],
    spans: Mapping[str, tuple[float, float]],
    at: Callable[[float], float],
    num_test: int | None,
) -> dict[str, Any]:
    """Dots and error bars of one evaluation backbone.

    Args:
        entries: The backbone's entries in `results.json`, by method.
        spans: Ends of the error bars.
        at: Returns the place of an accuracy on the axis, in percent of its width.
        num_test: Images that accuracies were measured on, if known.
    """
    means = {method: entry["top1_mean"] for method, entry in entries.items()}
    has_share = {"distilled", "full"} <= set(means) and means["full"] > 0
    has_share = has_share and not contradicts(entries, num_test)
    return {
        "rows": [
            {
                "method": method,
                "title": title,
                "mean": means[method],
                "std": entries[method]["top1_std"],
                "at": at(means[method]),
                "low": at(spans[method][0]),
                "high": at(spans[method][1]),
            }
            for method, title in TITLES.items()
            if method in entries
        ],
        "means": means,
        "goal": at(means["full"]) if "full" in means else None,
        "gap": gap(entries, num_test),
        "share": 100 * means["distilled"] / means["full"] if has_share else None,
        "runs": max(len(entry["top1_runs"]) for entry in entries.values()),
        "split": next(iter(entries.values()))["split"],
        "training": describe_training(entries),
    }


def describe_training(entries: Mapping[str, Any]) -> str:
    """Says how the classifiers of an evaluation backbone were trained, in a sentence or two."""

    def describe(entry: Mapping[str, Any]) -> str:
        # Iterations of lbfgs end at a minimum: their number does not matter.
        epochs = "" if entry["solver"] == "lbfgs" else f", {entry['epochs']:,} epochs"
        return f"{entry['solver']}{epochs}, augmentation: {entry['augment']}."

    ways = {method: describe(entry) for method, entry in entries.items()}
    all_real = ways.pop("full", None)
    few = next(iter(ways.values()), all_real)
    more = f" The one on all real images: {all_real}" if all_real not in (None, few) else ""
    return f"Classifiers: {few}{more}"


def describe_groups(backbone: str, entries: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns accuracies by group, if the data has groups."""
    rows = [
        {
            "title": title,
            "groups": entries[method]["groups"],
            "worst": entries[method]["worst_group"],
        }
        for method, title in TITLES.items()
        if method in entries and entries[method].get("groups")
    ]
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row["groups"]))
    return {"backbone": backbone, "names": names, "rows": rows}


def describe_taught(
    taught: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """Returns accuracies of the classifiers with a teacher, a table for each way of teaching.

    Args:
        taught: `taught` of `results.json`.
    """
    tables = []
    for targets, probes in taught.items():
        methods = [m for m in TITLES if any(m in entries for entries in probes.values())]
        rows = [
            {
                "title": TITLES[method],
                "means": [entries.get(method, {}).get("top1_mean") for entries in probes.values()],
            }
            for method in methods
        ]
        title = title_taught(targets, probes)
        tables.append({"title": title[0].upper() + title[1:], "names": list(probes), "rows": rows})
    return tables
