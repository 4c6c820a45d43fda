"""The page of a run: `report.html`, from the content of the run folder.

Up to a hundred classes it is one file, with pictures, style and script inside, so that it can be
sent to a colleague. Beyond, pictures lie in `report/` beside it and load when they are scrolled to.
Nothing is fetched from anywhere else, which a content security policy in the page enforces.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from lgm_jax import files, objectives, runs
from lgm_jax.names import join
from lgm_jax.objectives import OBJECTIVES
from lgm_jax.report import classes, commands, pictures, poster, timelapse, words
from lgm_jax.report.accuracies import describe_accuracies, describe_groups, describe_taught
from lgm_jax.report.charts import describe_growth, describe_learning, describe_losses
from lgm_jax.report.feature_map import describe_map
from lgm_jax.report.gallery import (
    DISTILLED,
    REALS,
    Gallery,
    fits_one_file,
    make_gallery,
    shown,
)
from lgm_jax.report.judge import Entries, gap, judge
from lgm_jax.report.pictures import Place
from lgm_jax.report.template import render
from lgm_jax.report.view import RunView, first_pictures, match_classes, read_run
from lgm_jax.report.vocabulary import TITLES

# Bytes that the timelapse takes of a page that is one file, together with other runs' images.
_BUDGET = 2_000_000
# Those that other runs' images may take of these, and the images' side.
_BESIDE_BUDGET, _BESIDE_SIDE = 1_000_000, 160


def write_page(run: RunView, beside: Sequence[RunView] = ()) -> epath.Path:
    """Writes `report.html` of a run, and the folder `report/` if it has many classes.

    Args:
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
    many = gallery is not None and not fits_one_file(len(gallery.class_names))
    place = Place(folder if many else None)
    page, content = run.path / runs.PAGE, describe(run, others, place)
    with files.replacing(page) as temporary:
        files.write_text(temporary, render("run.html", content))
    if gallery is not None and run.results:
        backbones, dataset = join(run.backbones), content["dataset"]
        card = poster.draw_card(
            content["headline"] or dataset,
            f"{dataset}, distilled for {backbones}" if backbones else dataset,
            gallery,
            next(iter(content["accuracy"]), None),
        )
        pictures.write_png(run.path / runs.CARD, card)
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
        step: The number of updates so far.
        images: The images after them, in [0, 1].
    """
    classes, counts = np.unique(labels, return_counts=True)
    used = classes[pictures.spread(len(classes), pictures.SHEET_IMAGES)]
    members = np.flatnonzero(np.isin(labels, used))
    rows = members[shown(labels[members], pictures.SHEET_IMAGES)]
    own = np.searchsorted(used, labels[rows])
    gallery = make_gallery(images[rows], own, [class_names[label] for label in used])
    # The page counts all images of a class, also those that it does not show.
    gallery = dataclasses.replace(gallery, total=int(counts.max()))
    write_page(read_run(path, gallery, step))


def describe(
    run: RunView, others: Sequence[tuple[RunView, Sequence[int]]], place: Place
) -> dict[str, Any]:
    """Returns all that the template of a run shows."""
    gallery, budget = run.gallery, _BUDGET - (_BESIDE_BUDGET if others else 0)
    return {
        "run": run,
        **_describe_head(run),
        "cards": _describe_cards(gallery, others, place) if gallery else [],
        "timelapse": timelapse.describe_timelapse(run, place, budget) if gallery else None,
        "map": describe_map(gallery, place),
        **_describe_probes(run),
        "classes": classes.describe_classes(run, place),
        **_describe_record(run),
        **commands.describe_next_steps(run),
        "lazy": place.folder is not None,
    }


def _describe_cards(
    gallery: Gallery, others: Sequence[tuple[RunView, Sequence[int]]], place: Place
) -> list[dict[str, Any]]:
    """Returns a card for each class: distilled images, real ones, and other runs'."""
    cards: list[dict[str, Any]] = [
        {"name": str(name), "label": label, "rows": []}
        for label, name in enumerate(gallery.class_names)
    ]
    for i, label in enumerate(gallery.labels.tolist()):
        row = {
            "distilled": place.put(DISTILLED, i, gallery.files[DISTILLED][i]),
            "reals": [
                {**real, "src": place.put(real["method"], i, gallery.files[real["method"]][i])}
                for real in describe_reals(gallery, i)
            ],
            "others": [],
        }
        cards[label]["rows"].append(row)
    for number, (other, labels) in enumerate(others):
        whole = first_pictures(other.gallery)
        budget = None if place.folder else _BESIDE_BUDGET // len(others)
        small = pictures.shrink(list(whole.values()), _BESIDE_SIDE, budget)
        first = dict(zip(whole, small, strict=True))
        for card, label in zip(cards, labels, strict=True):
            if label in first and card["rows"]:
                src = place.put(f"beside{number}", card["label"], first[label])
                name = f"distilled for {other.title}"
                card["rows"][0]["others"].append({"name": name, "src": src})
    return [card for card in cards if card["rows"]]


