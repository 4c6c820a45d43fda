"""What parts and numbers of the method are worth: table 3, figure 3, and images per class."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lgm_jax.errors import UserError, unknown_name
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
from lgm_jax.experiments.paper import Number
from lgm_jax.experiments.published import are_all, is_papers, note_of, paper_number
from lgm_jax.experiments.result import Cell, Claim, Result, Table, mean, summarize
from lgm_jax.experiments.runner import SECTION, Outcome, Planned
from lgm_jax.settings import split_list

# What can be left out, alone or together, and how.
PARTS: Mapping[str, Mapping[str, Any]] = {
    "decorrelate": {"images.decorrelate": False},
    "pyramid": {"images.kind": "pixels"},
    # Without augmentation all views are the same.
    "augment": {"augment.distill": False, "real.views": 1},
}
_NOTHING = "none"

# By what is left out; columns as in `paper.ACCURACY`: the backbone that is distilled against.
PAPER_SAME: Mapping[str, Sequence[Number]] = {
    _NOTHING: ((84.9, 0.1), (91.5, 0.1), (89.0, 0.0), (83.4, 0.1), (87.2, 0.1)),
    "decorrelate": ((82.6, 0.1), (91.3, 0.2), (89.0, 0.1), (83.2, 0.1), (86.5, 0.1)),
    "pyramid": ((83.5, 0.2), (91.0, 0.3), (87.9, 0.1), (80.5, 0.1), (85.7, 0.1)),
    "augment": ((58.4, 0.2), (82.6, 0.4), (74.0, 0.3), (59.6, 0.5), (68.6, 0.4)),
}
PAPER_OTHERS: Mapping[str, Sequence[Number]] = {
    _NOTHING: ((75.4, 0.3), (80.9, 0.1), (76.6, 0.1), (78.2, 0.1), (77.8, 0.2)),
    "decorrelate": ((69.4, 0.4), (79.5, 0.1), (76.8, 0.1), (79.9, 0.2), (76.4, 0.2)),
    "pyramid": ((57.3, 0.2), (74.5, 0.2), (68.5, 0.2), (68.1, 0.2), (67.1, 0.2)),
    "augment": ((35.3, 0.4), (31.6, 0.2), (34.3, 0.5), (32.2, 0.5), (33.3, 0.4)),
}

# Of images distilled against DINO-v2 on ImageNet-100, by copies; 1 and 5 read off the plot.
PAPER_COPIES: Mapping[int, Sequence[Number]] = {
    1: ((70.6, None), (89.5, None), (82.3, None), (72.5, None)),
    5: ((73.5, None), (91.0, None), (85.0, None), (77.9, None)),
    10: ((77.0, 0.1), (91.5, 0.1), (86.8, 0.1), (78.8, 0.1)),
}

_SAME, _OTHERS = "the same backbone", "the other backbones"


def plan_table3(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """Every backbone, without parts of the method, evaluated on all backbones."""
    prefix = config[SECTION].prefix
    return [
        distilled_run(
            config,
            name,
            image_set,
            backbone,
            seed,
            evaluate=dict.fromkeys([backbone, *evaluated(config)]),
            variant="-".join(filter(None, [prefix, _variant(off)])),
            changes=_without(off),
        )
        for name, image_set in sets(config).items()
        for off in _ablations(config)
        for backbone in backbones(config)
        for seed in seeds(config)
    ]


def tabulate_table3(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """What is left out by backbone, on the same backbone and on the others."""
    tables, claims = [], []
    for name in sets(config):
        where = [
            _ablation_table(config, select(outcomes, set=name), name, same=same)
            for same in (True, False)
        ]
        where = [table for table in where if table.cells]
        tables += where
        claims += _ablation_claims(where, SETS[name].title)
    return Result(
        "Table 3: what each part of the method is worth",
        tables,
        [note_of(config, outcomes), _count_note(config)],
        claims,
        functools.partial(figures.bars, tables=tables),
    )


def plan_figure3(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """Every number of augmentations, for each backbone, evaluated on all backbones."""
    return [
        distilled_run(
            config,
            name,
            image_set,
            backbone,
            seed,
            evaluate=dict.fromkeys([backbone, *evaluated(config)]),
            variant=f"copies{copies}",
            changes={"copies": copies},
        )
        for name, image_set in sets(config).items()
        for copies in numbers(config, "copies")
        for backbone in backbones(config)
        for seed in seeds(config)
    ]


def tabulate_figure3(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """Augmentations of each image in a step by the backbone that is evaluated."""
    tables, claims, every = [], [], numbers(config, "copies")
    for name in sets(config):
        for backbone in backbones(config):
            others = list(dict.fromkeys([backbone, *evaluated(config)]))
            own = select(outcomes, set=name)
            shown = (name, backbone) == ("imagenet-100", "dinov2_vitb14")
            compared = [
                other
                for other in others
                if shown and is_papers(config, name, backbone, other, outcomes=own)
            ]
            cells = {}
            for copies in every:
                made = select(own, backbone=backbone, variant=f"copies{copies}")
                for other in others:
                    theirs = PAPER_COPIES.get(copies) if other in compared else None
                    ours = cell(made, "distilled", other)
                    cells[str(copies), title_of(other)] = ours.beside(paper_number(theirs, other))
            table = Table(
                f"{SETS[name].title}, distilled against {title_of(backbone)}",
                "augmentations of each image in a step",
                list(map(str, every)),
                list(map(title_of, others)),
                cells,
            )
            tables.append(table)
            few, many = str(min(every)), str(max(every))
            for other in map(title_of, others):
                gain = mean(table.cells, many, other) - mean(table.cells, few, other)
                text = f"{table.title}: {many} augmentations are better than {few} on {other}"
                claims.append(Claim(text, gain > 0, f"by {gain:+.1f}"))
    return Result(
        "Figure 3: augmentations of each image in a step",
        tables,
        [note_of(config, outcomes), _count_note(config)],
        claims,
        functools.partial(figures.curves, tables=tables, x_label="augmentations in a step"),
    )


def plan_ipc(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """Every number of images per class, each backbone for itself, beside real images."""
    planned = []
    for name, image_set in sets(config).items():
        planned.append(real_run(config, name, image_set, backbones(config), ("full",)))
        planned += [
            distilled_run(
                config,
                name,
                image_set,
                backbone,
                seed,
                evaluate=[backbone],
                baselines=("random", "centroids", "neighbors"),
                variant=_ipc(count),
                changes={"ipc": count},
            )
            for count in numbers(config, "ipc")
            for backbone in backbones(config)
            for seed in seeds(config)
        ]
    return planned


def tabulate_ipc(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """Images per class by where they are from; the paper has one image per class alone."""
    tables, claims, counts = [], [], numbers(config, "ipc")
    for name in sets(config):
        for backbone in backbones(config):
            cells = {}
            for count in counts:
                own = select(outcomes, set=name, backbone=backbone, variant=_ipc(count))
                real = select(outcomes, set=name, backbone="real")
                for method, column in METHODS.items():
                    runs = real if method == "full" else own
                    cells[str(count), column] = cell(runs, method, backbone)
            where = f"{SETS[name].title}, {title_of(backbone)}"
            rows, columns = list(map(str, counts)), list(METHODS.values())
            table = Table(where, "images per class", rows, columns, cells)
            tables.append(table)
            real_columns = [METHODS[method] for method in ("neighbors", "centroids", "random")]
            margins = {
                row: mean(table.cells, row, METHODS["distilled"])
                - max(mean(table.cells, row, column) for column in real_columns)
                for row in rows
            }
            claims.append(
                Claim(
                    f"{where}: distilled images beat as many real ones, however many there are",
                    min(margins.values()) > 0,
                    ", ".join(f"{row} a class by {margin:+.1f}" for row, margin in margins.items()),
                )
            )
    return Result(
        "Images per class",
        tables,
        [note_of(config, outcomes), _count_note(config)],
        claims,
        functools.partial(figures.curves, tables=tables, x_label="images per class"),
    )


def numbers(config: ConfigDict, key: str) -> list[int]:
    """A list of positive whole numbers of the section `experiment`.

    Raises:
        UserError: If it is none.
    """
    words = split_list(config[SECTION][key])
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(
            f"config.experiment.{key} must be positive whole numbers, for example 1,5, not "
            f"{config[SECTION][key]!r}"
        )
    return [int(word) for word in words]


def _ablations(config: ConfigDict) -> list[str]:
    """What to leave out, by run: names of parts with + between them."""
    ablations = split_list(config[SECTION].without)
    for ablation in ablations:
        for part in ablation.split("+"):
            if part not in (*PARTS, _NOTHING):
                raise unknown_name("part of the method", part, [_NOTHING, *PARTS])
    return list(dict.fromkeys([_NOTHING, *ablations]))


def _without(ablation: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for part in ablation.split("+"):
        changes |= PARTS.get(part, {})
    return changes


def _ipc(count: int) -> str:
    # One image per class is the run of table 1.
    return "" if count == 1 else f"ipc{count}"


def _variant(ablation: str) -> str:
    return "" if ablation == _NOTHING else f"no-{ablation.replace('+', '-')}"


def _row(ablation: str) -> str:
    return "full method" if ablation == _NOTHING else f"without {ablation.replace('+', ', ')}"


def _ablation_table(
    config: ConfigDict, outcomes: Sequence[Outcome], name: str, *, same: bool
) -> Table:
    compared = name == "imagenet-100" and _are_papers(config, name, outcomes, same=same)
    numbers_of = PAPER_SAME if same else PAPER_OTHERS
    prefix, cells = config[SECTION].prefix, {}
    columns = backbones(config)
    for ablation in _ablations(config):
        variant = "-".join(filter(None, [prefix, _variant(ablation)]))
        paper = numbers_of.get(ablation) if compared else None
        rows = []
        for backbone in columns:
            own = select(outcomes, backbone=backbone, variant=variant)
            others = [b for b in evaluated(config) if b != backbone]
            where = [backbone] if same else others
            if not where:
                continue
            ours = cell(own, "distilled", *where)
            cells[_row(ablation), title_of(backbone)] = ours.beside(paper_number(paper, backbone))
            rows.append([[run.accuracy("distilled", b) for b in where] for run in own])
        if len(rows) > 1:
            by_seed = [list(itertools.chain(*seed)) for seed in zip(*rows, strict=True)]
            number = paper_number(paper, AVERAGE) if are_all(columns) else None
            cells[_row(ablation), AVERAGE] = summarize(by_seed).beside(number)
    titles = list(map(title_of, columns)) + ([AVERAGE] if len(columns) > 1 else [])
    if not compared and cells:
        titles.append(PAPERS_AVERAGE)
        for ablation in filter(numbers_of.__contains__, _ablations(config)):
            cells[_row(ablation), PAPERS_AVERAGE] = Cell().beside(numbers_of[ablation][-1])
    return Table(
        f"{SETS[name].title}, evaluated on {_SAME if same else _OTHERS}",
        "method",
        [_row(ablation) for ablation in _ablations(config)],
        titles,
        cells,
    )


def _are_papers(config: ConfigDict, name: str, outcomes: Sequence[Outcome], *, same: bool) -> bool:
    """Whether the paper's numbers are of these; those of other backbones, of the same others."""
    every = evaluated(config)
    seen = backbones(config) if same else [*backbones(config), *every]
    return is_papers(config, name, *seen, outcomes=outcomes) and (same or are_all(every))


