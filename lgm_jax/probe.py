"""Linear probes: train heads on frozen features, several runs side by side, and evaluate them.

A run is one repetition: its own initial head, order of images, augmentations and, for the
random baseline, its own images. Runs are a leading axis `runs` of every array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange, repeat
from jaxtyping import Array, Float, Int, Key, UInt8

from lgm_jax import objectives
from lgm_jax.augment import Augmentation, augment, center_crop
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import Split
from lgm_jax.distill import to_float
from lgm_jax.progress import progress

Images = Float[Array, "pool h w 3"] | UInt8[Array, "pool h w 3"]
AUGMENTS = ("fresh", "views", "none")

# Images embedded at a time; bounds memory, and results do not depend on it.
_EMBED_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a probe is trained: Adam with a cosine schedule to zero, as the authors do.

    Attributes:
        epochs: Passes over the images.
        batch: Images per update.
        runs: Independent repetitions, trained side by side.
        learning_rate: For a batch of 256; scaled linearly with `batch`. Independent of devices.
        augment: `fresh` recomputes features of newly augmented images in every epoch (the
            authors' way), `views` computes those of `views` augmentations once and cycles through
            them, `none` computes those of the centre crop once.
        views: Augmentations of each image for `views`.
        augmentation: Flip and crop; the authors add no noise here.
        crop: Side of the crops the backbone sees, in pixels.
    """

    epochs: int
    batch: int
    runs: int
    crop: int
    augment: str
    augmentation: Augmentation | None
    views: int = 1
    learning_rate: float = 0.001


@flax.struct.dataclass
class Fit:
    """Heads in training: a head with a leading `runs` axis, and Adam's state."""

    heads: Any
    opt_state: Any


def train(
    key: Key[Array, ""],
    backbone: Backbone,
    images: Images,
    labels: Int[Array, "runs n"],
    rows: Int[Array, "runs n"],
    num_classes: int,
    protocol: Protocol,
    *,
    label: str = "probe",
) -> dict[str, Float[Array, "runs ..."]]:
    """Trains one head per run.

    Args:
        key: Random key.
        backbone: The frozen backbone.
        images: A pool of images, uint8 or float in [0, 1].
        labels: Labels of each run's images.
        rows: Which images of the pool each run trains on.
        num_classes: Number of classes `k`.
        protocol: How to train.
        label: What the progress bar says.

    Returns:
        Heads `{"kernel": (runs, d, k), "bias": (runs, k)}`.
    """
    keys = jax.random.split(key, 3)
    num_images = rows.shape[1]
    batch = min(protocol.batch, num_images)
    updates = protocol.epochs * math.ceil(num_images / batch)
    rate = protocol.learning_rate * protocol.batch / 256
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, updates))
    heads = jax.vmap(lambda k: objectives.init_head(k, backbone.feature_dim, num_classes))(
        jax.random.split(keys[0], protocol.runs)
    )
    fit = Fit(heads, optimizer.init(heads))
    if protocol.augment == "fresh":
        source: Any = (backbone.params, images, rows, labels)
        features_of = _make_fresh(backbone, protocol, keys[1])
    else:
        table = _view_table(keys[1], backbone, images, rows, protocol, label)
        source, features_of = (table, labels), _cached
    epoch = jax.jit(_make_epoch(features_of, optimizer, keys[2], batch), donate_argnums=0)
    for number in progress(range(protocol.epochs), f"{label}: epochs"):
        fit = epoch(fit, source, number)
    return fit.heads


def evaluate(
    heads: Mapping[str, Float[Array, "runs ..."]],
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
) -> dict[str, np.ndarray | None]:
    """Accuracy of each run's head.

    Returns:
        `top1` and `top5`, each (runs,), in percent; `top5` is `None` below 6 classes.
    """
    num_classes = heads["bias"].shape[-1]
    correct = _ranks(heads, jnp.asarray(features), jnp.asarray(labels))
    top1 = np.asarray(jnp.mean(correct == 0, axis=-1)) * 100
    top5 = np.asarray(jnp.mean(correct < 5, axis=-1)) * 100 if num_classes > 5 else None
    return {"top1": top1, "top5": top5}


def embed(backbone: Backbone, split: Split, crop: int, label: str = "") -> Float[np.ndarray, "n d"]:
    """Features of the centre crops of a whole split, in its order."""

    @jax.jit
    def features(params: Any, images: Images) -> Float[Array, "n d"]:
        return backbone.apply(params, center_crop(to_float(images), crop))

    indices = np.arange(len(split.labels))
    batches = [indices[i : i + _EMBED_BATCH] for i in range(0, len(indices), _EMBED_BATCH)]
    parts = []
    for batch in progress(batches, f"{label}: features"):
        # The last batch repeats an image, so that one compiled shape serves all.
        padded = np.resize(batch, min(_EMBED_BATCH, len(indices)))
        parts.append(np.asarray(features(backbone.params, split.load(padded)))[: len(batch)])
    return np.concatenate(parts)


