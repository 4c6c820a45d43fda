"""Several runs on one page: the same classes side by side, accuracies, losses."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from etils import epath

from lgm_jax import files, paths, runs
from lgm_jax.errors import UserError
from lgm_jax.report import words
from lgm_jax.report.judge import judge
from lgm_jax.report.losses import describe_losses
from lgm_jax.report.place import Beside, Embedded, Place
from lgm_jax.report.template import render
from lgm_jax.report.view import RunView, first_pictures, match_classes
from lgm_jax.report.words import TITLES

# Pictures that one file holds, and their bytes.
_MOST_PICTURES, _BUDGET = 400, 7_000_000

# Of a page that is not one file, each run's pictures lie in a folder: this and a number.
_FOLDERS = "run"


def write_comparison(views: Sequence[RunView], out: epath.PathLike) -> epath.Path:
    """Writes a page that sets runs side by side.

    It is one file, unless there are many pictures: these then lie beside it, in a folder named
    after the page (`compare_pictures` for `compare.html`), and load when they are scrolled to.

    Args:
        views: At least two runs of the same classes.
        out: The page to write; `~` is expanded. Pictures of an earlier one of its name are removed.

    Raises:
        UserError: If the page is no HTML file or would lie in a run's folder, if classes differ,
            or if a run has no distilled images yet.
    """
    labels = [match_classes(views[0], view) for view in views]
    page, folder = _check_page(out)
    sizes = [
        len(file)
        for view in views
        if view.gallery
        for file in first_pictures(view.gallery).values()
    ]
    many = len(sizes) > _MOST_PICTURES or sum(sizes) > _BUDGET
    place: Place = Beside(folder) if many else Embedded()
    page.parent.mkdir(parents=True, exist_ok=True)
    _remove_pictures(folder)
    with files.replacing(page) as temporary:
        content = render("compare.html", describe_comparison(views, labels, place))
        files.write_text(temporary, content)
    return page


def describe_comparison(
    views: Sequence[RunView], labels: Sequence[Sequence[int]], place: Place
) -> dict[str, Any]:
    """All that the template of a comparison shows.

    Args:
        views: The runs.
        labels: For each run, the labels that it gives the classes of the first.
        place: Where pictures go.
    """
    first = views[0].gallery
    names = list(first.class_names) if first else []
    titles = name_runs(views)
    firsts = [first_pictures(view.gallery) if view.gallery else {} for view in views]
    rows = []
    for label, name in enumerate(names):
        cells = []
        for number, (found, mapped) in enumerate(zip(firsts, labels, strict=True)):
            picture = found.get(mapped[label])
            cells.append(place.put(f"{_FOLDERS}{number}", label, picture) if picture else None)
        rows.append({"name": name, "label": label, "cells": cells})
    shown = _names_of_backbones(titles, views)
    probes = [
        {
            names.get(name, name): found
            for name, found in (view.results or {}).get("probe", {}).items()
        }
        for names, view in zip(shown, views, strict=True)
    ]
    own = [
        {names.get(name, name) for name in view.backbones}
        for names, view in zip(shown, views, strict=True)
    ]
    data = {view.config.get("data", {}).get("fingerprint") for view in views}
    return {
        "title": f"{len(views)} runs compared",
        "runs": [
            {
                "title": title,
                "about": describe_run(view, title),
                "ipc": (view.results or view.settings).get("ipc"),
            }
            for title, view in zip(titles, views, strict=True)
        ],
        "dataset": views[0].config.get("data", {}).get("name", ""),
        "rows": rows,
        "table": describe_table(titles, probes),
        "heat": describe_heat(titles, own, probes),
        "loss": describe_losses(
            [(title, view.losses) for title, view in zip(titles, views, strict=True)]
        ),
        "about": {name: words.about_backbone(name) for entries in probes for name in entries},
        "words": words.glossary(
            [method for entries in probes for found in entries.values() for method in found],
            None,
            has_loss=any(view.losses for view in views),
        ),
        "num_test": num_test(views) if len(data) == 1 else None,
        "findings": [
            finding._replace(text=f"{title}: {finding.text}")
            for title, view in zip(titles, views, strict=True)
            for finding in judge(view.results or {}, num_test([view]))
        ],
        "same_data": len(data) == 1,
        "all_made": all(view.backbones for view in views),
        "lazy": place.lazy,
    }


def describe_run(view: RunView, title: str) -> str:
    """What made a run's images, and its folder, unless its title has that."""
    made = view.results or view.settings
    objective, steps = made.get("objective"), made.get("steps")
    parts = [objective, f"{steps:,} steps" if steps is not None else None]
    return ", ".join(filter(None, [*parts, view.name if view.name not in title else None]))


