"""The run folder: what a run writes, and what it remembers so that nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from lgm_jax import files, hosts, locks, paths, source
from lgm_jax.errors import UserError, explain

CONFIG, STAGES, METRICS, RESULTS, GRID = (
    "config.json",
    "stages.json",
    "metrics.jsonl",
    "results.json",
    "grid.png",
)
CHECKPOINTS, DISTILLED, PROGRESS, FEATURES = "checkpoints", "distilled", "progress", "features"
PROFILE = "profile"
TENSORBOARD, WANDB = "tensorboard", "wandb"
# What a person looks at: the page, its pictures if there are many, and what it is made from.
PAGE, REPORT, GALLERY = "report.html", "report", "gallery.npz"
TIMELAPSE, ANIMATION = "timelapse", "timelapse.webp"
# The config comes last: as long as it is there, the rest is known to be a run's.
_OUTPUTS = (
    STAGES,
    METRICS,
    RESULTS,
    GRID,
    CHECKPOINTS,
    DISTILLED,
    PROGRESS,
    FEATURES,
    PROFILE,
    TENSORBOARD,
    WANDB,
    PAGE,
    REPORT,
    GALLERY,
    TIMELAPSE,
    ANIMATION,
    CONFIG,
)

# Of `config.json` and `stages.json`: what another version wrote can be shown, but not gone on with.
VERSION = 3

Inputs = Mapping[str, Any]

# Keys whose values are behind those of an identity that are hashes.
_HASHED = {
    "backbone.fingerprint": (
        *("backbone.name", "backbone.revision", "backbone.normalization", "backbone.dtype"),
        *("backbone.params_dtype", "backbone.pooling", "backbone.position_offset"),
    ),
    "data.fingerprint": (
        *("data.name", "data.folder", "data.subset", "data.label", "data.val_fraction"),
        *("data.split_seed", "data.on_bad_image"),
    ),
    "images.source": ("images.source",),
}

# What is known of a process that decides how it can execute a program.
_EXECUTED_BY = ("devices", "attention")

# Network file systems show a new file to other machines within a minute.
_APPEARS_SECONDS = 90


class InUseError(UserError):
    """Another process holds the folder of a run."""


class Run:
    """A run folder and its record of stages.

    A stage is finished for certain inputs: the config values, weights and data that its result
    depends on. It is found again by these, and redone when one of them changes. Beside its result
    stand the processes that made it, which may be other ones than the latest.

    Of several processes, the first writes, and all remember the same.

    Attributes:
        path: The folder.
        holds: `nothing` of a run, `this` distillation, or `another`.
    """

    def __init__(self, path: epath.Path, holds: str, found: Mapping[str, Any] | None = None):
        """Wraps a folder that `check_run` has checked; changes nothing there.

        Args:
            path: The folder.
            holds: What it holds.
            found: The identity that was found there.
        """
        self.path = path
        self.holds = holds
        self._found = found
        self._lock: locks.Lock | None = None
        self._kept: dict[str, Any] | None = None

    def open(self, identity: Inputs, description: Mapping[str, Any]) -> None:
        """Makes the folder ready to be written to; throws another distillation away.

        Args:
            identity: What makes a distillation this one and no other.
            description: What else goes into `config.json`.

        Raises:
            InUseError: If another process uses the folder.
            UserError: If it cannot be made or written to, or if a process of this run does not see
                it.
        """
        # All have looked at it as it was.
        hosts.wait()
        if hosts.is_first():
            self._take_over(identity, description)
        hosts.wait()
        if hosts.count() > 1:
            self.await_file(CONFIG)
            # All remember the stages as they are now, before the first writes to them.
            self._kept = self._records()
            hosts.wait()

    def _take_over(self, identity: Inputs, description: Mapping[str, Any]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            if self.holds == "another":
                _remove_outputs(self.path)
            record = {"version": VERSION, "identity": _plain(identity), **description}
            files.write_json(self.path / CONFIG, record)
        except OSError as error:
            raise UserError(f"cannot write to workdir {self.path}: {explain(error)}") from error

    def close(self) -> None:
        """Leaves the folder to others."""
        if self._lock is not None:
            self._lock.release()

    def await_file(self, name: str) -> None:
        """Returns once this process sees what the first has written.

        Raises:
            UserError: If it does not.
        """
        deadline = time.monotonic() + _APPEARS_SECONDS
        while not (self.path / name).exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {hosts.index()} does not see {self.path / name}: the workdir must be "
                    "a folder that all processes share"
                )
            time.sleep(1)

    def _acquire(self) -> None:
        # Buckets know no locks.
        if paths.is_bucket(self.path):
            return
        self._lock = locks.Lock(Path(self.path / locks.NAME))
        try:
            self._lock.acquire()
        except locks.Held as error:
            who = f" ({error})" if str(error) else ""
            raise InUseError(
                f"another process is using workdir {self.path}{who}: wait for it, or name another; "
                f"if its machine went down, delete {self.path / locks.NAME}"
            ) from None
        except locks.Unsupported as error:
            print(
                f"note: workdir {self.path} cannot be locked ({error}): see to it that no other "
                "process uses it",
                flush=True,
            )
        if (files.read_json(self.path / CONFIG) or {}).get("identity") != self._found:
            self.close()
            raise InUseError(f"another process has just used workdir {self.path}: start again")

    def find(self, stage: str, inputs: Inputs) -> Any | None:
        """The result of a stage that was finished with these inputs, if it was."""
        record = self._records().get(stage, {})
        return record["result"] if record.get("inputs") == _plain(inputs) else None

    def latest(self, stage: str) -> Any | None:
        """The result of the last time a stage was finished, whatever its inputs were."""
        return self._records().get(stage, {}).get("result")

    def last_process(self, stage: str, like: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """What is known of the last process that began or finished a stage.

        Args:
            stage: Its name.
            like: What is known of a process: nothing is found of one that had other devices or
                computed attention by another kernel. Those round in other ways, and have or take
                other memory.
        """
        made_by = contributors(self._records().get(stage, {}))
        last = made_by[-1] if made_by else {}
        same = like is None or all(last.get(key) == like.get(key) for key in _EXECUTED_BY)
        return last if same else {}

    def begin(self, stage: str, step: int, process: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Records that a process goes on with a stage from a step, before it does.

        A result that the stage has already stays as it is, with those who made it, until the
        stage is finished anew.

        Args:
            stage: Its name.
            step: Where the process begins; what others did from there on is done again.
            process: What is to be known of it.

        Returns:
            All processes that contribute, each with the step `from_step` where it began.
        """
        records = self._records()
        record = records.setdefault(stage, {})
        earlier = [made for made in contributors(record) if made["from_step"] < step]
        record["going_on"] = [*earlier, {"from_step": step, **process}]
        self._keep(records)
        return record["going_on"]

    def forget(self, stage: str) -> None:
        """Drops the record of a stage whose files are about to be replaced by others'."""
        records = self._records()
        if records.pop(stage, None) is not None:
            self._keep(records)

    def finish(
        self,
        stage: str,
        inputs: Inputs,
        result: Any,
        seconds: float,
        made_by: Sequence[Mapping[str, Any]],
    ) -> None:
        """Records a stage as finished.

        Args:
            stage: Its name.
            inputs: What its result depends on.
            result: Whatever it found, as JSON.
            seconds: What it took, earlier interrupted attempts included where known.
            made_by: The processes that contributed.
        """
        records = self._records()
        records[stage] = {
            "inputs": _plain(inputs),
            "result": result,
            "seconds": round(seconds, 3),
            "made_by": list(made_by),
            "finished": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        self._keep(records)

    def seconds(self) -> dict[str, float]:
        """What each stage took; the parts of a stage, named `stage/part`, are added up."""
        total: dict[str, float] = {}
        for name, record in self._records().items():
            if "seconds" in record:
                stage = name.split("/")[0]
                total[stage] = round(total.get(stage, 0.0) + record["seconds"], 3)
        return total

    def _records(self) -> dict[str, Any]:
        if self._kept is not None:
            return self._kept
        return _read_stages(self.path)

    def _keep(self, records: Mapping[str, Any]) -> None:
        if self._kept is not None:
            self._kept = _plain(records)
        if hosts.is_first():
            files.write_json(self.path / STAGES, records)


def check_run(
    workdir: str, identity: Inputs, *, overwrite: bool, settings: Mapping[str, Any] | None = None
) -> Run:
    """Checks that a run may use a folder; changes nothing there.

    Args:
        workdir: The folder; it need not exist.
        identity: What makes a distillation this one and no other.
        overwrite: Whether a distillation with another identity may be thrown away.
        settings: Values by config key, to say which differ.

    Raises:
        UserError: If the folder is a file, belongs to another distillation (the keys that differ
            are named) or to another version's run, or holds files that are not a run's and would be
            overwritten.
    """
    path = paths.locate(workdir)
    if path.exists() and not path.is_dir():
        raise UserError(f"workdir {workdir} is a file; name a folder")
    earlier = files.read_json(path / CONFIG) or {}
    if not isinstance(earlier.get("identity"), dict):
        taken = [name for name in _OUTPUTS if (path / name).exists()]
        if taken:
            raise UserError(
                f"workdir {workdir} is not a run's folder, but has {', '.join(taken)}, which a run "
                "would overwrite; name another"
            )
        return Run(path, "nothing")
    refused = None
    if earlier.get("version") != VERSION:
        refused = (
            f"workdir {workdir} holds a run of {_made_by(path)}, which this version cannot go on "
            "with: name another workdir to begin anew (its images can be shown, shared, and "
            f"evaluated with --config.images.source={workdir}), or add --overwrite to throw its "
            "images away"
        )
    elif earlier["identity"] != _plain(identity):
        changes = _changes(earlier, {"identity": _plain(identity), "config": settings or {}})
        refused = (
            f"workdir {workdir} belongs to another distillation: {'; '.join(changes)}; name "
            "another workdir, or add --overwrite to throw its images away"
        )
    if refused and not overwrite:
        raise UserError(refused)
    return Run(path, "another" if refused else "this", earlier["identity"])


def begun(path: epath.Path) -> Mapping[str, Any] | None:
    """The `config.json` of the distillation that a folder holds, if it can be gone on with."""
    earlier = files.read_json(path / CONFIG) if path.is_dir() else None
    if earlier is None or earlier.get("version") != VERSION:
        return None
    return earlier if isinstance(earlier.get("identity"), dict) else None


def is_run(folder: epath.Path) -> bool:
    """Whether a folder is a run's."""
    try:
        read_folder(folder)
    except UserError:
        return False
    return True


class Found(NamedTuple):
    """What a run folder says, to those who only read it.

    Attributes:
        path: The folder.
        config: `config.json`.
        stages: `stages.json`: the record of each stage.
        results: `results.json`, if there is one.
    """

    path: epath.Path
    config: Mapping[str, Any]
    stages: Mapping[str, Any]
    results: Mapping[str, Any] | None


def read_folder(folder: epath.PathLike) -> Found:
    """Reads a run folder; `~` is expanded.

    Raises:
        UserError: If it is none, or a file in it is damaged.
    """
    path = paths.locate(folder)
    config = files.read_json(path / CONFIG) if path.is_dir() else None
    if config is None or not isinstance(config.get("identity"), dict):
        raise UserError(f"{folder} is no run's folder: it has no {CONFIG} of a run")
    return Found(path, config, _read_stages(path), files.read_json(path / RESULTS))


def _read_stages(path: epath.Path) -> dict[str, Any]:
    """The record of each stage in a run folder."""
    records = files.read_json(path / STAGES) or {}
    if not all(isinstance(record, dict) for record in records.values()):
        raise UserError(f"{path / STAGES} is damaged: a stage's record is no JSON object")
    return records


def _made_by(path: epath.Path) -> str:
    """The version of the program that last worked in a run folder."""
    made = [each for record in _read_stages(path).values() for each in contributors(record)]
    versions = [each.get("versions", {}).get("lgm_jax") for each in made]
    return f"lgm_jax {versions[-1]}" if versions and versions[-1] else "another version of lgm_jax"


def contributors(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The processes of a stage's record, those of an attempt that is not finished yet if any."""
    return record.get("going_on") or record.get("made_by", [])


def provenance() -> dict[str, Any]:
    """Of this process: versions, devices, and the commit of the source if that is known."""
    import flax
    import jax
    import numpy
    import optax

    import lgm_jax

    modules = (lgm_jax, jax, flax, optax, numpy)
    return {
        "versions": {module.__name__: module.__version__ for module in modules}
        | {"python": platform.python_version()},
        "devices": [device.device_kind for device in jax.devices()],
        "commit": source.commit(Path(lgm_jax.__file__).parent),
    }


def digest(inputs: Inputs) -> str:
    """A short name for a set of inputs, to make one stage's inputs part of another's."""
    text = json.dumps(_plain(inputs), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(inputs: Inputs) -> dict[str, Any]:
    # What comes back from a JSON file: tuples are lists there.
    return json.loads(json.dumps(dict(inputs)))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two records' identities, by config key where there is one."""
    names = [*old["identity"], *(name for name in new["identity"] if name not in old["identity"])]
    changes = []
    for name in names:
        if old["identity"].get(name) == new["identity"].get(name):
            continue
        hashed = _HASHED.get(name, (name,))
        told = [text for key in hashed if (text := _change(key, old, new)) is not None]
        changes += told or [f"the content of {name.partition('.')[0]}.* is another there"]
    return changes


def _change(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Of one key: the values in use if both are recorded as such, or else those of the settings."""
    values = [record["identity"].get(name) for record in (old, new)]
    settings = [record.get("config", {}).get(name) for record in (old, new)]
    if (None in values or name in _HASHED) and settings[0] != settings[1]:
        values = settings
    elif name in _HASHED:
        return None
    if values[0] == values[1]:
        return None
    there, here = ("unset" if value in (None, "") else value for value in values)
    return f"{name} is {there} there, not {here}"


def _remove_outputs(path: epath.Path) -> None:
    for name in _OUTPUTS:
        output = path / name
        if output.is_dir():
            output.rmtree()
        elif output.exists():
            output.unlink()
