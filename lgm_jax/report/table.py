"""The accuracy table of a run, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The rows, as the terminal and a shared set's card call them, in their order.
TITLES: Mapping[str, str] = {
    "distilled": "distilled",
    "centroids": "real nearest to class mean",
    "neighbors": "real nearest to distilled",
    "random": "random real",
    "full": "full training set",
}


def format_table(results: Mapping[str, Any]) -> str:
    """Top-1 accuracy of every probe of `results.json`, a column per evaluation backbone."""
    probes = results["probe"]
    if not probes:
        return "no probes were trained"
    backbones = list(probes)
    methods = list(dict.fromkeys(method for entries in probes.values() for method in entries))
    few = f", {results['ipc']} per class"
    splits = {entry["split"] for entries in probes.values() for entry in entries.values()}
    single = any(e["top1_std"] is None for entries in probes.values() for e in entries.values())
    rows = [[f"top-1 % on {' and '.join(sorted(splits))} (mean ± std)", *backbones]]
    for method in methods:
        cells = [_cell(probes[backbone].get(method)) for backbone in backbones]
        rows.append([TITLES[method] + (few if method != "full" else ""), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    note = ["± -: one run, so no spread was measured"] if single else []
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *note])


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    # A spread that was not measured is no spread of zero.
    std = "-" if entry["top1_std"] is None else f"{entry['top1_std']:.1f}"
    return f"{entry['top1_mean']:.1f} ± {std:>3}"
