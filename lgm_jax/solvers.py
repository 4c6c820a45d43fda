"""Solvers of linear probes, which train heads on features, all runs side by side.

A protocol names a key of `SOLVERS`, or `package.module:Name`: a `Solver`, or a function that
returns the head of one run (see `each_run`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from lgm_jax import checks, compilation, devices, plugins
from lgm_jax import heads as linear
from lgm_jax.augment import Augment
from lgm_jax.errors import UserError
from lgm_jax.features import AnyArray
from lgm_jax.numerics import nonzero, wide
from lgm_jax.progress import progress
from lgm_jax.teachers import TARGETS, Seen, Teacher, inherit, init_params, learning_loss

AUGMENTS = ("fresh", "views", "none")
DECAYS = ("update", "epoch")
# Fields of a protocol that only some solvers read.
OPTIONS = frozenset({"batch", "learning_rate", "drop_last", "decay", "ridge"})

# Epochs compiled into one call, between two updates of the progress bar.
EPOCHS_PER_CALL = 20

Labels = Int[AnyArray, "runs n"] | Float[AnyArray, "runs n k"]
Heads = dict[str, Float[AnyArray, "runs ..."]]
Tables = Float[AnyArray, "tables views n d"]


class Data(NamedTuple):
    """What runs train on; every leaf but a shared table has a leading `runs` axis.

    Attributes:
        runs: The numbers of the runs.
        table: `Seen`, each (tables, views, n, d); one table if runs share it.
        labels: (runs, n) or (runs, n, k).
        teacher: The heads of the teacher, if there is one.
    """

    runs: Any
    table: Any
    labels: Any
    teacher: Any = None


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The protocol of a probe: by default Adam with a cosine schedule to zero, as the authors do.

    Attributes:
        batch: Images per update, at most: all of them where they are fewer.
        runs: Independent repetitions, trained side by side.
        crop: Side of the crops that the backbone sees, in pixels.
        augment: `fresh` recomputes features of newly augmented images in every epoch (the
            authors' way), `views` computes those of `views` augmentations once and cycles through
            them, `none` computes those of the centre crop once.
        augmentation: The augmentation of an image. The authors' code flips and crops; the paper's
            text adds noise.
        views: Augmentations of each image for `views`.
        solver: `adam`, or `lbfgs`: the minimum of the cross-entropy over all views plus a ridge,
            which has no batches or learning rate, and needs `views` or `none`. Or another one, as
            an object or as `package.module:Name`.
        share_views: Whether runs share their augmentations, which the spread then leaves out.
        learning_rate: Adam's, for a batch of 256; scaled linearly with the images of an update,
            and so independent of the number of devices.
        ridge: Weight of half the squared kernel for `lbfgs`, on features scaled to a root mean
            square of one.
        drop_last: For `adam`: whether an epoch leaves out the images that do not fill a batch.
        decay: For `adam`: whether the learning rate falls with every `update` or every `epoch`.
        targets: What the head learns: `labels`, or from a teacher too, `kd` or `ci`; see
            `teachers`.

    Raises:
        UserError: If a value is unknown or out of range; if `augment` is `fresh` and the solver
            trains on fixed features, since over changing views there is no minimum; or if the
            solver takes no teacher.
    """

    epochs: int
    batch: int
    runs: int
    crop: int
    augment: str
    augmentation: Augment | None
    views: int = 1
    solver: str | Solver | Callable[..., Any] = "adam"
    share_views: bool = False
    learning_rate: float = 0.001
    ridge: float = 0.01
    drop_last: bool = False
    decay: str = "update"
    targets: str = "labels"

    def split_epoch(self, num_images: int) -> tuple[int, int]:
        """Returns the images of each of Adam's updates, and the updates of an epoch."""
        batch = min(self.batch, num_images)
        return batch, num_images // batch if self.drop_last else math.ceil(num_images / batch)

    def learning_rates(self, num_images: int) -> optax.Schedule:
        """Returns Adam's learning rate by the number of its update, for so many images."""
        batch, updates = self.split_epoch(num_images)
        rate = self.learning_rate * batch / 256
        if self.decay == "update":
            return optax.cosine_decay_schedule(rate, self.epochs * updates)
        by_epoch = optax.cosine_decay_schedule(rate, self.epochs)
        return lambda update: by_epoch(update // updates)

    @property
    def idle(self) -> frozenset[str]:
        """Fields without an effect, as the others are set; see `identity`."""
        read = {
            "augmentation": self.augment != "none",
            "views": self.augment == "views",
            "share_views": self.augment != "none" and self.runs > 1,
        }
        unread = {name for name, is_read in read.items() if not is_read}
        return (OPTIONS - find(self.solver).reads) | unread

    def __post_init__(self) -> None:
        checks.counts(self, "epochs", "batch", "runs", "crop", "views")
        checks.one_of("augment", self.augment, AUGMENTS)
        checks.one_of("decay", self.decay, DECAYS)
        checks.one_of("targets", self.targets, TARGETS)
        checks.flags(self, "share_views", "drop_last")
        checks.positive("learning_rate", self.learning_rate)
        checks.in_range("ridge", self.ridge, 0)
        if not find(self.solver).fresh and self.augment == "fresh":
            raise UserError(
                f"solver={self.solver} needs augment=views or none: fresh ones have no minimum"
            )
        if self.targets != "labels" and not find(self.solver).taught:
            raise UserError(f"targets={self.targets} needs solver=adam, not {self.solver}")


class Trained(NamedTuple):
    """The result of a solver.

    Attributes:
        heads: `{"kernel": (runs, d, k), "bias": (runs, k)}`.
        losses: Loss of each run's images in each epoch, averaged over its updates; `None` for a
            solver without epochs. It is the cross-entropy, unless there is a teacher.
    """

    heads: Heads
    losses: Float[np.ndarray, "runs epochs"] | None


class Fit(NamedTuple):
    """Heads in training, Adam's states and the losses; every leaf has a leading `runs` axis."""

    heads: Any
    opt_state: Any
    losses: Any


@dataclasses.dataclass(frozen=True)
class Solver:
    """A solver.

    Attributes:
        train: `train(key, table, labels, num_classes, protocol, mesh, label)` trains a head per
            run. Devices share the runs, and `label` is that of a progress bar. `table` has the
            features (tables, views, n, d) of each run's images, one table if runs share it; fresh
            ones are those of an epoch, `table(epoch)`. `labels` are class indices (runs, n), or
            probabilities (runs, n, k).
        reads: The protocol's `OPTIONS` that change the heads.
        draws: Whether it draws random numbers, so that runs on the same features differ.
        fresh: Whether it takes fresh features.
        taught: Whether it takes a `Teacher`, by the keyword `teacher`, whose `sees` is the table of
            its features.
    """

    train: Callable[..., Trained]
    reads: frozenset[str] = OPTIONS
    draws: bool = True
    fresh: bool = False
    taught: bool = False


def adam(
    key: Key[Array, ""],
    table: Tables | Callable[[int], Tables],
    labels: Labels,
    num_classes: int,
    protocol: Protocol,
    mesh: Mesh,
    label: str,
    teacher: Teacher | None = None,
) -> Trained:
    """Trains by Adam from a random head, with a new order of images in each epoch; see `Solver`."""

    def seen(epoch: int) -> Seen:
        every = (table, None if teacher is None else teacher.sees)
        return Seen(*(each(epoch) if callable(each) else each for each in every))

    lessons = None if teacher is None else teacher.heads
    data = _divide(mesh, seen(0), labels, lessons)
    features, taught = data.table
    key_heads, key_orders = jax.random.split(key)
    optimizer = optax.adam(protocol.learning_rates(features.shape[2]))
    dims = (features.shape[-1], 0 if taught is None else taught.shape[-1], num_classes)
    heads = jax.vmap(lambda k: init_params(protocol.targets, k, *dims))(
        jax.random.split(key_heads, protocol.runs)[np.arange(len(data.runs)) % protocol.runs]
    )
    losses = jnp.zeros((len(data.runs), protocol.epochs), heads["kernel"].dtype)
    fit = Fit(heads, jax.vmap(optimizer.init)(heads), losses)
    fit = devices.put(mesh, fit, devices.IMAGES)
    per_call = 1 if callable(table) else EPOCHS_PER_CALL
    for start in progress(range(0, protocol.epochs, per_call), f"{label}: epochs"):
        if callable(table) and start:
            data = data._replace(table=_divide(mesh, seen(start), labels).table)
        epochs = jnp.arange(start, min(start + per_call, protocol.epochs))
        fit = train_epochs(fit, data, epochs, key_orders, protocol=protocol, mesh=mesh)
    heads, losses = _fetch(mesh, (fit.heads, fit.losses), protocol.runs)
    if protocol.targets == "ci":
        made = jax.vmap(inherit)(heads, _of_runs(lessons, np.arange(protocol.runs)))
        heads = jax.tree.map(np.asarray, made)
    return Trained(heads, losses)


@functools.partial(compilation.Program, static_argnames=("protocol", "mesh"), donate_argnums=0)
def train_epochs(fit: Fit, data: Data, *drawn: Array, protocol: Protocol, mesh: Mesh) -> Fit:
    """`_train_epochs`, compiled, each device with its runs."""
    train = functools.partial(_train_epochs, protocol=protocol)
    specs = (devices.IMAGES, _specs(data), devices.EVERYWHERE, devices.EVERYWHERE)
    mapped = jax.shard_map(train, mesh=mesh, in_specs=specs, out_specs=devices.IMAGES)
    return mapped(fit, data, *drawn)


def _train_epochs(
    fit: Fit, data: Data, epochs: Int[Array, " epochs"], key: Key[Array, ""], *, protocol: Protocol
) -> Fit:
    """Trains the runs of a device for some epochs."""
    runs, table, labels, teacher = data
    num_images = labels.shape[1]
    batch, steps = protocol.split_epoch(num_images)
    # An epoch trains on so many images, each once.
    used = min(steps * batch, num_images)
    optimizer = optax.adam(protocol.learning_rates(num_images))
    loss_and_gradient = jax.value_and_grad(functools.partial(learning_loss, protocol.targets))

    def update(
        fit: Fit,
        view: Seen,
        labels: linear.Labels,
        teacher: Any,
        indices: Int[Array, " b"],
        weights: Float[Array, " b"],
    ) -> tuple[Fit, Float[Array, ""]]:
        rows = jax.tree.map(lambda leaf: leaf[indices], view)
        loss, gradient = loss_and_gradient(fit.heads, rows, labels[indices], weights, teacher)
        updates, opt_state = optimizer.update(gradient, fit.opt_state)
        # The share of its images in the mean over the epoch.
        part = loss * jnp.sum(weights) / used
        return Fit(optax.apply_updates(fit.heads, updates), opt_state, fit.losses), part

    def epoch(fit: Fit, number: Int[Array, ""]) -> tuple[Fit, None]:
        view = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number % leaf.shape[1], 1, False), table
        )
        keys = jax.random.split(jax.random.fold_in(key, number), protocol.runs)[runs]
        orders = jax.vmap(lambda k: jax.random.permutation(k, num_images))(keys)[:, :used]
        # The last batch of an epoch is filled up with images of weight zero.
        padding = ((0, 0), (0, steps * batch - used))
        batches = [
            rearrange(jnp.pad(array, padding), "runs (steps b) -> steps runs b", b=batch)
            for array in (orders, jnp.ones(orders.shape, jnp.float32))
        ]
        # A table that all runs share is mapped over none.
        owned = jax.tree.map(lambda leaf: len(leaf) == len(runs), view)
        view = jax.tree.map(lambda leaf, own: leaf if own else leaf[0], view, owned)
        axes = jax.tree.map(lambda own: 0 if own else None, owned)
        each = jax.vmap(update, (0, axes, 0, 0, 0, 0))
        fit, parts = jax.lax.scan(
            lambda fit, some: each(fit, view, labels, teacher, *some), fit, batches
        )
        losses = fit.losses.at[:, number].set(jnp.sum(parts, axis=0, dtype=fit.losses.dtype))
        return Fit(fit.heads, fit.opt_state, losses), None

    return jax.lax.scan(epoch, fit, epochs)[0]


