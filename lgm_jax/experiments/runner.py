"""Makes the runs of an experiment, the free ones first."""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from lgm_jax import files, hosts, locks, paths, runs
from lgm_jax.errors import UserError, explain
from lgm_jax.experiments.axes import GIVEN, SECTION, label
from lgm_jax.session import Session
from lgm_jax.settings import split_list

RUNS, RECORD = "runs", "experiment.json"

# Between two looks at runs that other processes make.
POLL_SECONDS = 5.0

Row = tuple[str, float, Mapping[str, Any]]
"""A metric, its value, and what else places it in the frame."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A computation from a finished run, whose value `results.json` does not hold.

    The run folder keeps the value, which is computed anew when its inputs change.

    Attributes:
        name: Its name in the run's `stages.json`.
        compute: Returns the value, as JSON.
        rows: Returns the numbers of a run for the frame.
        options: What the value depends on beside the config of the run, as JSON.
        files: Files that `compute` writes in the run folder; it is called again if one is missing.
        timed: Whether the value depends on the devices, as a time does.
    """

    name: str
    compute: Callable[[Session], Any]
    rows: Callable[[Outcome], Iterable[Row]] = lambda _: ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Sequence[str] = ()
    timed: bool = False

    def value(self, session: Session) -> Any:
        """Returns the value, computed if the run folder does not hold it."""
        stage, inputs = f"measure/{self.name}", self._inputs(session)
        value = session.run.find(stage, inputs)
        if value is None or not all((session.run.path / name).exists() for name in self.files):
            started = time.perf_counter()
            value = self.compute(session)
            seconds = time.perf_counter() - started
            made_by = [session.process_with(*session.backbones)]
            session.run.finish(stage, inputs, value, seconds, made_by)
        return value

    def _inputs(self, session: Session) -> dict[str, Any]:
        """Returns all that a value may depend on, for any measure."""
        config, recipe, images = session.config, session.recipe, session.distilled
        inputs = {
            "identity": dict(session.identity),
            "images": None if images is None else images.fingerprint,
            "backbones": [backbone.fingerprint for backbone in session.eval_backbones],
            "probe": [config.probe.split, config.probe.runs],
            "real": [recipe.real.views, repr(recipe.real_augmentation)],
            "class_names": list(session.dataset.class_names),
            **self.options,
        }
        if self.timed:
            # The identity has only the options of the run's own objective.
            inputs |= {
                "clp": config.clp.to_dict(),
                "microbatch": session.run.last_process("distill").get("microbatch"),
                "attention": session.backbone.attention,
                "devices": session.process.get("devices"),
            }
        return inputs


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of an experiment.

    Attributes:
        axes: Its place in the experiment, for example `{"set": "digits", "backbone": "a",
            "seed": 0}`; the values, but for empty ones, name its folder.
        changes: Config values, by dotted key, that differ from the experiment's.
        measure: What else to compute, once its stages are done.
        shown: What pictures call its variant, if not as the folder does.
    """

    axes: Mapping[str, Any]
    changes: Mapping[str, Any]
    measure: Measure | None = None
    shown: str = ""

    @property
    def title(self) -> str:
        """The name in messages, without the key of the given images, which is no name."""
        return " ".join(word for word in self._words(" ") if word != GIVEN)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return "_".join(re.sub(r"[^A-Za-z0-9.+-]", "_", word) for word in self._words(""))

    def _words(self, gap: str) -> list[str]:
        words = [f"{k}{gap}{v}" if isinstance(v, int) else label(v) for k, v in self.axes.items()]
        return list(filter(None, words))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        planned: Its plan.
        results: Its `results.json`.
        metrics: The lines of its `metrics.jsonl`.
        measured: The value of its `measure`.
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

    @property
    def evaluated(self) -> list[str]:
        """The names of the backbones that its experiment evaluates on."""
        return list(map(label, split_list(self.planned.changes["eval_backbones"])))

    def seconds_per_step(self) -> float:
        """Returns the median over the lines of `metrics.jsonl`, free of compilation and restarts.

        Raises:
            UserError: If there are fewer than two lines.
        """
        if len(self.metrics) < 2:
            raise UserError(
                f"metrics.jsonl of run {self.planned.name} has fewer than two lines, too few to "
                "tell its speed: lower config.log_every"
            )
        pairs = itertools.pairwise(self.metrics)
        return statistics.median(
            (b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairs
        )


Plan = Callable[[Mapping[str, Outcome]], Sequence[Planned]]
Start = Callable[[ConfigDict, str, Callable[[Session], Any]], Any]


def run(
    plan: Plan,
    config: ConfigDict,
    workdir: str,
    start: Start,
    check: Callable[[ConfigDict], None],
    command: str | None = None,
) -> tuple[epath.Path, list[Outcome]]:
    """Makes the runs that are not finished; returns the workdir, and all in the plan's order.

    Several processes, on one machine or on several that share the workdir, may do so at once: each
    makes the runs that are free, and all wait for the last ones. See `experiments.run`.

    Args:
        plan: `plan(finished)` returns the runs that are known, given the finished ones by name; it
            is called again until it names no new one.
        start: `start(config, folder, then)` makes an ordinary run and returns what `then` returns
            for its session.

    Raises:
        UserError: If the workdir belongs to something else, or for what a run refuses.
        Interrupted: If a signal came; runs that are finished are not repeated.
    """
    folder = paths.locate(workdir)
    _check_folder(folder, config[SECTION].name)
    shared = paths.locate(config[SECTION].share or workdir)
    finished: dict[str, Outcome] = {}
    while True:
        planned = plan(finished)
        configs = configs_of(planned, config)
        for each in configs.values():
            check(each)
            # All runs share the features of real images.
            each.real.cache = each.real.cache or str(shared / runs.FEATURES)
        todo = {each.name: each for each in planned if each.name not in finished}
        if not todo:
            return folder, [finished[each.name] for each in planned]
        if not finished and hosts.is_first():
            _open_folder(folder, {"name": config[SECTION].name, "command": command})
        finished |= _make_all(todo, configs, shared / RUNS, len(finished), start)


def find_outcomes(plan: Plan, find: Callable[[Planned], Outcome]) -> list[Outcome]:
    """Returns the outcomes of finished runs in the order of a plan, as for `run`."""
    finished: dict[str, Outcome] = {}
    while new := [each for each in plan(finished) if each.name not in finished]:
        finished |= {each.name: find(each) for each in new}
    return [finished[each.name] for each in plan(finished)]


def configs_of(planned: Sequence[Planned], config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the configs of runs, by the names of their folders.

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


def by_step(configs: Mapping[str, ConfigDict]) -> dict[str, ConfigDict | None]:
    """Returns a config for each kind of step, by the names of the runs that make such steps.

    It is `None` for runs that distil nothing.
    """
    alike: dict[str, list[str]] = {}
    for name, config in configs.items():
        step = config.copy_and_resolve_references()
        # None of these changes what a step takes.
        step.update(seed=0, baselines="", eval_backbones="", clp={"ridge": 1.0, "temperature": 1.0})
        distils = "distill" in split_list(config.stages)
        alike.setdefault(str(step) if distils else "", []).append(name)
    titles = {
        step: names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}"
        for step, names in alike.items()
    }
    return {titles[step]: configs[alike[step][0]] if step else None for step in alike}


def without_section(config: ConfigDict) -> ConfigDict:
    """Returns a copy of an experiment's config as an ordinary config."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        del copy[SECTION]
    return copy


