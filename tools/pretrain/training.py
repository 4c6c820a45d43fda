"""The steps of pre-training: optimiser, slow copy of the weights, checkpoints."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from lgm_jax import files
from lgm_jax.errors import UserError

from .methods import PROTOTYPES, Batch, Loss, standardize

CHECKPOINTS = "checkpoints"
"""The subfolder of an unfinished training."""

SETTINGS = "pretraining.json"
"""The flags of a training: beside its checkpoints, and then beside its weights."""

MOMENTUM = 0.99
# Images embedded at a time.
_EMBEDDED = 256


def keep_settings(checkpoints: Path, settings: dict[str, Any]) -> None:
    """Writes the flags of a training beside its checkpoints, before the first.

    Raises:
        UserError: If there are checkpoints of other flags, or of unknown ones.
    """
    path = epath.Path(checkpoints / SETTINGS)
    before = files.read_json(path)
    # What ended before its first checkpoint, as with too large a batch, holds nobody to its flags.
    if any(each.is_dir() for each in checkpoints.glob("*")) and before != settings:
        known = (before or {}).items()
        other = [f"--{name}={value}" for name, value in known if settings.get(name) != value]
        began = " ".join(other) or "an earlier version of this tool"
        raise UserError(f"{checkpoints} began with {began}: go on with that, or change --out")
    checkpoints.mkdir(parents=True, exist_ok=True)
    files.write_json(path, settings)


class Learner(NamedTuple):
    """The state of training.

    Attributes:
        step: How many were made.
        online: Weights that the optimiser changes.
        momentum: Their slow copy.
        opt_state: The optimiser's.
        center: Of the teacher's outputs, (1, p).
    """

    step: Int[Array, ""]
    online: Any
    momentum: Any
    opt_state: Any
    center: Float[Array, "1 p"]


@dataclasses.dataclass(frozen=True)
class Training:
    """A network, its loss and how long it is trained.

    Attributes:
        network: With a method `features`.
        loss: As `methods.make` returns it.
        draw: `draw(key, images)` returns groups of views, and scans.
        side: Pixels of a whole view.
        key: Root key.
        batch: Images of a step.
        epochs: Passes over the images.
        learning_rate: Peak, after a linear warm-up over a tenth of the steps.
        standardized: Whether features are standardised at the end; see `methods.standardize`.
    """

    network: nnx.Module
    loss: Loss
    draw: Callable[[Any, Any], tuple[Any, Any]]
    side: int
    key: Any
    batch: int
    epochs: int
    learning_rate: float
    standardized: bool = False

    def run(
        self,
        images: UInt8[np.ndarray, "n s s 3"],
        folder: Path,
        report: Callable[[int, float, dict[str, Any]], None],
    ) -> Learner:
        """Makes the steps that are left; goes on from a checkpoint where there is one.

        Args:
            images: The training images.
            folder: For checkpoints.
            report: Called after each epoch with its number, the loss, and both weights.

        Raises:
            UserError: If there are fewer images than a batch takes.
        """
        per_epoch = len(images) // self.batch
        if not per_epoch:
            raise UserError(f"{len(images)} images fill no batch of {self.batch}: lower --batch")
        steps = self.epochs * per_epoch
        learner, step = self._start(steps)
        with ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
        ) as manager:
            if manager.latest_step() is not None:
                abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, learner)
                learner = manager.restore(
                    manager.latest_step(), args=ocp.args.StandardRestore(abstract)
                )
            first = int(learner.step) // per_epoch
            with tqdm(total=steps, initial=int(learner.step), unit="step", mininterval=5) as bar:
                for epoch in range(first, self.epochs):
                    key = jax.random.fold_in(self.key, 2 + epoch)
                    order = np.asarray(jax.random.permutation(key, len(images)))
                    for i in range(per_epoch):
                        rows = order[i * self.batch : (i + 1) * self.batch]
                        learner, loss = step(learner, images[rows])
                        bar.update()
                    weights = {"online": learner.online, "momentum": learner.momentum}
                    report(epoch + 1, float(loss), weights)
                    manager.save(int(learner.step), args=ocp.args.StandardSave(learner))
        return learner

    def _start(self, steps: int) -> tuple[Learner, Callable[[Learner, Any], tuple[Learner, Any]]]:
        """The first state, and the step."""
        definition, variables = nnx.split(self.network)
        params = nnx.to_pure_dict(variables)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, steps // 10, steps)
        decayed = jax.tree.map(lambda p: p.ndim > 1, params)
        optimizer = optax.chain(
            optax.clip_by_global_norm(3.0), optax.adamw(schedule, weight_decay=0.05, mask=decayed)
        )
        center, number = jnp.zeros((1, PROTOTYPES)), jnp.zeros((), jnp.int32)

        @jax.jit
        def step(learner: Learner, batch: jax.Array) -> tuple[Learner, jax.Array]:
            key = jax.random.fold_in(jax.random.fold_in(self.key, 1), learner.step)
            views, scans = self.draw(key, batch.astype(jnp.float32) / 255)
            read = Batch(views, scans, jax.random.fold_in(key, 0))

            def loss_fn(online: Any) -> tuple[jax.Array, jax.Array]:
                return self.loss(
                    nnx.merge(definition, nnx.State(online)),
                    nnx.merge(definition, nnx.State(learner.momentum)),
                    read,
                    learner.center,
                )

            (loss, center), grads = jax.value_and_grad(loss_fn, has_aux=True)(learner.online)
            updates, opt_state = optimizer.update(grads, learner.opt_state, learner.online)
            online = optax.apply_updates(learner.online, updates)
            rate = 1 - (1 - MOMENTUM) * 0.5 * (1 + jnp.cos(jnp.pi * learner.step / steps))
            momentum = jax.tree.map(
                lambda m, o: rate * m + (1 - rate) * o, learner.momentum, online
            )
            return Learner(learner.step + 1, online, momentum, opt_state, center), loss

        return Learner(number, params, params, optimizer.init(params), center), step

    def embed(self, params: Any, images: UInt8[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n f"]:
        """Features of whole images."""
        parts = [images[i : i + _EMBEDDED] for i in range(0, len(images), _EMBEDDED)]
        return np.concatenate([np.asarray(self._embed(params, part)) for part in parts])

    def finish(self, params: Any, images: UInt8[np.ndarray, "n s s 3"]) -> Any:
        """The weights as they are published: with standardised features, where these are asked."""
        if not self.standardized:
            return params
        features = self.embed(params, images)
        return params | {"backbone": standardize(params["backbone"], features)}

    @functools.cached_property
    def _embed(self) -> Callable[[Any, Any], jax.Array]:
        definition = nnx.graphdef(self.network)

        def embed(params: Any, images: jax.Array) -> jax.Array:
            shape = (len(images), self.side, self.side, 3)
            whole = images.astype(jnp.float32) / 255
            if whole.shape != shape:
                whole = jax.image.resize(whole, shape, "linear")
            return nnx.merge(definition, nnx.State(params)).features(whole)

        return jax.jit(embed)
