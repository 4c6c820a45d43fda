"""Objectives, sources of real features, soft labels and several backbones, against each other."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lgm_jax import checks, plugins, real
from lgm_jax.errors import UserError
from lgm_jax.experiments import figures
from lgm_jax.experiments.axes import (
    AVERAGE,
    METHODS,
    SETS,
    ImageSet,
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
from lgm_jax.experiments.published import note_of
from lgm_jax.experiments.result import Cell, Claim, Result, Table, mean, summarize
from lgm_jax.experiments.runner import SECTION, Measure, Outcome, Planned
from lgm_jax.objectives import OBJECTIVES
from lgm_jax.session import Session
from lgm_jax.settings import split_list
from lgm_jax.stages.costs import step_costs

_SOFT = "soft-labels"

_OWN_TIME = "ms a step, each run by itself"


def plan_objectives(config: ConfigDict, finished: Mapping[str, Outcome]) -> list[Planned]:
    """Objectives at equal steps; then, at equal time, and all that is compared with them.

    How many steps fill the same time is known once the runs at equal steps are finished.
    """
    planned = []
    for name, image_set in sets(config).items():
        equal_steps = _at_equal_steps(config, name, image_set)
        planned.append(real_run(config, name, image_set, evaluated(config), ("random", "full")))
        planned += equal_steps
        planned += _by_source(config, name, image_set)
        planned += _with_soft_labels(config, name, image_set)
        planned += _of_several(config, name, image_set)
        done = [finished[each.name] for each in equal_steps if each.name in finished]
        if len(done) == len(equal_steps):
            planned += _at_equal_time(config, name, image_set, done)
    return planned


def tabulate_objectives(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """Accuracy on the same backbone and on others, seconds and memory, for each comparison."""
    tables, claims, drawn = [], [], []
    images = sets(config)
    copies = sorted({each.changes.get("copies", config.copies) for each in images.values()})
    for name in images:
        own = select(outcomes, set=name)
        where = SETS[name].title
        cost: dict[tuple[str, str], Cell] = {}
        accuracy: dict[str, dict[tuple[str, str], Cell]] = {"steps": {}, "time": {}}
        for objective in _objectives(config):
            by_backbone = [
                select(own, backbone=b, variant=_variant(config, objective))
                for b in backbones(config)
            ]
            _fill(config, accuracy["steps"], objective, by_backbone)
            cost |= _cost_cells(config, own, objective)
            by_backbone = [
                select(own, backbone=b, variant=_timed(config, objective, own, b))
                for b in backbones(config)
            ]
            _fill(config, accuracy["time"], objective, by_backbone)
            steps = [run.results["steps"] for runs in by_backbone for run in runs]
            accuracy["time"][objective, "steps"] = Cell(float(np.mean(steps)))
        columns = _columns(config)
        rows = _objectives(config)
        steps_table = Table(f"{where}, equal steps", "objective", rows, columns, accuracy["steps"])
        time_table = Table(
            f"{where}, equal time",
            "objective",
            rows,
            [*columns, "steps"],
            accuracy["time"],
            unit="top-1 %, or number of steps",
            integer_columns=["steps"],
        )
        tables += [steps_table, time_table]
        drawn += [steps_table, dataclasses.replace(time_table, columns=columns, unit="top-1 %")]
        tables.append(
            Table(
                f"{where}, cost",
                "objective",
                rows,
                ["ms a step", "minutes", "MB"],
                cost,
                unit="median milliseconds of a step, minutes of all steps, megabytes of a step",
            )
        )
        tables += _source_table(config, own, where)
        tables += _soft_table(config, own, where)
        joint, said = _joint_table(config, own, where)
        tables += joint
        drawn += joint
        claims += said
    return Result(
        "Objectives, and several backbones at once",
        tables,
        [
            note_of(config, outcomes),
            f"Distillation seeds: {len(seeds(config))}. Steps where not said otherwise: "
            f"{config.steps}. Copies: {', '.join(map(str, copies))}. The closed-form probe has a "
            f"ridge of {config.clp.ridge:g} and a temperature of {config.clp.temperature:g}. At "
            f"equal time, each makes as many steps as fill the time of {config.objective}'s, "
            "compilation and features that are computed once left out, in tenths; the time of a "
            "step is the median of a few, for which the objectives took turns, but by source of "
            "real features that of each run by itself. Memory is XLA's account of the step, "
            "weights included.",
        ],
        claims,
        functools.partial(figures.bars, tables=drawn),
    )


def plan_clp(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """The closed-form probe with every ridge and temperature, evaluated on validation images."""
    return [
        distilled_run(
            config,
            name,
            image_set,
            backbone,
            seed,
            evaluate=[backbone],
            variant=f"ridge{ridge:g}-temperature{temperature:g}",
            changes={
                "objective": "clp",
                "clp.ridge": ridge,
                "clp.temperature": temperature,
                "probe.split": "val",
            },
        )
        for name, image_set in sets(config).items()
        for ridge in _positive(config, "ridges")
        for temperature in _positive(config, "temperatures")
        for backbone in backbones(config)
        for seed in seeds(config)
    ]


def tabulate_clp(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """Ridges by temperatures for each backbone, and the best of both for all together."""
    tables, notes, seen = [], [], backbones(config)
    pairs = list(itertools.product(_positive(config, "ridges"), _positive(config, "temperatures")))
    for name in sets(config):
        tables_here = []
        for backbone in seen:
            cells = {}
            for ridge, temperature in pairs:
                variant = f"ridge{ridge:g}-temperature{temperature:g}"
                runs = select(outcomes, set=name, backbone=backbone, variant=variant)
                cells[f"{ridge:g}", f"{temperature:g}"] = cell(runs, "distilled", backbone)
            rows, columns = (list(dict.fromkeys(axis)) for axis in zip(*cells, strict=True))
            where = f"{SETS[name].title}, {title_of(backbone)}, validation images"
            tables_here.append(Table(where, "ridge by temperature", rows, columns, cells))
        average = {
            pair: float(np.mean([mean(table.cells, *pair) for table in tables_here]))
            for pair in tables_here[0].cells
        }
        best = max(average, key=average.__getitem__)
        notes.append(
            f"On {SETS[name].title}, best: ridge {best[0]}, temperature {best[1]}, "
            f"{average[best]:.1f} on the average over backbones."
        )
        tables += tables_here
    return Result(
        "Ridge and temperature of the closed-form probe",
        tables,
        [note_of(config, outcomes), *notes],
        draw=functools.partial(figures.matrices, tables=tables),
    )


def seconds_per_step(outcome: Outcome) -> float:
    """Median over the lines of `metrics.jsonl`, so that compilation and restarts do not count.

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


