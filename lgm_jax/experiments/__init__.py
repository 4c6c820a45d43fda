"""Experiments: sets of runs, and the tables and figures of their results.

An experiment's config is an ordinary config with one section more, `experiment`. `launch.py` hands
it to `run`, which makes the runs, each in a run folder of its own, and writes `table.md`,
`table.csv`, `figure.png`, `figure.svg` and `images.png` beside them.

`sweeps.SWEEPS` is the table of experiments. `runner.run` makes the runs that a sweep plans; `frame`
holds every number of the runs in one long table; `reports` pivot it; `published` has the paper's
numbers, and decides which are comparable with ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

from ml_collections import ConfigDict

from lgm_jax import hosts, locks
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.experiments import frame, parcel, published, result, runner, samples
from lgm_jax.experiments.axes import SECTION
from lgm_jax.experiments.frame import Study, to_csv
from lgm_jax.experiments.result import Result
from lgm_jax.experiments.runner import Outcome, Start, by_step, configs_of, without_section
from lgm_jax.experiments.sweeps import SWEEPS, Sweep
from lgm_jax.report.judge import judge

__all__ = [
    "SECTION",
    "SWEEPS",
    "by_step",
    "find",
    "planned_configs",
    "run",
    "tabulate",
    "to_csv",
    "without_section",
]

# Doubtful runs that the notes of a table list.
_MOST_FINDINGS = 10


def find(config: ConfigDict) -> Sweep:
    """Returns the experiment that a config's section names; raises a `UserError` if none does."""
    name = config[SECTION].name
    if name not in SWEEPS:
        raise unknown_name("experiment", name, list(SWEEPS))
    return SWEEPS[name]


def planned_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the configs of an experiment's runs, by name, that are known before any is made."""
    return configs_of(find(config).plan(config, {}), config)


def run(
    config: ConfigDict,
    workdir: str,
    start: Start,
    check: Callable[[ConfigDict], None],
    command: str | None = None,
) -> None:
    """Makes the runs of an experiment that are not finished, and writes the result.

    Args:
        config: The experiment's config, with the section `experiment`.
        workdir: Where everything is written.
        start: Makes an ordinary run: see `runner.run`.
        check: Refuses a run's config that cannot work.
        command: The command line, for the record.

    Raises:
        UserError: If pandas is missing, for what `runner.run` refuses, or if the figure cannot be
            drawn.
        Interrupted: If a signal came; runs that are finished are not repeated.
    """
    frame.import_pandas()
    sweep = find(config)
    sweep.prepare(config)
    plan = functools.partial(sweep.plan, config)
    folder, outcomes = runner.run(plan, config, workdir, start, check, command)
    if not hosts.is_first():
        return
    studies = sweep.studies(config, outcomes)
    # Several processes write one after another.
    with locks.alone_in(folder):
        paths = result.write(folder, tabulate(sweep, config, studies), to_csv(studies))
        # The numbers do not depend on the picture.
        try:
            paths += samples.write(folder, samples.titled_folders(outcomes), sweep.classes)
        except (UserError, OSError) as error:
            print(f"note: no {samples.FILE}: {error}", flush=True)
        for path in paths:
            print(f"result: {path}")
        if sweep.sent:
            path = parcel.write(folder, config, outcomes)
            print(f"to send: {path} ({path.stat().length / 1e6:.1f} MB): see {sweep.sent}")


def tabulate(sweep: Sweep, config: ConfigDict, studies: Sequence[Study]) -> Result:
    """Returns the result of an experiment's numbers: tables, claims, notes and a figure."""
    outcomes = [outcome for study in studies for outcome in study.outcomes]
    results = [sweep.report(study) for study in studies]
    notes = [
        published.note_of(config, outcomes),
        *(note for each in results for note in each.notes),
        *findings(outcomes),
    ]
    shown = [item for each in results for item in each.to_draw]
    return Result(
        [table for each in results for table in each.tables],
        [claim for each in results for claim in each.claims],
        # Those that hold for every set stand once.
        list(dict.fromkeys(notes)),
        shown,
        sweep.title,
        draw=lambda figure: sweep.draw(figure, shown),
    )


def findings(outcomes: Iterable[Outcome]) -> list[str]:
    """Returns a note on the runs whose results are wrong or useless, if there are any.

    Backbones that a run was evaluated on for other experiments are theirs to judge.
    """
    found = [
        f"- {outcome.planned.title}: {finding.title}. {finding.text}"
        for outcome in outcomes
        for finding in judge(outcome.results)
        if finding.backbone is None or finding.backbone in outcome.evaluated
    ]
    more = [f"- and {len(found) - _MOST_FINDINGS} more"] if len(found) > _MOST_FINDINGS else []
    return ["\n".join([*found[:_MOST_FINDINGS], *more])] if found else []
