"""Linear probes: train heads on frozen features, several runs side by side, and evaluate them.

A run is one repetition: its own initial head, order of images, augmentations and, for the
random baseline, its own images. Runs are a leading axis `runs` of every array.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from lgm_jax import checks, compilation, objectives, sharding
from lgm_jax.augment import Augmentation, augment, to_float
from lgm_jax.backbones import Backbone
from lgm_jax.errors import UserError
from lgm_jax.progress import progress

Apply = Callable[[Any, Float[Array, "n r r 3"]], Float[Array, "n d"]]
Images = Float[Array, "pool h w 3"] | UInt8[Array, "pool h w 3"]
Labels = Int[Array, "runs n"] | Float[Array, "runs n k"]
Heads = dict[str, Float[Array, "runs ..."]]
AUGMENTS = ("fresh", "views", "none")
SOLVERS = ("adam", "lbfgs")
DECAYS = ("update", "epoch")

# Images embedded at a time on each device; bounds memory, and results do not depend on it.
_EMBED_BATCH = 256

# Epochs compiled into one call, between two updates of the progress bar.
_EPOCHS_PER_CALL = 20


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a probe is trained: by default Adam with a cosine schedule to zero, as the authors do.

    Attributes:
        epochs: Passes over the images.
        batch: Images per update, at most: all of them where they are fewer.
        runs: Independent repetitions, trained side by side.
        crop: Side of the crops the backbone sees, in pixels.
        augment: `fresh` recomputes features of newly augmented images in every epoch (the
            authors' way), `views` computes those of `views` augmentations once and cycles through
            them, `none` computes those of the centre crop once.
        augmentation: Of an image. The authors' code flips and crops; the paper's text adds noise.
        views: Augmentations of each image for `views`.
        solver: `adam`, or `lbfgs`: the minimum of the cross-entropy over all views plus a ridge,
            which has no epochs, batches or learning rate, and needs `views` or `none`.
        share_views: Whether runs share their augmentations; the spread then leaves them out.
        learning_rate: Adam's, for a batch of 256; scaled linearly with the images of an update,
            and so independent of the number of devices.
        ridge: Weight of half the squared kernel for `lbfgs`, on features scaled to a root mean
            square of one.
        drop_last: For `adam`: whether an epoch leaves out the images that do not fill a batch.
        decay: For `adam`: whether the learning rate falls with every `update` or every `epoch`.

    Raises:
        UserError: If a value is unknown or out of range, or the solver is `lbfgs` and the
            augmentation `fresh`: over views that change there is no minimum.
    """

    epochs: int
    batch: int
    runs: int
    crop: int
    augment: str
    augmentation: Augmentation | None
    views: int = 1
    solver: str = "adam"
    share_views: bool = False
    learning_rate: float = 0.001
    ridge: float = 0.01
    drop_last: bool = False
    decay: str = "update"

    def split_epoch(self, num_images: int) -> tuple[int, int]:
        """Images of each of Adam's updates, and updates of an epoch, for so many images."""
        batch = min(self.batch, num_images)
        return batch, num_images // batch if self.drop_last else math.ceil(num_images / batch)

    def learning_rates(self, num_images: int) -> optax.Schedule:
        """Adam's learning rate by the number of its update, for so many images."""
        batch, updates = self.split_epoch(num_images)
        rate = self.learning_rate * batch / 256
        if self.decay == "update":
            return optax.cosine_decay_schedule(rate, self.epochs * updates)
        by_epoch = optax.cosine_decay_schedule(rate, self.epochs)
        return lambda update: by_epoch(update // updates)

    @property
    def idle(self) -> frozenset[str]:
        """Fields that change no head as the others are; see `identity`."""
        read = {
            **dict.fromkeys(
                ("batch", "learning_rate", "drop_last", "decay"), self.solver == "adam"
            ),
            "ridge": self.solver == "lbfgs",
            "augmentation": self.augment != "none",
            "views": self.augment == "views",
            "share_views": self.augment != "none" and self.runs > 1,
        }
        return frozenset(name for name, is_read in read.items() if not is_read)

    def __post_init__(self) -> None:
        checks.counts(self, "epochs", "batch", "runs", "crop", "views")
        checks.one_of("augment", self.augment, AUGMENTS)
        checks.one_of("solver", self.solver, SOLVERS)
        checks.one_of("decay", self.decay, DECAYS)
        checks.flags(self, "share_views", "drop_last")
        checks.positive("learning_rate", self.learning_rate)
        checks.in_range("ridge", self.ridge, 0)
        if self.solver == "lbfgs" and self.augment == "fresh":
            raise UserError("solver=lbfgs needs augment=views or none: fresh ones have no minimum")


def repeats_differ(protocol: Protocol) -> bool:
    """Whether runs on the same images differ.

    Adam's do, by their initial head and the order of images; those of `lbfgs` by their
    augmentations alone.
    """
    augmentation = protocol.augmentation
    if protocol.solver == "adam":
        return True
    if protocol.augment == "none" or protocol.share_views or augmentation is None:
        return False
    return 0 < augmentation.flip < 1 or augmentation.scale[0] < 1 or augmentation.noise > 0


class Trained(NamedTuple):
    """What training gives.

    Attributes:
        heads: `{"kernel": (runs, d, k), "bias": (runs, k)}`.
        losses: Cross-entropy of each run's images in each epoch, averaged over its updates as
            they were made; `None` of a solver without epochs.
    """

    heads: Heads
    losses: Float[np.ndarray, "runs epochs"] | None


@flax.struct.dataclass
class Fit:
    """Heads in training: a head with a leading `runs` axis, Adam's state, losses (runs, epochs)."""

    heads: Any
    opt_state: Any
    losses: Any


def train(
    key: Key[Array, ""],
    backbone: Backbone,
    images: Images,
    labels: Labels,
    rows: Int[Array, "runs n"],
    num_classes: int,
    protocol: Protocol,
    *,
    label: str = "probe",
    mesh: Mesh | None = None,
) -> Trained:
    """Trains one head per run.

    Args:
        key: Random key.
        backbone: The frozen backbone.
        images: A pool of images, uint8 or float in [0, 1].
        labels: Labels of each run's images: class indices, or probabilities.
        rows: Which images of the pool each run trains on.
        num_classes: Number of classes `k`.
        protocol: How to train.
        label: What the progress bar says.
        mesh: Devices that share the work; of several processes, all make the same call.
    """
    key_views, key_fit = jax.random.split(key)
    if protocol.augment == "fresh":
        shared = sharding.replicate(mesh, (backbone.params, images, rows, labels))
        source = (*shared, key_views)
        return _adam_fit(key_fit, source, num_classes, protocol, label, mesh, backbone)
    table = view_table(key_views, backbone, images, rows, protocol, label, mesh)
    return train_on_features(key_fit, table, labels, num_classes, protocol, label=label, mesh=mesh)


def train_on_features(
    key: Key[Array, ""],
    table: Float[np.ndarray, "tables views n d"],
    labels: Labels,
    num_classes: int,
    protocol: Protocol,
    *,
    label: str = "probe",
    mesh: Mesh | None = None,
) -> Trained:
    """Trains one head per run on features that are known already.

    Args:
        key: Random key.
        table: Features of each run's images under each view; of length 1 if all runs share them.
        labels: Their labels: class indices, or probabilities.
        num_classes: Number of classes `k`.
        protocol: How to train.
        label: What the progress bar says.
        mesh: Devices that share the runs; of several processes, all make the same call.
    """
    if protocol.runs == 1:
        mesh = None
    source = _divide_runs(mesh, table, labels)
    if protocol.solver == "adam":
        return _adam_fit(key, source, num_classes, protocol, label, mesh)
    ridge = jnp.float32(protocol.ridge)
    heads = _lbfgs(*source, num_classes, protocol.epochs, ridge, mesh)
    return Trained(sharding.fetch(mesh, sharding.collect(mesh, heads, protocol.runs)), None)


def view_table(
    key: Key[Array, ""],
    backbone: Backbone,
    images: Images,
    rows: Int[Array, "runs n"],
    protocol: Protocol,
    label: str = "probe",
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "tables views n d"]:
    """Features of all views of all images, computed once; one table if all runs see the same.

    A view belongs to a run, a number and an image; without augmentation there is only one.
    """
    runs, num_images = rows.shape
    views = protocol.views if protocol.augment == "views" else 1
    # Runs that see the same are computed once.
    same = protocol.share_views or protocol.augment == "none"
    if same and bool(jnp.all(rows == rows[:1])):
        runs, rows = 1, rows[:1]
    wanted = [(r, v, i) for r in range(runs) for v in range(views) for i in range(num_images)]
    table = np.empty((len(wanted), backbone.feature_dim), np.float32)
    pool, chosen = np.asarray(images), np.asarray(rows)
    batch = min(_EMBED_BATCH * (mesh.size if mesh else 1), len(wanted))
    params = sharding.replicate(mesh, backbone.params)
    for start in progress(range(0, len(wanted), batch), f"{label}: views"):
        part = np.resize(np.asarray(wanted[start : start + batch], np.int32), (batch, 3))
        pixels = pool[chosen[part[:, 0], part[:, 2]]]
        features = _features(
            params,
            to_float(sharding.divide(mesh, pixels)),
            key,
            sharding.divide(mesh, part),
            apply=backbone.apply,
            protocol=protocol,
            mesh=mesh,
        )
        count = min(batch, len(wanted) - start)
        table[start : start + count] = np.asarray(features)[:count]
    return table.reshape(runs, views, num_images, -1)


def evaluate(
    heads: Heads,
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"] | None = None,
    *,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray | None]:
    """Accuracy of each run's head.

    Args:
        heads: Heads with a leading `runs` axis.
        features: Features of the images.
        labels: Their labels.
        groups: Their groups, numbers from 0.
        mesh: Devices of this process that share the images.

    Returns:
        `top1` and `top5`, each (runs,), in percent; `top5` is `None` below 6 classes. `groups` is
        the top-1 accuracy within each group, (runs, largest group + 1), NaN for a group without
        images; `None` without groups.
    """
    num_classes = heads["bias"].shape[-1]
    shared = sharding.divide(mesh, features), sharding.divide(mesh, labels)
    correct = _ranks(heads, *shared, mesh=mesh)[:, : len(labels)]
    top1 = np.asarray(jnp.mean(correct == 0, axis=-1)) * 100
    top5 = np.asarray(jnp.mean(correct < 5, axis=-1)) * 100 if num_classes > 5 else None
    return {"top1": top1, "top5": top5, "groups": group_accuracy(np.asarray(correct == 0), groups)}


def group_accuracy(
    correct: Bool[np.ndarray, "runs n"], groups: Int[np.ndarray, " n"] | None
) -> Float[np.ndarray, "runs g"] | None:
    """Percentage of correct predictions within each group, NaN for a group without images.

    Args:
        correct: Which predictions of each run are right.
        groups: The images' groups, numbers from 0; `None` gives `None`.
    """
    if groups is None:
        return None
    members = groups[None, :] == np.arange(groups.max() + 1)[:, None]
    counts = members.sum(axis=1)
    hits = correct.astype(np.float64) @ members.T
    return np.where(counts > 0, 100 * hits / np.maximum(counts, 1), np.nan)


def _divide_runs(
    mesh: Mesh | None,
    table: Float[np.ndarray, "tables views n d"],
    labels: Labels,
) -> tuple[Array, Array]:
    """Gives each device its runs; the first ones again where there are fewer than on others."""
    if mesh is None:
        return jnp.asarray(table), labels
    own = np.arange(-(-len(labels) // mesh.size) * mesh.size) % len(labels)
    if len(table) == 1:
        return sharding.replicate(mesh, table), sharding.divide(mesh, labels[own])
    return sharding.divide(mesh, table[own]), sharding.divide(mesh, labels[own])


def _runs_spec(table: Float[Array, "tables views n d"]) -> Any:
    """How a table and labels are laid out where devices have their own runs."""
    return sharding.EVERYWHERE if len(table) == 1 else sharding.DIVIDED, sharding.DIVIDED


def _embed(
    params: Any,
    pixels: Float[Array, "b h w 3"],
    key: Key[Array, ""],
    places: Int[Array, "b 3"],
    *,
    apply: Apply,
    protocol: Protocol,
    mesh: Mesh | None,
) -> Float[Array, "b d"]:
    """Features of augmented images; a place is an image's run, view and number in the run."""
    augmentation = protocol.augmentation if protocol.augment != "none" else None

    def embed_part(common: Any, pixels: Array, places: Array) -> Array:
        params, key = common

        def fold(place: Int[Array, " 3"]) -> Key[Array, ""]:
            run = 0 if protocol.share_views else place[0]
            return jax.random.fold_in(
                jax.random.fold_in(jax.random.fold_in(key, run), place[1]), place[2]
            )

        return apply(params, augment(jax.vmap(fold)(places), pixels, protocol.crop, augmentation))

    return sharding.over_rows(embed_part, mesh)((params, key), pixels, places)


_features = compilation.Program(_embed, static_argnames=("apply", "protocol", "mesh"))


def _adam_fit(
    key: Key[Array, ""],
    source: Any,
    num_classes: int,
    protocol: Protocol,
    label: str,
    mesh: Mesh | None,
    backbone: Backbone | None = None,
) -> Trained:
    """Trains with Adam: on images if given a backbone, else on features.

    Devices share each update's images, or, of features, the runs.
    """
    key_heads, key_orders = jax.random.split(key)
    feature_dim = source[0].shape[-1] if backbone is None else backbone.feature_dim
    num_images = (source[1] if backbone is None else source[3]).shape[1]
    heads = jax.vmap(lambda k: objectives.init_head(k, feature_dim, num_classes))(
        jax.random.split(key_heads, protocol.runs)
    )
    losses = jnp.zeros((protocol.runs, protocol.epochs), heads["kernel"].dtype)
    optimizer = optax.adam(protocol.learning_rates(num_images))
    fit = Fit(heads, optimizer.init(heads), losses)
    lay_out = sharding.place if backbone is None else sharding.replicate
    fit = lay_out(mesh, fit)
    apply = None if backbone is None else backbone.apply
    per_call = _EPOCHS_PER_CALL if backbone is None else 1
    for start in progress(range(0, protocol.epochs, per_call), f"{label}: epochs"):
        numbers = jnp.arange(start, min(start + per_call, protocol.epochs))
        fit = _epochs(fit, source, numbers, key_orders, apply=apply, protocol=protocol, mesh=mesh)
    found = sharding.collect(mesh, (fit.heads, fit.losses), protocol.runs)
    heads, losses = sharding.fetch(mesh, found)
    return Trained(heads, np.asarray(losses))


@functools.partial(
    compilation.Program, static_argnames=("apply", "protocol", "mesh"), donate_argnums=0
)
def _epochs(
    fit: Fit,
    source: Any,
    *drawn: Array,
    apply: Apply | None,
    protocol: Protocol,
    mesh: Mesh | None,
) -> Fit:
    """`_train_epochs`, compiled, with the work divided over a mesh."""
    train = functools.partial(_train_epochs, apply=apply, protocol=protocol, mesh=mesh)
    if apply is not None:
        return sharding.replicated(train(fit, source, *drawn), mesh)
    own, common = (sharding.specs(fit), _runs_spec(source[0])), (sharding.EVERYWHERE,) * 2
    return sharding.over_devices(train, mesh, own + common, own[0])(fit, source, *drawn)


def _train_epochs(
    fit: Fit,
    source: Any,
    numbers: Int[Array, " epochs"],
    key: Key[Array, ""],
    *,
    apply: Apply | None,
    protocol: Protocol,
    mesh: Mesh | None,
) -> Fit:
    """Some epochs of Adam, on the images of `source` if given an `apply`, else on its features.

    Of all runs, or of those that a device has of features.
    """
    labels = source[1] if apply is None else source[3]
    runs, num_images = labels.shape[:2]
    batch, steps = protocol.split_epoch(num_images)
    # Those that an epoch trains on, each once.
    used = min(steps * batch, num_images)
    optimizer = optax.adam(protocol.learning_rates(num_images))

    def features_of(epoch: Int[Array, ""], indices: Int[Array, "runs b"]) -> Array:
        if apply is None:
            table = source[0]
            view = jax.lax.dynamic_index_in_dim(table, epoch % table.shape[1], 1, keepdims=False)
            owners = jnp.arange(runs) if len(view) == runs else jnp.zeros(runs, jnp.int32)
            return view[owners[:, None], indices]
        params, images, rows, _, key_views = source
        chosen = images[jnp.take_along_axis(rows, indices, axis=1).reshape(-1)]
        owners = jnp.broadcast_to(jnp.arange(runs)[:, None], indices.shape)
        places = jnp.stack([owners, jnp.broadcast_to(epoch, indices.shape), indices], axis=-1)
        features = _embed(
            params,
            to_float(chosen),
            key_views,
            places.reshape(-1, 3),
            apply=apply,
            protocol=protocol,
            mesh=mesh,
        )
        return features.reshape(runs, batch, -1)

    def update(fit: Fit, batch: tuple[Array, ...]) -> tuple[Fit, Float[Array, " runs"]]:
        epoch, indices, weights = batch
        features = features_of(epoch, indices)
        targets = labels[jnp.arange(runs)[:, None], indices]
        losses, gradient = jax.vmap(objectives.loss_and_head_gradient)(
            fit.heads, features, targets, weights
        )
        updates, opt_state = optimizer.update(gradient, fit.opt_state)
        # Its images' part of the mean over the epoch.
        part = losses * jnp.sum(weights, axis=-1) / used
        return Fit(optax.apply_updates(fit.heads, updates), opt_state, fit.losses), part

    def epoch(fit: Fit, number: Int[Array, ""]) -> tuple[Fit, None]:
        keys = jax.random.split(jax.random.fold_in(key, number), protocol.runs)
        if apply is None and mesh is not None:
            keys = keys[sharding.own_positions(runs, mesh) % protocol.runs]
        orders = jax.vmap(lambda k: jax.random.permutation(k, num_images))(keys)[:, :used]
        # The last batch of an epoch is filled up with images of weight zero.
        padding = ((0, 0), (0, steps * batch - used))
        weights = jnp.ones((runs, used), jnp.float32)
        batches = (
            rearrange(jnp.pad(array, padding), "runs (steps b) -> steps runs b", b=batch)
            for array in (orders, weights)
        )
        fit, parts = jax.lax.scan(update, fit, (jnp.broadcast_to(number, (steps,)), *batches))
        losses = fit.losses.at[:, number].set(jnp.sum(parts, axis=0))
        return Fit(fit.heads, fit.opt_state, losses), None

    return jax.lax.scan(epoch, fit, numbers)[0]


@functools.partial(compilation.Program, static_argnames=("num_classes", "iterations", "mesh"))
def _lbfgs(
    table: Float[Array, "tables views n d"],
    labels: Labels,
    num_classes: int,
    iterations: int,
    ridge: Float[Array, ""],
    mesh: Mesh | None,
) -> Heads:
    """Minimises each run's cross-entropy over all views of all its images, plus a ridge.

    Around the mean of the features, which takes another bias and is the same minimum: a mean that
    is large beside their differences would take digits and iterations.
    """

    def solve(
        table: Float[Array, "views n d"], labels: objectives.Labels, ridge: Float[Array, ""]
    ) -> dict[str, Array]:
        features = rearrange(table, "views n d -> (views n) d")
        targets = jnp.tile(labels, (table.shape[0],) + (1,) * (labels.ndim - 1))
        # A ridge means the same for every backbone once features have the same scale.
        largest = objectives.nonzero(jnp.max(jnp.abs(features)))
        scale = 1 / (largest * jnp.sqrt(objectives.nonzero(jnp.mean((features / largest) ** 2))))
        mean = jnp.mean(features, axis=0)
        inputs = (features - mean[None, :]) * scale

        def loss(head: dict[str, Array]) -> Float[Array, ""]:
            penalty = 0.5 * ridge * jnp.sum(head["kernel"] ** 2)
            return objectives.linear_probe_loss(head, inputs, targets) + penalty

        solver = optax.lbfgs()
        value_and_grad = optax.value_and_grad_from_state(loss)

        def update(carry: Any, _: None) -> tuple[Any, None]:
            head, state = carry
            value, gradient = value_and_grad(head, state=state)
            updates, state = solver.update(
                gradient, state, head, value=value, grad=gradient, value_fn=loss
            )
            return (optax.apply_updates(head, updates), state), None

        head = {
            "kernel": jnp.zeros((features.shape[-1], num_classes), jnp.float32),
            "bias": jnp.zeros((num_classes,), jnp.float32),
        }
        (head, _), _ = jax.lax.scan(update, (head, solver.init(head)), length=iterations)
        kernel = head["kernel"] * scale
        shift = jnp.einsum("d,dk->k", mean, kernel, precision=jax.lax.Precision.HIGHEST)
        return {"kernel": kernel, "bias": head["bias"] - shift}

    def solve_each(table: Array, labels: Array, ridge: Array) -> Heads:
        if len(table) < len(labels):
            return jax.vmap(lambda targets: solve(table[0], targets, ridge))(labels)
        return jax.vmap(lambda features, targets: solve(features, targets, ridge))(table, labels)

    layout = (*_runs_spec(table), sharding.EVERYWHERE)
    solve_each = sharding.over_devices(solve_each, mesh, layout, sharding.DIVIDED, checked=False)
    return solve_each(table, labels, ridge)


@functools.partial(compilation.Program, static_argnames="mesh")
def _ranks(
    heads: Heads,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    mesh: Mesh | None,
) -> Int[Array, "runs n"]:
    """How many classes come before the right one; ties go to the lower index, as in argmax.

    An image with a score that is not finite is wrong, whatever its rank would be.
    """

    def ranks(head: dict[str, Array], features: Array, labels: Array) -> Int[Array, " n"]:
        scores = objectives.logits(head, features)
        right = jnp.take_along_axis(scores, labels[:, None], axis=-1)
        before = jnp.arange(scores.shape[-1])[None, :] < labels[:, None]
        ranks = jnp.sum((scores > right) | ((scores == right) & before), axis=-1)
        return jnp.where(jnp.all(jnp.isfinite(scores), axis=-1), ranks, scores.shape[-1])

    def rank_part(heads: Heads, features: Array, labels: Array) -> Int[Array, "n runs"]:
        return jax.vmap(lambda head: ranks(head, features, labels))(heads).T

    return sharding.over_rows(rank_part, mesh)(heads, features, labels).T