def num_test(views: Sequence[RunView]) -> int | None:
    """Images that accuracies were measured on, if it is known and the same for all runs."""
    counts = {
        view.config.get("data", {}).get("counts", {}).get(entry["split"], {}).get("images")
        for view in views
        for entries in (view.results or {}).get("probe", {}).values()
        for entry in entries.values()
    }
    return counts.pop() if len(counts) == 1 else None


def name_runs(views: Sequence[RunView]) -> list[str]:
    """A title for each run; folders tell apart those that would share one.

    Of a folder, so many of the last parts are given as it takes, and a number if it is named twice.
    """
    titles = [view.title for view in views]
    named = titles
    for depth in range(1, 1 + max(len(view.path.parts) for view in views)):
        if len(set(named)) == len(named):
            return named
        folders = ["/".join(view.path.parts[-depth:]) for view in views]
        named = [
            title if titles.count(title) == 1 else f"{title} ({folder})"
            for title, folder in zip(titles, folders, strict=True)
        ]
    return [
        f"{name}, {number}" if named.count(name) > 1 else name
        for number, name in enumerate(named, 1)
    ]


def _names_of_backbones(titles: Sequence[str], views: Sequence[RunView]) -> list[dict[str, str]]:
    """For each run, what its evaluation backbones are called beside those of the others.

    One that is another in another run, with other weights or settings, is followed by its run.
    """
    kinds: dict[str, set[str]] = {}
    for view in views:
        for name, fingerprint in view.fingerprints.items():
            kinds.setdefault(name, set()).add(fingerprint)
    return [
        {
            name: f"{name}, as in {title}" if len(kinds[name]) > 1 else name
            for name in view.fingerprints
        }
        for title, view in zip(titles, views, strict=True)
    ]


def describe_table(titles: Sequence[str], probes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By evaluation backbone, a row per method with an entry of each run."""
    tables = []
    for backbone in dict.fromkeys(name for entries in probes for name in entries):
        rows = []
        for method, title in TITLES.items():
            entries = [found.get(backbone, {}).get(method) for found in probes]
            if any(entries):
                rows.append({"title": title, "entries": entries})
        tables.append({"backbone": backbone, "titles": list(titles), "rows": rows})
    return tables


def describe_heat(
    titles: Sequence[str], own: Sequence[Collection[str]], probes: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """Accuracy of each run's distilled images on each evaluation backbone, if there are several.

    A colour stands for the rank within its column's range, for what is possible differs between
    backbones.
    """
    columns = list(dict.fromkeys(name for entries in probes for name in entries))
    values = [
        [found.get(name, {}).get("distilled", {}).get("top1_mean") for name in columns]
        for found in probes
    ]
    known = [value for row in values for value in row if value is not None]
    if len(columns) < 2 or not known:
        return None
    rows = []
    for title, mine, row in zip(titles, own, values, strict=True):
        cells = []
        for number, (name, value) in enumerate(zip(columns, row, strict=True)):
            column = [other[number] for other in values if other[number] is not None]
            span = max(column) - min(column) if column else 0
            part = None if value is None else ((value - min(column)) / span if span else 1.0)
            cells.append({"value": value, "part": part, "mine": name in mine})
        rows.append({"title": title, "cells": cells})
    return {"columns": columns, "rows": rows}


def _check_page(out: epath.PathLike) -> tuple[epath.Path, epath.Path]:
    """The page to write, and the folder of its pictures; neither is a run's."""
    page = paths.locate(out)
    if page.suffix != ".html":
        raise UserError(f"--out={out} is no HTML file: name one, for example compare.html")
    folder = page.with_name(f"{page.stem}_pictures")
    if page.is_dir():
        raise UserError(f"--out={out} is a folder: name a file")
    for place in (folder, *page.resolve().parents):
        if runs.is_run(place):
            raise UserError(f"--out={out} would write into the run {place}: name a file elsewhere")
    return page, folder


def _remove_pictures(folder: epath.Path) -> None:
    """Removes what an earlier comparison of the same name has written, and no more."""
    for found in list(folder.iterdir()) if folder.is_dir() else []:
        if re.fullmatch(rf"{_FOLDERS}\d+", found.name) and found.is_dir():
            found.rmtree()