def _make_epoch(
    features_of: Callable[..., Float[Array, "runs b d"]],
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    batch: int,
) -> Callable[[Fit, Any, Int[Array, ""]], Fit]:
    def epoch(fit: Fit, source: Any, number: Int[Array, ""]) -> Fit:
        labels = source[-1]
        runs, num_images = labels.shape
        steps = math.ceil(num_images / batch)
        order_keys = jax.random.split(jax.random.fold_in(key, number), runs)
        orders = jax.vmap(lambda k: jax.random.permutation(k, num_images))(order_keys)
        # The last batch of an epoch is filled up with images of weight zero.
        padding = ((0, 0), (0, steps * batch - num_images))
        weights = jnp.pad(jnp.ones((runs, num_images), jnp.float32), padding)
        chosen, weights = (
            rearrange(jnp.pad(orders, padding), "runs (steps b) -> steps runs b", b=batch),
            rearrange(weights, "runs (steps b) -> steps runs b", b=batch),
        )

        def update(fit: Fit, batch: tuple[Array, Array]) -> tuple[Fit, None]:
            indices, weights = batch
            features = features_of(source, number, indices)
            targets = jnp.take_along_axis(labels, indices, axis=1)
            gradient = jax.vmap(objectives.head_gradient)(fit.heads, features, targets, weights)
            updates, opt_state = optimizer.update(gradient, fit.opt_state)
            return Fit(optax.apply_updates(fit.heads, updates), opt_state), None

        return jax.lax.scan(update, fit, (chosen, weights))[0]

    return epoch


def _make_fresh(
    backbone: Backbone, protocol: Protocol, key: Key[Array, ""]
) -> Callable[..., Float[Array, "runs b d"]]:
    def features_of(source: Any, epoch: Int[Array, ""], indices: Int[Array, "runs b"]) -> Array:
        params, images, rows, _ = source
        return _view(
            backbone, params, images, rows, indices, jax.random.fold_in(key, epoch), protocol
        )

    return features_of


def _cached(source: Any, epoch: Int[Array, ""], indices: Int[Array, "runs b"]) -> Array:
    table, _ = source
    view = jax.lax.dynamic_index_in_dim(table, epoch % table.shape[1], axis=1, keepdims=False)
    return jnp.take_along_axis(view, indices[..., None], axis=1)


def _view(
    backbone: Backbone,
    params: Any,
    images: Images,
    rows: Int[Array, "runs n"],
    indices: Int[Array, "runs b"],
    key: Key[Array, ""],
    protocol: Protocol,
) -> Float[Array, "runs b d"]:
    """Features of one augmentation of some images; keys belong to a run and an image."""
    runs, count = indices.shape
    pool = rearrange(jnp.take_along_axis(rows, indices, axis=1), "runs b -> (runs b)")
    keys = jax.vmap(
        lambda run, row: jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, run), i))(
            row
        )
    )(jnp.arange(runs), indices)
    chosen = images[pool]
    views = augment(
        keys.reshape(-1),
        to_float(chosen) if chosen.dtype == jnp.uint8 else chosen,
        protocol.crop,
        protocol.augmentation if protocol.augment != "none" else None,
    )
    return rearrange(backbone.apply(params, views), "(runs b) d -> runs b d", runs=runs, b=count)


def _view_table(
    key: Key[Array, ""],
    backbone: Backbone,
    images: Images,
    rows: Int[Array, "runs n"],
    protocol: Protocol,
    label: str,
) -> Float[Array, "runs views n d"]:
    """Features of all views of all images, computed once."""
    views = protocol.views if protocol.augment == "views" else 1
    # Without augmentation every run that trains on the same images has the same features.
    shared = protocol.augment == "none" and bool(jnp.all(rows == rows[:1]))
    kept = rows[:1] if shared else rows
    runs, num_images = kept.shape
    batch = min(num_images, max(1, _EMBED_BATCH // runs))

    @jax.jit
    def features(params: Any, images: Images, indices: Array, view: Array) -> Array:
        chosen = repeat(indices, "b -> runs b", runs=runs)
        key_view = jax.random.fold_in(key, view)
        return _view(backbone, params, images, kept, chosen, key_view, protocol)

    starts = range(0, num_images, batch)
    table = np.empty((runs, views, num_images, backbone.feature_dim), np.float32)
    for view, start in progress([(v, s) for v in range(views) for s in starts], f"{label}: views"):
        stop = min(start + batch, num_images)
        indices = np.resize(np.arange(start, stop, dtype=np.int32), batch)
        part = features(backbone.params, images, jnp.asarray(indices), jnp.asarray(view))
        table[:, view, start:stop] = np.asarray(part)[:, : stop - start]
    return jnp.asarray(np.broadcast_to(table, (rows.shape[0], *table.shape[1:])))


@jax.jit
def _ranks(
    heads: Mapping[str, Float[Array, "runs ..."]],
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
) -> Int[Array, "runs n"]:
    """How many classes score higher than the right one."""

    def ranks(head: dict[str, Array]) -> Int[Array, " n"]:
        scores = objectives.logits(head, features)
        right = jnp.take_along_axis(scores, labels[:, None], axis=-1)
        return jnp.sum(scores > right, axis=-1)

    return jax.vmap(ranks)(dict(heads))