def _at_equal_steps(config: ConfigDict, name: str, image_set: ImageSet) -> list[Planned]:
    names = _objectives(config)
    measure = Measure(
        "step_costs",
        functools.partial(_cost_inputs, names=names),
        functools.partial(_step_costs, names=names),
    )
    return [
        distilled_run(
            config,
            name,
            image_set,
            backbone,
            seed,
            evaluate=evaluated(config),
            variant=_variant(config, objective),
            changes={"objective": objective},
            measure=measure if _measures_costs(config, objective, seed) else None,
        )
        for objective in _objectives(config)
        for backbone in backbones(config)
        for seed in seeds(config)
    ]


def _at_equal_time(
    config: ConfigDict, name: str, image_set: ImageSet, done: Sequence[Outcome]
) -> list[Planned]:
    planned = []
    for backbone in backbones(config):
        for objective in _objectives(config):
            steps = _equal_time_steps(config, objective, done, backbone)
            # Those of as many steps are there already.
            if steps != config.steps:
                planned += [
                    distilled_run(
                        config,
                        name,
                        image_set,
                        backbone,
                        seed,
                        evaluate=evaluated(config),
                        variant=_timed(config, objective, done, backbone),
                        changes={"objective": objective, "steps": steps},
                    )
                    for seed in seeds(config)
                ]
    return planned


def _by_source(config: ConfigDict, name: str, image_set: ImageSet) -> list[Planned]:
    """Every objective with other sources of real features, on the first backbone."""
    return [
        distilled_run(
            config,
            name,
            image_set,
            backbones(config)[0],
            seed,
            evaluate=evaluated(config),
            variant=_variant(config, objective, source),
            changes={"objective": objective, "real.source": source},
        )
        for source in _sources(config)
        if source != config.real.source
        for objective in _objectives(config)
        for seed in seeds(config)
    ]


