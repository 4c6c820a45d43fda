"""Objectives, sources of real features, soft labels and several backbones, against each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from lgm_jax import checks, plugins, real
from lgm_jax.errors import UserError
from lgm_jax.experiments import frame, looks
from lgm_jax.experiments.axes import SECTION, ImageSet, backbones, evaluated, joined, seeds, sets
from lgm_jax.experiments.planning import Variant, distilled_run
from lgm_jax.experiments.reports import place_by_backbone
from lgm_jax.experiments.result import Claim, Table
from lgm_jax.experiments.runner import Measure, Outcome, Planned
from lgm_jax.experiments.study import AVERAGE, METHODS, Report, Study
from lgm_jax.objectives import OBJECTIVES
from lgm_jax.settings import split_list

if TYPE_CHECKING:
    import pandas as pd

_SOFT = "soft-labels"

# Metrics of runs beside their accuracies.
_COSTS = ("ms a step", "minutes", "MB")
_STEPS, _LABELS, _OWN_TIME = "steps", "bytes of labels", "ms a step, each run by itself"

_SAME, _OTHERS = "same backbone", "other backbones"


def plan(
    config: ConfigDict, name: str, images: ImageSet, finished: Mapping[str, Outcome]
) -> list[Planned]:
    """Returns objectives at equal steps; then, at equal time, and all that is compared with them.

    How many steps fill the same time is known once the runs at equal steps are finished.
    """

    def runs(backbone: str, variant: Variant, measure: Measure | None = None) -> list[Planned]:
        """A run for each seed; only the first measures."""
        return [
            distilled_run(
                name,
                images,
                backbone,
                seed,
                variant,
                evaluate=dict.fromkeys([*split_list(backbone), *evaluated(config)]),
                measure=measure if seed == config.seed else None,
            )
            for seed in seeds(config)
        ]

    every, named = backbones(config), _objectives(config)
    costs = looks.step_costs_of(named)
    equal_steps = [
        run
        for objective, backbone in itertools.product(named, every)
        for run in runs(
            backbone,
            Variant(_variant(config, objective), {"objective": objective}),
            costs if objective == config.objective else None,
        )
    ]
    planned = list(equal_steps)
    for source, objective in itertools.product(_sources(config)[1:], named):
        changes = {"objective": objective, "real.source": source}
        planned += runs(every[0], Variant(_variant(config, objective, source), changes))
    if config[SECTION].soft:
        planned += runs(every[0], Variant(_SOFT, {"labels": "soft"}))
    for pair in _pairs(config):
        planned += runs(",".join(pair), Variant())
    if all(each.name in finished for each in equal_steps):
        done = [finished[each.name] for each in equal_steps]
        for backbone, objective in itertools.product(every, named):
            steps = _equal_time_steps(config, objective, done, backbone)
            # Those of as many steps are there already.
            if steps != config.steps:
                timed = _timed(config, objective, done, backbone)
                planned += runs(backbone, Variant(timed, {"objective": objective, "steps": steps}))
    return planned


def rows(config: ConfigDict, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Returns the rows of steps, bytes of labels, and the costs of a step."""
    if "distill" not in outcome.planned.changes["stages"]:
        return
    yield frame.row_of(outcome, _STEPS, float(outcome.results["steps"]))
    yield frame.row_of(outcome, _LABELS, float(outcome.results["labels"]["bytes"]))
    for objective, cost in (outcome.measured or {}).items():
        variant = {"variant": _variant(config, objective)}
        yield frame.row_of(outcome, _COSTS[0], 1000 * cost["seconds"], **variant)
        yield frame.row_of(outcome, _COSTS[1], config.steps * cost["seconds"] / 60, **variant)
        yield frame.row_of(outcome, _COSTS[2], cost["bytes"] / 1e6, **variant)
    sources = _sources(config)
    named = itertools.product(_objectives(config), sources)
    compared = {_variant(config, *each) for each in named} if len(sources) > 1 else set()
    first = joined(backbones(config)[0])
    if outcome.axes["variant"] in compared and outcome.axes["backbone"] == first:
        yield frame.row_of(outcome, _OWN_TIME, 1000 * seconds_per_step(outcome))


