"""Linear probes: train heads on frozen features, several runs side by side, and evaluate them.

A run is one repetition: its own initial head, order of images, augmentations and, for the
random baseline, its own images. Runs are a leading axis `runs` of every array. See `solvers` for
training.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from lgm_jax import checks, compilation, devices
from lgm_jax import heads as linear
from lgm_jax.augment import Augmentation
from lgm_jax.backbones import Backbone
from lgm_jax.errors import UserError
from lgm_jax.features import AnyArray, Images, Views, embed_places
from lgm_jax.solvers import Heads, Labels, Protocol, Trained, find
from lgm_jax.teachers import TAUGHT, Teacher

__all__ = [
    "Protocol",
    "Teacher",
    "Trained",
    "evaluate",
    "fit",
    "repeats_differ",
    "train",
    "view_table",
]

Load = Callable[[Int[np.ndarray, " b"], Int[np.ndarray, " b"]], np.ndarray]
"""Loads images (b, h, w, 3), uint8 or float in [0, 1], for views of these numbers."""

# L-BFGS, which needs neither a learning rate nor a second run.
_MINIMUM = Protocol(100, 100, 1, 1, augment="none", augmentation=None, solver="lbfgs")


def repeats_differ(protocol: Protocol) -> bool:
    """Returns whether runs on the same images differ, by random numbers or by augmentations."""
    augmentation = protocol.augmentation
    if find(protocol.solver).draws:
        return True
    if protocol.augment == "none" or protocol.share_views or augmentation is None:
        return False
    if not isinstance(augmentation, Augmentation):
        return True
    return 0 < augmentation.flip < 1 or augmentation.scale[0] < 1 or augmentation.noise > 0


def fit(
    key: Key[Array, ""],
    features: Float[AnyArray, "*tables n d"],
    labels: Shaped[AnyArray, "..."],
    num_classes: int,
    protocol: Protocol = _MINIMUM,
    *,
    label: str = "probe",
    mesh: Mesh | None = None,
    teacher: Teacher | None = None,
    **options: Any,
) -> Trained:
    """Trains one head per run on given features.

    By default one head, of least cross-entropy and a small ridge: `evaluate` takes
    `fit(key, features, labels, 10).heads`.

    Args:
        features: Features (n, d) of images, (views, n, d) of some views of each, or (tables, views,
            n, d) of each run's images; one table if all runs share them.
        labels: Labels of the images, class indices (n,) or probabilities (n, k); or those of each
            run's images, with a leading axis `runs`.
        protocol: The protocol of training; its fields about views are not read.
        label: The label of the progress bar.
        mesh: Devices that share the runs, all by default; several processes have to make the same
            call.
        teacher: Features and heads to learn from too, where the protocol's `targets` are `kd` or
            `ci`.
        **options: Fields of the protocol to change, such as `solver`, `ridge` or `runs`.

    Raises:
        UserError: If shapes do not fit, a label is not a class, an option is out of range, or there
            is a teacher without `targets` of one, or the other way round.
    """
    protocol = dataclasses.replace(protocol, **options)
    table = features[(None,) * (4 - features.ndim)]
    if len(table) not in (1, protocol.runs):
        raise UserError(f"{protocol.runs} runs need as many tables of features, or one")
    if teacher is not None:
        shape, kernel = teacher.sees.shape, teacher.heads["kernel"].shape
        if shape[:-1] != features.shape[:-1] or kernel[1:] != (shape[-1], num_classes):
            raise UserError(
                f"a teacher with features {shape} and heads {kernel} does not fit features "
                f"{features.shape} of {num_classes} classes"
            )
        teacher = teacher._replace(sees=teacher.sees[(None,) * (4 - features.ndim)])
    mesh = devices.make_mesh() if mesh is None else mesh
    labels = _labels_of_runs(labels, protocol.runs, table.shape[2], num_classes)
    return _solve(key, table, labels, num_classes, protocol, mesh, label, teacher)


def train(
    key: Key[Array, ""],
    backbone: Backbone,
    images: Images | Load,
    labels: Shaped[AnyArray, "..."],
    rows: Int[AnyArray, "runs n"],
    num_classes: int,
    protocol: Protocol,
    *,
    label: str = "probe",
    mesh: Mesh | None = None,
    size: Callable[[Backbone], int | None] = lambda _: None,
    teacher: Teacher | None = None,
) -> Trained:
    """Trains one head per run on views of images, as the protocol says.

    Args:
        images: A pool of images (pool, h, w, 3), uint8 or float in [0, 1], or a function that loads
            images of it, once in an epoch for all runs.
        labels: As for `fit`.
        rows: Indices of the images of the pool that each run trains on.
        label: The label of the progress bar.
        mesh: As for `fit`; devices share the embedding of all views.
        size: As for `features.embed`.
        teacher: As for `fit`, with its backbone; that of the same weights is asked once.

    Raises:
        UserError: As for `fit`.
    """
    mesh = devices.make_mesh() if mesh is None else mesh
    labels = _labels_of_runs(labels, protocol.runs, rows.shape[1], num_classes)
    key_views, key_fit = jax.random.split(key)

    # The same key and numbers are the same views.
    def views_by(backbone: Backbone, name: str) -> Any:
        placed = dataclasses.replace(backbone, params=devices.put(mesh, backbone.params))
        see = functools.partial(
            view_table, key_views, placed, images, rows, protocol, mesh=mesh, size=size(placed)
        )
        if protocol.augment == "fresh":
            return functools.lru_cache(maxsize=1)(lambda epoch: see(numbers=[epoch]))
        return see(label=f"{label}: {name}")

    table = views_by(backbone, "views")
    if teacher is not None:
        own = teacher.sees.fingerprint == backbone.fingerprint
        sees = table if own else views_by(teacher.sees, "views of the teacher")
        teacher = teacher._replace(sees=sees)
    return _solve(key_fit, table, labels, num_classes, protocol, mesh, label, teacher)


def view_table(
    key: Key[Array, ""],
    backbone: Backbone,
    images: Images | Load,
    rows: Int[AnyArray, "runs n"],
    protocol: Protocol,
    *,
    numbers: Sequence[int] | Int[np.ndarray, " views"] | None = None,
    label: str | None = None,
    mesh: Mesh | None = None,
    size: int | None = None,
) -> Float[np.ndarray, "tables views n d"]:
    """Embeds views of all images of each run; returns one table if all runs see the same.

    A view belongs to a run, a number and an image; without augmentation there is only one.

    Args:
        backbone: The frozen backbone, its parameters on every device.
        images: As for `train`.
        rows: As for `train`.
        numbers: Numbers of the views; all of the protocol's by default.
        label: The label of the progress bar; without it, there is none.
        mesh: As for `train`.
    """
    mesh = devices.make_mesh() if mesh is None else mesh
    load: Load = images if callable(images) else lambda at, _: np.asarray(images)[at]
    chosen, plain = np.asarray(rows), protocol.augment == "none"
    # Runs that see the same are computed once.
    if (protocol.share_views or plain) and (chosen == chosen[:1]).all():
        chosen = chosen[:1]
    if numbers is None:
        numbers = range(protocol.views if protocol.augment == "views" else 1)
    numbers = np.asarray(numbers, np.int32)
    # Views of an image follow one another, so that it is loaded once for the runs of a batch.
    shape = (chosen.shape[1], len(chosen), len(numbers))
    image, run, view = np.indices(shape, np.int32).reshape(3, -1)
    owner = np.zeros_like(run) if protocol.share_views else run
    views = Views(protocol.crop, None if plain else protocol.augmentation)

    def load_once(at: Int[np.ndarray, " b"]) -> np.ndarray:
        wanted = np.stack([chosen[run[at], image[at]], numbers[view[at]]])
        used, places = np.unique(wanted, axis=1, return_inverse=True)
        return load(*used)[places]

    table = embed_places(
        backbone,
        load_once,
        np.stack([owner, numbers[view], image], axis=1),
        views,
        key,
        mesh=mesh,
        label=label,
        size=size,
    )
    return np.moveaxis(table.reshape(*shape, -1), 0, 2)


def evaluate(
    heads: Heads,
    features: Float[AnyArray, "n d"],
    labels: Int[AnyArray, " n"],
    groups: Int[np.ndarray, " n"] | None = None,
    *,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray | None]:
    """Computes the accuracy of each run's head.

    Args:
        heads: Heads with a leading `runs` axis.
        groups: Their groups, as numbers from 0.
        mesh: Devices that share the images; all of this process by default.

    Returns:
        `top1` and `top5`, each (runs,), in percent; `top5` is `None` below 6 classes. `groups` is
        the top-1 accuracy within each group, (runs, largest group + 1), NaN for a group without
        images; `None` without groups. `named` is the class that each head names, (runs, n) int32;
        -1 for an image with a score that is not finite.

    Raises:
        UserError: If a label is not a class of the heads.
    """
    num_classes = heads["bias"].shape[-1]
    checks.classes(labels, num_classes)
    mesh = devices.make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    rows = devices.put(mesh, (features, labels), devices.ROWS)
    found = devices.fetch(mesh, _ranks(devices.put(mesh, heads), *rows))
    correct, named = (np.asarray(values)[:, : len(labels)] for values in found)
    top1 = np.asarray(jnp.mean(correct == 0, axis=-1)) * 100
    top5 = np.asarray(jnp.mean(correct < 5, axis=-1)) * 100 if num_classes > 5 else None
    by_group = group_accuracy(correct == 0, groups)
    return {"top1": top1, "top5": top5, "groups": by_group, "named": named}


def group_accuracy(
    correct: Bool[np.ndarray, "runs n"], groups: Int[np.ndarray, " n"] | None
) -> Float[np.ndarray, "runs g"] | None:
    """Computes the percentage of correct predictions in each group, NaN for one without images.

    Args:
        correct: Whether each prediction of each run is right.
        groups: The images' groups, as numbers from 0; without them, the result is `None`.
    """
    if groups is None:
        return None
    members = groups[None, :] == np.arange(groups.max() + 1)[:, None]
    counts = members.sum(axis=1)
    hits = correct.astype(np.float64) @ members.T
    return np.where(counts > 0, 100 * hits / np.maximum(counts, 1), np.nan)


def _solve(
    key: Key[Array, ""],
    table: Any,
    labels: Labels,
    num_classes: int,
    protocol: Protocol,
    mesh: Mesh,
    label: str,
    teacher: Teacher | None,
) -> Trained:
    if (teacher is not None) != (protocol.targets in TAUGHT):
        verb = "needs a" if teacher is None else "takes no"
        raise UserError(f"targets={protocol.targets} {verb} teacher")
    # With one run, other devices would only do the same.
    some = mesh.local_devices[:1] if protocol.runs == 1 else list(mesh.devices.flat)
    mesh = devices.make_mesh(devices=some)
    taught = {} if teacher is None else {"teacher": teacher}
    solver = find(protocol.solver)
    return solver.train(key, table, labels, num_classes, protocol, mesh, label, **taught)


def _labels_of_runs(labels: Any, runs: int, num_images: int, num_classes: int) -> Labels:
    """Returns the labels of each run's images, which may be the same for all."""
    labels = np.asarray(labels)
    hard = np.issubdtype(labels.dtype, np.integer)
    wanted = (runs, num_images) if hard else (runs, num_images, num_classes)
    if labels.shape == wanted[1:]:
        labels = np.broadcast_to(labels, wanted)
    if labels.shape != wanted:
        raise UserError(f"labels must have the shape {wanted[1:]} or {wanted}, not {labels.shape}")
    if hard:
        checks.classes(labels, num_classes)
    return labels


@compilation.Program
@functools.partial(jax.vmap, in_axes=(0, None, None))
def _ranks(
    head: dict[str, Array], features: Float[Array, "n d"], labels: Int[Array, " n"]
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Returns the rank of the right class from 0, and the class of the highest score, by head.

    Ties go to the lower index. An image with a score that is not finite is wrong, and named -1.
    """
    scores = linear.logits(head, features)
    right = jnp.take_along_axis(scores, labels[:, None], axis=-1)
    before = jnp.arange(scores.shape[-1])[None, :] < labels[:, None]
    ranks = jnp.sum((scores > right) | ((scores == right) & before), axis=-1)
    finite, named = jnp.all(jnp.isfinite(scores), axis=-1), jnp.argmax(scores, axis=-1)
    return jnp.where(finite, ranks, scores.shape[-1]), jnp.where(finite, named, -1)