def each_run(
    head: Callable[..., Any],
    key: Key[Array, ""],
    table: Tables,
    labels: Labels,
    num_classes: int,
    protocol: Protocol,
    mesh: Mesh,
    label: str,
) -> Trained:
    """Trains each run for itself by a function of one; for the other arguments see `Solver`.

    Args:
        head: `head(key, features, labels, num_classes, protocol)` returns `{"kernel": (d, k),
            "bias": (k,)}` of features (views, n, d) and labels (n,), or probabilities (n, k). In
            JAX: it is compiled and mapped over runs.
    """
    heads = _each_run(key, _divide(mesh, Seen(table), labels), head, num_classes, protocol, mesh)
    return Trained(_fetch(mesh, heads, protocol.runs), None)


@functools.partial(compilation.Program, static_argnames=("head", "num_classes", "protocol", "mesh"))
def _each_run(
    key: Key[Array, ""],
    data: Data,
    head: Callable[..., Any],
    num_classes: int,
    protocol: Protocol,
    mesh: Mesh,
) -> Any:
    def solve(key: Key[Array, ""], features: Array, labels: Array) -> Any:
        solution = head(key, features, labels, num_classes, protocol)
        wanted = {"kernel": (features.shape[-1], num_classes), "bias": (num_classes,)}
        if (shapes := jax.tree.map(jnp.shape, solution)) != wanted:
            raise UserError(f"a solver must return arrays of {wanted}, not of {shapes}")
        return solution

    def solve_all(key: Key[Array, ""], data: Data) -> Any:
        runs, (table, _), labels, _ = data
        keys = jax.random.split(key, protocol.runs)[runs]
        if len(table) < len(runs):
            return jax.vmap(solve, (0, None, 0))(keys, table[0], labels)
        return jax.vmap(solve)(keys, table, labels)

    specs = (devices.EVERYWHERE, _specs(data))
    # JAX cannot check loops.
    mapped = jax.shard_map(
        solve_all, mesh=mesh, in_specs=specs, out_specs=devices.IMAGES, check_vma=False
    )
    return mapped(key, data)


