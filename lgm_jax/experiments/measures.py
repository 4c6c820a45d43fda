"""Measures: what experiments compute from finished runs, beyond accuracies, and their rows."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from PIL import Image

from lgm_jax import analysis, baselines, hosts
from lgm_jax.backbones import Backbone
from lgm_jax.data import ArraySplit
from lgm_jax.errors import UserError
from lgm_jax.experiments import axes
from lgm_jax.experiments.runner import Measure, Outcome, Row
from lgm_jax.features import Views, embed
from lgm_jax.report.grid import draw_grid
from lgm_jax.report.pictures import write_png
from lgm_jax.session import Session
from lgm_jax.stages.costs import step_costs

STEP_MS, MINUTES, MEGABYTES = COSTS = ("ms a step", "minutes", "MB")

NEAREST, ALIGNMENT, CKA = "1-NN", "alignment", "linear CKA"

# Names of what is measured of an image, and its field of `analysis.Outsideness`.
EDGES = {
    "distance: quantile": "quantile",
    "distance / 95 % radius": "ratio",
    "along class: quantile": "quantile_along",
    "along class / 95 % edge": "ratio_along",
}
OUTSIDE = {"outside the radius": "ratio", "beyond the edge along class": "ratio_along"}

PICTURE = "groups.png"

# Real images among principal components, at most.
_DOTS = 2000

# The random stream of the heads of `head_gradients`.
_HEAD_STREAM = 104


def costs_of_steps(config: ConfigDict) -> Measure:
    """Returns the measure of seconds and bytes of a step, by each objective that is compared."""
    names = axes.objectives(config)

    def compute(session: Session) -> dict[str, dict[str, float]]:
        print(f"timing a step of {', '.join(names)}, in turns", flush=True)
        return {
            name: {"seconds": cost.seconds, "bytes": cost.num_bytes}
            for name, cost in step_costs(session, names).items()
        }

    def rows(outcome: Outcome) -> Iterator[Row]:
        for name, cost in outcome.measured.items():
            variant = {"variant": "" if name == config.objective else name}
            seconds = cost["seconds"]
            yield STEP_MS, 1000 * seconds, variant
            yield MINUTES, config.steps * seconds / 60, variant
            yield MEGABYTES, cost["bytes"] / 1e6, variant

    return Measure("step_costs", compute, rows, {"objectives": names}, timed=True)


def alignment(neighbors: int) -> Measure:
    """Returns the measure of how alike backbones see the images that are evaluated."""

    def compute(session: Session) -> dict[str, Any]:
        split = session.config.probe.split
        features = [session.features(backbone, split) for backbone in session.eval_backbones]
        near = [analysis.nearest_others(each, neighbors) for each in features]
        return {
            "mutual_knn": _pairwise(analysis.shared_neighbors, near),
            "linear_cka": _pairwise(analysis.linear_cka, features),
        }

    def rows(outcome: Outcome) -> Iterator[Row]:
        for metric, key in ((ALIGNMENT, "mutual_knn"), (CKA, "linear_cka")):
            square = zip(outcome.evaluated, outcome.measured[key], strict=True)
            for a, line in square:
                for b, value in zip(outcome.evaluated, line, strict=True):
                    yield metric, value, {"backbone": a, "evaluated": b, "variant": ""}

    return Measure("alignment", compute, rows, {"neighbors": neighbors})


def _pairwise(compare: Callable[[Any, Any], float], items: Sequence[Any]) -> list[list[float]]:
    """Returns a symmetric comparison of all pairs, whose diagonal is one."""
    square = np.eye(len(items))
    for i, j in itertools.combinations(range(len(items)), 2):
        square[i, j] = square[j, i] = compare(items[i], items[j])
    return square.tolist()


def head_gradients(scales: Sequence[float], heads: int) -> Measure:
    """Returns the measure of the part of random heads' gradients that class means explain."""

    def compute(session: Session) -> dict[str, Any]:
        rows = session.real_features(session.backbone)
        views, images, dim = rows.shape
        features = jnp.asarray(rows.whole().reshape(views * images, dim))
        labels = jnp.asarray(np.tile(session.dataset.splits["train"].labels, views))
        key = jax.random.fold_in(session.key, _HEAD_STREAM)
        norm = float(jnp.sqrt(jnp.mean(jnp.sum(features**2, axis=-1))))
        value: dict[str, Any] = {}
        for scale in scales:
            share = analysis.class_means_share(
                key, features, labels, session.dataset.num_classes, head_std=scale, heads=heads
            )
            shares = {name: np.asarray(each).tolist() for name, each in share._asdict().items()}
            value[f"{scale:g}"] = {**shares, "scores": [scale * norm]}
        return value

    def rows(outcome: Outcome) -> Iterator[Row]:
        for scale, shares in outcome.measured.items():
            place = {"variant": f"head_std{scale}", "evaluated": outcome.axes["backbone"]}
            for metric, values in shares.items():
                for head, value in enumerate(values):
                    # A random head is a seed; the scores are those of all heads.
                    seeded = {"seed": head, "method": "heads"} if metric != "scores" else {}
                    yield metric, value, {**place, **seeded}

    return Measure("class_means", compute, rows, {"head_stds": list(scales), "heads": heads})


def _distilled(session: Session) -> ArraySplit:
    if session.distilled is None:
        raise ValueError("there are no distilled images")
    return session.distilled


