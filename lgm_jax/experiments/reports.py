"""Tables and claims of accuracies: what each experiment makes of the numbers on a set of images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from lgm_jax.experiments import axes, frame, looks
from lgm_jax.experiments.axes import SECTION, SETS
from lgm_jax.experiments.frame import Cell
from lgm_jax.experiments.result import Claim, Table
from lgm_jax.experiments.study import (
    AVERAGE,
    METHODS,
    Report,
    Study,
    has_papers,
    with_papers_average,
)

if TYPE_CHECKING:
    import pandas as pd

_DISTILLED, _RANDOM, _FULL = (METHODS[method] for method in ("distilled", "random", "full"))
_REAL = [METHODS[method] for method in ("neighbors", "centroids", "random")]

GROUP_NOTE = (
    "Worst group: the mean over probe runs of each run's worst group, which the paper does not "
    f"give. Each run's folder has {looks.PICTURE}: its images beside, of every group of their "
    "class, the real image nearest to the group's mean."
)


def seed_note(config: ConfigDict) -> str:
    """Returns how often everything was done, for how long."""
    count = len(axes.seeds(config))
    return (
        f"{count} distillation {'seed' if count == 1 else 'seeds'}, {config.probe.runs} probe runs "
        f"each, {config.steps} steps, {config.ipc} {'image' if config.ipc == 1 else 'images'} per "
        "class where not said otherwise. Rows of real images have no distillation seed: their "
        "spread is over probe runs."
    )


def by_method(study: Study) -> Report:
    """Methods by backbones; and what distilled images close of the gap to all real ones."""
    table = _methods(study)
    if not has_papers(table):
        table = with_papers_average(table, {row: ("", m) for m, row in METHODS.items()})
    margins = {column: _margin(table, column) for column in map(study.titled, study.sources)}
    text = f"on {study.title}, distilled images beat every choice of real ones, on every backbone"
    return Report([table, _gaps(study)], [Claim.ahead(text, margins)])


def _methods(study: Study, metric: str = frame.TOP1, title: str = "") -> Table:
    """Returns the table of methods by backbones, and for accuracies their average."""
    own = study.all[study.all["metric"] == metric]
    placed = own.assign(row=own["method"].map(METHODS), column=own["evaluated"].map(study.titled))
    if len(study.sources) > 1 and not title:
        placed = frame.with_average(placed, AVERAGE)
    return study.table(placed, title, "images", rows=METHODS.values())


def _margin(table: Table, column: str) -> float:
    """Returns by how much distilled images beat the best choice of real ones."""
    best = max(table.mean(row, column) for row in _REAL if row in table.rows)
    return table.mean(_DISTILLED, column) - best


def _gaps(study: Study) -> Table:
    """Returns what distilled images close of the gap between random images and all of them."""
    own = study.top1
    means = own.groupby(["evaluated", "seed", "method"], dropna=False)["value"].mean()
    papers, cells = study.papers, {}
    for backbone in study.sources:
        of = means[backbone]
        low, high = (of.xs(method, level="method").mean() for method in ("random", "full"))
        shares = (of.xs("distilled", level="method") - low) / (high - low)
        numbers = [
            papers.get((study.name, "", method, frame.TOP1, frozenset([(source, backbone)])))
            for method, source in (("random", "real"), ("full", "real"), ("distilled", backbone))
        ]
        theirs = [number[0] for number in numbers if number is not None]
        cells["Gap", study.titled(backbone)] = Cell(
            mean=float(shares.mean()) if high != low else None,
            std=float(shares.std()) if len(shares) > 1 and high != low else None,
            seeds=len(shares) if high != low else 0,
            paper=((theirs[2] - theirs[0]) / (theirs[1] - theirs[0]), None) if theirs else None,
        )
    title = f"{study.title}: (distilled - random) / (full - random)"
    return Table(title, "", cells, unit="part of the gap", digits=2, drawn=False)


def by_group(study: Study) -> Report:
    """Methods by backbones, on average and in the worst group; and by groups."""
    average = _methods(study, title=": average")
    # Beside numbers of other data, to compare orders.
    theirs = study.name if has_papers(average) else "waterbirds"
    average = with_papers_average(
        average,
        {row: ("", method) for method, row in METHODS.items()},
        name=theirs,
        column=f"the paper's average, {SETS[theirs].title}",
    )
    worst = _methods(study, frame.WORST, ": worst group")
    claims = [
        Claim.ahead(
            f"on {study.title}, {where}, distilled images beat every choice of real ones",
            {column: _margin(table, column) for column in map(study.titled, study.sources)},
        )
        for table, where in ((average, "on average"), (worst, "in the worst group"))
    ]
    shown = []
    for backbone in study.sources:
        first = next(each for each in study.outcomes if each.axes["backbone"] == backbone)
        counts = {f"group {name}": count for name, count in first.measured["train"].items()}
        own = study.all[study.all["metric"].isin(counts) & (study.all["evaluated"] == backbone)]
        titles = own["metric"].map(
            lambda metric, counts=counts: f"{metric[6:]} ({counts[metric]} in train)"
        )
        placed = own.assign(row=own["method"].map(METHODS), column=titles)
        table = study.table(
            placed, f": by group, on {study.titled(backbone)}", "images", rows=METHODS.values()
        )
        shown.append((table, looks.read_picture(first)))
    return Report([average, worst, *(table for table, _ in shown)], claims, shown=shown)


def by_backbone(study: Study) -> Report:
    """The backbone that images are distilled against by the one that they are evaluated on."""
    own = study.top1[study.top1["evaluated"].isin(study.evaluated)]
    placed = frame.with_average(place_by_backbone(study, own), AVERAGE)
    rows = [*map(study.titled, study.sources), _RANDOM, _FULL]
    columns = [*map(study.titled, study.evaluated), AVERAGE]
    table = study.table(placed, "", "distilled against", rows=rows, columns=columns)
    claims = _cross_claims(study, table) if len(study.evaluated) > 1 else []
    # Real images would take up the colours.
    cells = {place: cell for place, cell in table.cells.items() if place[0] not in rows[-2:]}
    return Report([table], claims, shown=[dataclasses.replace(table, cells=cells)])


def place_by_backbone(study: Study, own: pd.DataFrame) -> pd.DataFrame:
    """Returns a frame placed by what is distilled against, or method, and what evaluates."""
    return own.assign(
        row=own["backbone"]
        .map(study.titled)
        .where(own["method"] == "distilled", own["method"].map(METHODS)),
        column=own["evaluated"].map(study.titled),
    )


def _cross_claims(study: Study, table: Table) -> list[Claim]:
    titled, claims = study.titled, []
    shared = [backbone for backbone in study.evaluated if backbone in study.sources]
    if len(study.sources) > 1 and shared:
        margins = {
            titled(b): table.mean(titled(b), titled(b))
            - max(table.mean(titled(a), titled(b)) for a in study.sources if a != b)
            for b in shared
        }
        text = f"on {study.title}, a backbone does best with the images made for it"
        claims.append(Claim.ahead(text, margins))
    gains = [
        table.mean(titled(a), titled(b)) - table.mean(_RANDOM, titled(b))
        for a, b in itertools.product(study.sources, study.evaluated)
        if a != b
    ]
    if gains:
        text = f"on {study.title}, images made for another backbone beat random real ones"
        detail = f"by {min(gains):+.1f} to {max(gains):+.1f}"
        claims.append(Claim(text, all(gain > 0 for gain in gains), detail))
    return claims


def by_part(study: Study, parts: Sequence[str]) -> Report:
    """What is left out by backbone, on the same backbone and on the others."""
    prefix, own, tables = study.config[SECTION].prefix, study.top1, []
    variants = {name: name.removeprefix(prefix).lstrip("-") for name in own["variant"].unique()}
    titles = {
        name: f"without {off[3:].replace('-', ', ')}" if off else "full method"
        for name, off in variants.items()
    }
    own = own.assign(row=own["variant"].map(titles), column=own["backbone"].map(study.titled))
    papers = {titles[name]: (off, "distilled") for name, off in variants.items()}
    is_same = own["backbone"] == own["evaluated"]
    for over, where, placed in (
        ("same", "the same backbone", own[is_same]),
        ("others", "the other backbones", own[~is_same & own["evaluated"].isin(study.evaluated)]),
    ):
        if placed.empty:
            continue
        if placed["backbone"].nunique() > 1:
            placed = frame.with_average(placed, AVERAGE)
        table = study.table(placed, f", evaluated on {where}", "method")
        if not has_papers(table):
            table = with_papers_average(table, papers, over=over)
        tables.append(table)
    return Report(tables, _part_claims(study, tables, parts))


def _part_claims(study: Study, tables: Sequence[Table], parts: Sequence[str]) -> list[Claim]:
    claims, losses = [], []
    for table in tables:
        column = AVERAGE if AVERAGE in table.columns else table.columns[0]
        full = table.mean("full method", column)
        loss = {
            part: full - table.mean(f"without {part}", column)
            for part in parts
            if f"without {part}" in table.rows
        }
        losses.append(loss)
        if "augment" in loss and len(loss) > 1:
            others = max(value for part, value in loss.items() if part != "augment")
            detail = ", ".join(
                f"without {part} it {'gains' if value < 0 else 'loses'} {abs(value):.1f}"
                for part, value in loss.items()
            )
            text = f"{table.title}: augmentation matters most"
            claims.append(Claim(text, loss["augment"] > others, detail))
    if len(losses) == 2 and all("pyramid" in loss for loss in losses):
        same, other = (loss["pyramid"] for loss in losses)
        text = f"on {study.title}, the pyramid matters more on other backbones than on the same"
        claims.append(
            Claim(text, other > same, f"it is worth {other:.1f} there and {same:.1f} here")
        )
    return claims


def by_copies(study: Study) -> Report:
    """Augmentations of each image in a step by the backbone that is evaluated."""
    tables, claims, own = [], [], study.top1
    placed = own.assign(
        row=own["variant"].str.removeprefix("copies"), column=own["evaluated"].map(study.titled)
    )
    for backbone in study.sources:
        title = f", distilled against {study.titled(backbone)}"
        of = placed[placed["backbone"] == backbone]
        table = study.table(of, title, "augmentations of each image in a step")
        tables.append(table)
        few, many = min(table.rows, key=int), max(table.rows, key=int)
        for other in dict.fromkeys(of["column"]):
            gain = table.mean(many, other) - table.mean(few, other)
            text = f"{table.title}: {many} augmentations are better than {few} on {other}"
            claims.append(Claim(text, gain > 0, f"by {gain:+.1f}"))
    return Report(tables, claims)


def by_ipc(study: Study) -> Report:
    """Images per class by where they are from; the paper has one image per class alone."""
    tables, claims, own = [], [], study.top1
    placed = own.assign(
        row=own["variant"].str.removeprefix("ipc").replace("", "1"),
        column=own["method"].map(METHODS),
    )
    for backbone in study.sources:
        of = placed[placed["evaluated"] == backbone]
        made, full = of[of["method"] != "full"], of[of["method"] == "full"]
        rows = list(dict.fromkeys(made["row"]))
        # However many images a class has of the others, these are all of them.
        every = frame.import_pandas().concat([made, *(full.assign(row=row) for row in rows)])
        title = f", {study.titled(backbone)}"
        table = study.table(every, title, "images per class", rows=rows, columns=METHODS.values())
        tables.append(table)
        margins = {f"{row} a class": _margin_of_row(table, row) for row in rows}
        text = f"{table.title}: distilled images beat as many real ones, however many there are"
        claims.append(Claim.ahead(text, margins))
    return Report(tables, claims)


def _margin_of_row(table: Table, row: str) -> float:
    return table.mean(row, _DISTILLED) - max(table.mean(row, column) for column in _REAL)


def closed_form(study: Study) -> Report:
    """Ridges by temperatures for each backbone, and the best of both for all together."""
    own = study.top1
    pairs = own["variant"].str.extract("ridge(.+)-temperature(.+)")
    placed = own.assign(row=pairs[0], column=pairs[1])
    tables = [
        study.table(
            placed[placed["backbone"] == backbone],
            f", {study.titled(backbone)}, validation images",
            "ridge by temperature",
        )
        for backbone in study.sources
    ]
    average = {
        pair: sum(table.mean(*pair) for table in tables) / len(tables) for pair in tables[0].cells
    }
    best = max(average, key=average.__getitem__)
    note = (
        f"On {study.title}, best: ridge {best[0]}, temperature {best[1]}, {average[best]:.1f} on "
        "the average over backbones."
    )
    return Report(tables, notes=[note])