def lbfgs(
    key: Key[Array, ""],
    features: Float[Array, "views n d"],
    labels: linear.Labels,
    num_classes: int,
    protocol: Protocol,
) -> dict[str, Array]:
    """Finds the head of least cross-entropy over all views of all images plus a ridge, by L-BFGS.

    Features are centred, which changes the bias but not the minimum: a mean that is large beside
    their differences would take digits and iterations.
    """
    targets = jnp.tile(labels, (features.shape[0],) + (1,) * (labels.ndim - 1))
    features = wide(rearrange(features, "views n d -> (views n) d"))
    # A ridge has the same effect for every backbone once features have the same scale.
    largest = nonzero(jnp.max(jnp.abs(features)))
    scale = 1 / (largest * jnp.sqrt(nonzero(jnp.mean((features / largest) ** 2))))
    mean = jnp.mean(features, axis=0)
    inputs = (features - mean[None, :]) * scale

    def loss(head: dict[str, Array]) -> Float[Array, ""]:
        penalty = 0.5 * jnp.float32(protocol.ridge) * jnp.sum(head["kernel"] ** 2)
        return linear.linear_probe_loss(head, inputs, targets) + penalty

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
        "kernel": jnp.zeros((features.shape[-1], num_classes), features.dtype),
        "bias": jnp.zeros((num_classes,), features.dtype),
    }
    (head, _), _ = jax.lax.scan(update, (head, solver.init(head)), length=protocol.epochs)
    kernel = head["kernel"] * scale
    shift = jnp.einsum("d,dk->k", mean, kernel, precision=jax.lax.Precision.HIGHEST)
    return {"kernel": kernel, "bias": head["bias"] - shift}