def _distilled_features(session: Session, backbone: Backbone) -> Float[np.ndarray, "s d"]:
    """Returns the features of the centre crops of the distilled images."""
    label = f"distilled, {backbone.name}"
    views = Views(session.task.crop)
    rows = embed(backbone, _distilled(session), views, session.key, label=label)
    return rows.whole()[0]


def _classify(session: Session) -> list[float]:
    """Returns the accuracy of the nearest distilled image's label, by evaluation backbone."""
    split = session.config.probe.split
    return [
        analysis.nearest_accuracy(
            _distilled_features(session, backbone),
            _distilled(session).labels,
            session.features(backbone, split),
            session.dataset.splits[split].labels,
        )
        for backbone in session.eval_backbones
    ]


def _nearest_rows(outcome: Outcome) -> Iterator[Row]:
    for backbone, value in zip(outcome.evaluated, outcome.measured, strict=True):
        yield NEAREST, value, {"evaluated": backbone, "method": "distilled"}


BY_NEAREST = Measure("nearest", _classify, _nearest_rows)


def _find_edges(session: Session) -> dict[str, Any]:
    """Returns outsideness of images of each kind, and the first principal components of all."""
    train, classes = session.dataset.splits["train"], session.dataset.num_classes
    config, labels, centroids = session.config, train.labels, session.centroids
    real = session.features(session.backbone, "train")
    made = _distilled_features(session, session.backbone)
    drawn = baselines.random(labels, config.ipc, classes, config.probe.runs, config.seed)
    rows = drawn.ravel()
    pca = analysis.fit_pca(real)
    kinds: dict[str, Any] = {}
    for kind, features, of_class, points in (
        ("distilled", made, _distilled(session).labels, None),
        ("centroids", real[centroids], labels[centroids], None),
        # The picture has those of one probe run.
        ("random", real[rows], labels[rows], drawn.shape[1]),
    ):
        members = kind != "distilled"
        measured = analysis.outsideness(features, of_class, real, labels, members=members)
        kinds[kind] = {
            **{name: values.tolist() for name, values in measured._asdict().items()},
            "labels": of_class.tolist(),
            "points": pca.project(features[:points]).tolist(),
        }
    some = np.random.default_rng(config.seed).permutation(len(real))[:_DOTS]
    return {
        "kinds": kinds,
        "real": {"points": pca.project(real[some]).tolist(), "labels": labels[some].tolist()},
        "share": pca.share.tolist(),
        "class_names": list(session.dataset.class_names),
    }


def _edge_rows(outcome: Outcome) -> Iterator[Row]:
    for method, measured in outcome.measured["kinds"].items():
        place = {"evaluated": outcome.axes["backbone"], "method": method}
        for metric, name in EDGES.items():
            yield metric, float(np.mean(measured[name])), place
        for metric, name in OUTSIDE.items():
            yield metric, float(np.mean(np.asarray(measured[name]) > 1)), place


AT_EDGES = Measure("edges", _find_edges, _edge_rows)


def _show_groups(session: Session) -> dict[str, Any]:
    """Writes the picture of a run's groups; returns how many training images each has."""
    train, names = session.dataset.splits["train"], session.dataset.group_names
    if train.groups is None:
        raise UserError(f"{session.dataset.name} has no groups, which table 4 is about")
    rows = [_group_row(session, label) for label in range(session.dataset.num_classes)]
    width = max(map(len, rows))
    blank = np.ones_like(rows[0][0][0])
    shown = [each for row in rows for each in [*row, *[(blank, "")] * (width - len(row))]]
    pictures, captions = zip(*shown, strict=True)
    columns = width * max(1, round((len(rows) / width) ** 0.5))
    if hosts.is_first():
        write_png(session.run.path / PICTURE, draw_grid(np.stack(pictures), captions, columns))
    counts = np.bincount(train.groups, minlength=len(names))
    return {"train": dict(zip(names, counts.tolist(), strict=True))}


def _group_row(session: Session, label: int) -> list[tuple[np.ndarray, str]]:
    """Returns a class's distilled image and a real one of each of its groups, with captions."""
    distilled, dataset = _distilled(session), session.dataset
    first = np.flatnonzero(distilled.labels == label)[0]
    row = [(np.asarray(distilled.images[first]), f"{dataset.class_names[label]}, distilled")]
    for group, name in enumerate(dataset.group_names):
        # A group without training images is shown by an image that is evaluated.
        for split in ("train", session.config.probe.split):
            images = dataset.splits[split]
            members = np.flatnonzero((images.labels == label) & (images.groups == group))
            if len(members):
                own = session.features(session.backbone, split)[members]
                distance = np.linalg.norm(own - own.mean(axis=0, keepdims=True), axis=-1)
                nearest = images.load(members[[np.argmin(distance)]])[0]
                row.append((nearest.astype(np.float32) / 255, name))
                break
    return row


OF_GROUPS = Measure("groups", _show_groups, files=[PICTURE])


def read_picture(outcome: Outcome) -> np.ndarray | None:
    """Returns the picture (h, w, 3) of a run that measured `OF_GROUPS`.

    The numbers do not depend on it: if it cannot be read, a note says so, and the result is `None`,
    as it is for an outcome without a folder, of published numbers.
    """
    if outcome.path is None:
        return None
    path = outcome.path / PICTURE
    try:
        return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    # Pillow's decoders raise almost anything for damaged files.
    except Exception:
        print(
            f"note: {path} cannot be read, and the figure leaves it out; delete it and start again "
            "to have it drawn anew",
            flush=True,
        )
        return None
