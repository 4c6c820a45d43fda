"""The stages that train and evaluate probes: on distilled images, and on real ones."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from lgm_jax import baselines, data, devices, files, hosts, predictions, probe, runs, solvers
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit, Split
from lgm_jax.data.sampling import Crops
from lgm_jax.errors import UserError
from lgm_jax.features import Images, Views
from lgm_jax.identity import describe
from lgm_jax.report import pictures
from lgm_jax.report.vocabulary import TITLES
from lgm_jax.session import MEMORY_LIMIT, Session
from lgm_jax.settings import make_protocol, split_list
from lgm_jax.teachers import TARGETS

# Random streams, separate from those of distillation.
_PROBE_STREAM, _BASELINE_STREAM, _CROP_STREAM = 101, 102, 106


def probe_stage(session: Session) -> None:
    """Trains and evaluates probes on the distilled images."""
    if session.distilled is None:
        raise UserError("workdir has no distilled images yet: add distill to config.stages")
    for targets in _targets(session):
        _probe(Row(session, "distilled", targets), session.eval_backbones)


def baselines_stage(session: Session) -> None:
    """Trains and evaluates probes on real images: chosen in three ways, and all of them."""
    named = split_list(session.config.baselines)
    for method in filter(named.__contains__, baselines.METHODS):
        if method != "neighbors" or session.distilled is not None:
            for targets in ["labels"] if method == "full" else _targets(session):
                _probe(Row(session, method, targets), session.eval_backbones)


def _targets(session: Session) -> list[str]:
    """Returns what the probes on few images learn."""
    taught = split_list(session.config.probe.teacher)
    return [name for name in TARGETS if name == "labels" or name in taught]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the results: what its probes are trained on, and its records in the run.

    Attributes:
        method: `distilled`, or one of `baselines.METHODS`.
        targets: What the probes learn, one of `teachers.TARGETS`.
    """

    session: Session
    method: str
    targets: str = "labels"

    @property
    def title(self) -> str:
        """The name of the row on the terminal."""
        return TITLES[self.method] + ("" if self.targets == "labels" else f", {self.targets}")

    @property
    def place(self) -> str:
        """The beginning of the names of the row's records."""
        return f"{'probe' if self.method == 'distilled' else 'baselines'}/{self.method}/"

    @property
    def learned(self) -> str:
        """What probes learn, at the end of names of records."""
        return "" if self.targets == "labels" else f"/{self.targets}"

    def stage(self, name: str) -> str:
        """Returns the name of the record of the probes of a backbone, given its own."""
        return f"{self.place}{name}{self.learned}"

    def find(self, name: str, fingerprint: str) -> Any | None:
        """Returns the result of a backbone's probes, if there is one for these inputs."""
        stage, run = self.stage(name), self.session.run
        # Inputs hash all images.
        return run.find(stage, self.inputs(fingerprint)) if run.inputs_of(stage) else None

    def has(self, backbone: Backbone) -> bool:
        """Returns whether there is a result of a backbone's probes for these inputs."""
        return self.find(self.session.name_of(backbone), backbone.fingerprint) is not None

    @functools.cached_property
    def protocol(self) -> probe.Protocol:
        """The protocol of training, with one run if repetitions could not differ."""
        session, full = self.session, self.method == "full"
        crop = session.task.crop
        protocol = make_protocol(session.config, crop, full=full, targets=self.targets)
        count = len(session.dataset.splits["train"].labels) if full else session.task.num_images
        # As it is used, so that a batch larger than the set makes no difference to the record.
        protocol = dataclasses.replace(protocol, batch=min(protocol.batch, count))
        # Random images are drawn anew for each run.
        once = self.method != "random" and not probe.repeats_differ(protocol)
        return dataclasses.replace(protocol, runs=1) if once else protocol

    def inputs(self, fingerprint: str) -> dict[str, Any]:
        """Returns all values that the result of a backbone's probes depends on, and no others."""
        session, method, config = self.session, self.method, self.session.config
        inputs = {
            "seed": config.seed,
            "protocol": describe(self.protocol),
            "split": config.probe.split,
            "resolution": session.task.parametrisation.resolution,
            "data": session.dataset.fingerprint,
            "backbone": fingerprint,
        }
        if method == "full":
            if session.crop == "random" and self.protocol.augment == "fresh":
                inputs["crop"] = session.crop
            return inputs
        inputs["ipc"] = config.ipc
        if method in ("centroids", "neighbors"):
            inputs["chosen_by"] = session.backbone.fingerprint
        if method in ("distilled", "neighbors") and session.distilled is not None:
            inputs["images"] = session.distilled.fingerprint
        if self.targets != "labels":
            inputs["teacher"] = Row(session, "full").inputs(session.backbone.fingerprint)
        return inputs

    @functools.cached_property
    def split(self) -> Split:
        """The split to train on."""
        distilled = self.session.distilled if self.method == "distilled" else None
        return self.session.dataset.splits["train"] if distilled is None else distilled

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The rows of the split that each run trains on, (runs, n), or (1, n) for all runs."""
        session, config = self.session, self.session.config
        classes = session.dataset.num_classes
        if self.method == "random":
            labels = self.split.labels
            return baselines.random(labels, config.ipc, classes, config.probe.runs, config.seed)
        if self.method == "centroids":
            return session.centroids[None]
        if self.method == "neighbors":
            return session.neighbors[None]
        return np.arange(len(self.split.labels))[None]

    @functools.cached_property
    def teacher(self) -> probe.Teacher | None:
        """The first backbone with its heads on all real images, trained if they are missing."""
        if self.targets == "labels":
            return None
        full, backbone = Row(self.session, "full"), self.session.backbone
        if not full.has(backbone):
            _probe(full, [backbone])
        return probe.Teacher(backbone, full.heads(backbone).heads)

    def heads(self, backbone: Backbone) -> probe.Trained:
        """Trains a head per run; those on all real images are kept, and trained once."""
        if self.method != "full":
            return self._train(backbone)
        digest = runs.digest(self.inputs(backbone.fingerprint))
        path = self.session.features_folder / f"heads_{backbone.name}_{digest}.npz"
        return kept_heads(path, lambda: self._train(backbone))

    def _train(self, backbone: Backbone) -> probe.Trained:
        """Trains a head per run, on stored features where the protocol allows it."""
        session, protocol, teacher = self.session, self.protocol, self.teacher
        stream = _PROBE_STREAM if self.method == "distilled" else _BASELINE_STREAM
        key, rows = jax.random.fold_in(session.key, stream), self.rows
        soft = self.split.probabilities if isinstance(self.split, ArraySplit) else None
        targets = (self.split.labels if soft is None else soft)[rows]
        labels = np.broadcast_to(targets, (protocol.runs, *targets.shape[1:]))
        options: dict[str, Any] = {
            "label": f"{self.title}, {session.name_of(backbone)}",
            "mesh": devices.make_mesh(),
        }
        classes = session.dataset.num_classes
        table = self._stored(backbone)
        if table is not None:
            if teacher is not None:
                taught = session.features(teacher.sees, "train")[rows][:, None]
                teacher = teacher._replace(sees=taught)
            return probe.fit(key, table, labels, classes, protocol, teacher=teacher, **options)
        images: Images | probe.Load
        if self.method == "full":
            images = _load_all(session)
        else:
            used, rows = np.unique(rows, return_inverse=True)
            images = self.split.load(used)
        return probe.train(
            key,
            backbone,
            images,
            labels,
            np.broadcast_to(rows, labels.shape[:2]),
            classes,
            protocol,
            # All processes embed together.
            size=lambda placed: hosts.first_says(session.embedded_at_once(placed)),
            teacher=teacher,
            **options,
        )

    def _stored(self, backbone: Backbone) -> np.ndarray | None:
        """Returns stored features (tables, views, n, d) of the images, where runs train on these.

        Probes on all real images have no teacher.
        """
        session, protocol = self.session, self.protocol
        if self.method != "distilled" and protocol.augment == "none":
            return session.features(backbone, "train")[self.rows][:, None]
        if self.method != "full" or protocol.augment != "views":
            return None
        views = Views(protocol.crop, protocol.augmentation, protocol.views)
        draws = range(1 if protocol.share_views else protocol.runs)
        return np.stack([session.embed(backbone, "train", views, draw).whole() for draw in draws])


def kept_heads(path: epath.Path, train: Callable[[], probe.Trained]) -> probe.Trained:
    """Returns the heads of an `.npz` file; trains and writes them if it is missing or damaged.

    Of several processes, all are to call it: they train together, and each writes, for the folder
    may be one of its machine alone.
    """
    found = None
    if path.exists():
        try:
            arrays = files.read_arrays(path)
            heads: dict[str, Any] = {name: arrays[name] for name in ("kernel", "bias")}
            found = probe.Trained(heads, arrays.get("losses"))
        except (UserError, KeyError):
            print(f"note: {path} is damaged; its heads are trained again", flush=True)
    if hosts.first_says(found is not None):
        if found is None:
            raise UserError(f"process {hosts.index()} cannot read {path}, which process 0 can")
        return found
    trained = train()
    losses = {} if trained.losses is None else {"losses": trained.losses}
    files.write_arrays(path, {**trained.heads, **losses}, shared=True)
    return trained


def _load_all(session: Session) -> probe.Load:
    """Returns what loads training images, from memory where it holds them.

    Where a step's images are cropped at random before they are augmented, as in the authors' code,
    so are these: anew in every epoch, alike for all runs.
    """
    split = session.dataset.splits["train"]
    if session.crop == "random":
        crops = Crops(jax.random.fold_in(session.key, _CROP_STREAM))
        count = len(split.labels)
        return lambda rows, epochs: split.load(rows, crops.at(epochs * count + rows))
    held = math.prod(data.decoded_shape(split)) <= MEMORY_LIMIT
    images = session.train if held else split
    return lambda rows, _: images.load(rows)


def _probe(row: Row, backbones: Sequence[Backbone]) -> None:
    """Probes each backbone that has no result for the row's inputs yet."""
    session, todo = row.session, [each for each in backbones if not row.has(each)]
    if not todo:
        print(f"{row.title}: done")
        return
    config, run, protocol = session.config.probe, session.run, row.protocol
    tested = session.dataset.splits[config.split]
    # Features and heads of others do not count as the time of the first.
    _ = row.teacher, row.rows
    for backbone in todo:
        started, name = time.perf_counter(), session.name_of(backbone)
        trained = row.heads(backbone)
        scores: Mapping[str, Any] = probe.evaluate(
            trained.heads, session.features(backbone, config.split), tested.labels, tested.groups
        )
        if hosts.is_first():
            predictions.add(
                run.path / runs.PREDICTIONS,
                name + row.learned,
                row.method,
                scores["named"],
                config.split,
                tested.labels,
            )
        result = _summary(scores, protocol, config.split, session.dataset.group_names)
        result["loss_curve"] = loss_curve(trained.losses)
        if row.teacher is not None:
            result |= {"targets": row.targets, "teacher": session.name_of(session.backbone)}
        took = time.perf_counter() - started
        made_by = [session.process_with(backbone)]
        run.finish(row.stage(name), row.inputs(backbone.fingerprint), result, took, made_by)
        once = ", trained once: repetitions are identical" if protocol.runs < config.runs else ""
        reached = f"{result['top1_mean']:.1f} % on {name}"
        print(f"{row.title}: {reached}{once}", flush=True)


