"""What experiments compute from finished runs, beyond their accuracies."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from lgm_jax import analysis, baselines, files, hosts
from lgm_jax.backbones import Backbone
from lgm_jax.data import ArraySplit
from lgm_jax.errors import UserError
from lgm_jax.experiments.runner import Measure, Outcome
from lgm_jax.features import Views, embed
from lgm_jax.report.grid import draw_grid
from lgm_jax.session import Session, content_hash
from lgm_jax.stages.costs import step_costs

PICTURE = "groups.png"

# Real images among principal components, at most.
_DOTS = 2000

# The random stream of the heads of `head_gradients`.
_HEAD_STREAM = 104


def step_costs_of(names: Sequence[str]) -> Measure:
    """Returns the measure of seconds and bytes of a step by each of some objectives."""

    def inputs(session: Session) -> dict[str, Any]:
        return {
            "identity": dict(session.identity),
            # Of which the identity has those that its own objective reads.
            "clp": session.config.clp.to_dict(),
            "microbatch": session.run.last_process("distill").get("microbatch"),
            "attention": session.config.backbone.attention,
            "devices": session.process.get("devices"),
            "objectives": list(names),
        }

    def compute(session: Session) -> dict[str, dict[str, float]]:
        print(f"timing a step of {', '.join(names)}, in turns", flush=True)
        return {
            name: {"seconds": cost.seconds, "bytes": cost.num_bytes}
            for name, cost in step_costs(session, names).items()
        }

    return Measure("step_costs", inputs, compute)


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

    return Measure("alignment", lambda s: {**_of_real_images(s), "neighbors": neighbors}, compute)


def _pairwise(compare: Callable[[Any, Any], float], items: Sequence[Any]) -> list[list[float]]:
    """Returns a symmetric comparison of all pairs, whose diagonal is one."""
    found = np.eye(len(items))
    for i, j in itertools.combinations(range(len(items)), 2):
        found[i, j] = found[j, i] = compare(items[i], items[j])
    return found.tolist()


def head_gradients(scales: Sequence[float], heads: int) -> Measure:
    """Returns the measure of what class means explain of the gradient of random heads."""

    def inputs(session: Session) -> dict[str, Any]:
        recipe = session.recipe
        return {
            "data": session.dataset.fingerprint,
            "backbone": session.backbone.fingerprint,
            "crop": recipe.task.crop,
            "views": recipe.real.views,
            "augmentation": repr(recipe.real_augmentation),
            "seed": session.config.seed,
            "head_stds": list(scales),
            "heads": heads,
        }

    def compute(session: Session) -> dict[str, Any]:
        rows = session.real_features(session.backbone)
        views, images, dim = rows.shape
        features = jnp.asarray(rows.whole().reshape(views * images, dim))
        labels = jnp.asarray(np.tile(session.dataset.splits["train"].labels, views))
        key = jax.random.fold_in(session.key, _HEAD_STREAM)
        norm = float(jnp.sqrt(jnp.mean(jnp.sum(features**2, axis=-1))))
        found: dict[str, Any] = {}
        for scale in scales:
            share = analysis.class_means_share(
                key, features, labels, session.dataset.num_classes, head_std=scale, heads=heads
            )
            values = {name: np.asarray(each).tolist() for name, each in share._asdict().items()}
            found[f"{scale:g}"] = {**values, "scores": [scale * norm]}
        return found

    return Measure("class_means", inputs, compute)


def _of_real_images(session: Session) -> dict[str, Any]:
    return {
        "data": session.dataset.fingerprint,
        "backbones": [backbone.fingerprint for backbone in session.eval_backbones],
        "crop": session.task.crop,
        "split": session.config.probe.split,
    }


def _of_images(session: Session) -> dict[str, Any]:
    return {**_of_real_images(session), "images": content_hash(_distilled(session))}


def _distilled(session: Session) -> ArraySplit:
    if session.distilled is None:
        raise ValueError("there are no distilled images")
    return session.distilled


def _distilled_features(session: Session, backbone: Backbone) -> np.ndarray:
    """Returns the features (s, d) of the centre crops of the distilled images."""
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


NEAREST = Measure("nearest", _of_images, _classify)


def _edge_inputs(session: Session) -> dict[str, Any]:
    config = session.config
    of_draw = {"runs": config.probe.runs, "seed": config.seed, "ipc": config.ipc}
    names = {"class_names": list(session.dataset.class_names)}
    return {**_of_images(session), **of_draw, **names}


def _find_edges(session: Session) -> dict[str, Any]:
    """Returns outsideness of images of each kind, and the first principal components of all."""
    train, classes = session.dataset.splits["train"], session.dataset.num_classes
    config, distilled, centroids = session.config, _distilled(session), session.centroids
    real = session.features(session.backbone, "train")
    drawn = baselines.random(train.labels, config.ipc, classes, config.probe.runs, config.seed)
    rows, labels = drawn.ravel(), train.labels
    pca = analysis.fit_pca(real)
    kinds: dict[str, Any] = {}
    for kind, features, of_class, members, shown in (
        (
            "distilled",
            _distilled_features(session, session.backbone),
            distilled.labels,
            False,
            None,
        ),
        ("centroids", real[centroids], labels[centroids], True, None),
        # In the picture, those of one probe run.
        ("random", real[rows], labels[rows], True, drawn.shape[1]),
    ):
        found = analysis.outsideness(features, of_class, real, labels, members=members)
        kinds[kind] = {
            **{name: values.tolist() for name, values in found._asdict().items()},
            "labels": of_class.tolist(),
            "points": pca.project(features[:shown]).tolist(),
        }
    some = np.random.default_rng(config.seed).permutation(len(real))[:_DOTS]
    return {
        "kinds": kinds,
        "real": {"points": pca.project(real[some]).tolist(), "labels": labels[some].tolist()},
        "share": pca.share.tolist(),
        "class_names": list(session.dataset.class_names),
    }


EDGES = Measure("edges", _edge_inputs, _find_edges)


def _group_inputs(session: Session) -> dict[str, Any]:
    return {
        "data": session.dataset.fingerprint,
        "backbone": session.backbone.fingerprint,
        "images": content_hash(_distilled(session)),
        "split": session.config.probe.split,
    }


def _show_groups(session: Session) -> dict[str, Any]:
    """Writes a run's picture; returns how many training images each group has."""
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
        buffer = io.BytesIO()
        draw_grid(np.stack(pictures), captions, columns).save(buffer, "PNG")
        with files.replacing(session.run.path / PICTURE) as temporary:
            temporary.write_bytes(buffer.getvalue())
    counts = np.bincount(train.groups, minlength=len(names))
    return {"train": dict(zip(names, counts.tolist(), strict=True))}


def _group_row(session: Session, label: int) -> list[tuple[np.ndarray, str]]:
    """Returns a class's distilled image and a real one of each of its groups, with captions."""
    distilled, dataset = _distilled(session), session.dataset
    first = np.flatnonzero(distilled.labels == label)[0]
    row = [(np.asarray(distilled.images[first]), f"{dataset.class_names[label]}, distilled")]
    for group, name in enumerate(dataset.group_names):
        # Of a group that nobody trains on, an image that is evaluated.
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


GROUPS = Measure("groups", _group_inputs, _show_groups, [PICTURE])


def read_picture(outcome: Outcome) -> np.ndarray:
    """Returns the picture (h, w, 3) of a run that measured `GROUPS`.

    Raises:
        UserError: If it cannot be read.
    """
    assert outcome.path is not None
    path = outcome.path / PICTURE
    try:
        return np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: delete it, and start again to have it drawn anew"
        ) from error
