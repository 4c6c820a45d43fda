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
    is_papers,
    note_of,
    real_run,
    seeds,
    select,
    sets,
    title_of,
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
from lgm_jax.experiments.runner import Outcome, Planned

_ORDER = ("clip_vitb16", "dinov2_vitb14", "eva02_vitb14", "mocov3_vitb16", AVERAGE)
_REAL = ("neighbors", "centroids", "random")
_GAP = "Gap"

Number = tuple[float, float | None]
Row = Sequence[Number]

# Mean and std over probe runs, on CLIP, DINO-v2, EVA-02, MoCo-v3 and their average.
PAPER: Mapping[str, Mapping[str, Row]] = {
    "imagenet-100": {
        "distilled": ((84.9, 0.1), (91.5, 0.1), (89.0, 0.0), (83.4, 0.1), (87.2, 0.1)),
        "neighbors": ((67.8, 0.3), (86.0, 0.2), (78.8, 0.2), (77.1, 0.1), (77.4, 0.2)),
        "centroids": ((77.1, 0.1), (86.9, 0.3), (80.9, 0.2), (77.7, 0.1), (80.6, 0.2)),
        "random": ((56.6, 1.6), (74.8, 2.8), (64.5, 2.7), (61.4, 2.6), (64.3, 2.4)),
        "full": ((92.5, 0.0), (95.2, 0.1), (94.1, 0.1), (89.4, 0.3), (92.8, 0.1)),
    },
    "imagenet-1k": {
        "distilled": ((63.0, 0.0), (75.0, 0.1), (70.3, 0.1), (63.2, 0.0), (67.9, 0.0)),
        "neighbors": ((38.8, 0.1), (67.7, 0.1), (49.9, 0.1), (56.4, 0.0), (53.2, 0.1)),
        "centroids": ((53.9, 0.0), (69.5, 0.1), (58.1, 0.1), (57.4, 0.0), (59.7, 0.1)),
        "random": ((31.7, 0.5), (50.3, 0.5), (37.7, 0.4), (38.8, 0.6), (39.6, 0.5)),
        "full": ((78.7, 0.0), (83.0, 0.0), (81.7, 0.1), (76.5, 0.0), (80.0, 0.0)),
    },
    "dogs": {
        "distilled": ((52.1, 0.2), (83.0, 0.1), (74.8, 0.1), (69.6, 0.2), (69.9, 0.2)),
        "neighbors": ((33.4, 0.1), (71.3, 0.2), (58.5, 0.2), (56.3, 0.1), (54.9, 0.2)),
        "centroids": ((43.3, 0.1), (73.0, 0.2), (60.9, 0.2), (55.2, 0.2), (58.1, 0.2)),
        "random": ((23.3, 1.5), (51.9, 1.8), (38.3, 1.8), (36.6, 1.4), (37.5, 1.6)),
        "full": ((76.9, 0.1), (88.6, 0.1), (82.6, 0.1), (72.3, 0.5), (80.1, 0.2)),
    },
    "cub": {
        "distilled": ((62.2, 0.2), (86.0, 0.1), (74.1, 0.2), (42.5, 0.2), (66.2, 0.2)),
        "neighbors": ((39.4, 0.1), (76.9, 0.0), (52.6, 0.3), (28.1, 0.0), (49.2, 0.1)),
        "centroids": ((54.3, 0.2), (78.5, 0.2), (59.9, 0.3), (30.2, 0.1), (55.7, 0.2)),
        "random": ((37.5, 1.6), (64.4, 1.5), (44.3, 1.5), (19.1, 0.5), (41.3, 1.3)),
        "full": ((77.5, 0.7), (90.2, 0.2), (84.0, 0.3), (43.7, 0.8), (73.8, 0.5)),
    },
    "flowers": {
        "distilled": ((79.5, 1.2), (99.6, 0.0), (97.8, 0.1), (56.4, 3.1), (83.3, 1.1)),
        "neighbors": ((69.4, 0.8), (99.4, 0.2), (90.8, 0.2), (48.6, 1.8), (77.0, 0.7)),
        "centroids": ((77.5, 0.7), (99.4, 0.1), (95.6, 0.3), (48.2, 2.6), (80.2, 0.9)),
        "random": ((67.9, 1.1), (98.8, 0.4), (91.0, 0.8), (36.8, 2.2), (73.6, 1.1)),
        "full": ((93.4, 0.1), (99.7, 0.0), (98.9, 0.0), (82.2, 0.1), (93.5, 0.1)),
    },
    "food": {
        "distilled": ((78.7, 1.6), (83.7, 0.3), (83.9, 0.2), (31.6, 3.2), (69.5, 1.3)),
        "neighbors": ((58.8, 1.3), (73.8, 0.4), (71.5, 0.3), (25.2, 1.3), (57.3, 0.8)),
        "centroids": ((74.1, 0.6), (75.6, 0.1), (76.4, 0.4), (22.7, 2.0), (62.2, 0.8)),
        "random": ((48.5, 1.0), (52.8, 1.9), (49.9, 0.6), (13.5, 1.7), (41.2, 1.3)),
        "full": ((91.9, 0.0), (92.7, 0.1), (92.0, 0.0), (78.3, 0.0), (88.7, 0.0)),
    },
}

