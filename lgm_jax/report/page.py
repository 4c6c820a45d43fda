"""The page of a run: `report.html`, from the content of the run folder.

Up to a hundred classes it is one file, with pictures, style and script inside, so that it can be
sent to a colleague. Beyond, pictures lie in `report/` beside it and load when they are scrolled to:
the page and that folder are all there is to send.
Either way nothing is fetched from anywhere else; a content security policy in the page says so to
the browser too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from lgm_jax import files, objectives, runs
from lgm_jax.objectives import OBJECTIVES
from lgm_jax.report import cards, commands, pictures, timelapse, words
from lgm_jax.report.accuracies import describe_accuracies, describe_groups
from lgm_jax.report.feature_map import describe_map
from lgm_jax.report.gallery import make_gallery, shown
from lgm_jax.report.judge import judge
from lgm_jax.report.losses import describe_growth, describe_learning, describe_losses
from lgm_jax.report.place import Beside, Embedded, Place
from lgm_jax.report.template import render
from lgm_jax.report.view import RunView, match_classes, read_run

# Bytes that the timelapse takes of a page that is one file, together with other runs' images.
_BUDGET = 2_000_000


def write_page(run: RunView, beside: Sequence[RunView] = ()) -> epath.Path:
    """Writes `report.html` of a run, and the folder `report/` if it has many classes.

    Args:
        run: The run.
        beside: Runs of the same classes, whose distilled images are shown beside its own.

    Returns:
        The path of the page.

    Raises:
        UserError: If the runs' classes differ.
    """
    others = [(other, match_classes(run, other)) for other in beside]
    folder = run.path / runs.REPORT
    gallery = run.gallery
    # Pictures of an earlier page would stay otherwise.
    if folder.exists():
        folder.rmtree()
    place = Embedded() if gallery is None or gallery.fits_one_file else Beside(folder)
    page = run.path / runs.PAGE
    with files.replacing(page) as temporary:
        files.write_text(temporary, render("run.html", describe(run, others, place)))
    return page


def write_unfinished_page(
    path: epath.Path,
    step: int,
    images: Float[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
) -> None:
    """Writes the page of a run that still distils: current images and losses.

    It shows at most a hundred images, the first of their classes, so that it costs little, and is
    always one file.

    Args:
        path: The run folder.
        step: The number of updates so far.
        images: The images after them.
        labels: Their classes.
        class_names: Names of all classes, in label order.
    """
    known, counts = np.unique(labels, return_counts=True)
    used = known[pictures.spread(len(known), pictures.SHEET_IMAGES)]
    members = np.flatnonzero(np.isin(labels, used))
    rows = members[shown(labels[members], pictures.SHEET_IMAGES)]
    own = np.searchsorted(used, labels[rows])
    gallery = make_gallery(images[rows], own, [class_names[label] for label in used])
    # The page counts all images of a class, also those that it does not show.
    gallery = dataclasses.replace(gallery, total=int(counts.max()))
    write_page(read_run(path, gallery, step))


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """Counts and accuracies of a run; `None` or empty where the run folder does not say."""

    run: RunView

    @property
    def counts(self) -> Mapping[str, Any]:
        """Images by split and class."""
        return self.run.config.get("data", {}).get("counts", {})

    @property
    def recorded(self) -> Mapping[str, Any]:
        """`results.json`, or what is set where there are no results yet."""
        return self.run.results or self.run.settings

    @functools.cached_property
    def classes(self) -> int:
        """The number of classes. The gallery of an unfinished run may show some of them."""
        gallery, named = self.run.gallery, self.counts.get("train", {}).get("classes", ())
        classes = (self.run.results or {}).get("num_classes") or len(named)
        return classes or (len(gallery.class_names) if gallery else 0)

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of all classes; empty if some share a name, for the counts then hold fewer."""
        gallery, names = self.run.gallery, list(self.counts.get("train", {}).get("classes", ()))
        if len(names) != self.classes and gallery and len(gallery.class_names) == self.classes:
            names = list(gallery.class_names)
        return names if len(names) == self.classes else []

    @property
    def ipc(self) -> int | None:
        """Distilled images of a class."""
        return self.recorded.get("ipc")

    @property
    def images(self) -> int | None:
        """Distilled images."""
        return self.ipc * self.classes if self.run.gallery and self.ipc else None

    @functools.cached_property
    def probes(self) -> dict[str, Mapping[str, Any]]:
        """Accuracies by evaluation backbone; those that the images were made for come first."""
        probes = (self.run.results or {}).get("probe", {})
        return {name: probes[name] for name in sorted(probes, key=self._is_other)}

    def _is_other(self, backbone: str) -> bool:
        return backbone not in self.run.backbones

    @property
    def main(self) -> Mapping[str, Any]:
        """Accuracies on the first of these."""
        return next(iter(self.probes.values()), {})

    @property
    def test(self) -> int | None:
        """Images that accuracies were measured on."""
        split = next(iter(self.main.values()))["split"] if self.main else None
        recorded = (self.run.results or {}).get("test_images")
        return recorded or self.counts.get(str(split), {}).get("images")


def describe(
    run: RunView, others: Sequence[tuple[RunView, Sequence[int]]], place: Place
) -> dict[str, Any]:
    """Returns all that the template of a run shows."""
    numbers = _Numbers(run)
    where = commands.folder(run.config.get("command"), run.name)
    soft = ((run.results or {}).get("labels") or {}).get("kind") == "soft"
    return {
        **_describe_run(run, numbers),
        **_describe_objective(run),
        **_describe_images(run, numbers, others, place),
        **_describe_probes(run, numbers),
        **_describe_record(run),
        "soft": soft,
        "lazy": place.lazy,
        "where": where,
        **commands.describe_next_steps(
            run, where, numbers.images, run.side, numbers.names, soft=soft
        ),
    }