SOLVERS: Mapping[str, Solver] = {
    "adam": Solver(adam, OPTIONS - {"ridge"}, fresh=True, taught=True),
    "lbfgs": Solver(functools.partial(each_run, lbfgs), frozenset({"ridge"}), draws=False),
}


def find(solver: Any) -> Solver:
    """Returns the solver of a name, or of a function of one run."""
    if isinstance(solver, str):
        solver = plugins.resolve("solver", solver, SOLVERS)
    if isinstance(solver, Solver):
        return solver
    if not callable(solver) or isinstance(solver, type):
        raise UserError(f"solver must be a Solver or a function of one run, not {solver!r:.80}")
    return Solver(functools.partial(each_run, solver))


def _divide(mesh: Mesh, table: Seen, labels: Any, teacher: Any = None) -> Data:
    """Places each device's runs; the first runs fill up."""
    runs = np.arange(-(-len(labels) // mesh.size) * mesh.size, dtype=np.int32) % len(labels)
    own = jax.tree.map(lambda leaf: leaf if len(leaf) in (1, len(runs)) else leaf[runs], table)
    data = Data(runs, own, labels[runs], _of_runs(teacher, runs))
    return jax.tree.map(lambda spec, leaf: devices.put(mesh, leaf, spec), _specs(data), data)


def _of_runs(heads: Any, runs: Int[np.ndarray, " runs"]) -> Any:
    """Returns the teacher's head of each run; one head is that of all."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[runs % len(leaf)], heads)


def _specs(data: Data) -> Data:
    """Returns the layout of runs on a mesh: each device has its own, and all a shared table."""
    own, everywhere = devices.IMAGES, devices.EVERYWHERE
    table = jax.tree.map(lambda leaf: everywhere if len(leaf) == 1 else own, data.table)
    teacher = jax.tree.map(lambda _: own, data.teacher)
    return Data(own, table, own, teacher)


def _fetch(mesh: Mesh, tree: Any, runs: int) -> Any:
    """Returns values by run as NumPy arrays, without the runs that fill up."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:runs], devices.fetch(mesh, tree))