# Rows: the backbone that images are distilled against. Columns as above.
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
        [note_of(config), _seed_note(config)],
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
        [note_of(config), _seed_note(config)],
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


def paper_number(row: Row | None, backbone: str) -> Number | None:
    """The paper's number on a backbone, or `AVERAGE`, of a row of its tables."""
    return row[_ORDER.index(backbone)] if row is not None and backbone in _ORDER else None


def _methods(
    config: ConfigDict, outcomes: Sequence[Outcome], name: str, names: Sequence[str]
) -> Table:
    cells = {}
    paper = PAPER.get(name, {}) if _comparable(config) else {}
    for method, row in METHODS.items():
        numbers = paper.get(method)
        for backbone in names:
            own = _runs_of(outcomes, method, backbone)
            ours = cell(own, method, backbone)
            cells[row, title_of(backbone)] = ours.beside(paper_number(numbers, backbone))
        if len(names) > 1:
            average = _average(outcomes, method, names)
            if set(names) == set(_ORDER[:-1]):
                average = average.beside(paper_number(numbers, AVERAGE))
            cells[row, AVERAGE] = average
    columns = [title_of(backbone) for backbone in names] + ([AVERAGE] if len(names) > 1 else [])
    if not is_papers(config) and name not in PAPER:
        columns.append(PAPERS_AVERAGE)
        for method, row in METHODS.items():
            cells[row, PAPERS_AVERAGE] = Cell().beside(PAPER["imagenet-100"][method][-1])
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
        if _comparable(config) and name in PAPER and backbone in _ORDER:
            column = _ORDER.index(backbone)
            low, high, distilled = (
                PAPER[name][method][column][0] for method in ("random", "full", "distilled")
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
    paper = PAPER_CROSS.get(name, {}) if _comparable(config) else {}
    whole = set(every) == set(_ORDER[:-1])
    for backbone in backbones(config):
        own = select(outcomes, backbone=backbone)
        for other in every:
            ours = cell(own, "distilled", other)
            number = paper_number(paper.get(backbone), other)
            cells[title_of(backbone), title_of(other)] = ours.beside(number)
        ours = cell(own, "distilled", *every)
        number = paper_number(paper.get(backbone), AVERAGE) if whole else None
        cells[title_of(backbone), AVERAGE] = ours.beside(number)
    real = select(outcomes, backbone="real")
    full = PAPER.get(name, {}) if paper else {}
    for method in ("random", "full"):
        for other in every:
            ours = cell(real, method, other)
            cells[METHODS[method], title_of(other)] = ours.beside(
                paper_number(full.get(method), other)
            )
        average = cell(real, method, *every)
        number = paper_number(full.get(method), AVERAGE) if whole else None
        cells[METHODS[method], AVERAGE] = average.beside(number)
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


def _comparable(config: ConfigDict) -> bool:
    return is_papers(config) and config.ipc == 1


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
