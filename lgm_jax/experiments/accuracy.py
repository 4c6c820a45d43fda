"""Accuracy of distilled images beside real ones: tables 1, 2, 5 and B.1 of the paper."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from lgm_jax.experiments import figures
from lgm_jax.experiments.axes import (
    AVERAGE,
    METHODS,
    PAPERS_AVERAGE,
    SETS,
    backbones,
    cell,
    distilled_run,
    evaluated,
    real_run,
    seeds,
    select,
    sets,
    title_of,
)
from lgm_jax.experiments.paper import ACCURACY, Row
from lgm_jax.experiments.published import (
    are_all,
    is_papers,
    note_of,
    paper_number,
    place_of,
    row_of,
)
from lgm_jax.experiments.result import (
    Cell,
    Claim,
    Result,
    Table,
    mean,
    summarize,
    summarize_values,
)
from lgm_jax.experiments.runner import Measure, Outcome, Planned

_REAL = ("neighbors", "centroids", "random")
_GAP = "Gap"

# Rows: the backbone that images are distilled against. Columns as in `paper.ACCURACY`.
PAPER_CROSS: Mapping[str, Mapping[str, Row]] = {
    "imagenet-100": {
        "clip_vitb16": ((84.9, 0.1), (80.8, 0.4), (83.8, 0.2), (61.6, 0.2), (77.8, 0.2)),
        "dinov2_vitb14": ((77.0, 0.1), (91.5, 0.1), (86.8, 0.1), (78.8, 0.1), (83.5, 0.1)),
        "eva02_vitb14": ((75.5, 0.2), (86.4, 0.1), (89.0, 0.0), (67.7, 0.1), (79.7, 0.1)),
        "mocov3_vitb16": ((65.6, 0.1), (86.6, 0.1), (82.3, 0.2), (83.4, 0.1), (79.5, 0.1)),
    },
    "imagenet-1k": {
        "clip_vitb16": ((63.0, 0.0), (56.4, 0.1), (59.7, 0.1), (39.5, 0.0), (54.7, 0.1)),
        "dinov2_vitb14": ((54.1, 0.0), (75.0, 0.1), (65.4, 0.1), (60.0, 0.0), (63.7, 0.1)),
        "eva02_vitb14": ((55.5, 0.1), (65.9, 0.1), (70.3, 0.1), (51.8, 0.0), (60.9, 0.1)),
        "mocov3_vitb16": ((41.4, 0.0), (66.9, 0.1), (57.2, 0.1), (63.2, 0.0), (57.2, 0.1)),
    },
}


def plan_table1(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """Distilled images of every backbone, each evaluated where it was made, and real ones."""
    return plan_methods(config)


def plan_methods(config: ConfigDict, measure: Measure | None = None) -> list[Planned]:
    """The runs of table 1, of which those that distil may measure something."""
    planned = []
    for name, image_set in sets(config).items():
        planned.append(real_run(config, name, image_set, backbones(config), ("random", "full")))
        planned += [
            distilled_run(
                config,
                name,
                image_set,
                backbone,
                seed,
                evaluate=[backbone],
                baselines=("centroids", "neighbors"),
                measure=measure,
            )
            for backbone in backbones(config)
            for seed in seeds(config)
        ]
    return planned


def tabulate_table1(config: ConfigDict, outcomes: Sequence[Outcome], title: str = "") -> Result:
    """Methods by backbones, for each set of images."""
    names, tables, gaps, claims = backbones(config), [], [], []
    for name in sets(config):
        table = _methods(config, select(outcomes, set=name), name, names)
        tables.append(table)
        gaps.append(_gaps(config, select(outcomes, set=name), name, names))
        margins = {
            title_of(b): _mean(table, "distilled", b) - max(_mean(table, r, b) for r in _REAL)
            for b in names
        }
        claims.append(
            Claim(
                f"on {SETS[name].title}, distilled images beat every choice of real ones, on every "
                "backbone",
                min(margins.values()) > 0,
                "; ".join(f"{column} by {margin:+.1f}" for column, margin in margins.items()),
            )
        )
    return Result(
        title or "Table 1: distilled images and real ones",
        [*tables, *gaps],
        [note_of(config, outcomes), _seed_note(config)],
        claims,
        functools.partial(figures.bars, tables=tables),
    )


def plan_table2(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """Distilled images of every backbone, each evaluated on all; and real images."""
    planned, every = [], evaluated(config)
    for name, image_set in sets(config).items():
        planned.append(real_run(config, name, image_set, every, ("random", "full")))
        planned += [
            distilled_run(config, name, image_set, backbone, seed, evaluate=every)
            for backbone in backbones(config)
            for seed in seeds(config)
        ]
    return planned


def tabulate_table2(config: ConfigDict, outcomes: Sequence[Outcome], title: str = "") -> Result:
    """The backbone that images are distilled against by the one that they are evaluated on."""
    tables, claims, every = [], [], evaluated(config)
    for name in sets(config):
        table = _cross(config, select(outcomes, set=name), name)
        tables.append(table)
        claims += _cross_claims(config, table, SETS[name].title)
    matrices = [
        Table(t.title, t.corner, t.rows[: len(backbones(config))], t.columns, t.cells)
        for t in tables
    ]
    return Result(
        title or "Table 2: distilled against one backbone, evaluated on another",
        tables,
        [note_of(config, outcomes), _seed_note(config)],
        claims if len(every) > 1 else [],
        functools.partial(figures.matrices, tables=matrices),
    )


def tabulate_table5(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """As table 1, on fine-grained sets."""
    return tabulate_table1(config, outcomes, "Tables 5 and B.1: classes that look alike")


def tabulate_sizes(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """As table 2, for sizes of one family; the paper has only one size."""
    return tabulate_table2(
        config, outcomes, "Sizes of one family: distilled against one, evaluated on another"
    )


def _methods(
    config: ConfigDict, outcomes: Sequence[Outcome], name: str, names: Sequence[str]
) -> Table:
    cells = {}
    compared = [b for b in names if is_papers(config, name, b, outcomes=outcomes)]
    for method, row in METHODS.items():
        numbers = ACCURACY.get(name, {}).get(method)
        for backbone in names:
            own = _runs_of(outcomes, method, backbone)
            number = paper_number(numbers, backbone) if backbone in compared else None
            cells[row, title_of(backbone)] = cell(own, method, backbone).beside(number)
        if len(names) > 1:
            number = paper_number(numbers, AVERAGE) if are_all(compared) else None
            cells[row, AVERAGE] = _average(outcomes, method, names).beside(number)
    columns = [title_of(backbone) for backbone in names] + ([AVERAGE] if len(names) > 1 else [])
    if not compared:
        columns.append(PAPERS_AVERAGE)
        for method, row in METHODS.items():
            cells[row, PAPERS_AVERAGE] = Cell().beside(ACCURACY["imagenet-100"][method][-1])
    return Table(f"{SETS[name].title}", "images", list(METHODS.values()), columns, cells)


def _runs_of(outcomes: Sequence[Outcome], method: str, backbone: str) -> list[Outcome]:
    return select(outcomes, backbone="real" if method in ("random", "full") else backbone)


def _average(outcomes: Sequence[Outcome], method: str, names: Sequence[str]) -> Cell:
    """The mean over backbones, for each seed; its spread is that over seeds."""
    runs = [_runs_of(outcomes, method, backbone) for backbone in names]
    by_seed = [
        [outcome.accuracy(method, backbone) for outcome, backbone in zip(row, names, strict=True)]
        for row in zip(*runs, strict=True)
    ]
    return summarize(by_seed, distilled=method in ("distilled", "neighbors"))


def _gaps(
    config: ConfigDict, outcomes: Sequence[Outcome], name: str, names: Sequence[str]
) -> Table:
    """What distilled images close of the gap between random images and all of them."""
    cells = {}
    for backbone in names:
        (real,) = select(outcomes, backbone="real")
        random, full = (real.accuracy(m, backbone)["top1_mean"] for m in ("random", "full"))
        values = [
            (outcome.accuracy("distilled", backbone)["top1_mean"] - random) / (full - random)
            for outcome in select(outcomes, backbone=backbone)
            if full != random
        ]
        ours = summarize_values(values) if values else Cell()
        place = place_of(backbone)
        compared = name in ACCURACY and is_papers(config, name, backbone, outcomes=outcomes)
        if compared and place is not None:
            low, high, distilled = (
                ACCURACY[name][method][place][0] for method in ("random", "full", "distilled")
            )
            ours = ours.beside(((distilled - low) / (high - low), None))
        cells[_GAP, title_of(backbone)] = ours
    return Table(
        f"{SETS[name].title}: (distilled - random) / (full - random)",
        "",
        [_GAP],
        [title_of(backbone) for backbone in names],
        cells,
        unit="part of the gap",
        digits=2,
    )


def _cross(config: ConfigDict, outcomes: Sequence[Outcome], name: str) -> Table:
    cells, every = {}, evaluated(config)
    compared = [b for b in every if is_papers(config, name, b, outcomes=outcomes)]
    whole = are_all(compared) and len(compared) == len(every)

    def beside(ours: Cell, numbers: Row | None, other: str) -> Cell:
        shown = whole if other == AVERAGE else other in compared
        return ours.beside(paper_number(numbers, other) if shown else None)

    for backbone in backbones(config):
        own, numbers = select(outcomes, backbone=backbone), None
        if is_papers(config, name, backbone, outcomes=outcomes):
            numbers = row_of(PAPER_CROSS.get(name, {}), backbone)
        for other in every:
            ours = cell(own, "distilled", other)
            cells[title_of(backbone), title_of(other)] = beside(ours, numbers, other)
        ours = cell(own, "distilled", *every)
        cells[title_of(backbone), AVERAGE] = beside(ours, numbers, AVERAGE)
    real = select(outcomes, backbone="real")
    for method in ("random", "full"):
        row, numbers = METHODS[method], ACCURACY.get(name, {}).get(method)
        for other in every:
            cells[row, title_of(other)] = beside(cell(real, method, other), numbers, other)
        cells[row, AVERAGE] = beside(cell(real, method, *every), numbers, AVERAGE)
    return Table(
        SETS[name].title,
        "distilled against",
        [*map(title_of, backbones(config)), METHODS["random"], METHODS["full"]],
        [*map(title_of, every), AVERAGE],
        cells,
    )


def _cross_claims(config: ConfigDict, table: Table, where: str) -> list[Claim]:
    sources, every = backbones(config), evaluated(config)
    shared = [backbone for backbone in every if backbone in sources]
    others = [(a, b) for a in sources for b in every if a != b]
    claims = []
    if len(sources) > 1 and shared:
        margins = {
            title_of(b): _at(table, title_of(b), b)
            - max(_at(table, title_of(a), b) for a in sources if a != b)
            for b in shared
        }
        claims.append(
            Claim(
                f"on {where}, a backbone does best with the images made for it",
                min(margins.values()) > 0,
                "; ".join(f"{column} by {margin:+.1f}" for column, margin in margins.items()),
            )
        )
    if others:
        gains = [_at(table, title_of(a), b) - _at(table, METHODS["random"], b) for a, b in others]
        claims.append(
            Claim(
                f"on {where}, images made for another backbone beat random real ones",
                min(gains) > 0,
                f"by {min(gains):+.1f} to {max(gains):+.1f}",
            )
        )
    return claims


def _mean(table: Table, method: str, backbone: str) -> float:
    return _at(table, METHODS[method], backbone)


def _at(table: Table, row: str, backbone: str) -> float:
    return mean(table.cells, row, title_of(backbone))


def _seed_note(config: ConfigDict) -> str:
    count = len(seeds(config))
    return (
        f"{count} distillation {'seed' if count == 1 else 'seeds'}, {config.probe.runs} probe runs "
        f"each, {config.steps} steps, {config.ipc} {'image' if config.ipc == 1 else 'images'} per "
        "class. Rows of real images have no distillation seed: their spread is over probe runs."
    )
