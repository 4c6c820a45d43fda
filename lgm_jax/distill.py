"""Distillation: its description, its state, and its step.

Source: arXiv 2511.16674, section 3 and appendix A; for other objectives, see `objectives`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange, repeat
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from lgm_jax import checks, devices
from lgm_jax.augment import Augment, Augmentation, augment, center_crop
from lgm_jax.compilation import Program
from lgm_jax.errors import UserError
from lgm_jax.images import Growing, Parametrisation
from lgm_jax.objectives import LGM, Features, Objective

# Separate random streams, so that changing one kind of draw leaves the others as they were.
# 3, 4 and 6 belong to real images.
INIT, GROW, OBJECTIVE, VIEW = 0, 1, 2, 5

# The initial probability of an image's class where labels are learned.
_FIRST_PROBABILITY = 0.9

# Not a preset, which may change: released defaults stay; see `identity`.
_AUGMENTATION, _LGM = Augmentation(), LGM()

LABELS = ("hard", "soft")

Apply = Callable[[Any, Float[Array, "n r r 3"]], Float[Array, "n d"]]
Params = dict[str, Any]
Step = Callable[["State", Sequence[Any], Sequence[Any]], tuple["State", dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Everything that decides the distilled images, given backbones and real features.

    Attributes:
        num_classes: Number of classes `k`, at least two.
        parametrisation: The parametrisation of the images, such as `images.Pyramid(256)`.
        crop: Side of the views that backbones see, in pixels; at most that of the images.
        objective: The objective.
        ipc: Synthetic images per class.
        copies: Views of each image in a step, augmented but for `center_crop_copies`.
        augmentation: The augmentation of a view; `None` for the centre crop.
        center_crop_copies: The number of copies that are centre crops instead, the only views of
            probes without augmentation.
        labels: `hard`: image i is of class i // ipc; `soft`: class probabilities are learned along.
        optimizer: Optimiser of the images' parameters; its state is reset where these change
            meaning.
        labels_optimizer: Optimiser of the logits of soft labels.
        schedule: The factor of updates, as a function of the number of earlier ones.

    Raises:
        UserError: If a value is unknown or out of range.
    """

    num_classes: int
    parametrisation: Parametrisation
    crop: int
    objective: Objective = _LGM
    ipc: int = 1
    copies: int = 10
    augmentation: Augment | None = _AUGMENTATION
    center_crop_copies: int = 0
    labels: str = "hard"
    optimizer: optax.GradientTransformation = dataclasses.field(
        default=optax.adam(0.002), compare=False
    )
    labels_optimizer: optax.GradientTransformation = dataclasses.field(
        default=optax.adam(0.01), compare=False
    )
    schedule: optax.Schedule | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        kinds: Sequence[tuple[str, Any, str]] = (
            ("parametrisation", Parametrisation, "images.Pyramid(256)"),
            ("objective", Objective, "objectives.LGM()"),
            ("augmentation", Callable | None, "augment.Augmentation()"),
        )
        for name, kind, example in kinds:
            value = getattr(self, name)
            # A class, or the name of one, in its place.
            if isinstance(value, type) or not isinstance(value, kind):
                raise UserError(f"{name} must be an object such as {example}, not {value!r}")
        checks.in_range("num_classes", self.num_classes, 2, whole=True)
        checks.counts(self, "ipc", "copies")
        checks.in_range("crop", self.crop, 1, self.parametrisation.resolution, whole=True)
        checks.in_range("center_crop_copies", self.center_crop_copies, 0, self.copies, whole=True)
        checks.one_of("labels", self.labels, LABELS)

    @property
    def idle(self) -> frozenset[str]:
        """Fields without an effect, as the others are set; see `identity`."""
        return frozenset({"center_crop_copies"}) if self.augmentation is None else frozenset()

    @property
    def num_images(self) -> int:
        """Number of synthetic images `s`."""
        return self.ipc * self.num_classes

    @property
    def num_views(self) -> int:
        """Views of synthetic images in a step."""
        return self.num_images * self.copies