def seconds_per_step(outcome: Outcome) -> float:
    """Returns the median over the lines of `metrics.jsonl`, free of compilation and restarts.

    Raises:
        UserError: If there are fewer than two lines.
    """
    lines = outcome.metrics
    if len(lines) < 2:
        raise UserError(
            f"metrics.jsonl of run {outcome.planned.name} has fewer than two lines, which does not "
            "tell its speed: lower config.log_every"
        )
    pairs = itertools.pairwise(lines)
    return float(
        np.median([(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairs])
    )


def report(study: Study) -> Report:
    """Accuracy on the same backbone and on others, seconds and memory, for each comparison."""
    tables = [*_by_objective(study), *_by_source(study), *_by_labels(study)]
    joint, claims = _jointly(study)
    return Report([*tables, *joint], claims)


def notes(config: ConfigDict) -> list[str]:
    """Returns what a reader must know of time, memory and settings."""
    images = sets(config).values()
    copies = sorted({each.changes.get("copies", config.copies) for each in images})
    return [
        f"Distillation seeds: {len(seeds(config))}. Steps where not said otherwise: "
        f"{config.steps}. Copies: {', '.join(map(str, copies))}. The closed-form probe has a "
        f"ridge of {config.clp.ridge:g} and a temperature of {config.clp.temperature:g}. At "
        f"equal time, each makes as many steps as fill the time of {config.objective}'s, "
        "compilation and features that are computed once left out, in tenths; the time of a "
        "step is the median of a few, for which the objectives took turns, but by source of "
        "real features that of each run by itself. Memory is XLA's account of the step, "
        "weights included."
    ]


def _objectives(config: ConfigDict) -> list[str]:
    named = split_list(config[SECTION].objectives)
    for objective in named:
        plugins.resolve("objective", objective, OBJECTIVES)
    return list(dict.fromkeys([config.objective, *named]))


def _sources(config: ConfigDict) -> list[str]:
    named = split_list(config[SECTION].sources)
    for source in named:
        checks.one_of("real.source", source, real.SOURCES)
    return list(dict.fromkeys([config.real.source, *named]))


def _pairs(config: ConfigDict) -> list[tuple[str, str]]:
    return list(itertools.combinations(backbones(config), 2)) if config[SECTION].joint else []


def _variant(config: ConfigDict, objective: str, source: str | None = None) -> str:
    # The config's own are the run of table 1.
    parts = [objective] if objective != config.objective else []
    if source is not None and source != config.real.source:
        parts.append(source)
    return "-".join(parts)


def _equal_time_steps(
    config: ConfigDict, objective: str, outcomes: Sequence[Outcome], backbone: str
) -> int:
    """Returns how many steps of an objective take as long as all of the config's own.

    In tenths of its steps: no time of a step is known much better.
    """
    place = joined(backbone), ""
    costs = next(
        each.measured
        for each in outcomes
        if (each.axes["backbone"], each.axes["variant"]) == place and each.measured
    )
    ratio = costs[config.objective]["seconds"] / costs[objective]["seconds"]
    return max(1, round(config.steps * max(1, round(10 * ratio)) / 10))


def _timed(config: ConfigDict, objective: str, outcomes: Sequence[Outcome], backbone: str) -> str:
    steps = _equal_time_steps(config, objective, outcomes, backbone)
    # By name, for on another machine it may be another number, whose run begins anew.
    return _variant(config, objective) if steps == config.steps else f"{objective}-{steps}-steps"


def _by_objective(study: Study) -> list[Table]:
    """Returns accuracies at equal steps and at equal time, and costs."""
    config, every = study.config, study.all
    at_steps, at_time, costs = [], [], []
    for objective in _objectives(config):
        own = _variant(config, objective)
        for backbone in backbones(config):
            of = every[every["backbone"] == joined(backbone)].assign(row=objective)
            at_steps.append(of[of["variant"] == own])
            timed = _timed(config, objective, study.outcomes, backbone)
            at_time.append(of[of["variant"] == timed])
            costs.append(of[(of["variant"] == own) & of["metric"].isin(_COSTS)])
    return [
        _same_and_others(study, at_steps, ", equal steps"),
        _same_and_others(
            study,
            at_time,
            ", equal time",
            extra=_STEPS,
            unit="top-1 %, or number of steps",
            integers=[_STEPS],
        ),
        study.table(
            _concat(costs).assign(column=lambda placed: placed["metric"]),
            ", cost",
            "objective",
            unit="median milliseconds of a step, minutes of all steps, megabytes of a step",
            drawn=False,
        ),
    ]


def _same_and_others(
    study: Study, parts: Sequence[pd.DataFrame], title: str, extra: str | None = None, **looks: Any
) -> Table:
    """Returns the table of averages over the backbones that are distilled against."""
    placed = _concat(parts)
    same = placed["evaluated"] == placed["backbone"]
    placed = placed.assign(column=same.map({True: _SAME, False: _OTHERS}))
    is_other = ~same & placed["evaluated"].isin(study.evaluated)
    kept = placed[(placed["metric"] == frame.TOP1) & (same | is_other)]
    if extra is not None:
        kept = _concat([kept, placed[placed["metric"] == extra].assign(column=extra)])
    columns = [_SAME, _OTHERS]
    return study.table(kept, title, "objective", columns=columns, **looks)


def _by_source(study: Study) -> list[Table]:
    sources, first = _sources(study.config), study.sources[0]
    if len(sources) < 2:
        return []
    variants = {
        f"{objective}, {source}": _variant(study.config, objective, source)
        for objective, source in itertools.product(_objectives(study.config), sources)
    }
    title = f", sources of real features, distilled against {study.titled(first)}"
    return [
        _by_evaluated(
            study, variants, _OWN_TIME, title, "objective, source", unit="top-1 %, or milliseconds"
        )
    ]


def _by_labels(study: Study) -> list[Table]:
    if not study.config[SECTION].soft:
        return []
    return [
        _by_evaluated(
            study,
            {"hard labels": "", "soft labels": _SOFT},
            _LABELS,
            f", soft labels, distilled against {study.titled(study.sources[0])}",
            "labels",
            unit="top-1 %, or bytes",
            integers=[_LABELS],
        )
    ]


def _by_evaluated(
    study: Study, variants: Mapping[str, str], extra: str, title: str, corner: str, **looks: Any
) -> Table:
    """Returns variants on the first backbone, by what evaluates, and a metric more."""
    of = study.all[study.all["backbone"] == study.sources[0]]
    placed = _concat([of[of["variant"] == name].assign(row=row) for row, name in variants.items()])
    top1 = (placed["metric"] == frame.TOP1) & placed["evaluated"].isin(study.evaluated)
    columns = placed["evaluated"].map(study.titled).where(placed["metric"] == frame.TOP1, extra)
    kept = placed.assign(column=columns)[top1 | (placed["metric"] == extra)]
    order = [*map(study.titled, study.evaluated), extra]
    return study.table(kept, title, corner, columns=order, drawn=False, **looks)


def _jointly(study: Study) -> tuple[list[Table], list[Claim]]:
    """Returns several backbones at once against each single one, on all of them."""
    pairs = [tuple(map(joined, pair)) for pair in _pairs(study.config)]
    if not pairs:
        return [], []
    titled, own = study.titled, study.top1
    sources = [*study.sources, *map("+".join, pairs)]
    is_kept = (own["variant"] == "") & own["backbone"].isin([*sources, "real"])
    placed = place_by_backbone(study, own[is_kept & own["evaluated"].isin(study.evaluated)])
    table = study.table(
        frame.with_average(placed, AVERAGE),
        ", several backbones at once",
        "distilled against",
        rows=[*map(titled, sources), METHODS["random"], METHODS["full"]],
        columns=[*map(titled, study.evaluated), AVERAGE],
    )
    claims = []
    for pair in pairs:
        for other in (titled(each) for each in study.evaluated if each not in pair):
            singles = [table.mean(titled(each), other) for each in pair]
            gain = table.mean(titled("+".join(pair)), other) - max(singles)
            names = " and ".join(map(titled, pair))
            text = f"{study.title}: {names} together are better on {other} than either alone"
            claims.append(Claim(text, gain > 0, f"by {gain:+.1f}"))
    return [table], claims


def _concat(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return frame.import_pandas().concat(parts)
