"""The stages that train and evaluate probes: on distilled images, and on real ones."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lgm_jax import baselines, data, devices, head_files, hosts, predictions, probe, runs
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit, Split
from lgm_jax.data.sampling import Crops
from lgm_jax.errors import UserError
from lgm_jax.features import Images, Views
from lgm_jax.identity import describe
from lgm_jax.report import pictures
from lgm_jax.report.vocabulary import TITLES
from lgm_jax.session import MEMORY_LIMIT, Session, content_hash
from lgm_jax.settings import make_protocol, split_list
from lgm_jax.teachers import TARGETS

# Random streams, separate from those of distillation.
_PROBE_STREAM, _BASELINE_STREAM, _CROP_STREAM = 101, 102, 103

# Points of a probe's learning curve.
_MOST_POINTS = 50


class _Row(NamedTuple):
    """What the probes of a row of the results are trained on.

    Attributes:
        split: The split to train on.
        rows: The rows of the split that each run trains on, (runs, n), or (1, n).
        teacher: What they learn from too, if their targets have a teacher.
    """

    method: str
    protocol: probe.Protocol
    split: Split
    rows: np.ndarray
    teacher: probe.Teacher | None = None


def probe_stage(session: Session) -> None:
    """Trains and evaluates probes on the distilled images."""
    distilled = session.distilled
    if distilled is None:
        raise UserError("workdir has no distilled images yet: add distill to config.stages")
    every = np.arange(len(distilled.labels))[None]
    for targets in _targets(session):
        _probe(session, "distilled", distilled, lambda: every, targets)


def baselines_stage(session: Session) -> None:
    """Trains and evaluates probes on real images: chosen in three ways, and all of them."""
    config, train = session.config, session.dataset.splits["train"]
    classes, runs_ = session.dataset.num_classes, config.probe.runs
    choices: Mapping[str, Callable[[], np.ndarray]] = {
        "random": lambda: baselines.random(train.labels, config.ipc, classes, runs_, config.seed),
        "centroids": lambda: session.centroids[None],
        "neighbors": lambda: neighbors(session)[None],
        "full": lambda: _all_rows(session),
    }
    for method in filter(split_list(config.baselines).__contains__, baselines.METHODS):
        if method != "neighbors" or session.distilled is not None:
            for targets in ["labels"] if method == "full" else _targets(session):
                _probe(session, method, train, choices[method], targets)


def _targets(session: Session) -> list[str]:
    """Returns what the probes on few images learn."""
    taught = split_list(session.config.probe.teacher)
    return [name for name in TARGETS if name == "labels" or name in taught]


def _all_rows(session: Session) -> np.ndarray:
    return np.arange(len(session.dataset.splits["train"].labels))[None]


def _protocol(session: Session, method: str, targets: str = "labels") -> probe.Protocol:
    """Returns the protocol of a row, with one run if repetitions could not differ."""
    full = method == "full"
    protocol = make_protocol(session.config, session.task.crop, full=full, targets=targets)
    count = len(session.dataset.splits["train"].labels) if full else session.task.num_images
    # As it is used, so that a batch larger than the set makes no difference to the record.
    protocol = dataclasses.replace(protocol, batch=min(protocol.batch, count))
    # Random images are drawn anew for each run.
    once = method != "random" and not probe.repeats_differ(protocol)
    return dataclasses.replace(protocol, runs=1) if once else protocol


def _probe_inputs(
    session: Session, method: str, backbone: Backbone, targets: str = "labels"
) -> dict[str, Any]:
    """Returns all values that the result of a probe depends on, and no others."""
    config = session.config
    protocol = _protocol(session, method, targets)
    inputs = {
        "seed": config.seed,
        "protocol": describe(protocol),
        "split": config.probe.split,
        "resolution": session.task.parametrisation.resolution,
        "data": session.dataset.fingerprint,
        "backbone": backbone.fingerprint,
    }
    if method == "full":
        if session.crop == "random" and protocol.augment == "fresh":
            inputs["crop"] = session.crop
        return inputs
    inputs["ipc"] = config.ipc
    if method in ("centroids", "neighbors"):
        inputs["chosen_by"] = session.backbone.fingerprint
    if method in ("distilled", "neighbors") and session.distilled is not None:
        inputs["images"] = content_hash(session.distilled)
    if targets != "labels":
        inputs["teacher"] = _probe_inputs(session, "full", session.backbone)
    return inputs


def _probe(
    session: Session,
    method: str,
    split: Split,
    choose: Callable[[], np.ndarray],
    targets: str = "labels",
    backbones: Sequence[Backbone] | None = None,
) -> None:
    """Probes every evaluation backbone that has no result for these inputs yet.

    Args:
        choose: Returns the rows of the split that each run trains on, (runs, n), or (1, n) if all
            train on the same.
        targets: What the probes learn, one of `teachers.TARGETS`.
        backbones: The backbones; by default all to evaluate on.
    """
    config, run, title = session.config.probe, session.run, _title(method, targets)
    every = session.eval_backbones if backbones is None else backbones
    todo = [b for b in every if _find_probe(session, method, b, targets) is None]
    if not todo:
        print(f"{title}: done")
        return
    teacher = None if targets == "labels" else _teacher(session)
    protocol = _protocol(session, method, targets)
    row = _Row(method, protocol, split, choose(), teacher)
    for backbone in todo:
        started = time.perf_counter()
        trained = _heads(session, row, backbone)
        tested = session.dataset.splits[config.split]
        scores: Mapping[str, Any] = probe.evaluate(
            trained.heads, session.features(backbone, config.split), tested.labels, tested.groups
        )
        if hosts.is_first():
            predictions.add(
                run.path / runs.PREDICTIONS,
                _name_of(session, backbone, targets),
                method,
                scores["named"],
                config.split,
                tested.labels,
            )
        result = _summary(scores, protocol, config.split, session.dataset.group_names)
        result["loss_curve"] = loss_curve(trained.losses)
        if teacher is not None:
            result |= {"targets": targets, "teacher": session.name_of(session.backbone)}
        run.finish(
            _stage_name(session, method, backbone, targets),
            _probe_inputs(session, method, backbone, targets),
            result,
            time.perf_counter() - started,
            [session.process_with(backbone)],
        )
        once = ", trained once: repetitions are identical" if protocol.runs < config.runs else ""
        print(
            f"{title}: {result['top1_mean']:.1f} % on {session.name_of(backbone)}{once}",
            flush=True,
        )


def _teacher(session: Session) -> probe.Teacher:
    """Returns the first backbone with its heads on all real images, trained if they are missing."""
    backbone, train = session.backbone, session.dataset.splits["train"]
    if _find_probe(session, "full", backbone) is None:
        _probe(session, "full", train, lambda: _all_rows(session), backbones=[backbone])
    row = _Row("full", _protocol(session, "full"), train, _all_rows(session))
    return probe.Teacher(backbone, _heads(session, row, backbone).heads)


def _heads(session: Session, row: _Row, backbone: Backbone) -> probe.Trained:
    """Trains a head per run; those on all real images are kept, and trained once."""
    if row.method != "full":
        return _train(session, row, backbone)
    inputs = _probe_inputs(session, row.method, backbone)
    path = session.features_folder / f"heads_{backbone.name}_{runs.digest(inputs)}.npz"
    return head_files.kept(path, lambda: _train(session, row, backbone))


def _train(session: Session, row: _Row, backbone: Backbone) -> probe.Trained:
    """Trains a head per run, on stored features where the protocol allows it."""
    method, protocol, split, rows, teacher = row
    stream = _PROBE_STREAM if method == "distilled" else _BASELINE_STREAM
    key, label = jax.random.fold_in(session.key, stream), _title(method, protocol.targets)
    label = f"{label}, {session.name_of(backbone)}"
    mesh = devices.make_mesh()
    classes = session.dataset.num_classes
    soft = split.probabilities if isinstance(split, ArraySplit) else None
    targets = (split.labels if soft is None else soft)[rows]
    labels = np.broadcast_to(targets, (protocol.runs, *targets.shape[1:]))
    table = None
    if method != "distilled" and protocol.augment == "none":
        table = session.features(backbone, "train")[rows][:, None]
        if teacher is not None:
            taught = session.features(teacher.sees, "train")[rows][:, None]
            teacher = teacher._replace(sees=taught)
    elif method == "full" and protocol.augment == "views":
        views = Views(protocol.crop, protocol.augmentation, protocol.views)
        draws = 1 if protocol.share_views else protocol.runs
        table = np.stack(
            [session.embed(backbone, "train", views, draw).whole() for draw in range(draws)]
        )
    if table is not None:
        return probe.fit(
            key, table, labels, classes, protocol, label=label, mesh=mesh, teacher=teacher
        )
    images: Images | probe.Load = _load_all(session)
    if method != "full":
        used, rows = np.unique(rows, return_inverse=True)
        images = split.load(used)
    return probe.train(
        key,
        backbone,
        images,
        labels,
        np.broadcast_to(rows, labels.shape[:2]),
        classes,
        protocol,
        label=label,
        mesh=mesh,
        # All processes embed together.
        size=lambda placed: hosts.first_says(session.embedded_at_once(placed)),
        teacher=teacher,
    )


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


def _title(method: str, targets: str) -> str:
    """Returns the name of a row on the terminal."""
    return TITLES[method] + ("" if targets == "labels" else f", {targets}")


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
    """Returns some epochs, from 1 and evenly spread, with the mean training loss of all runs.

    Args:
        losses: Losses of each run in each epoch, (runs, epochs); those of a diverged probe are left
            out.
    """
    if losses is None:
        return None
    epochs = pictures.spread_with_ends(losses.shape[1], _MOST_POINTS)
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
    """Returns the results of all probes on some targets that belong to the current config."""
    ddof, data = session.config.probe.ddof, session.dataset
    labels = data.splits[session.config.probe.split].labels
    path, classes = session.run.path / runs.PREDICTIONS, data.num_classes
    table: dict[str, dict[str, Any]] = {}
    methods = [method for method in TITLES if method != "full" or targets == "labels"]
    for backbone in session.eval_backbones:
        records = {method: _find_probe(session, method, backbone, targets) for method in methods}
        entries = {method: _with_spread(e, ddof) for method, e in records.items() if e is not None}
        if entries:
            name = _name_of(session, backbone, targets)
            more = predictions.describe(path, entries, name, labels, classes)
            table[session.name_of(backbone)] = {m: entries[m] | more[m] for m in entries}
    return table


def collect_taught(session: Session) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the results of the probes with a teacher, by their targets."""
    tables = {name: collect_results(session, name) for name in _targets(session)[1:]}
    return {name: table for name, table in tables.items() if table}


def neighbors(session: Session) -> np.ndarray:
    """Returns indices of the training images that look most like the distilled ones."""
    if session.distilled is None:
        raise ValueError("there are no distilled images")
    return baselines.neighbors(
        session.features(session.backbone, "train"),
        session.dataset.splits["train"].labels,
        session.features_syn,
        session.distilled.labels,
    )


def _find_probe(
    session: Session, method: str, backbone: Backbone, targets: str = "labels"
) -> Any | None:
    stage = _stage_name(session, method, backbone, targets)
    return session.run.find(stage, _probe_inputs(session, method, backbone, targets))


def _stage_name(session: Session, method: str, backbone: Backbone, targets: str) -> str:
    stage = "probe" if method == "distilled" else "baselines"
    return f"{stage}/{method}/{_name_of(session, backbone, targets)}"


def _name_of(session: Session, backbone: Backbone, targets: str) -> str:
    """Returns the name of an evaluation backbone in records, with what its probes learn."""
    more = "" if targets == "labels" else f"/{targets}"
    return session.name_of(backbone) + more