class State(NamedTuple):
    """The state of a distillation.

    Attributes:
        step: Number of updates, () int32.
        params: By name: the parameters of `images`, and the `logits` (s, k) of soft labels.
        opt_state: States of their optimisers, by the same names.
    """

    # JAX rebuilds pytrees around placeholders, so the fields need not be arrays.
    step: Any
    params: Params
    opt_state: Params


def init(
    task: Distillation, key: Key[Array, ""], *, params: Any = None, mesh: Mesh | None = None
) -> State:
    """Returns the state before the first step, as it lies on the mesh.

    Args:
        params: Parameters of the images to start from, such as those of `images.from_images`; they
            are copied, and stay as they are.
        mesh: As for `make_step`.

    Raises:
        UserError: If these parameters are not of so many images of that parametrisation.
    """
    return devices.place(
        mesh_for(task, mesh), init_state(task, key, params=params), task.num_images
    )


def init_state(task: Distillation, key: Key[Array, ""], *, params: Any = None) -> State:
    """Returns the state before the first step, on one device; arguments as for `init`."""
    if params is None:
        params = task.parametrisation.init_params(jax.random.fold_in(key, INIT), task.num_images)
    else:
        here, wanted = (
            jax.tree.map(jnp.shape, each)
            for each in (params, abstract_params(task, task.num_images))
        )
        if here != wanted:
            raise UserError(
                f"parameters to start from have the shapes {here}, but {task.num_images} images of "
                f"{task.parametrisation} have {wanted}"
            )
    values = {"images": params}
    if task.labels == "soft":
        k = task.num_classes
        scale = jnp.log(_FIRST_PROBABILITY * (k - 1) / (1 - _FIRST_PROBABILITY))
        values["logits"] = scale * jax.nn.one_hot(hard_labels(task), k)
    opt_state = {name: optimizer_of(task, name).init(value) for name, value in values.items()}
    # Copied, since the first step takes the place of it all: parameters may be the caller's, and
    # some optimisers keep them a second time.
    return jax.tree.map(jnp.copy, State(jnp.zeros((), jnp.int32), values, opt_state))


def abstract_params(task: Distillation, num_images: int) -> Any:
    """Returns shapes and types of the parameters of some images; computes nothing."""
    images: Any = task.parametrisation
    if getattr(images, "init", None) == "real":
        # The same shapes, without real images.
        images = dataclasses.replace(images, init="noise")
    return jax.eval_shape(lambda key: images.init_params(key, num_images), jax.random.key(0))


def params_bytes(task: Distillation) -> int:
    """Returns the bytes of the parameters of one image."""
    shapes = jax.tree.leaves(abstract_params(task, 1))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)


def hard_labels(task: Distillation) -> Int[Array, " s"]:
    """Returns the classes of the synthetic images, which go class by class."""
    return jnp.repeat(jnp.arange(task.num_classes, dtype=jnp.int32), task.ipc)


def render(
    task: Distillation, state: State, rows: Sequence[int] | None = None
) -> Float[Array, "s r r 3"]:
    """Renders the images in [0, 1] of a state, with the levels of its last step.

    Args:
        rows: Numbers of the images to render; all by default.
    """
    params = jax.tree.map(lambda leaf: leaf[: task.num_images], state.params["images"])
    if rows is not None and list(rows) != list(range(task.num_images)):
        params = jax.tree.map(lambda leaf: leaf[jnp.asarray(rows)], params)
    return task.parametrisation.decode(params, jnp.maximum(0, state.step - 1))


def probabilities(task: Distillation, state: State) -> Float[Array, "s k"] | None:
    """Returns the class probabilities of a state's images; `None` where labels are hard."""
    if "logits" not in state.params:
        return None
    return jax.nn.softmax(state.params["logits"][: task.num_images])


