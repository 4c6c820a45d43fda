"""Experiments: sets of runs, and the tables and figures that come of them.

An experiment's config is an ordinary config with one section more, `experiment`. `launch.py` hands
it to `run`, which makes the runs, each in a run folder of its own, and writes `table.md`,
`table.csv`, `figure.png`, `figure.svg` and `images.png` beside them.

`sweeps.SWEEPS` is the table of experiments. `runner.run` makes what a sweep plans; `frame` holds
every number of the runs in one long table; `reports` pivot it; `published` has the paper's numbers,
and says which may stand beside ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

from etils import epath
from ml_collections import ConfigDict

from lgm_jax import hosts, locks
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.experiments import frame, published, result, runner, samples
from lgm_jax.experiments.axes import SECTION, label
from lgm_jax.experiments.result import Result
from lgm_jax.experiments.runner import Outcome, Start, configs_of, without_section
from lgm_jax.experiments.study import Study
from lgm_jax.experiments.sweeps import SWEEPS, Sweep
from lgm_jax.report.judge import judge

__all__ = ["SECTION", "SWEEPS", "find", "planned_configs", "run", "tabulate", "without_section"]

# Of runs whose results are doubtful, those that a table's notes list.
_MOST_FINDINGS = 10


def find(config: ConfigDict) -> Sweep:
    """Returns the experiment that a config's section names.

    Raises:
        UserError: If there is no such experiment.
    """
    name = config[SECTION].name
    if name not in SWEEPS:
        raise unknown_name("experiment", name, list(SWEEPS))
    return SWEEPS[name]


def planned_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the configs of an experiment's runs, by name, that are known before any is made."""
    return configs_of(find(config).plan(config, {}), config)


def run(
    config: ConfigDict, workdir: str, start: Start, check: Callable[[ConfigDict], None]
) -> None:
    """Makes the runs of an experiment that are not finished, and writes the result.

    Args:
        config: Its config, with the section `experiment`.
        workdir: Where everything is written.
        start: Makes an ordinary run: see `runner.run`.
        check: Refuses a run's config that cannot work.

    Raises:
        UserError: If pandas is missing, for what `runner.run` refuses, or if the figure cannot be
            drawn.
        Interrupted: If a signal came; runs that are finished are not repeated.
    """
    frame.import_pandas()
    sweep = find(config)
    plan = functools.partial(sweep.plan, config)
    folder, outcomes = runner.run(plan, config, workdir, start, check)
    if not hosts.is_first():
        return
    studies = sweep.studies(config, outcomes)
    written, lines = tabulate(sweep, config, studies), to_csv(studies)
    # Of several processes, one after another.
    with locks.alone_in(folder):
        for path in result.write(folder, written, lines):
            print(f"result: {path}")
        _draw_samples(folder, outcomes)


def tabulate(sweep: Sweep, config: ConfigDict, studies: Sequence[Study]) -> Result:
    """Returns what comes of the finished runs: tables, claims, notes and a figure.

    Args:
        sweep: The experiment.
        config: Its config.
        studies: Its numbers, by set of images.
    """
    outcomes = [outcome for study in studies for outcome in study.outcomes]
    reports = [sweep.report(study) for study in studies]
    shown = [
        each
        for report in reports
        for each in report.shown or [table for table in report.tables if table.drawn]
    ]
    return Result(
        sweep.title,
        [table for report in reports for table in report.tables],
        [
            published.note_of(config, outcomes),
            *sweep.notes(config),
            *(note for report in reports for note in report.notes),
            *findings(outcomes),
        ],
        [claim for report in reports for claim in report.claims],
        lambda figure: sweep.draw(figure, shown),
    )


def to_csv(studies: Sequence[Study]) -> str:
    """Returns the text of `table.csv`: every number of all sets, the paper's beside it."""
    every = frame.import_pandas().concat([study.all for study in studies])
    return frame.to_csv(every, {study.name: study.papers for study in studies})


def findings(outcomes: Iterable[Outcome]) -> list[str]:
    """Returns a note of the runs that cannot be right or are no use, if there are any."""
    found = [
        f"- {outcome.planned.title}: {finding.title}. {finding.text}"
        for outcome in outcomes
        for finding in judge(outcome.results)
    ]
    more = [f"- and {len(found) - _MOST_FINDINGS} more"] if len(found) > _MOST_FINDINGS else []
    return ["\n".join([*found[:_MOST_FINDINGS], *more])] if found else []


def _draw_samples(folder: epath.Path, outcomes: Sequence[Outcome]) -> None:
    try:
        path = samples.write(folder, titled_folders(outcomes))
    # The numbers do not depend on it.
    except (UserError, OSError) as error:
        print(f"note: no {samples.FILE}: {error}", flush=True)
    else:
        if path is not None:
            print(f"result: {path}")


def titled_folders(outcomes: Sequence[Outcome]) -> dict[str, epath.Path]:
    """Returns the folders of runs that distilled, the first seed of each, by what differs."""
    found: dict[tuple[str, ...], epath.Path] = {}
    for outcome in outcomes:
        axes = {key: value for key, value in outcome.axes.items() if key != "seed"}
        if outcome.path is not None and "seed" in outcome.axes:
            found.setdefault(tuple(label(str(value)) for value in axes.values()), outcome.path)
    alike = [len(set(words)) == 1 < len(found) for words in zip(*found, strict=True)]
    titles = [
        " ".join(word for word, drop in zip(words, alike, strict=True) if word and not drop)
        for words in found
    ]
    # The recipe itself has no word of its own.
    named = zip(titles, found.values(), strict=True)
    return {title or "as configured": path for title, path in named}
