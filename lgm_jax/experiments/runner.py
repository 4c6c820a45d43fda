"""Makes the runs of an experiment, one after another, and writes what comes of them."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from lgm_jax import files, hosts, locks, paths, runs
from lgm_jax.errors import UserError, explain
from lgm_jax.experiments import samples
from lgm_jax.experiments.result import Result, write
from lgm_jax.report.judge import judge
from lgm_jax.session import Session

SECTION = "experiment"

# Of runs whose results are doubtful, those that a table's notes list.
_MOST_FINDINGS = 10

RUNS, RECORD = "runs", "experiment.json"

# What earlier versions appended to the name of a folder's backbone: digits of its weights' hash.
_HASHED = re.compile(r"_[0-9a-f]{8}$")

# Between two looks at runs that other processes make.
_POLL_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Measure:
    """Something to find out of a finished run that `results.json` does not hold.

    It is kept in the run folder, and found out again when its inputs change.

    Attributes:
        name: What it is, in the run's `stages.json`.
        inputs: What the value depends on, as JSON: fingerprints of data, backbones and images.
        compute: Finds it out, as JSON.
        files: What `compute` writes in the run folder; it is asked again if one is missing.
    """

    name: str
    inputs: Callable[[Session], Mapping[str, Any]]
    compute: Callable[[Session], Any]
    files: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of an experiment.

    Attributes:
        axes: Where it stands in the experiment, for example `{"set": "digits", "backbone": "a",
            "seed": 0}`; its folder is named by the values. Empty ones are left out.
        changes: What its config has that the experiment's has not, by dotted key.
        measure: What else to find out, once its stages are done.
    """

    axes: Mapping[str, Any]
    changes: Mapping[str, Any]
    measure: Measure | None = None

    @property
    def title(self) -> str:
        """For a person."""
        words = [f"{k} {v}" if isinstance(v, int) else label(v) for k, v in self.axes.items()]
        return " ".join(word for word in words if word)

    @property
    def name(self) -> str:
        """Of its folder."""
        words = [f"{k}{v}" if isinstance(v, int) else label(v) for k, v in self.axes.items()]
        return "_".join(re.sub(r"[^A-Za-z0-9.+-]", "_", word) for word in words if word)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        planned: What it was to be.
        results: Its `results.json`.
        metrics: The lines of its `metrics.jsonl`.
        measured: What its `measure` gave.
        path: Its folder.
    """

    planned: Planned
    results: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = ()
    measured: Any = None
    path: epath.Path | None = None

    @property
    def axes(self) -> Mapping[str, Any]:
        return self.planned.axes

    def accuracy(self, method: str, backbone: str) -> Mapping[str, Any]:
        """An entry of `results.json`, under `probe`.

        Args:
            method: The row, such as `distilled`.
            backbone: The backbone as it was asked for: a name, a folder or a hub id.

        Raises:
            KeyError: If the run did not evaluate that.
        """
        known = self.results["probe"]
        plain = {_HASHED.sub("", key): key for key in known}
        return known[backbone if backbone in known else plain[label(backbone)]][method]


Plan = Callable[[ConfigDict, Mapping[str, Outcome]], Sequence[Planned]]
Tabulate = Callable[[ConfigDict, Sequence[Outcome]], Result]
Start = Callable[[ConfigDict, str, Callable[[Session], Any]], Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A set of runs, and what comes of them: two pure functions.

    Attributes:
        plan: `plan(config, finished)` gives all runs that are known of, given the finished ones by
            name; it is asked again until it names no new one.
        tabulate: `tabulate(config, outcomes)` gives the result, of the runs in the plan's order.
    """

    plan: Plan
    tabulate: Tabulate


def run(
    experiment: Experiment,
    config: ConfigDict,
    workdir: str,
    start: Start,
    check: Callable[[ConfigDict], None],
) -> None:
    """Makes the runs that are not finished, and writes the result.

    Several processes, on one machine or on several that share the workdir, may do so at once: each
    makes the runs that are free, and all wait for the last ones.

    Args:
        experiment: The experiment.
        config: Its config, with the section `experiment`.
        workdir: Where everything is written.
        start: `start(config, folder, then)` makes an ordinary run and returns what `then` gives of
            its session.
        check: Refuses a run's config that cannot work.

    Raises:
        UserError: If the workdir is another's, or for what a run refuses.
        Interrupted: If a signal came; runs that are finished are not repeated.
    """
    folder = paths.locate(workdir)
    _check_folder(folder, config)
    shared = paths.locate(config[SECTION].share or workdir)
    finished: dict[str, Outcome] = {}
    while True:
        plan = experiment.plan(config, finished)
        configs, planned = configs_of(plan, config), {each.name: each for each in plan}
        for each in configs.values():
            check(each)
        _open_folder(folder, config)
        todo = {name: each for name, each in planned.items() if name not in finished}
        for each in configs.values():
            if not each.real.cache:
                # What one run has embedded, the others need not.
                each.real.cache = str(shared / runs.FEATURES)
        for name, outcome in _make_all(todo, configs, shared / RUNS, len(finished), start):
            finished[name] = outcome
        if not todo:
            break
    if hosts.is_first():
        _write(experiment, config, folder, [finished[name] for name in planned])


