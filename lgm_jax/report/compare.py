"""The comparison of runs on one page: the same classes side by side, accuracies, losses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lgm_jax import files, paths, predictions, runs
from lgm_jax.errors import UserError
from lgm_jax.names import join
from lgm_jax.report import words
from lgm_jax.report.charts import describe_losses
from lgm_jax.report.judge import judge, standard_error
from lgm_jax.report.pictures import Place
from lgm_jax.report.template import render
from lgm_jax.report.view import RunView, first_pictures, match_classes
from lgm_jax.report.vocabulary import SERIES, TITLES

# Pictures that one file holds at most, and their bytes.
MOST_PICTURES, _BUDGET = 400, 7_000_000

# Where the page is not one file, each run's pictures lie in a folder of this name and a number.
_FOLDERS = "run"


class Compared(NamedTuple):
    """A run beside others.

    Attributes:
        title: Its title, which no other has.
        view: The run.
        probes: Accuracies by evaluation backbone and method; a backbone with other weights or
            settings than in another run is named after the run, too.
        own: Names of the backbones that it distilled for, as in `probes`.
    """

    title: str
    view: RunView
    probes: Mapping[str, Mapping[str, Any]]
    own: Sequence[str]

    def mean(self, backbone: str) -> float | None:
        """Returns the accuracy of the distilled images on a backbone, if it was measured."""
        return self.probes.get(backbone, {}).get("distilled", {}).get("top1_mean")


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
    sizes = [len(file) for view in views for file in first_pictures(view.gallery).values()]
    many = len(sizes) > MOST_PICTURES or sum(sizes) > _BUDGET
    page.parent.mkdir(parents=True, exist_ok=True)
    # Those of an earlier comparison, and no more.
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if re.fullmatch(rf"{_FOLDERS}\d+", path.name) and path.is_dir():
            path.rmtree()
    with files.replacing(page) as temporary:
        content = describe_comparison(views, labels, Place(folder if many else None))
        files.write_text(temporary, render("compare.html", content))
    return page


def describe_comparison(
    views: Sequence[RunView], labels: Sequence[Sequence[int]], place: Place
) -> dict[str, Any]:
    """Returns all that the template of a comparison shows.

    Args:
        labels: For each run, the labels that it gives the classes of the first.
    """
    compared = name_runs(views)
    backbones = list(dict.fromkeys(name for run in compared for name in run.probes))
    methods = {method for run in compared for rows in run.probes.values() for method in rows}
    same_data = len({view.data.get("fingerprint") for view in views}) == 1
    tested = {view.num_test for view in views if view.probes}
    return {
        "title": f"{len(views)} runs compared",
        "runs": [
            {"title": run.title, "about": _describe_run(run), "ipc": run.view.recorded.get("ipc")}
            for run in compared
        ],
        "dataset": views[0].data.get("name", ""),
        "rows": _describe_classes(views, labels, place),
        "table": [_describe_table(compared, backbone) for backbone in backbones],
        "heat": _describe_heat(compared, backbones),
        "losses": _describe_losses(compared),
        "best": describe_best(compared),
        "differ": _describe_differences(views),
        "about": {name: words.about_backbone(name) for name in backbones},
        "words": words.glossary(methods, None, has_loss=any(view.losses for view in views)),
        "num_test": tested.pop() if same_data and len(tested) == 1 else None,
        "findings": _list_findings(compared),
        "same_data": same_data,
        "all_made": all(view.backbones for view in views),
        "lazy": place.folder is not None,
    }


def name_runs(views: Sequence[RunView]) -> list[Compared]:
    """Returns the runs with a title for each, and with names for backbones that tell them apart.

    A title has as many of the last folders as it takes. A run that is named twice gets a number.
    """
    plain = [view.title for view in views]
    titles = plain
    for depth in range(1, 1 + max(len(view.path.parts) for view in views)):
        if len(set(titles)) == len({view.path for view in views}):
            break
        titles = [
            title if plain.count(title) == 1 else f"{title} ({'/'.join(view.path.parts[-depth:])})"
            for title, view in zip(plain, views, strict=True)
        ]
    kinds: dict[str, set[str]] = {}
    for view in views:
        for name, fingerprint in view.fingerprints.items():
            kinds.setdefault(name, set()).add(fingerprint)
    compared = []
    for number, (title, view) in enumerate(zip(titles, views, strict=True), 1):
        unique = f"{title}, {number}" if titles.count(title) > 1 else title
        names = {
            name: f"{name}, as in {unique}" if len(kinds[name]) > 1 else name
            for name in view.fingerprints
        }
        probes = view.results.get("probe", {})
        probes = {names.get(name, name): entries for name, entries in probes.items()}
        own = [names.get(name, name) for name in view.backbones]
        compared.append(Compared(unique, view, probes, own))
    return compared


def _describe_run(run: Compared) -> str:
    """Returns objective, steps, and the folder where the title does not have it."""
    objective, steps = (run.view.recorded.get(name) for name in ("objective", "steps"))
    folder = run.view.name if run.view.name not in run.title else None
    counted = f"{steps:,} steps" if steps is not None else None
    return ", ".join(filter(None, [objective, counted, folder]))


def _describe_classes(
    views: Sequence[RunView], labels: Sequence[Sequence[int]], place: Place
) -> list[dict[str, Any]]:
    """Returns a row for each class: a typical real picture, and the first of every run."""
    gallery = views[0].gallery
    typical = first_pictures(gallery, "centroids")
    columns = [*(first_pictures(view.gallery) for view in views), typical]
    rows = []
    for label, name in enumerate(gallery.class_names if gallery else ()):
        of_runs = [*(own[label] for own in labels), label]
        cells = [
            place.put(f"{_FOLDERS}{number}", label, column[of_run]) if of_run in column else None
            for number, (column, of_run) in enumerate(zip(columns, of_runs, strict=True))
        ]
        rows.append({"name": name, "label": label, "cells": cells[:-1], "typical": cells[-1]})
    return rows


def _list_findings(compared: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Returns faults with what they say of each run: many runs often share one."""
    texts: dict[str, list[str]] = {}
    for run in compared:
        for finding in judge(run.view.results, run.view.num_test):
            texts.setdefault(finding.title, []).append(f"{run.title}: {finding.text}")
    return list(texts.items())


