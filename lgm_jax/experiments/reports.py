"""Reports: the tables, claims and notes that each experiment makes of its numbers on a set."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from lgm_jax.experiments import axes, frame, measures
from lgm_jax.experiments.axes import SECTION, SETS
from lgm_jax.experiments.frame import (
    DISTILLED,
    FULL,
    OTHERS,
    RANDOM,
    SAME,
    WORST,
    Study,
    import_pandas,
    row_of,
    with_papers_average,
)
from lgm_jax.experiments.published import TOP1
from lgm_jax.experiments.result import AVERAGE, Cell, Claim, Result, Table
from lgm_jax.experiments.runner import Outcome
from lgm_jax.report.vocabulary import TITLES
from lgm_jax.settings import split_list

if TYPE_CHECKING:
    import pandas as pd

SOFT = "soft-labels"

_IMAGES = (TITLES.values(), ())
_CHOSEN = [TITLES[method] for method in ("neighbors", "centroids", "random")]
BY_METHOD = {title: ("", method) for method, title in TITLES.items()}

# Metrics of the runs of `objectives`, beside accuracies and costs.
_STEPS, _LABELS, _OWN_TIME = "steps", "bytes of labels", "ms a step, each run by itself"


def _seed_note(config: ConfigDict) -> str:
    count = len(axes.seeds(config))
    return (
        f"{count} distillation {'seed' if count == 1 else 'seeds'}, {config.probe.runs} probe runs "
        f"each, {config.steps} steps, {config.ipc} {'image' if config.ipc == 1 else 'images'} per "
        "class where not said otherwise. Rows of real images have no distillation seed: their "
        "spread is over probe runs."
    )


def by_method(study: Study) -> Result:
    """Methods by backbones, and the part of the gap that distilled images close."""
    table = _methods(study, average=len(study.sources) > 1)
    if not table.has_papers:
        table = with_papers_average(table, BY_METHOD)
    claim = ahead_of_real(study, table)
    return Result([table, _gaps(study)], [claim], [_seed_note(study.config)])


def _methods(study: Study, metric: str = TOP1, title: str = "", average: bool = False) -> Table:
    return study.table(
        study.metric(metric), title, "images", "images", "on", order=_IMAGES, average=average
    )


def ahead_of_real(study: Study, table: Table, where: str = "") -> Claim:
    """Returns the claim that distilled images beat the best choice of real ones, by backbone."""
    claimed = "distilled images beat every choice of real ones"
    text = f"{where}, {claimed}" if where else f"{claimed}, on every backbone"
    leads = {
        column: _lead({row: table.mean(row, column) for row in table.rows})
        for column in map(study.titled, study.sources)
    }
    return Claim.ahead(f"on {study.title}, {text}", leads)


def _lead(accuracies: Mapping[str, float]) -> float:
    return accuracies[DISTILLED] - max(accuracies[row] for row in _CHOSEN if row in accuracies)


def _gaps(study: Study) -> Table:
    """Returns the part of the gap between random images and all that distilled images close."""
    own = study.metric(TOP1)
    means = own.groupby(["evaluated", "seed", "method"], dropna=False)["value"].mean()
    cells = {}
    for backbone in study.sources:
        of = means[backbone]
        low, high = (of.xs(method, level="method").mean() for method in ("random", "full"))
        shares = (of.xs("distilled", level="method") - low) / (high - low)
        numbers = [
            study.papers.get((study.name, "", method, TOP1, frozenset([(source, backbone)])))
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
    return Table(title, "measure", cells, unit="part of the gap", digits=2, drawn=False)


def by_group(study: Study) -> Result:
    """Methods by backbones, on average and in the worst group; and by groups."""
    average = _methods(study, title=": average")
    # Beside numbers of other data, to compare orders.
    theirs = study.name if average.has_papers else "waterbirds"
    column = f"the paper's average, {SETS[theirs].title}"
    average = with_papers_average(average, BY_METHOD, name=theirs, column=column)
    worst = _methods(study, WORST, ": worst group")
    claims = [
        ahead_of_real(study, average, "on average"),
        ahead_of_real(study, worst, "in the worst group"),
    ]
    shown = []
    for backbone in study.sources:
        first = study.first_outcome(backbone)
        titles = {
            f"group {name}": f"{name} ({count} in train)"
            for name, count in first.measured["train"].items()
        }
        own = study.metric(*titles)
        own = own[own["evaluated"] == backbone]
        title, columns = f": by group, on {study.titled(backbone)}", own["metric"].map(titles)
        table = study.table(own, title, "images", "images", columns, order=_IMAGES)
        shown.append((table, measures.read_picture(first)))
    note = (
        "Worst group: the mean over probe runs of each run's worst group; the paper does not "
        f"report it. The folder of each run has {measures.PICTURE}: its images and, of every group "
        "of their class, the real image nearest to the mean of the group."
    )
    return Result([average, worst, *(table for table, _ in shown)], claims, [note], shown)


def by_backbone(study: Study) -> Result:
    """The backbone that images are distilled against by the one that they are evaluated on."""
    table = _cross_table(study, study.metric(TOP1), "", study.sources)
    # Real images would take up the colours.
    cells = {place: cell for place, cell in table.cells.items() if place[0] not in (RANDOM, FULL)}
    shown = [dataclasses.replace(table, cells=cells)]
    claims = _cross_claims(study, table) if len(study.evaluated) > 1 else []
    return Result([table], claims, [_seed_note(study.config)], shown)


def _cross_table(study: Study, own: pd.DataFrame, title: str, sources: Iterable[str]) -> Table:
    own = own[own["evaluated"].isin(study.evaluated)]
    rows = [*map(study.titled, sources), RANDOM, FULL]
    order = rows, [*map(study.titled, study.evaluated), AVERAGE]
    corner = "distilled against"
    return study.table(own, title, corner, "source", "on", order=order, average=True)


def _cross_claims(study: Study, table: Table) -> list[Claim]:
    claims = []
    sources, evaluated = (list(map(study.titled, x)) for x in (study.sources, study.evaluated))
    shared = [backbone for backbone in evaluated if backbone in sources]
    if len(sources) > 1 and shared:
        margins = {
            b: table.mean(b, b) - max(table.mean(a, b) for a in sources if a != b) for b in shared
        }
        text = f"on {study.title}, a backbone does best with the images made for it"
        claims.append(Claim.ahead(text, margins))
    gains = [
        table.mean(a, b) - table.mean(RANDOM, b)
        for a, b in itertools.product(sources, evaluated)
        if a != b
    ]
    if gains:
        text = f"on {study.title}, images made for another backbone beat random real ones"
        detail = f"by {min(gains):+.1f} to {max(gains):+.1f}"
        claims.append(Claim(text, all(gain > 0 for gain in gains), detail))
    return claims


def by_part(study: Study) -> Result:
    """The parts that are left out by backbone, on the same backbone and on the others."""
    prefix, own = study.config[SECTION].prefix, study.metric(TOP1)
    off = {name: name.removeprefix(prefix).lstrip("-") for name in own["variant"].unique()}
    titles = {
        name: f"without {words[3:].replace('-', ', ')}" if words else "full method"
        for name, words in off.items()
    }
    papers = {titles[name]: (words, "distilled") for name, words in off.items()}
    shown: dict[str, Table] = {}
    for over, where in (("same", SAME), ("others", OTHERS)):
        part = own[own["where"] == where]
        if part.empty:
            continue
        average = part["backbone"].nunique() > 1
        title, rows = f", evaluated on the {where}", part["variant"].map(titles)
        table = study.table(part, title, "method", rows, "against", average=average)
        if not table.has_papers:
            table = with_papers_average(table, papers, over=over)
        shown[f"on the {where}"] = table
    without = {titles[name]: words.split("-")[1:] for name, words in off.items()}
    tables, parts = list(shown.values()), (study.title, without, shown)
    return Result(tables, _part_claims(study, tables), [_seed_note(study.config)], [parts])


def _part_claims(study: Study, tables: Sequence[Table]) -> list[Claim]:
    claims, losses = [], []
    for table in tables:
        column = AVERAGE if AVERAGE in table.columns else table.columns[0]
        full = table.mean("full method", column)
        loss = {
            row.removeprefix("without "): full - table.mean(row, column)
            for row in table.rows
            if row != "full method" and "," not in row
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
        detail = f"it is worth {other:.1f} there and {same:.1f} here"
        claims.append(Claim(text, other > same, detail))
    return claims


def by_copies(study: Study) -> Result:
    """Augmentations of each image in a step by the backbone that is evaluated."""
    tables, claims, own = [], [], study.metric(TOP1)
    plain = str(study.config.copies)
    own = own.assign(row=own["variant"].str.removeprefix("copies").replace("", plain))
    for against, part in study.by_source(own):
        title, corner = f", distilled against {against}", "augmentations of each image in a step"
        table = study.table(part, title, corner, "row", "on")
        tables.append(table)
        few, many = min(table.rows, key=int), max(table.rows, key=int)
        for other in table.columns:
            gain = table.mean(many, other) - table.mean(few, other)
            text = f"{table.title}: {many} augmentations are better than {few} on {other}"
            claims.append(Claim(text, gain > 0, f"by {gain:+.1f}"))
    return Result(tables, claims, [_seed_note(study.config)])


def by_ipc(study: Study) -> Result:
    """Images per class by method; the paper has one image per class alone."""
    tables, claims, own = [], [], study.metric(TOP1)
    plain = str(study.config.ipc)
    own = own.assign(row=own["variant"].str.removeprefix("ipc").replace("", plain))
    for name, part in study.by_source(own, "evaluated"):
        made, full = part[part["method"] != "full"], part[part["method"] == "full"]
        rows = list(made["row"].unique())
        # All real images are the same, however many the other methods have.
        part = import_pandas().concat([made, *(full.assign(row=row) for row in rows)])
        title, order = f", {name}", (rows, TITLES.values())
        table = study.table(part, title, "images per class", "row", "images", order=order)
        tables.append(table)
        margins = {
            f"{row} a class": _lead({column: table.mean(row, column) for column in table.columns})
            for row in rows
        }
        text = f"{table.title}: distilled images beat as many real ones, however many there are"
        claims.append(Claim.ahead(text, margins))
    return Result(tables, claims, [_seed_note(study.config)])


def closed_form(study: Study) -> Result:
    """Ridges by temperatures for each backbone, and the best pair for all together."""
    pairs = study.metric(TOP1)["variant"].str.extract("ridge(?P<row>.+)-temperature(?P<column>.+)")
    tables = [
        study.table(part, f", {name}, validation images", "ridge by temperature", "row", "column")
        for name, part in study.by_source(study.metric(TOP1).join(pairs))
    ]
    average = {
        pair: sum(table.mean(*pair) for table in tables) / len(tables) for pair in tables[0].cells
    }
    best = max(average, key=average.__getitem__)
    note = (
        f"On {study.title}, best: ridge {best[0]}, temperature {best[1]}, {average[best]:.1f} on "
        "the average over backbones."
    )
    return Result(tables, notes=[note])


def variant_of(config: ConfigDict, objective: str, source: str = "") -> str:
    """Returns the variant of an objective and a source of real features."""
    # The config's own are the run of table 1.
    parts = [objective] if objective != config.objective else []
    return "-".join([*parts, *([source] if source not in ("", config.real.source) else [])])


def rows_of_objectives(config: ConfigDict, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Returns the rows of steps, bytes of labels, and the time of a step of compared sources."""
    if "distill" not in outcome.planned.changes["stages"]:
        return
    yield row_of(outcome, _STEPS, float(outcome.results["steps"]))
    yield row_of(outcome, _LABELS, float(outcome.results["labels"]["bytes"]))
    first = axes.joined(axes.backbones(config)[0])
    if outcome.axes["backbone"] == first and outcome.axes["variant"] in _by_source(config).values():
        yield row_of(outcome, _OWN_TIME, 1000 * outcome.seconds_per_step())