def _with_soft_labels(config: ConfigDict, name: str, image_set: ImageSet) -> list[Planned]:
    """The config's objective with labels that are learned, on the first backbone."""
    return [
        distilled_run(
            config,
            name,
            image_set,
            backbones(config)[0],
            seed,
            evaluate=evaluated(config),
            variant=_SOFT,
            changes={"labels": "soft"},
        )
        for seed in (seeds(config) if config[SECTION].soft else ())
    ]


def _of_several(config: ConfigDict, name: str, image_set: ImageSet) -> list[Planned]:
    """The config's objective against every pair of backbones."""
    return [
        distilled_run(config, name, image_set, ",".join(pair), seed, evaluate=evaluated(config))
        for pair in _pairs(config)
        for seed in seeds(config)
    ]


def _pairs(config: ConfigDict) -> list[tuple[str, str]]:
    return list(itertools.combinations(backbones(config), 2)) if config[SECTION].joint else []


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


def _positive(config: ConfigDict, key: str) -> list[float]:
    """A list of positive numbers of the section `experiment`."""
    try:
        values = [float(word) for word in split_list(config[SECTION][key])]
    except ValueError:
        values = []
    if not values or min(values) <= 0:
        raise UserError(
            f"config.experiment.{key} must be positive numbers, for example 0.1,1, not "
            f"{config[SECTION][key]!r}"
        )
    return values


def _variant(config: ConfigDict, objective: str, source: str | None = None) -> str:
    # The config's own are the run of table 1.
    parts = [objective] if objective != config.objective else []
    if source is not None and source != config.real.source:
        parts.append(source)
    return "-".join(parts)


def _equal_time_steps(
    config: ConfigDict, objective: str, outcomes: Sequence[Outcome], backbone: str
) -> int:
    """How many steps of an objective take as long as all of the config's own.

    In tenths of its steps: no time of a step is known much better.
    """
    costs = _measured_costs(config, outcomes, backbone)
    ratio = costs[config.objective]["seconds"] / costs[objective]["seconds"]
    return max(1, round(config.steps * max(1, round(10 * ratio)) / 10))


def _timed(config: ConfigDict, objective: str, outcomes: Sequence[Outcome], backbone: str) -> str:
    steps = _equal_time_steps(config, objective, outcomes, backbone)
    # By name, for on another machine it may be another number, whose run begins anew.
    return _variant(config, objective) if steps == config.steps else f"{objective}-{steps}-steps"


def _columns(config: ConfigDict) -> list[str]:
    others = len(evaluated(config)) > 1
    return ["same backbone", *(["other backbones"] if others else [])]


def _fill(
    config: ConfigDict,
    cells: dict[tuple[str, str], Cell],
    row: str,
    by_backbone: Sequence[Sequence[Outcome]],
) -> None:
    """Averages over the backbones that are distilled against, for each seed."""
    same, others = [], []
    for runs in zip(*by_backbone, strict=True):
        pairs = list(zip(backbones(config), runs, strict=True))
        same.append([run.accuracy("distilled", b) for b, run in pairs])
        others.append(
            [run.accuracy("distilled", o) for b, run in pairs for o in evaluated(config) if o != b]
        )
    cells[row, "same backbone"] = summarize(same)
    if others[0]:
        cells[row, "other backbones"] = summarize(others)


def _measures_costs(config: ConfigDict, objective: str, seed: int) -> bool:
    """Whether the costs of all objectives are found out after this run, against its backbone."""
    return objective == config.objective and seed == seeds(config)[0]


def _measured_costs(
    config: ConfigDict, outcomes: Sequence[Outcome], backbone: str
) -> Mapping[str, Mapping[str, float]]:
    """Seconds and bytes of a step against a backbone, by objective."""
    first, *_ = select(outcomes, backbone=backbone, variant=_variant(config, config.objective))
    costs: Mapping[str, Mapping[str, float]] = first.measured
    return costs


def _cost_cells(
    config: ConfigDict, own: Sequence[Outcome], objective: str
) -> dict[tuple[str, str], Cell]:
    costs = [_measured_costs(config, own, backbone)[objective] for backbone in backbones(config)]
    seconds = float(np.mean([cost["seconds"] for cost in costs]))
    return {
        (objective, "ms a step"): Cell(1000 * seconds),
        (objective, "minutes"): Cell(config.steps * seconds / 60),
        (objective, "MB"): Cell(float(np.mean([cost["bytes"] for cost in costs])) / 1e6),
    }