def _ablation_claims(tables: Sequence[Table], where: str) -> list[Claim]:
    full, claims, losses = _row(_NOTHING), [], []
    for table in tables:
        column = AVERAGE if AVERAGE in table.columns else table.columns[0]
        loss = {
            part: mean(table.cells, full, column) - mean(table.cells, _row(part), column)
            for part in PARTS
            if _row(part) in table.rows
        }
        losses.append(loss)
        if "augment" in loss and len(loss) > 1:
            others = max(value for part, value in loss.items() if part != "augment")
            claims.append(
                Claim(
                    f"{table.title}: augmentation matters most",
                    loss["augment"] > others,
                    ", ".join(
                        f"without {part} it {'gains' if value < 0 else 'loses'} {abs(value):.1f}"
                        for part, value in loss.items()
                    ),
                )
            )
    if len(losses) == 2 and all("pyramid" in loss for loss in losses):
        same, other = (loss["pyramid"] for loss in losses)
        claims.append(
            Claim(
                f"on {where}, the pyramid matters more on other backbones than on the same",
                other > same,
                f"it is worth {other:.1f} there and {same:.1f} here",
            )
        )
    return claims


def _count_note(config: ConfigDict) -> str:
    count = len(seeds(config))
    return (
        f"{count} distillation {'seed' if count == 1 else 'seeds'}, {config.probe.runs} probe runs "
        f"each, {config.steps} steps."
    )