def _by_source(config: ConfigDict) -> dict[str, str]:
    """Returns the variants that compare sources of real features, by title."""
    sources = axes.sources(config)
    return {
        f"{objective}, {source}": variant_of(config, objective, source)
        for objective, source in itertools.product(axes.objectives(config), sources)
        if len(sources) > 1
    }


def objectives(study: Study) -> Result:
    """Accuracy on the same backbone and on others, time and memory, for each comparison."""
    config = study.config
    against = f"distilled against {study.titled(study.sources[0])}"
    tables = _by_objective(study)
    shown = []
    if len(axes.objectives(config)) > 1:
        at_steps, at_time = tables[0], _accuracies(tables[1])
        # Where a step of each takes as long, they are the same.
        shown = [at_steps, *([at_time] if at_time.cells != at_steps.cells else [])]
    if by_source := _by_source(config):
        title, corner = f", sources of real features, {against}", "objective, source"
        unit = "top-1 %, or milliseconds"
        tables.append(_by_variant(study, by_source, _OWN_TIME, title, corner, unit=unit))
        shown.append(_accuracies(tables[-1]))
    if config[SECTION].soft:
        variants, title = {"hard labels": "", "soft labels": SOFT}, f", soft labels, {against}"
        unit, whole = "top-1 %, or bytes", [_LABELS]
        tables.append(
            _by_variant(study, variants, _LABELS, title, "labels", unit=unit, integers=whole)
        )
    joint, claims = _jointly(study)
    return Result([*tables, *joint], claims, [_objectives_note(config)], [*shown, *joint])