def _by_evaluated(
    config: ConfigDict, rows: Mapping[str, Sequence[Outcome]]
) -> dict[tuple[str, str], Cell]:
    return {
        (row, title_of(other)): cell(runs, "distilled", other)
        for row, runs in rows.items()
        for other in evaluated(config)
    }


def _source_table(config: ConfigDict, own: Sequence[Outcome], where: str) -> list[Table]:
    first, sources = backbones(config)[0], _sources(config)
    if len(sources) < 2:
        return []
    rows, cells = {}, {}
    for objective, source in itertools.product(_objectives(config), sources):
        row = f"{objective}, {source}"
        rows[row] = select(own, backbone=first, variant=_variant(config, objective, source))
        speeds = [seconds_per_step(run) for run in rows[row]]
        cells[row, _OWN_TIME] = Cell(1000 * float(np.mean(speeds)))
    cells |= _by_evaluated(config, rows)
    return [
        Table(
            f"{where}, sources of real features, distilled against {title_of(first)}",
            "objective, source",
            list(rows),
            [*map(title_of, evaluated(config)), _OWN_TIME],
            cells,
            unit="top-1 %, or milliseconds",
        )
    ]


def _soft_table(config: ConfigDict, own: Sequence[Outcome], where: str) -> list[Table]:
    if not config[SECTION].soft:
        return []
    first = backbones(config)[0]
    rows = {
        f"{kind} labels": select(own, backbone=first, variant=variant)
        for kind, variant in (("hard", ""), ("soft", _SOFT))
    }
    cells = _by_evaluated(config, rows)
    for row, runs in rows.items():
        cells[row, "bytes of labels"] = Cell(float(runs[0].results["labels"]["bytes"]))
    return [
        Table(
            f"{where}, soft labels, distilled against {title_of(first)}",
            "labels",
            list(rows),
            [*map(title_of, evaluated(config)), "bytes of labels"],
            cells,
            unit="top-1 %, or bytes",
            integer_columns=["bytes of labels"],
        )
    ]


def _joint_table(
    config: ConfigDict, own: Sequence[Outcome], where: str
) -> tuple[list[Table], list[Claim]]:
    """Several backbones at once against each single one, on all of them."""
    pairs, every = _pairs(config), evaluated(config)
    if not pairs:
        return [], []
    sources = [(backbone,) for backbone in backbones(config)] + pairs
    rows, cells = {}, {}
    for source in sources:
        row = " + ".join(map(title_of, source))
        rows[row] = select(own, backbone=",".join(source), variant="")
        cells[row, AVERAGE] = cell(rows[row], "distilled", *every)
    cells |= _by_evaluated(config, rows)
    real = select(own, backbone="real")
    for method in ("random", "full"):
        for other in every:
            cells[METHODS[method], title_of(other)] = cell(real, method, other)
        cells[METHODS[method], AVERAGE] = cell(real, method, *every)
    claims = []
    for pair in pairs:
        for other in (backbone for backbone in every if backbone not in pair):
            joint, *single = (
                mean(cells, " + ".join(map(title_of, source)), title_of(other))
                for source in (pair, (pair[0],), (pair[1],))
            )
            gain = joint - max(single)
            names = " and ".join(map(title_of, pair))
            text = f"{where}: {names} together are better on {title_of(other)} than either alone"
            claims.append(Claim(text, gain > 0, f"by {gain:+.1f}"))
    columns = [*map(title_of, every), AVERAGE]
    titles = [*rows, METHODS["random"], METHODS["full"]]
    return [
        Table(f"{where}, several backbones at once", "distilled against", titles, columns, cells)
    ], claims


def _cost_inputs(session: Session, names: Sequence[str]) -> dict[str, Any]:
    return {
        "identity": dict(session.identity),
        # Of which the identity has those that its own objective reads.
        "clp": session.config.clp.to_dict(),
        "microbatch": session.run.last_process("distill").get("microbatch"),
        "attention": session.config.backbone.attention,
        "devices": session.process.get("devices"),
        "objectives": list(names),
    }


def _step_costs(session: Session, names: Sequence[str]) -> dict[str, dict[str, float]]:
    print(f"timing a step of {', '.join(names)}, in turns", flush=True)
    costs = step_costs(session, names)
    return {
        name: {"seconds": cost.seconds, "bytes": cost.num_bytes} for name, cost in costs.items()
    }