def make_embed(
    task: Distillation,
    apply: Apply,
    key: Key[Array, ""],
    *,
    mesh: Mesh | None = None,
    microbatch: int | None = None,
) -> Callable[[Params, Any, Int[Array, ""]], Features]:
    """Makes `embed(params, backbone_params, step)`: features of all views of all images.

    A view depends on the numbers of its image and copy and on the step, and on nothing else. Each
    device works for itself.

    Args:
        apply: The backbone's `apply(params, images)`; the others as for `make_step`.
    """
    mesh, view_key = mesh_for(task, mesh), jax.random.fold_in(key, VIEW)
    copies_here = -(-task.copies // mesh.shape[devices.COPY])

    def numbers(each: int, axis: str) -> Int[Array, " each"]:
        return jax.lax.axis_index(axis) * each + jnp.arange(each, dtype=jnp.int32)

    def part(backbone_params: Any, params: Params, step: Array) -> tuple[Array, ...]:
        """Returns the rows of one device."""
        own = devices.varying(params, (devices.COPY,))
        own_params, own_step = devices.varying((backbone_params, step))
        key = jax.random.fold_in(view_key, own_step)
        here = jax.tree.leaves(params["images"])[0].shape[0]
        images, copies = numbers(here, devices.IMAGE), numbers(copies_here, devices.COPY)

        def features(params: Any, images: Array, copies: Array) -> Float[Array, "s c d"]:
            views = _views(task, key, params, images, copies, own_step)
            rows = apply(own_params, rearrange(views, "s c ... -> (s c) ..."))
            return rearrange(rows, "(s c) d -> s c d", c=len(copies))

        values = devices.map_views(features, microbatch, own["images"], images, copies)
        image, copy = jnp.repeat(images, copies_here), jnp.tile(copies, here)
        weights = ((image < task.num_images) & (copy < task.copies)).astype(jnp.float32)
        if "logits" in own:
            labels = jnp.repeat(jax.nn.softmax(own["logits"]), copies_here, axis=0)
        else:
            labels = jnp.minimum(image, task.num_images - 1) // task.ipc
        return rearrange(values, "s c d -> (s c) d"), labels, weights, image, copy

    rows, everywhere = devices.ROWS, devices.EVERYWHERE
    in_specs = (everywhere, devices.IMAGES, everywhere)
    mapped = jax.shard_map(part, mesh=mesh, in_specs=in_specs, out_specs=(rows,) * 5)
    all_copies = copies_here * mesh.shape[devices.COPY]

    def embed(params: Params, backbone_params: Any, step: Int[Array, ""]) -> Features:
        values, labels, weights, image, copy = mapped(backbone_params, params, step)
        return Features(values, labels, weights, image, copy, task.num_classes, all_copies)

    return embed


def _views(
    task: Distillation,
    key: Key[Array, ""],
    params: Any,
    images: Int[Array, " s"],
    copies: Int[Array, " c"],
    step: Int[Array, ""],
) -> Float[Array, "s c r r 3"]:
    """Augments some copies of some images, each with a random key of its own."""
    pixels = task.parametrisation.decode(params, step)
    # Folding in an index, unlike splitting, makes a key independent of the number of images.
    fold_in = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(fold_in, (0, None))(fold_in(key, images), copies)
    augmented = augment(
        rearrange(keys, "s c -> (s c)"),
        repeat(pixels, "s h w ch -> (s c) h w ch", c=len(copies)),
        task.crop,
        task.augmentation,
    )
    augmented = rearrange(augmented, "(s c) ... -> s c ...", c=len(copies))
    if not task.center_crop_copies:
        return augmented
    plain = center_crop(pixels, task.crop)[:, None]
    chosen = rearrange(copies < task.center_crop_copies, "c -> 1 c 1 1 1")
    return jnp.where(chosen, plain, augmented)


def make_loss(
    task: Distillation,
    applies: Sequence[Apply],
    key: Key[Array, ""],
    *,
    weights: Sequence[float] | None = None,
    mesh: Mesh | None = None,
    microbatch: int | None = None,
) -> Callable[[Params, Int[Array, ""], Sequence[Any], Sequence[Any]], Float[Array, ""]]:
    """Makes `loss(params, step, backbone_params, real)`, differentiable with respect to `params`.

    Arguments as for `make_step`.
    """
    mesh = mesh_for(task, mesh)
    embeds = [make_embed(task, each, key, mesh=mesh, microbatch=microbatch) for each in applies]
    shares = [1 / len(applies)] * len(applies) if weights is None else list(weights)
    objective_key = jax.random.fold_in(key, OBJECTIVE)

    def loss(
        params: Params, step: Array, backbone_params: Sequence[Any], real: Sequence[Any]
    ) -> Float[Array, ""]:
        # One backbone after the other, each with the same views and the same draws.
        step_key = jax.random.fold_in(objective_key, step)
        losses = []
        for share, embed, own, features in zip(shares, embeds, backbone_params, real, strict=True):
            synthetic = embed(params, own, step)
            # Where the mesh is in JAX's context, see `numerics.sum_of_parts`.
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                losses.append(share * task.objective(step_key, synthetic, features))
        return sum(losses[1:], losses[0])

    return loss


def make_step(
    task: Distillation,
    applies: Sequence[Apply],
    key: Key[Array, ""],
    *,
    weights: Sequence[float] | None = None,
    mesh: Mesh | None = None,
    microbatch: int | None = None,
) -> Program[[State, Sequence[Any], Sequence[Any]], tuple[State, dict[str, Array]]]:
    """Makes the update `step(state, backbone_params, real) -> state, metrics`.

    It is compiled at its first call, and donates its argument `state`. The result depends neither
    on the devices nor on the size of microbatches, but for rounding. A step whose loss is not
    finite returns the state unchanged.

    `backbone_params` and `real` have an entry for each backbone: its parameters, and the `Features`
    of real images, or the result of the objective's `prepare`. `metrics` holds the `loss`.

    Args:
        applies: `apply(params, images)` of each backbone.
        key: The run's root key; all randomness is folded from it and from `state.step`.
        weights: Weight of the loss by each backbone; equal by default.
        mesh: The devices, from `devices.make_mesh`; by default all, divided as suits the numbers of
            images and copies.
        microbatch: Views in a backbone at a time on each device, which bounds the memory of a step;
            by default all at once.
    """
    loss_of = make_loss(task, applies, key, weights=weights, mesh=mesh, microbatch=microbatch)
    growing: Any = task.parametrisation if isinstance(task.parametrisation, Growing) else None

    def grow(state: State) -> State:
        step_key = jax.random.fold_in(jax.random.fold_in(key, GROW), state.step)
        grown = growing.grow(step_key, state.params["images"], state.step)
        opt_state = {**state.opt_state, "images": task.optimizer.init(grown)}
        return State(state.step, {**state.params, "images": grown}, opt_state)

    def update(
        state: State, backbone_params: Sequence[Any], real: Sequence[Any]
    ) -> tuple[State, dict[str, Array]]:
        due = False if growing is None else growing.grows_at(state.step)
        # A Python `False` where all levels count from the start.
        before = state if due is False else jax.lax.cond(due, grow, lambda state: state, state)
        loss, gradient = jax.value_and_grad(loss_of)(
            before.params, before.step, backbone_params, real
        )
        params, opt_state = {}, {}
        for name, value in before.params.items():
            updates, opt_state[name] = optimizer_of(task, name).update(
                gradient[name], before.opt_state[name], value
            )
            if task.schedule is not None:
                # Not in the optimiser, whose count is reset where parameters change meaning.
                factor = task.schedule(before.step)
                updates = jax.tree.map(lambda update, f=factor: f * update, updates)
            params[name] = optax.apply_updates(value, updates)
        after, finite = State(before.step + 1, params, opt_state), jnp.isfinite(loss)
        # Not `before`, which would grow again.
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        return after, {"loss": loss}

    return Program(update, donate_argnums=0)


@jax.jit
def is_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether every number of a state is finite; no step leads back from another."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()


def mesh_for(task: Distillation, mesh: Mesh | None) -> Mesh:
    """Returns the mesh, or by default one of all devices that suits the images and copies."""
    return devices.make_mesh(task.num_images, task.copies) if mesh is None else mesh


def optimizer_of(task: Distillation, name: str) -> optax.GradientTransformation:
    return task.optimizer if name == "images" else task.labels_optimizer