def _describe_losses(compared: Sequence[Compared]) -> list[tuple[str, dict[str, Any]]]:
    """Returns curves by objective: losses of different ones are not on one scale.

    A run has one colour, whatever box its curve is in.
    """
    groups: dict[str, list[tuple[str, Sequence[tuple[int, float]]]]] = {}
    for run in compared:
        objective = str(run.view.recorded.get("objective") or "none")
        groups.setdefault(objective, []).append((run.title, run.view.losses))
    number = {run.title: i % len(SERIES) for i, run in enumerate(compared)}
    described = []
    for name, curves in groups.items():
        if (loss := describe_losses(curves)) is None:
            continue
        for each in loss["curves"]:
            each["series"] = number[each["name"]]
        described.append((name, loss))
    return described


def _describe_differences(views: Sequence[RunView]) -> list[str]:
    """Returns in what the runs differ that makes accuracies unlike, as parts of a sentence."""
    parts = []
    for key, what in {"steps": "steps", "ipc": "images per class"}.items():
        values = [view.recorded.get(key) for view in views]
        if len(set(values)) > 1:
            shown = [f"{value:,}" if value is not None else "none" for value in values]
            parts.append(f"{join(shown)} {what}")
    return parts


def _describe_table(compared: Sequence[Compared], backbone: str) -> dict[str, Any]:
    """Returns a row per method with an entry for each run, of one evaluation backbone."""
    rows = [
        {"title": title, "entries": entries}
        for method, title in TITLES.items()
        if any(entries := [run.probes.get(backbone, {}).get(method) for run in compared])
    ]
    return {"backbone": backbone, "titles": [run.title for run in compared], "rows": rows}


def _describe_heat(compared: Sequence[Compared], backbones: Sequence[str]) -> dict[str, Any] | None:
    """Returns accuracies of distilled images by run and evaluation backbone, if there are several.

    A colour stands for the place within its column's range: backbones differ in what is possible.
    """
    measured = {
        name: means
        for name in backbones
        if (means := [mean for run in compared if (mean := run.mean(name)) is not None])
    }
    if len(measured) < 2:
        return None

    def cell(run: Compared, name: str) -> dict[str, Any]:
        value, low, high = run.mean(name), min(measured[name]), max(measured[name])
        part = None if value is None else (value - low) / (high - low) if high > low else 1.0
        return {"value": value, "part": part, "mine": name in run.own}

    rows = [
        {"title": run.title, "cells": [cell(run, name) for name in measured]} for run in compared
    ]
    return {"columns": list(measured), "rows": rows}


def describe_best(compared: Sequence[Compared]) -> dict[str, Any] | None:
    """Returns the run with the best distilled images, on the model that most runs share.

    `None` unless two runs share it that are not at fault there.
    """
    shared = Counter(
        name for run in compared for name, entries in run.probes.items() if "distilled" in entries
    )
    if not shared:
        return None
    backbone, _ = shared.most_common(1)[0]
    entries = []
    for run in compared:
        # A fault on another backbone is none here; one of the images is one everywhere.
        at_fault = {each.backbone for each in judge(run.view.results, run.view.num_test)}
        if "distilled" in run.probes.get(backbone, {}) and not {None, backbone} & at_fault:
            entries.append((run.probes[backbone]["distilled"], run))
    if len(entries) < 2:
        return None
    (best, first), (next_best, second) = sorted(entries, key=lambda e: -e[0]["top1_mean"])[:2]
    difference = best["top1_mean"] - next_best["top1_mean"]
    error = _paired_error(first.view, second.view, best["split"], backbone)
    if error is None and first.view.num_test:
        error = standard_error([best, next_best], first.view.num_test)
    return {
        "title": first.title,
        "next": second.title,
        "backbone": backbone,
        "mean": best["top1_mean"],
        "difference": difference,
        "unsure": error is not None and difference <= 2 * error,
    }


def _paired_error(a: RunView, b: RunView, split: str, backbone: str) -> float | None:
    """Returns the standard error of the difference of two runs, in points, by a paired test.

    `None` unless both have predictions for the same test images.
    """
    stored = [predictions.load(view.path / runs.PREDICTIONS) for view in (a, b)]
    labels, named = f"labels/{split}", f"{backbone}/distilled"
    if (
        a.data.get("fingerprint") != b.data.get("fingerprint")
        or not all({labels, named} <= set(arrays) for arrays in stored)
        or not np.array_equal(stored[0][labels], stored[1][labels])
    ):
        return None
    right = [arrays[named] == arrays[labels][None, :] for arrays in stored]
    return predictions.compare(*right)["standard_error"]


def _check_page(out: epath.PathLike) -> tuple[epath.Path, epath.Path]:
    """Returns the page to write and the folder of its pictures; refuses those within a run."""
    page = paths.locate(out)
    if page.suffix != ".html":
        raise UserError(f"--out={out} is no HTML file: name one, for example compare.html")
    folder = page.with_name(f"{page.stem}_pictures")
    for place in (folder, *page.resolve().parents):
        if runs.is_run(place):
            raise UserError(f"--out={out} would write into the run {place}: name a file elsewhere")
    return page, folder