def _accuracies(table: Table) -> Table:
    """Returns a table without steps and times, which would dwarf percentages."""
    cells = {at: cell for at, cell in table.cells.items() if at[1] not in (_STEPS, _OWN_TIME)}
    return dataclasses.replace(table, cells=cells, unit="top-1 %")


def _by_objective(study: Study) -> list[Table]:
    """Returns accuracies at equal steps and at equal time, costs, and probes with a teacher."""
    config, every = study.config, study.placed
    every = every[every["backbone"].isin(study.sources)]
    is_random = every["method"] == "random"
    beside = every[is_random & (every["variant"] == "")].assign(row=RANDOM)
    every = every[~is_random]
    at_steps, at_time = [beside], [beside]
    for objective in axes.objectives(config):
        own = every[every["variant"] == variant_of(config, objective)].assign(row=objective)
        at_steps.append(own)
        for backbone in study.sources:
            of = every[every["backbone"] == backbone].assign(row=objective)
            timed = of[of["variant"].str.fullmatch(rf"{objective}-\d+-steps")]
            # Without such runs, those at equal steps take as long.
            at_time.append(timed if len(timed) else own[own["backbone"] == backbone])
    steps, time = map(import_pandas().concat, (at_steps, at_time))

    targets = {frame.taught(name): name for name in split_list(config.probe.teacher)}

    def accuracy(part: pd.DataFrame, title: str, extra: str = "", **looks: Any) -> Table:
        part = part[part["metric"].isin([TOP1, extra])]
        columns = part["where"].where(part["metric"] == TOP1, extra)
        order = ((), (SAME, OTHERS))
        return study.table(part, title, "objective", "row", columns, order=order, **looks)

    def with_teacher(part: pd.DataFrame, title: str) -> Table:
        """Random images learn from it as well."""
        part = part[part["metric"].isin(list(targets))]
        columns = part["metric"].map(targets) + ", " + part["where"]
        order = ((), [f"{name}, {where}" for name in targets.values() for where in (SAME, OTHERS)])
        title = f", with a teacher, {title}"
        return study.table(part, title, "objective", "row", columns, order=order, drawn=False)

    unit = "top-1 %, or number of steps"
    tables = [
        accuracy(steps, ", equal steps"),
        accuracy(time, ", equal time", extra=_STEPS, unit=unit, integers=[_STEPS]),
        study.table(
            steps[steps["metric"].isin(measures.COSTS)],
            ", cost",
            "objective",
            "row",
            "metric",
            unit="median milliseconds of a step, minutes of all steps, megabytes of a step",
            drawn=False,
        ),
    ]
    if targets:
        tables += [with_teacher(steps, "equal steps"), with_teacher(time, "equal time")]
    return tables


