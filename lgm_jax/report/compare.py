"""The comparison of runs on one page: the same classes side by side, accuracies, losses."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from etils import epath

from lgm_jax import files, paths, runs
from lgm_jax.errors import UserError
from lgm_jax.names import join
from lgm_jax.report import best, words
from lgm_jax.report.judge import judge
from lgm_jax.report.losses import describe_losses
from lgm_jax.report.place import Beside, Embedded, Place
from lgm_jax.report.template import render
from lgm_jax.report.view import RunView, first_pictures, match_classes
from lgm_jax.report.vocabulary import TITLES

# Pictures that one file holds at most, and their bytes.
MOST_PICTURES, _BUDGET = 400, 7_000_000

# Where the page is not one file, each run's pictures lie in a folder of this name and a number.
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
    many = len(sizes) > MOST_PICTURES or sum(sizes) > _BUDGET
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
    """Returns all that the template of a comparison shows.

    Args:
        views: The runs.
        labels: For each run, the labels that it gives the classes of the first.
        place: The place of pictures.
    """
    titles = name_runs(views)
    shown = _names_of_backbones(titles, views)
    probes = [
        {names.get(name, name): entries for name, entries in view.results.get("probe", {}).items()}
        for names, view in zip(shown, views, strict=True)
    ]
    own = [
        {names.get(name, name) for name in view.backbones}
        for names, view in zip(shown, views, strict=True)
    ]
    same_data = len({view.data.get("fingerprint") for view in views}) == 1
    tested = {view.num_test for view in views if view.probes}
    return {
        "title": f"{len(views)} runs compared",
        "runs": [
            {
                "title": title,
                "about": _describe_run(view, title),
                "ipc": view.recorded.get("ipc"),
            }
            for title, view in zip(titles, views, strict=True)
        ],
        "dataset": views[0].data.get("name", ""),
        "rows": _describe_classes(views, labels, place),
        "table": _describe_table(titles, probes),
        "heat": _describe_heat(titles, own, probes),
        "losses": _describe_losses(titles, views),
        "best": best.describe_best(titles, views, probes),
        "differ": _describe_differences(views),
        "about": {name: words.about_backbone(name) for entries in probes for name in entries},
        "words": words.glossary(
            [method for entries in probes for rows in entries.values() for method in rows],
            None,
            has_loss=any(view.losses for view in views),
        ),
        "num_test": tested.pop() if same_data and len(tested) == 1 else None,
        "findings": [
            finding._replace(text=f"{title}: {finding.text}")
            for title, view in zip(titles, views, strict=True)
            for finding in judge(view.results, view.num_test)
        ],
        "same_data": same_data,
        "all_made": all(view.backbones for view in views),
        "lazy": place.lazy,
    }


def _describe_classes(
    views: Sequence[RunView], labels: Sequence[Sequence[int]], place: Place
) -> list[dict[str, Any]]:
    """Returns a row for each class: a typical real picture, and the first of every run."""
    firsts = [first_pictures(view.gallery) if view.gallery else {} for view in views]
    gallery = views[0].gallery
    typical = first_pictures(gallery, "centroids") if gallery else {}
    rows = []
    for label, name in enumerate(views[0].gallery.class_names if views[0].gallery else ()):
        cells = []
        for number, (pictures, own) in enumerate(zip(firsts, labels, strict=True)):
            picture = pictures.get(own[label])
            cells.append(place.put(f"{_FOLDERS}{number}", label, picture) if picture else None)
        real = place.put(f"{_FOLDERS}{len(views)}", label, typical[label]) if typical else None
        rows.append({"name": name, "label": label, "cells": cells, "typical": real})
    return rows


def _describe_run(view: RunView, title: str) -> str:
    """Returns objective, steps, and the folder where the title does not have it."""
    objective, steps = (view.recorded.get(name) for name in ("objective", "steps"))
    parts = [objective, f"{steps:,} steps" if steps is not None else None]
    return ", ".join(filter(None, [*parts, view.name if view.name not in title else None]))


def _describe_losses(
    titles: Sequence[str], views: Sequence[RunView]
) -> list[tuple[str, dict[str, Any]]]:
    """Returns curves by objective: losses of different ones are not on one scale."""
    groups: dict[str, list[tuple[str, Sequence[tuple[int, float]]]]] = {}
    for title, view in zip(titles, views, strict=True):
        groups.setdefault(str(view.recorded.get("objective") or "none"), []).append(
            (title, view.losses)
        )
    described = ((name, describe_losses(curves)) for name, curves in groups.items())
    return [(name, loss) for name, loss in described if loss is not None]


def _describe_differences(views: Sequence[RunView]) -> list[str]:
    """Returns in what the runs differ that makes accuracies unlike, as parts of a sentence."""
    named = {"steps": "steps", "ipc": "images per class"}
    parts = []
    for key, what in named.items():
        values = [view.recorded.get(key) for view in views]
        if len(set(values)) > 1:
            shown = [f"{value:,}" if value is not None else "none" for value in values]
            parts.append(f"{join(shown)} {what}")
    return parts


def name_runs(views: Sequence[RunView]) -> list[str]:
    """Returns a title for each run, with as many of the last folders as tell them apart.

    A run that is named twice gets a number.
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
    """Returns, for each run, the names of its evaluation backbones beside those of the others.

    A name that stands for other weights or settings in another run is followed by its run.
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


def _describe_table(
    titles: Sequence[str], probes: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns, by evaluation backbone, a row per method with an entry for each run."""
    tables = []
    for backbone in dict.fromkeys(name for entries in probes for name in entries):
        rows = []
        for method, title in TITLES.items():
            entries = [probe.get(backbone, {}).get(method) for probe in probes]
            if any(entries):
                rows.append({"title": title, "entries": entries})
        tables.append({"backbone": backbone, "titles": list(titles), "rows": rows})
    return tables


def _describe_heat(
    titles: Sequence[str], own: Sequence[Collection[str]], probes: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """Returns accuracies of distilled images by run and evaluation backbone, if there are several.

    A colour stands for the place within its column's range: backbones differ in what is possible.
    """
    columns = list(dict.fromkeys(name for entries in probes for name in entries))
    values = [
        [probe.get(name, {}).get("distilled", {}).get("top1_mean") for name in columns]
        for probe in probes
    ]
    if len(columns) < 2 or all(value is None for row in values for value in row):
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
    """Returns the page to write and the folder of its pictures; refuses those within a run."""
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
    """Removes the pictures of an earlier comparison of the same name, and no more."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if re.fullmatch(rf"{_FOLDERS}\d+", path.name) and path.is_dir():
            path.rmtree()