def _describe_run(run: RunView, numbers: _Numbers) -> dict[str, Any]:
    """What the run is and how far it has come."""
    settings, data = run.settings, run.config.get("data", {})
    findings = judge(run.results or {}, numbers.test)
    title = f"{data.get('name', run.name)}{', distilled' if run.backbones else ''}"
    return {
        "run": run.name,
        "title": title + "".join(f": {finding.title}" for finding in findings[:1]),
        "findings": findings,
        "dataset": data.get("name", ""),
        "about_data": words.about_data(str(data.get("name", ""))),
        "unfinished": run.results is None,
        "finished": run.finished,
        "step": run.step,
        "steps": (run.results or {}).get("steps") or settings.get("steps"),
        "seed": settings.get("seed"),
        "backbones": run.backbones,
        "about": {name: words.about_backbone(name) for name in (*run.backbones, *numbers.probes)},
    }


def _describe_objective(run: RunView) -> dict[str, Any]:
    objective = str((run.results or run.settings).get("objective"))
    about = (run.results or {}).get("about_objective") or {}
    if not about and objective in OBJECTIVES:
        about = objectives.about(OBJECTIVES[objective])
    return {
        "objective": about.get("title"),
        "each_step": about.get("each_step"),
        "loss_is": about.get("loss_is", ""),
        "new_heads": objective == "lgm",
    }


def _describe_images(
    run: RunView,
    numbers: _Numbers,
    others: Sequence[tuple[RunView, Sequence[int]]],
    place: Place,
) -> dict[str, Any]:
    """The distilled images, beside real ones, over time and on the map of features."""
    settings, gallery = run.settings, run.gallery
    budget = _BUDGET - (cards.BUDGET if others else 0)
    return {
        "image_every": settings.get("image_every"),
        "start": words.STARTS.get(str(settings.get("images.init"))),
        "side": run.side,
        "ipc": numbers.ipc,
        "num_classes": numbers.classes,
        "num_images": numbers.images,
        "num_train": numbers.counts.get("train", {}).get("images"),
        "cards": cards.describe_cards(gallery, others, place) if gallery else [],
        "per_class": gallery.total if gallery else 0,
        "timelapse": timelapse.describe_timelapse(
            run.sheets, dict(run.losses), place, budget, numbers.names, numbers.images
        )
        if gallery
        else None,
        "map": describe_map(gallery, place) if gallery and gallery.map else None,
    }


def _describe_probes(run: RunView, numbers: _Numbers) -> dict[str, Any]:
    """Accuracies and losses, with the words that they take."""
    settings, main = run.settings, numbers.main
    loss = describe_losses(
        [(run.name, run.losses)],
        # The box of an unfinished run has room for all of its steps.
        settings.get("steps", 0) if run.results is None else 0,
        describe_growth(settings, run.side),
    )
    doubt = (
        words.doubt(
            main,
            numbers.test,
            settings.get("seed"),
            made_here=bool(run.backbones),
            repeated=settings.get("probe.runs") != 1,
        )
        if "distilled" in main
        else None
    )
    return {
        "num_test": numbers.test,
        "accuracy": describe_accuracies(
            numbers.probes, run.backbones, numbers.classes, numbers.test
        ),
        "compared": words.compare(main, numbers.test),
        "doubt": doubt,
        "guess": words.guess(numbers.classes) if numbers.classes else None,
        "groups": list(filter(None, (describe_groups(*item) for item in numbers.probes.items()))),
        "learning": list(
            filter(None, (describe_learning(*item) for item in numbers.probes.items()))
        ),
        "loss": loss,
        "words": words.glossary(
            list(main), words.gap(main, numbers.test), has_loss=loss is not None
        ),
    }


def _describe_record(run: RunView) -> dict[str, Any]:
    """Facts, hashes and settings, the changed ones first."""
    facts, hashes = describe_provenance(run)
    settings = {name: json.dumps(value) for name, value in run.settings.items()}
    changed = [name for name in run.config.get("changed", ()) if name in settings]
    return {
        "provenance": facts,
        "hashes": hashes,
        "changed": {name: settings[name] for name in changed},
        "settings": {name: text for name, text in settings.items() if name not in changed},
    }


def describe_provenance(run: RunView) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Returns facts by name, as far as they were recorded, and hashes by file."""
    facts: list[tuple[str, str]] = []
    if run.finished:
        facts.append(("distilled on", f"{run.finished} (UTC)"))
    for made in run.made_by:
        where = f", from step {made['from_step']:,}" if len(run.made_by) > 1 else ""
        versions = made.get("versions", {})
        recorded = {
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            "devices": words.devices(made.get("devices", [])),
            "commit": made.get("commit") or "not known",
        }
        facts += [(name + where, text) for name, text in recorded.items() if text]
    seconds = (run.results or {}).get("seconds", {})
    facts += [words.took(stage, taken) for stage, taken in seconds.items()]
    weights = run.made_by[-1].get("weights", {}) if run.made_by else {}
    hashes = [
        (f"{name}, {file}", str(sha256))
        for name, origin in weights.items()
        for file, sha256 in origin.get("sha256", {}).items()
    ]
    fingerprint = run.config.get("identity", {}).get("data.fingerprint")
    if fingerprint:
        hashes.append(("all images of the data", str(fingerprint)))
    return facts, hashes
