"""Accuracies of classifiers, by evaluation backbone and by group: charts, and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lgm_jax.report import charts
from lgm_jax.report.judge import contradicts, gap
from lgm_jax.report.view import RunView
from lgm_jax.report.vocabulary import TITLES

# What probes with a teacher do, by their key in `taught` of `results.json`.
_TAUGHT = {"kd": "knowledge distillation", "ci": "classifier inheritance"}


def describe_accuracies(run: RunView) -> list[dict[str, Any]]:
    """Returns dots with error bars for each evaluation backbone, in percent of their axis' width.

    Those that the images were made for come first.
    """
    every = [_span(entry) for entries in run.probes.values() for entry in entries.values()]
    if not every:
        return []
    guess = 100 / run.num_classes
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
            **_describe_backbone(entries, at, run.num_test),
            "backbone": name,
            "mine": name in run.backbones,
            "ticks": [(charts.number(tick), at(tick)) for tick in ticks],
            "guess": at(guess) if low <= guess <= high else None,
        }
        for name, entries in run.probes.items()
    ]


def _span(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the ends of an error bar."""
    mean, std = entry["top1_mean"], entry["top1_std"] or 0.0
    return max(0.0, mean - std), min(100.0, mean + std)


def _describe_backbone(
    entries: Mapping[str, Any], at: Callable[[float], float], num_test: int | None
) -> dict[str, Any]:
    """Returns rows of one evaluation backbone; `at` places an accuracy on the axis."""
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
                "low": at(_span(entries[method])[0]),
                "high": at(_span(entries[method])[1]),
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
    with_groups = {
        title: entries[method]
        for method, title in TITLES.items()
        if method in entries and entries[method].get("groups")
    }
    if not with_groups:
        return None
    names = list(dict.fromkeys(name for entry in with_groups.values() for name in entry["groups"]))
    rows = {
        title: [*(entry["groups"].get(name) for name in names), entry.get("worst_group")]
        for title, entry in with_groups.items()
    }
    title = f"Accuracy in percent, on {backbone}"
    return {"title": title, "names": [*names, "worst group"], "rows": rows}


def describe_taught(
    taught: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """Returns accuracies of the classifiers with a teacher, a table for each way of teaching.

    Args:
        taught: `taught` of `results.json`.
    """
    tables = []
    for targets, probes in taught.items():
        if targets not in _TAUGHT or not any(probes.values()):
            continue
        rows = {
            title: [entries.get(method, {}).get("top1_mean") for entries in probes.values()]
            for method, title in TITLES.items()
            if any(method in entries for entries in probes.values())
        }
        title = _title_taught(targets, probes)
        title = f"{title[0].upper()}{title[1:]}: accuracy in percent"
        tables.append({"title": title, "names": list(probes), "rows": rows})
    return tables


def _title_taught(targets: str, probes: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the title of the accuracies of probes that learn from a teacher, by its targets."""
    teacher = next(entry["teacher"] for entries in probes.values() for entry in entries.values())
    return f"{_TAUGHT[targets]} ({targets}) from the head on all real images of {teacher}"


def format_table(results: Mapping[str, Any]) -> str:
    """Returns the top-1 accuracies of `results.json`, a column per evaluation backbone.

    Those of probes with a teacher, which know all real images, stand in tables of their own.
    """
    probes = results["probe"]
    if not probes:
        return "no probes were trained"
    tables = [_format_probes(probes, results["ipc"])]
    for targets, taught in results.get("taught", {}).items():
        title = _title_taught(targets, taught)
        tables.append(f"{title}:\n{_format_probes(taught, results['ipc'])}")
    return "\n\n".join(tables)


def _format_probes(probes: Mapping[str, Mapping[str, Any]], ipc: int) -> str:
    every = [entry for entries in probes.values() for entry in entries.values()]
    splits = " and ".join(sorted({entry["split"] for entry in every}))
    rows = [[f"top-1 % on {splits} (mean ± std)", *probes]]
    for method in dict.fromkeys(method for entries in probes.values() for method in entries):
        few = f", {ipc} per class" if method != "full" else ""
        cells = [_format_cell(entries.get(method)) for entries in probes.values()]
        rows.append([TITLES[method] + few, *cells])
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        "  ".join([title.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
        for title, *cells in rows
    ]
    single = any(entry["top1_std"] is None for entry in every)
    note = ["± -: one run, so no spread was measured"] if single else []
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *note])


def _format_cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    # A spread that was not measured is no spread of zero.
    std = "-" if entry["top1_std"] is None else f"{entry['top1_std']:.1f}"
    return f"{entry['top1_mean']:.1f} ± {std:>3}"
