"""Real features as a function of the step: streamed, drawn from stored ones, or all at once.

`real(step)` returns the `objectives.Features` of each backbone, as they lie on the mesh, for
`distill.make_step`. The host works in a thread while devices compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from lgm_jax import checks, devices, hosts, numerics
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import Split
from lgm_jax.data.loader import HostBatch, Loader, Parts
from lgm_jax.data.sampling import Choices, Order
from lgm_jax.devices import AnyMesh
from lgm_jax.distill import Distillation, mesh_for
from lgm_jax.features import Rows, embed_views
from lgm_jax.objectives import Features
from lgm_jax.prefetch import Ahead

# Separate random streams: the choice of images, their views, and the host's crops.
_REAL, _VIEW, _CROP = 3, 4, 6

# Rows of stored features that `prepare` gets at a time.
_PART = 8192

SOURCES = ("stream", "cached", "exact")

Real = Callable[[int], Sequence[Any]]


def image_keys(key: Key[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Returns random keys for reading images on the host: for their choice and for their crops."""
    return jax.random.fold_in(key, _REAL), jax.random.fold_in(key, _CROP)


def streamed(
    backbones: Sequence[Backbone],
    images: Split | Callable[[int], HostBatch],
    task: Distillation,
    key: Key[Array, ""],
    *,
    sampling: str = "shuffle",
    augmented: bool = True,
    held: bool = False,
    mesh: Mesh | None = None,
    microbatch: int | None = None,
) -> Real:
    """Embeds a batch of real images, as many as there are views, at every step.

    Args:
        images: A split of a data set, such as `ArraySplit(images, labels)`, or a function that
            reads the images of a step, such as a `Loader`.
        sampling: The choice of images from a split, one of `data.sampling.SAMPLINGS`.
        augmented: Whether real images are augmented as synthetic ones, rather than centre crops.
        held: Whether all images of a split lie on every device, rather than those of a step.
        mesh: The devices, as for `distill.make_step`.
        microbatch: Images in a backbone at a time on each device; all by default.

    Raises:
        UserError: If a label is not a class, or a class has no image though sampling is balanced.
    """
    mesh = mesh_for(task, mesh)
    if not callable(images):
        checks.classes(images.labels, task.num_classes, each=sampling == "balanced")
    if callable(images):
        batches = _from_host(images, task, mesh)
    elif held:
        batches = _held(images, task, key, sampling, mesh)
    else:
        order = Order(sampling, image_keys(key)[0], np.asarray(images.labels), task.num_classes)
        parts = Parts(images, order, None, task.num_views, 2**31, hosts.index(), hosts.count())
        batches = _from_host(Loader(parts, workers=0), task, mesh)
    view_key = jax.random.fold_in(key, _VIEW)
    params = [devices.put(mesh, backbone.params) for backbone in backbones]
    options: dict[str, Any] = {
        "crop": task.crop,
        "augmentation": task.augmentation if augmented else None,
        "mesh": mesh,
        "size": microbatch,
    }
    under_way: list[Any] = []

    def real(step: int) -> Sequence[Features]:
        # One step is ahead of the device, not many: their images would fill its memory, and on
        # CPUs the programs of many devices would wait for each other's threads.
        jax.block_until_ready(under_way)
        pixels, labels, weights, indices, numbers = batches(step)
        step_key, views = jax.random.fold_in(view_key, step), numbers[:, None]
        under_way[:] = [
            embed_views(own, pixels, step_key, views, apply=backbone.apply, **options)
            for backbone, own in zip(backbones, params, strict=True)
        ]
        # Views are drawn anew: their numbers in the batch tell those of one image apart.
        return [
            Features(values, labels, weights, indices, numbers, task.num_classes)
            for values in under_way
        ]

    return real


def cached(
    stored: Sequence[Rows],
    labels: Int[np.ndarray, " n"],
    task: Distillation,
    key: Key[Array, ""],
    *,
    sampling: str = "shuffle",
    mesh: Mesh | None = None,
) -> Real:
    """Draws the features of a batch from those of some views of each real image.

    Each image is seen in a random view. Choosing takes time in proportion to the batch. Arguments
    and errors as for `streamed`, whose shuffles are others.
    """
    mesh = mesh_for(task, mesh)
    checks.classes(labels, task.num_classes, each=sampling == "balanced")
    order = Order(sampling, jax.random.fold_in(key, _REAL), labels, task.num_classes, made=False)
    choices = Choices(jax.random.fold_in(key, _VIEW))
    views = stored[0].views

    def draw(step: int) -> tuple[list[np.ndarray], Sequence[np.ndarray]]:
        positions = step * task.num_views + np.arange(task.num_views)
        seen = choices.at(step, task.num_views, views)
        own = slice(hosts.index(), None, hosts.count())
        chosen, seen = order.at(positions)[own], seen[own]
        # Views times images may not fit 32 bits.
        taken = [rows.take(seen.astype(np.int64) * len(labels) + chosen) for rows in stored]
        return taken, (labels[chosen], np.ones(len(chosen), np.float32), chosen, seen)

    drawn_ahead = Ahead(draw, 2**31)

    def real(step: int) -> Sequence[Features]:
        taken, rest = drawn_ahead(step)
        of_rows, weights, image, view = (
            devices.put_rows(mesh, rows, task.num_views) for rows in rest
        )
        placed = [devices.put_rows(mesh, values, task.num_views) for values in taken]
        return [
            Features(values, of_rows, weights, image, view, task.num_classes, views)
            for values in placed
        ]

    return real