def _make_all(
    todo: Mapping[str, Planned],
    configs: Mapping[str, ConfigDict],
    folder: epath.Path,
    done: int,
    start: Start,
) -> Iterator[tuple[str, Outcome]]:
    """Makes runs in their order, those that are free first: other processes may make some, too.

    Whatever another process holds is looked at again once it lets go: what it has finished is read,
    and what it has not is gone on with.

    Args:
        todo: The runs, by name.
        configs: Their configs.
        folder: What their folders are in.
        done: How many runs of the experiment are finished.
        start: As `run` has it.
    """
    left, total, waiting = list(todo), done + len(todo), False
    while left:
        held = []
        for name in left:
            path, place = folder / name, f"run {done + 1} of {total}: {todo[name].title}"
            outcome = _make_if_free(todo[name], configs[name], path, place, start)
            if outcome is None:
                held.append(name)
                continue
            done, waiting = done + 1, False
            yield name, outcome
        if held == left:
            if not waiting:
                print(
                    f"waiting for other processes that make {', '.join(held)}; if the machine of "
                    f"one went down, delete the run's {locks.NAME} in {folder}",
                    flush=True,
                )
            waiting = True
            time.sleep(_POLL_SECONDS)
        left = held


def _make_if_free(
    planned: Planned, config: ConfigDict, path: epath.Path, place: str, start: Start
) -> Outcome | None:
    """Makes a run, unless another process holds its folder."""
    if hosts.first_says(hosts.is_first() and locks.in_use(path)):
        return None
    print(place, flush=True)
    try:
        return _make(planned, config, path, start)
    except runs.InUseError:
        # Somebody was faster. Processes that work together would not all come to know of it.
        if hosts.count() > 1:
            raise
        print("note: another process has just begun this run: left to it", flush=True)
        return None


def _write(
    experiment: Experiment, config: ConfigDict, folder: epath.Path, outcomes: Sequence[Outcome]
) -> None:
    """Writes what comes of the runs; of several processes, one after another."""
    result = with_findings(experiment.tabulate(config, outcomes), outcomes)
    with locks.alone_in(folder):
        for path in write(folder, result):
            print(f"result: {path}")
        _draw_samples(folder, outcomes)


def with_findings(result: Result, outcomes: Sequence[Outcome]) -> Result:
    """A result whose notes say which runs cannot be right or are no use."""
    found = [
        f"{outcome.planned.title}: {finding.title}. {finding.text}"
        for outcome in outcomes
        for finding in judge(outcome.results)
    ]
    more = [f"and {len(found) - _MOST_FINDINGS} more"] if len(found) > _MOST_FINDINGS else []
    listed = "\n".join(f"- {text}" for text in [*found[:_MOST_FINDINGS], *more])
    return dataclasses.replace(result, notes=[*result.notes, *([listed] if found else [])])


def configs_of(planned: Sequence[Planned], config: ConfigDict) -> dict[str, ConfigDict]:
    """The configs of runs, by the names of their folders.

    Raises:
        UserError: If two runs have one name.
    """
    configs: dict[str, ConfigDict] = {}
    for each in planned:
        if each.name in configs:
            raise UserError(f"two runs of the experiment are named {each.name}: rename a folder")
        configs[each.name] = without_section(config)
        configs[each.name].update_from_flattened_dict(dict(each.changes))
    return configs


def without_section(config: ConfigDict) -> ConfigDict:
    """A copy of an experiment's config as an ordinary config."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        del copy[SECTION]
    return copy


def label(backbone: str) -> str:
    """A name that shows no folder of the machine."""
    return Path(backbone).name


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
    """The folders of runs that distilled, the first seed of each, by what tells them apart."""
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


def _make(planned: Planned, config: ConfigDict, path: epath.Path, start: Start) -> Outcome:
    measured = start(config, str(path), lambda session: _measure(planned.measure, session))
    # Other processes may not see the files yet, and are to plan the same runs.
    results, lines = hosts.first_says(_read(path) if hosts.is_first() else [])
    return Outcome(planned, results, lines, measured, path)


def _read(path: epath.Path) -> list[Any]:
    """What a run's `results.json` and `metrics.jsonl` hold."""
    results, metrics = files.read_json(path / runs.RESULTS), path / runs.METRICS
    if results is None:
        raise UserError(f"{path} has no {runs.RESULTS}: add report to config.stages")
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [results, [json.loads(line) for line in lines]]


def _measure(measure: Measure | None, session: Session) -> Any:
    if measure is None:
        return None
    stage, inputs = f"measure/{measure.name}", measure.inputs(session)
    found = session.run.find(stage, inputs)
    if found is None or not all((session.run.path / name).exists() for name in measure.files):
        started = time.perf_counter()
        found = measure.compute(session)
        seconds = time.perf_counter() - started
        made_by = [session.process_with(*session.backbones)]
        session.run.finish(stage, inputs, found, seconds, made_by)
    return found


def _check_folder(folder: epath.Path, config: ConfigDict) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"workdir {folder} is a file; name a folder")
    if (folder / runs.CONFIG).exists():
        raise UserError(f"workdir {folder} is a run's folder: name another for the experiment")
    earlier = files.read_json(folder / RECORD)
    if earlier is not None and earlier.get("name") != config[SECTION].name:
        raise UserError(
            f"workdir {folder} belongs to experiment {earlier.get('name')}: name another"
        )


def _open_folder(folder: epath.Path, config: ConfigDict) -> None:
    if not hosts.is_first():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locks.alone_in(folder):
            files.write_json(folder / RECORD, {"name": config[SECTION].name})
    except OSError as error:
        raise UserError(f"cannot write to workdir {folder}: {explain(error)}") from error