def _make_all(
    todo: Mapping[str, Planned],
    configs: Mapping[str, ConfigDict],
    folder: epath.Path,
    done: int,
    start: Start,
) -> dict[str, Outcome]:
    """Makes runs in their order, the free ones first: other processes may make some, too.

    A run that another process holds is tried again until that process lets go of it; if it is
    unfinished then, this process continues it. `done` runs are finished.
    """
    made: dict[str, Outcome] = {}
    left, waiting = list(todo), False
    while left:
        held = []
        for name in left:
            number = f"run {done + len(made) + 1} of {done + len(todo)}"
            outcome = _make_if_free(todo[name], configs[name], folder / name, number, start)
            if outcome is None:
                held.append(name)
            else:
                made[name], waiting = outcome, False
        if held == left:
            if not waiting:
                print(
                    f"waiting for other processes that make {', '.join(held)}; if the machine of "
                    f"one went down, delete the run's {locks.NAME} in {folder}",
                    flush=True,
                )
            waiting = True
            time.sleep(POLL_SECONDS)
        left = held
    return made


def _make_if_free(
    planned: Planned, config: ConfigDict, path: epath.Path, number: str, start: Start
) -> Outcome | None:
    """Makes a run, unless another process holds its folder."""
    if hosts.first_says(hosts.is_first() and locks.in_use(path)):
        return None
    print(f"{number}: {planned.title}", flush=True)
    try:
        measure = planned.measure
        measured = start(config, str(path), measure.value if measure else lambda _: None)
    except runs.InUseError:
        # Another process was faster. Cooperating processes would not all learn of it.
        if hosts.count() > 1:
            raise
        print("note: another process has just begun this run and makes it", flush=True)
        return None
    # Other processes may not see the files yet, but must plan the same runs.
    results, lines = hosts.first_says(_read(path) if hosts.is_first() else [])
    return Outcome(planned, results, lines, measured, path)


def _read(path: epath.Path) -> list[Any]:
    """Returns what a run's `results.json` and `metrics.jsonl` hold."""
    results = runs.read_results(path)
    if results is None:
        raise UserError(f"{path} has no {runs.RESULTS}: add report to config.stages")
    return [results, runs.read_metrics(path)]


def _check_folder(folder: epath.Path, name: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"workdir {folder} is a file; name a folder")
    if (folder / runs.CONFIG).exists():
        raise UserError(f"workdir {folder} is a run's folder: name another for the experiment")
    earlier = (files.read_json(folder / RECORD) or {}).get("name", name)
    if earlier != name:
        raise UserError(f"workdir {folder} belongs to experiment {earlier}: name another")


def _open_folder(folder: epath.Path, record: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locks.alone_in(folder):
            files.write_json(folder / RECORD, record)
    except OSError as error:
        raise UserError(f"cannot write to workdir {folder}: {explain(error)}") from error
