"""Backgrounds that mislead: table 4 of the paper, by group, and with the images that were made."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict
from PIL import Image

from lgm_jax import files, hosts
from lgm_jax.errors import UserError
from lgm_jax.experiments import figures
from lgm_jax.experiments.accuracy import plan_methods
from lgm_jax.experiments.axes import (
    AVERAGE,
    METHODS,
    SETS,
    backbones,
    cell,
    select,
    sets,
    title_of,
)
from lgm_jax.experiments.paper import ACCURACY
from lgm_jax.experiments.published import is_papers, note_of, paper_number
from lgm_jax.experiments.result import Cell, Claim, Result, Table, summarize_values
from lgm_jax.experiments.runner import Measure, Outcome, Planned
from lgm_jax.report.grid import draw_grid
from lgm_jax.session import Session, content_hash

PICTURE = "groups.png"

_OF_RUNS = ("distilled", "neighbors", "centroids")


def plan_table4(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """As table 1, with a picture of each run's images beside real ones of every group."""
    return plan_methods(config, Measure("groups", _inputs, _show, [PICTURE]))


def tabulate_table4(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """Methods by backbones, on average and in the worst group; and by groups."""
    tables, claims = [], []
    shown: list[tuple[Table, Outcome]] = []
    for name in sets(config):
        own = select(outcomes, set=name)
        average, worst = _average_table(config, own, name), _worst_table(config, own, name)
        by_group = [_group_table(own, name, backbone) for backbone in backbones(config)]
        tables += [average, worst, *by_group]
        claims += [_claim(config, average, name, "on average"), _claim(config, worst, name)]
        firsts = [select(own, backbone=backbone)[0] for backbone in backbones(config)]
        shown += zip(by_group, firsts, strict=True)
    return Result(
        "Table 4: backgrounds that mislead",
        tables,
        [
            note_of(config, outcomes),
            "Worst group: the mean over probe runs of each run's worst group, which the paper "
            f"does not give. Each run's folder has {PICTURE}: its images beside, of every group of "
            "their class, the real image nearest to the group's mean.",
        ],
        claims,
        functools.partial(_draw, shown=shown),
    )


def _inputs(session: Session) -> dict[str, Any]:
    images = session.distilled
    return {
        "data": session.dataset.fingerprint,
        "backbone": session.backbone.fingerprint,
        "images": None if images is None else content_hash(images),
        "split": session.config.probe.split,
    }


def _show(session: Session) -> dict[str, Any]:
    """Writes a run's picture; gives how many training images each group has."""
    train, names = session.dataset.splits["train"], session.dataset.group_names
    if train.groups is None:
        raise UserError(f"{session.dataset.name} has no groups, which table 4 is about")
    if session.distilled is None:
        raise ValueError("there are no distilled images")
    rows = [_row_of(session, label) for label in range(session.dataset.num_classes)]
    width = max(map(len, rows))
    blank = np.ones_like(rows[0][0][0])
    cells = [each for row in rows for each in [*row, *[(blank, "")] * (width - len(row))]]
    pictures, captions = zip(*cells, strict=True)
    columns = width * max(1, round((len(rows) / width) ** 0.5))
    if hosts.is_first():
        buffer = io.BytesIO()
        draw_grid(np.stack(pictures), captions, columns).save(buffer, "PNG")
        with files.replacing(session.run.path / PICTURE) as temporary:
            temporary.write_bytes(buffer.getvalue())
    counts = np.bincount(train.groups, minlength=len(names))
    return {"train": dict(zip(names, counts.tolist(), strict=True))}


def _row_of(session: Session, label: int) -> list[tuple[np.ndarray, str]]:
    """A class's distilled image and a real one of each of its groups, with captions."""
    distilled, dataset = session.distilled, session.dataset
    assert distilled is not None
    first = np.flatnonzero(distilled.labels == label)[0]
    row = [(np.asarray(distilled.images[first]), f"{dataset.class_names[label]}, distilled")]
    for group, name in enumerate(dataset.group_names):
        # Of a group that nobody trains on, an image that is evaluated.
        for split in ("train", session.config.probe.split):
            images = dataset.splits[split]
            members = np.flatnonzero((images.labels == label) & (images.groups == group))
            if len(members):
                nearest = _typical(session.features(session.backbone, split), members)
                row.append((images.load(np.array([nearest]))[0].astype(np.float32) / 255, name))
                break
    return row


def _typical(features: np.ndarray, members: Int[np.ndarray, " m"]) -> np.integer:
    """The one whose features are nearest to the mean of all of them."""
    own = features[members]
    return members[np.argmin(np.linalg.norm(own - own.mean(axis=0, keepdims=True), axis=-1))]


def _average_table(config: ConfigDict, outcomes: Sequence[Outcome], name: str) -> Table:
    compared = [b for b in backbones(config) if is_papers(config, name, b, outcomes=outcomes)]
    # Beside numbers of other data, to compare orders.
    theirs = name if compared and name in ACCURACY else "waterbirds"
    papers, cells = f"the paper's average, {SETS[theirs].title}", {}
    for method, row in METHODS.items():
        for backbone in backbones(config):
            ours = cell(_runs_of(outcomes, method, backbone), method, backbone)
            theirs_too = backbone in compared and theirs == name
            number = paper_number(ACCURACY[theirs][method], backbone) if theirs_too else None
            cells[row, title_of(backbone)] = ours.beside(number)
        cells[row, papers] = Cell().beside(paper_number(ACCURACY[theirs][method], AVERAGE))
    columns = [*map(title_of, backbones(config)), papers]
    return Table(f"{SETS[name].title}: average", "images", [*METHODS.values()], columns, cells)


def _worst_table(config: ConfigDict, outcomes: Sequence[Outcome], name: str) -> Table:
    cells = {
        (row, title_of(backbone)): _cell(outcomes, method, backbone)
        for method, row in METHODS.items()
        for backbone in backbones(config)
    }
    columns = list(map(title_of, backbones(config)))
    return Table(f"{SETS[name].title}: worst group", "images", [*METHODS.values()], columns, cells)


def _group_table(outcomes: Sequence[Outcome], name: str, backbone: str) -> Table:
    first = select(outcomes, backbone=backbone)[0]
    train, cells = first.measured["train"], {}
    present = list(first.accuracy("distilled", backbone)["groups"])
    titles = {group: f"{group} ({train[group]} in train)" for group in present}
    for method, row in METHODS.items():
        for group, title in titles.items():
            cells[row, title] = _cell(outcomes, method, backbone, group)
    return Table(
        f"{SETS[name].title}: by group, on {title_of(backbone)}",
        "images",
        list(METHODS.values()),
        list(titles.values()),
        cells,
    )


def _cell(
    outcomes: Sequence[Outcome], method: str, backbone: str, group: str | None = None
) -> Cell:
    """Accuracy in a group, or in the worst one, over seeds.

    Its spread counts only where images differ by seed.
    """
    entries = [
        outcome.accuracy(method, backbone) for outcome in _runs_of(outcomes, method, backbone)
    ]
    found = [entry["worst_group"] if group is None else entry["groups"][group] for entry in entries]
    if method in ("distilled", "neighbors"):
        return summarize_values(found)
    return Cell(mean=float(np.mean(found)))


def _runs_of(outcomes: Sequence[Outcome], method: str, backbone: str) -> list[Outcome]:
    return select(outcomes, backbone=backbone if method in _OF_RUNS else "real")


def _claim(config: ConfigDict, table: Table, name: str, where: str = "in the worst group") -> Claim:
    distilled, *others = (METHODS[m] for m in ("distilled", "neighbors", "centroids", "random"))
    margins = {}
    for column in map(title_of, backbones(config)):
        means = {row: table.cells[row, column].mean or 0.0 for row in (distilled, *others)}
        margins[column] = means[distilled] - max(means[row] for row in others)
    return Claim(
        f"on {SETS[name].title}, {where}, distilled images beat every choice of real ones",
        min(margins.values()) > 0,
        "; ".join(f"{column} by {margin:+.1f}" for column, margin in margins.items()),
    )


def _draw(figure: Any, shown: Sequence[tuple[Table, Outcome]]) -> None:
    """For each set and backbone, bars by group, and the picture of the first seed beside them."""
    pictures = [_read(outcome) for _, outcome in shown]
    height, width = 4.5, max(5.0, *(2.5 + 1.3 * len(table.columns) for table, _ in shown))
    aspect = max(picture.shape[1] / picture.shape[0] for picture in pictures)
    figure.set_size_inches(width + aspect * height, height * len(shown))
    grid = figure.subplots(
        len(shown), 2, squeeze=False, gridspec_kw={"width_ratios": [width, aspect * height]}
    )
    for (left, right), (table, _), picture in zip(grid, shown, pictures, strict=True):
        figures.draw_bars(left, table)
        left.set_ylim(0, 100)
        right.imshow(picture, interpolation="none")
        right.set_axis_off()


def _read(outcome: Outcome) -> np.ndarray:
    assert outcome.path is not None
    path = outcome.path / PICTURE
    try:
        return np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: delete it, and start again to have it drawn anew"
        ) from error