def _summary(
    scores: Mapping[str, Any], protocol: probe.Protocol, split: str, group_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the record of a probe without its learning curve.

    `groups` has the accuracy of each group, `worst_group` that of each run's worst group, both as
    means over runs; groups without images are left out.
    """
    top1, top5, groups = scores["top1"], scores["top5"], scores["groups"]
    by_group, worst = None, None
    if groups is not None:
        means = zip(group_names, np.mean(groups, axis=0).tolist(), strict=False)
        by_group = {name: mean for name, mean in means if not math.isnan(mean)}
        worst = float(np.mean(np.nanmin(groups, axis=1)))
    return {
        "top1_mean": float(np.mean(top1)),
        "top5_mean": None if top5 is None else float(np.mean(top5)),
        "top1_runs": [float(value) for value in top1],
        "top5_runs": None if top5 is None else [float(value) for value in top5],
        "solver": protocol.solver,
        "epochs": protocol.epochs,
        "augment": protocol.augment,
        "split": split,
        "groups": by_group,
        "worst_group": worst,
    }


def loss_curve(losses: np.ndarray | None) -> list[tuple[int, float]] | None:
    """Returns up to fifty epochs, evenly spread from 1, with the mean training loss of all runs.

    Args:
        losses: (runs, epochs); those of a diverged probe are left out.
    """
    if losses is None:
        return None
    epochs = pictures.spread_with_ends(losses.shape[1], 50)
    points = [(epoch + 1, float(losses[:, epoch].mean())) for epoch in epochs]
    return [(epoch, round(loss, 6)) for epoch, loss in points if math.isfinite(loss)]


def _with_spread(record: Mapping[str, Any], ddof: int) -> dict[str, Any]:
    """Returns an entry of `results.json`: the record, and standard deviations of several runs."""

    def spread(values: Sequence[float] | None) -> float | None:
        return float(np.std(values, ddof=ddof)) if values and len(values) > 1 else None

    entry = {name: value for name, value in record.items() if name != "top5_runs"}
    stds = {"top1_std": spread(record["top1_runs"]), "top5_std": spread(record["top5_runs"])}
    return {**entry, **stds}


def collect_results(session: Session, targets: str = "labels") -> dict[str, dict[str, Any]]:
    """Returns the results of all probes on some targets whose inputs are those of the config.

    The backbones of the config come first; then those of earlier starts, which it need not name.
    """
    ddof, data = session.config.probe.ddof, session.dataset
    labels = data.splits[session.config.probe.split].labels
    path, classes = session.run.path / runs.PREDICTIONS, data.num_classes
    table: dict[str, dict[str, Any]] = {}
    methods = [method for method in TITLES if method != "full" or targets == "labels"]
    rows = [Row(session, method, targets) for method in methods]
    for name, fingerprint in _evaluated(rows).items():
        records = {row.method: row.find(name, fingerprint) for row in rows}
        entries = {method: _with_spread(e, ddof) for method, e in records.items() if e is not None}
        if entries:
            more = predictions.describe(path, entries, name + rows[0].learned, labels, classes)
            table[name] = {m: entries[m] | more[m] for m in entries}
    return table


def _evaluated(rows: Sequence[Row]) -> dict[str, str]:
    """Returns the fingerprint of each backbone with results in some rows, by its name."""
    session = rows[0].session
    found = {session.name_of(each): each.fingerprint for each in session.eval_backbones}
    for row in rows:
        for record, inputs in session.run.inputs_of(row.place).items():
            name, fingerprint = record.removesuffix(row.learned), inputs["backbone"]
            # One that the config names has its name there, if it had another then.
            if fingerprint not in found.values() and row.find(name, fingerprint) is not None:
                found.setdefault(name, fingerprint)
    return found


def collect_taught(session: Session) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the results of the probes with a teacher, by their targets."""
    known = TARGETS if solvers.find(session.config.probe.solver).taught else ()
    tables = {name: collect_results(session, name) for name in known if name != "labels"}
    return {name: table for name, table in tables.items() if table}