def describe_reals(gallery: Gallery, i: int) -> list[dict[str, str]]:
    """Returns the real pictures beside a distilled one: their kinds, names and descriptions.

    A picture of several kinds appears once, under the first of them.
    """
    kinds: dict[bytes, list[str]] = {}
    for kind in filter(gallery.files.__contains__, REALS):
        kinds.setdefault(gallery.files[kind][i], []).append(kind)
    described = []
    for same in kinds.values():
        titles = join([TITLES[kind].removesuffix(" real") for kind in same])
        text = words.CAPTIONS[same[0]][0]
        if len(same) > 1:
            text = f"one image: {join([words.CAPTIONS[kind][1] for kind in same])}"
        described.append({"name": f"{titles} real", "text": text, "method": same[0]})
    return described


def _describe_head(run: RunView) -> dict[str, Any]:
    """Names the run, its data and its objective."""
    dataset, objective = str(run.data.get("name", "")), str(run.recorded.get("objective"))
    findings = judge(run.results, run.num_test)
    headline = words.headline(run.probes, run.backbones, run.num_images, run.num_train, findings)
    title = f"{dataset or run.name}{', distilled' if run.backbones else ''}"
    about = run.results.get("about_objective") or {}
    if not about and objective in OBJECTIVES:
        about = objectives.about(OBJECTIVES[objective])
    return {
        "title": title + "".join(f": {finding.title}" for finding in findings[:1]),
        "findings": findings,
        "headline": headline,
        "dataset": dataset,
        "about_data": words.DATA.get(dataset),
        "unfinished": not run.results,
        "start": words.STARTS.get(str(run.settings.get("images.init"))),
        "about": {name: words.about_backbone(name) for name in (*run.backbones, *run.probes)},
        "objective": about.get("title"),
        "each_step": about.get("each_step") or "",
        "loss_is": about.get("loss_is") or "",
        "new_heads": objective == "lgm",
    }


def _describe_probes(run: RunView) -> dict[str, Any]:
    """Describes accuracies and losses, and the words that they take."""
    settings, num_test, main = run.settings, run.num_test, run.first_probe
    loss = describe_losses(
        [(run.name, run.losses)],
        # The box of an unfinished run has room for all of its steps.
        settings.get("steps", 0) if not run.results else 0,
        describe_growth(settings, run.side),
    )
    doubt = words.doubt(
        main,
        num_test,
        settings.get("seed"),
        made_here=bool(run.backbones),
        repeated=settings.get("probe.runs") != 1,
    )
    return {
        "accuracy": describe_accuracies(run),
        "compared": words.compare(main, num_test),
        "compared_briefly": words.compare(main, num_test, [_best_choice(main)]),
        "doubt": doubt if "distilled" in main else "",
        "groups": [each for item in run.probes.items() if (each := describe_groups(*item))],
        "taught": describe_taught(run.results.get("taught", {})),
        "learning": [each for item in run.probes.items() if (each := describe_learning(*item))],
        "loss": loss,
        "words": words.glossary(list(main), gap(main, num_test), has_loss=loss is not None),
    }


def _best_choice(entries: Entries) -> str:
    """Returns the choice of few real images that teaches most, or random ones without any."""
    choices = [name for name in ("centroids", "neighbors", "random") if name in entries]
    return max(choices, key=lambda name: entries[name]["top1_mean"], default="random")


def _describe_record(run: RunView) -> dict[str, Any]:
    """Returns facts by name, hashes by file, and settings, the changed ones first."""
    facts: list[tuple[str, str]] = []
    if run.finished:
        facts.append(("distilled on", f"{run.finished} (UTC)"))
    for process in run.made_by:
        where = f", from step {process['from_step']:,}" if len(run.made_by) > 1 else ""
        versions = process.get("versions", {})
        recorded = {
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            "devices": words.devices(process.get("devices", [])),
            "commit": process.get("commit") or "not known",
        }
        facts += [(name + where, text) for name, text in recorded.items() if text]
    for stage, seconds in run.results.get("seconds", {}).items():
        purpose = words.PURPOSES.get(stage, f"of {stage}")
        facts.append((f"time {purpose}", words.duration(seconds)))
    weights = run.made_by[-1].get("weights", {}) if run.made_by else {}
    hashes = [
        (f"{name}, {file}", str(sha256))
        for name, origin in weights.items()
        for file, sha256 in origin.get("sha256", {}).items()
    ]
    fingerprint = run.config.get("identity", {}).get("data.fingerprint")
    if fingerprint:
        hashes.append(("all images of the data", str(fingerprint)))
    settings = {name: json.dumps(value) for name, value in run.settings.items()}
    changed = [name for name in run.config.get("changed", ()) if name in settings]
    return {
        "provenance": facts,
        "hashes": hashes,
        "changed": [(name, settings.pop(name)) for name in changed],
        "settings": list(settings.items()),
    }
