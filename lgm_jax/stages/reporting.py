"""The stage that reports: `results.json`, the pictures, and the page."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lgm_jax import baselines, files, hosts, images, objectives, public, runs, terminal
from lgm_jax.identity import digest
from lgm_jax.report import gallery, pictures, timelapse
from lgm_jax.report.accuracies import format_table
from lgm_jax.report.gallery import Gallery
from lgm_jax.report.grid import draw_grid
from lgm_jax.report.judge import judge
from lgm_jax.report.page import write_page
from lgm_jax.report.plane import make_map
from lgm_jax.report.template import look
from lgm_jax.report.view import read_run
from lgm_jax.report.vocabulary import TITLES
from lgm_jax.report.words import headline
from lgm_jax.session import Session
from lgm_jax.stages.probing import collect_results, collect_taught
from lgm_jax.stages.progress import MOST_DRAWN


def report_stage(session: Session) -> None:
    """Writes `results.json`, `grid.png` and `report.html`, and prints the table.

    It is repeated when a result, a setting or the look of the page has changed, or a file is gone.
    """
    run, started = session.run, time.perf_counter()
    # The distillation of `distilled/`, which may be older than the config.
    record = run.latest("distill") if session.source is None else None
    results = _results(session, record)
    distilled = session.distilled
    inputs = {
        "results": digest(results),
        "settings": public.settings(session.settings),
        "images": None if distilled is None else distilled.fingerprint,
        "look": look(),
    }
    steps = record["steps"] if record else None
    sheets = timelapse.find_sheets(run.path / runs.TIMELAPSE, steps) if hosts.is_first() else []
    names = [runs.RESULTS, runs.PAGE]
    if distilled is not None:
        names += [runs.GRID, runs.GALLERY, runs.CARD]
        if not gallery.fits_one_file(session.dataset.num_classes):
            names.append(runs.REPORT)
    if sheets:
        names.append(runs.ANIMATION)
    complete = all((run.path / name).exists() for name in names)
    if hosts.first_says(not complete or run.find("report", inputs) is None):
        content = None if distilled is None else prepare_gallery(session)
        if distilled is not None:
            write_pairs(session)
        if hosts.is_first():
            files.write_json(run.path / runs.RESULTS, results)
            if distilled is not None and content is not None:
                gallery.save_gallery(run.path / runs.GALLERY, content)
                shape = distilled.images.shape
                timelapse.write_animation(run.path / runs.ANIMATION, sheets, *shape[:2])
            write_page(read_run(run.path))
        took = time.perf_counter() - started
        made_by = [session.process_with(session.backbone)]
        run.finish("report", inputs, {"files": names}, took, made_by)
    _print_result(session, results)


def _print_result(session: Session, results: Mapping[str, Any]) -> None:
    """Prints the table, the notes, and what was reached, with the page to open."""
    folder, findings = session.run.path, judge(results)
    print()
    for line in format_table(results).splitlines():
        print(terminal.bold(line) if line.startswith(TITLES["distilled"]) else line)
    for finding in findings:
        print(f"note: {finding.title}: {finding.text}")
    if session.distilled is not None:
        print(f"images: {folder / runs.DISTILLED}, {folder / runs.GRID}")
    count = None if session.distilled is None else len(session.distilled.labels)
    num_train = len(session.dataset.splits["train"].labels)
    reached = headline(results["probe"], results["backbones"], count, num_train, findings)
    page = f"open {folder / runs.PAGE}"
    print(page if reached is None else f"{reached.replace(chr(160), ' ')}: {page}")


def _results(session: Session, record: Any | None) -> dict[str, Any]:
    """Returns the content of `results.json`."""
    own, distilled = session.source is None, session.distilled
    config, run, pixels = session.config, session.run, session.task.parametrisation
    labels = None
    if distilled is not None:
        soft = distilled.probabilities
        kind, values = ("hard", distilled.labels) if soft is None else ("soft", soft)
        labels = {"kind": kind, "bytes": values.nbytes}
    return {
        "version": 1,
        "dataset": session.dataset.name,
        "ipc": config.ipc,
        "objective": config.objective if own else None,
        "about_objective": objectives.about(session.task.objective) if own else None,
        "labels": labels,
        "clp": config.clp.to_dict() if own and config.objective == "clp" else None,
        "num_classes": session.dataset.num_classes,
        "steps": record["steps"] if record else None,
        "seed": config.seed,
        "final_loss": record["final_loss"] if record else None,
        "pyramid": {
            "reached": pixels.side_at(max(0, record["steps"] - 1)),
            "finest": pixels.resolution,
        }
        if record and isinstance(pixels, images.Growing)
        else None,
        "backbones": [session.name_of(backbone) for backbone in session.backbones] if own else [],
        # The stages behind the results, not those that show them.
        "seconds": {
            name: took for name, took in run.seconds().items() if name not in ("report", "measure")
        },
        "skipped_images": {split: list(names) for split, names in session.dataset.skipped.items()},
        "probe": collect_results(session),
        # Apart: their probes know the head on all real images.
        "taught": collect_taught(session),
        "test_images": len(session.dataset.splits[config.probe.split].labels),
    }


def prepare_gallery(session: Session) -> Gallery | None:
    """Makes the gallery of the page: distilled images, real ones, a map of their features.

    All processes compute features together; the first encodes the pictures.
    """
    assert session.distilled is not None
    config, train, distilled = session.config, session.dataset.splits["train"], session.distilled
    classes = session.dataset.num_classes
    rows = gallery.real_rows(
        distilled.labels,
        session.centroids,
        session.neighbors,
        # As in the first run of the baseline.
        baselines.random(train.labels, config.ipc, classes, config.probe.runs, config.seed)[0],
    )
    features, features_syn = session.features(session.backbone, "train"), session.features_syn
    if not hosts.is_first():
        return None
    return gallery.make_gallery(
        distilled.images,
        distilled.labels,
        session.dataset.class_names,
        {kind: train.load(indices) for kind, indices in rows.items()},
        make_map(features, train.labels, features_syn[gallery.shown(distilled.labels)]),
    )


def write_pairs(session: Session) -> None:
    """Draws evenly chosen distilled images, each beside the typical image of its class."""
    assert session.distilled is not None
    # By all processes together, unless it is known already.
    centroids = session.centroids.reshape(session.dataset.num_classes, -1)[:, 0]
    if not hosts.is_first():
        return
    some = pictures.spread(len(session.distilled.labels), MOST_DRAWN // 2)
    labels = session.distilled.labels[some]
    real = session.dataset.splits["train"].load(centroids[labels]).astype(np.float32) / 255
    pairs = np.stack([session.distilled.images[some], real], axis=1)
    names = [session.dataset.class_names[label] for label in labels]
    captions = [text for name in names for text in (name, f"{name}, real")]
    # As wide as a slide in pixels, and about so beside its height.
    columns = 2 * math.ceil(math.sqrt(16 / 9 * 2 * len(names)) / 2)
    grid = draw_grid(pairs.reshape(-1, *pairs.shape[2:]), captions, columns, 1920)
    pictures.write_png(session.run.path / runs.GRID, grid)