def exact(
    stored: Sequence[Rows],
    labels: Int[np.ndarray, " n"],
    task: Distillation,
    *,
    mesh: Mesh | None = None,
) -> Real:
    """Returns all features of some views of each real image, or what the objective prepares.

    Arguments and errors as for `cached`.
    """
    mesh = mesh_for(task, mesh)
    checks.classes(labels, task.num_classes)
    prepare = getattr(task.objective, "prepare", None)
    placed = []
    for rows in stored:
        if prepare is not None:
            placed.append(devices.put(mesh, prepare(_parts(rows, labels, task))))
            continue
        (whole,) = _parts(rows, labels, task, size=rows.views * len(labels))
        count = numerics.padded_rows(len(whole.labels), task.num_classes, mesh.size)
        missing = count - len(whole.labels)
        filled = jax.tree.map(lambda leaf, n=missing: numerics.pad(leaf, n), whole)
        placed.append(devices.put(mesh, filled, devices.ROWS))
    return lambda _: placed


def shapes(
    source: str, views: int, num_images: int, dim: int, task: Distillation, mesh: AnyMesh
) -> Any:
    """Returns shapes, types and layouts of a step's real features, for one backbone."""
    classes = task.num_classes
    prepare = getattr(task.objective, "prepare", None)
    if source == "exact" and prepare is not None:
        # The shapes do not depend on the number of images of a class.
        index, weights = np.arange(classes, dtype=np.int32), np.ones(classes, np.float32)
        values = np.zeros((classes, dim), np.float32)
        prepared = prepare(iter([Features(values, index, weights, index, index, classes, views)]))
        return devices.put(mesh, jax.eval_shape(lambda: prepared))
    rows, copies = task.num_views, 1 if source == "stream" else views
    if source == "exact":
        rows = numerics.padded_rows(views * num_images, classes, mesh.size)
    return devices.put(mesh, abstract_features(rows, dim, classes, copies), devices.ROWS)


def abstract_features(rows: int, dim: int, num_classes: int, copies: int) -> Features:
    """Returns shapes and types of features with hard labels."""
    row = jax.ShapeDtypeStruct((rows,), np.int32)
    weight = jax.ShapeDtypeStruct((rows,), np.float32)
    value = jax.ShapeDtypeStruct((rows, dim), np.float32)
    return Features(value, row, weight, row, row, num_classes, copies)


def _from_host(
    read: Callable[[int], HostBatch], task: Distillation, mesh: Mesh
) -> Callable[[int], Sequence[Array]]:
    """Makes the function that returns a step's images, labels, weights, indices and numbers."""

    def batch(step: int) -> Sequence[Array]:
        images, labels, numbers, indices = read(step)
        rows = images, labels, np.ones(len(labels), np.float32), indices, numbers
        return [devices.put_rows(mesh, array, task.num_views) for array in rows]

    return batch


def _held(
    split: Split, task: Distillation, key: Key[Array, ""], sampling: str, mesh: Mesh
) -> Callable[[int], Sequence[Array]]:
    """As `_from_host`, of images that lie on every device."""
    order = Order(sampling, image_keys(key)[0], np.asarray(split.labels), task.num_classes)
    images = devices.put(mesh, split.load(np.arange(len(split.labels))))
    take = jax.jit(lambda images, rows: images[rows], out_shardings=devices.layout(mesh))
    numbers = np.arange(task.num_views, dtype=np.int32)

    def batch(step: int) -> Sequence[Array]:
        indices = order.at(step * task.num_views + numbers.astype(np.int64))
        rows = split.labels[indices], np.ones(len(indices), np.float32), indices, numbers
        placed = devices.put(mesh, rows, devices.ROWS)
        return take(images, placed[2]), *placed

    return batch


def _parts(
    stored: Rows, labels: Int[np.ndarray, " n"], task: Distillation, size: int = _PART
) -> Iterator[Features]:
    for start in range(0, stored.views * len(labels), size):
        rows = np.arange(start, min(start + size, stored.views * len(labels)))
        image, view = (rows % len(labels)).astype(np.int32), (rows // len(labels)).astype(np.int32)
        values, weights = stored.take(rows), np.ones(len(rows), np.float32)
        yield Features(
            values, labels[image], weights, image, view, task.num_classes, copies=stored.views
        )