def _by_variant(
    study: Study, variants: Mapping[str, str], extra: str, title: str, corner: str, **looks: Any
) -> Table:
    """Returns variants on the first backbone, by what evaluates, and a metric more."""
    of = study.metric(TOP1, extra)
    of = of[of["backbone"] == study.sources[0]]
    of = of[(of["metric"] == extra) | of["evaluated"].isin(study.evaluated)]
    part = import_pandas().concat(
        [of[of["variant"] == name].assign(row=row) for row, name in variants.items()]
    )
    columns = part["on"].where(part["metric"] == TOP1, extra)
    order = ((), [*map(study.titled, study.evaluated), extra])
    return study.table(part, title, corner, "row", columns, order=order, drawn=False, **looks)


def _jointly(study: Study) -> tuple[list[Table], list[Claim]]:
    """Returns several backbones at once against each single one, on all of them."""
    pairs = [tuple(map(axes.joined, pair)) for pair in axes.pairs(study.config)]
    if not pairs:
        return [], []
    titled, own = study.titled, study.metric(TOP1)
    sources = [*study.sources, *map("+".join, pairs)]
    own = own[(own["variant"] == "") & own["backbone"].isin([*sources, "real"])]
    table = _cross_table(study, own, ", several backbones at once", sources)
    claims = []
    for pair in pairs:
        for other in (titled(each) for each in study.evaluated if each not in pair):
            alone = max(table.mean(titled(each), other) for each in pair)
            gain = table.mean(titled("+".join(pair)), other) - alone
            names = " and ".join(map(titled, pair))
            text = f"{study.title}: {names} together are better on {other} than either alone"
            claims.append(Claim(text, gain > 0, f"by {gain:+.1f}"))
    return [table], claims


def _objectives_note(config: ConfigDict) -> str:
    images = axes.sets(config).values()
    copies = sorted({each.changes.get("copies", config.copies) for each in images})
    return (
        f"Distillation seeds: {len(axes.seeds(config))}. Steps where not said otherwise: "
        f"{config.steps}. Copies: {', '.join(map(str, copies))}. The closed-form probe has a "
        f"ridge of {config.clp.ridge:g} and a temperature of {config.clp.temperature:g}. At "
        f"equal time, each objective makes as many steps as fill the time of {config.objective}'s, "
        "in tenths, without compilation and features that are computed once; the time of a "
        "step is the median of a few, for which the objectives take turns, but by source of "
        "real features it is that of each run by itself. Memory is XLA's account of the step, "
        "weights included."
    )
