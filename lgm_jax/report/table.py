"""The table of accuracies for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lgm_jax.report.vocabulary import TITLES

# What probes with a teacher do, by their key in `taught` of `results.json`.
TAUGHT: Mapping[str, str] = {"kd": "knowledge distillation", "ci": "classifier inheritance"}


def title_taught(targets: str, probes: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the title of the accuracies of probes with a teacher, which says what these know.

    Args:
        targets: What they learn, a key of `TAUGHT`.
        probes: Their entries, by evaluation backbone and method.
    """
    teacher = next(entry["teacher"] for entries in probes.values() for entry in entries.values())
    return f"{TAUGHT[targets]} ({targets}) from the head on all real images of {teacher}"


def format_table(results: Mapping[str, Any]) -> str:
    """Returns the top-1 accuracies of `results.json`, a column per evaluation backbone.

    Those of probes with a teacher, which know all real images, stand in tables of their own.
    """
    probes = results["probe"]
    if not probes:
        return "no probes were trained"
    tables = [_format_probes(probes, results["ipc"])]
    for targets, taught in results.get("taught", {}).items():
        title = title_taught(targets, taught)
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
