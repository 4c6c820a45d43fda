"""The folder of a run, and its record of finished stages, so that nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from lgm_jax import files, hosts, locks, paths, schema, source
from lgm_jax.errors import UserError, explain

CONFIG, STAGES, METRICS = "config.json", "stages.json", "metrics.jsonl"
CHECKPOINTS, DISTILLED, PROGRESS, FEATURES = "checkpoints", "distilled", "progress", "features"
PROFILE, TENSORBOARD, WANDB = "profile", "tensorboard", "wandb"
# For people: results, the page with its pictures if there are many, and its source.
RESULTS, GRID, PAGE, REPORT, GALLERY = (
    *("results.json", "grid.png", "report.html", "report", "gallery.npz"),
)
TIMELAPSE, ANIMATION, CARD = "timelapse", "timelapse.webp", "card.png"
# The classes that probes name for the test images.
PREDICTIONS = "predictions.npz"
# The config comes last: as long as it is there, the rest is recognised as a run's.
_OUTPUTS = (
    *(STAGES, METRICS, RESULTS, GRID, CHECKPOINTS, DISTILLED, PROGRESS, FEATURES, PROFILE),
    *(TENSORBOARD, WANDB, PAGE, REPORT, GALLERY, TIMELAPSE, ANIMATION, CARD),
    *(PREDICTIONS, CONFIG),
)

# The version of `config.json` and `stages.json`; a run of another can be shown, but not continued.
VERSION = 3

Inputs = Mapping[str, Any]

# The config keys behind each hash in an identity.
_HASHED = {
    "backbone.fingerprint": (
        *("backbone.name", "backbone.revision", "backbone.normalization", "backbone.dtype"),
        *("backbone.params_dtype", "backbone.pooling", "backbone.position_offset"),
        "backbone.resize",
    ),
    "data.fingerprint": (
        *("data.name", "data.folder", "data.subset", "data.label", "data.val_fraction"),
        *("data.split_seed", "data.on_bad_image"),
    ),
    "images.source": ("images.source",),
}


class InUseError(UserError):
    """Another process holds the folder of a run."""


class Run:
    """A run folder and its record of stages.

    A stage is finished for certain inputs: the config values, weights and data that its result
    depends on. It is looked up by these, and redone when one of them changes. Its record names the
    processes that contributed, which need not be the latest.

    Of several processes, the first writes, and all have the same record.

    Attributes:
        holds: `nothing` of a run, `this` distillation, or `another`.
    """

    def __init__(self, path: epath.Path, holds: str, identity: Mapping[str, Any] | None = None):
        """Wraps a folder that `check_run` has checked, with the identity in it; changes nothing."""
        self.path = path
        self.holds = holds
        self._identity = identity
        self._lock: locks.Lock | None = None
        self._memory: dict[str, Any] | None = None

    def open(self, identity: Inputs, description: Mapping[str, Any]) -> None:
        """Prepares the folder for writing, unless it is in use; removes another run's images."""
        # Until here, all have to see it as it was.
        hosts.wait()
        if hosts.is_first():
            self._take_over(identity, description)
        hosts.wait()
        if hosts.count() > 1:
            self.await_file(CONFIG)
            # All read the stages before the first process writes to them.
            self._memory = self._records()
            hosts.wait()

    def _take_over(self, identity: Inputs, description: Mapping[str, Any]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            for name in _OUTPUTS if self.holds == "another" else ():
                output = self.path / name
                if output.is_dir():
                    output.rmtree()
                elif output.exists():
                    output.unlink()
            record = {"version": VERSION, "identity": _plain(identity), **description}
            files.write_json(self.path / CONFIG, record)
        except OSError as error:
            raise UserError(f"cannot write to workdir {self.path}: {explain(error)}") from error

    def close(self) -> None:
        """Leaves the folder to others."""
        if self._lock is not None:
            self._lock.release()

    def await_file(self, name: str) -> None:
        """Waits until this process sees a file that the first has written."""
        # Network file systems show a new file to other machines within a minute.
        deadline = time.monotonic() + 90
        while not (self.path / name).exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {hosts.index()} does not see {self.path / name}: the workdir must be "
                    "a folder that all processes share"
                )
            time.sleep(1)

    def _acquire(self) -> None:
        # Buckets have no locks.
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
        if (_read_config(self.path) or {}).get("identity") != self._identity:
            self.close()
            raise InUseError(f"another process has just used workdir {self.path}: start again")

    def find(self, stage: str, inputs: Inputs) -> Any | None:
        """Returns the result of a stage, if it was finished with these inputs."""
        record = self._records().get(stage, {})
        return record["result"] if record.get("inputs") == _plain(inputs) else None

    def inputs_of(self, prefix: str) -> dict[str, Inputs]:
        """Returns the inputs of finished stages whose names begin so, by the rest of each name."""
        return {
            stage.removeprefix(prefix): record["inputs"]
            for stage, record in self._records().items()
            if stage.startswith(prefix) and "inputs" in record
        }

    def latest(self, stage: str) -> Any | None:
        """Returns the latest result of a stage, whatever its inputs were."""
        return self._records().get(stage, {}).get("result")

    def last_process(self, stage: str, like: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Returns the record of the last process that began or finished a stage.

        Args:
            like: The record of a process: nothing is returned for one that had other devices or
                computed attention by another kernel. Those differ in rounding and memory.
        """
        processes = contributors(self._records().get(stage, {}))
        last = processes[-1] if processes else {}
        same = like is None or all(
            last.get(key) == like.get(key) for key in ("devices", "attention")
        )
        return last if same else {}

    def begin(self, stage: str, step: int, process: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Records that a process is about to continue a stage from a step.

        An earlier result of the stage stays in the record, with its processes, until the stage is
        finished anew.

        Args:
            step: The step where the process begins; later ones are computed again.

        Returns:
            The records of all processes that contribute, each with its first step `from_step`.
        """
        records = self._records()
        record = records.setdefault(stage, {})
        earlier = [each for each in contributors(record) if each["from_step"] < step]
        record["going_on"] = [*earlier, {"from_step": step, **process}]
        self._write(records)
        return record["going_on"]

    def forget(self, stage: str) -> None:
        """Drops the record of a stage whose files are about to be replaced."""
        records = self._records()
        if records.pop(stage, None) is not None:
            self._write(records)

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
            inputs: The values that its result depends on.
            seconds: Its duration, with earlier interrupted attempts where these are known.
            made_by: The records of the processes that contributed.
        """
        records = self._records()
        records[stage] = {
            "inputs": _plain(inputs),
            "result": result,
            "seconds": round(seconds, 3),
            "made_by": list(made_by),
            "finished": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        self._write(records)

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each stage; parts of a stage, named `stage/part`, are added up."""
        total: dict[str, float] = {}
        for name, record in self._records().items():
            if "seconds" in record:
                stage = name.split("/")[0]
                total[stage] = round(total.get(stage, 0.0) + record["seconds"], 3)
        return total

    def _records(self) -> dict[str, Any]:
        return _read_stages(self.path) if self._memory is None else self._memory

    def _write(self, records: Mapping[str, Any]) -> None:
        if self._memory is not None:
            self._memory = _plain(records)
        if hosts.is_first():
            files.write_json(self.path / STAGES, records)


def check_run(
    workdir: str, identity: Inputs, *, overwrite: bool, settings: Mapping[str, Any] | None = None
) -> Run:
    """Checks that a run may use a folder; changes nothing there.

    Args:
        overwrite: Whether a distillation with another identity may be thrown away.
        settings: Values by config key, to name those that differ.
    """
    path = paths.locate(workdir)
    if path.exists() and not path.is_dir():
        raise UserError(f"workdir {workdir} is a file; name a folder")
    earlier = _read_config(path)
    if earlier is None:
        taken = [name for name in _OUTPUTS if (path / name).exists()]
        # Another process may have begun a run since.
        earlier = _read_config(path) if taken else None
        if taken and earlier is None:
            raise UserError(
                f"workdir {workdir} is not a run's folder, but has {', '.join(taken)}, which a run "
                "would overwrite; name another"
            )
    if earlier is None:
        return Run(path, "nothing")
    refused = None
    if earlier.get("version") != VERSION:
        refused = (
            f"workdir {workdir} holds a run of {_version_of(path)}, which this version cannot go "
            "on with: name another workdir to begin anew (its images can be shown, shared, and "
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


def begun(path: epath.Path) -> Mapping[str, Any]:
    """Returns the `config.json` of a folder's distillation; empty if none can be continued."""
    earlier = _read_config(path) or {}
    return earlier if earlier.get("version") == VERSION else {}


def is_run(path: epath.Path) -> bool:
    """Returns whether a folder is a run's, whose record can be read."""
    try:
        return _read_config(path) is not None
    except UserError:
        return False


def _read_config(path: epath.Path) -> Mapping[str, Any] | None:
    """Returns the `config.json` of a folder, if it is a run's."""
    found = files.read_json(path / CONFIG)
    if found is None or not isinstance(found.get("identity"), dict):
        return None
    return files.check(path / CONFIG, found, schema.CONFIG)


class Folder(NamedTuple):
    """The content of a run folder, for readers; `results` are `None` where there are none yet."""

    path: epath.Path
    config: Mapping[str, Any]
    stages: Mapping[str, Any]
    results: Mapping[str, Any] | None


def read_folder(folder: epath.PathLike) -> Folder:
    """Reads a run folder; `~` is expanded."""
    path = paths.locate(folder)
    config = _read_config(path)
    if config is None:
        raise UserError(f"{folder} is no run's folder: it has no {CONFIG} of a run")
    return Folder(path, config, _read_stages(path), read_results(path))


def read_results(path: epath.Path) -> dict[str, Any] | None:
    """Returns the `results.json` of a run folder; `None` without one."""
    return files.read_json(path / RESULTS, schema.RESULTS)


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of the `metrics.jsonl` of a run folder; none without one."""
    file = path / METRICS
    try:
        lines = list(map(json.loads, file.read_text().splitlines() if file.exists() else []))
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    return files.check(file, lines, schema.METRICS)


def _read_stages(path: epath.Path) -> dict[str, Any]:
    """Returns the record of each stage in a run folder."""
    return files.read_json(path / STAGES, schema.STAGES) or {}


def _version_of(path: epath.Path) -> str:
    """Names the version of the program that last worked in a run folder."""
    processes = [each for record in _read_stages(path).values() for each in contributors(record)]
    versions = [each.get("versions", {}).get("lgm_jax") for each in processes]
    return f"lgm_jax {versions[-1]}" if versions and versions[-1] else "another version of lgm_jax"


def contributors(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the processes in a stage's record, of an unfinished attempt if there is one."""
    return record.get("going_on") or record.get("made_by", [])


def provenance() -> dict[str, Any]:
    """Returns versions, devices, and the commit of the source if that is known."""
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
    """Returns a short name for inputs, to make one stage's inputs part of another's."""
    text = json.dumps(_plain(inputs), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(inputs: Inputs) -> dict[str, Any]:
    # As read back from a JSON file, where tuples are lists.
    return json.loads(json.dumps(dict(inputs)))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists the differences between two records' identities, by config key where there is one.

    The values of a key are those of the identities if both have one, or else of the settings.
    """
    changes = []
    for name in dict.fromkeys([*old["identity"], *new["identity"]]):
        identities = [record["identity"].get(name) for record in (old, new)]
        if identities[0] == identities[1]:
            continue
        by_key = []
        for key in _HASHED.get(name, (name,)):
            values = [record.get("config", {}).get(key) for record in (old, new)]
            if name not in _HASHED and (None not in identities or values[0] == values[1]):
                values = identities
            if values[0] != values[1]:
                there, here = ("unset" if value in (None, "") else value for value in values)
                by_key.append(f"{key} is {there} there, not {here}")
        changes += by_key or [f"the content of {name.partition('.')[0]}.* is another there"]
    return changes
