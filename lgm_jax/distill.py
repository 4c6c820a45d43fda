"""Distillation: what is to be made, its state, and the step that repeats.

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
# 3, 4 and 6 are of real images.
_INIT, _GROW, _OBJECTIVE, _VIEW = 0, 1, 2, 5

# Of an image's class when labels are learned.
_FIRST_PROBABILITY = 0.9

# Not a preset, of which another may be the best one day: released defaults stay; see `identity`.
_AUGMENTATION, _LGM = Augmentation(), LGM()

LABELS = ("hard", "soft")

Apply = Callable[[Any, Float[Array, "n r r 3"]], Float[Array, "n d"]]
Params = dict[str, Any]
Step = Callable[["State", Sequence[Any], Sequence[Any]], tuple["State", dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What is to be made: everything that decides the images, given backbones and real features.

    Attributes:
        num_classes: Number of classes `k`.
        parametrisation: Of the images, such as `images.Pyramid(256)`.
        crop: Side of the views that backbones see, in pixels.
        objective: What images are distilled by.
        ipc: Synthetic images per class.
        copies: Views of each image in a step, augmented but for `center_crop_copies`.
        augmentation: What makes a view; `None` for the centre crop.
        center_crop_copies: How many of the copies are centre crops instead: probes that are trained
            on centre crops see no other view.
        labels: `hard`: image i is of class i // ipc; `soft`: class probabilities are learned along.
        optimizer: Of the images' parameters. What it counts begins anew where these change meaning.
        labels_optimizer: Of the logits of soft labels.
        schedule: What updates are multiplied by, as a function of the number of those before.

    Raises:
        UserError: If a value is unknown or out of range, or contradicts another: one class leaves
            nothing to tell apart, a crop is no larger than the images, and `center_crop_copies` are
            no more than `copies`.
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
        _check_made("parametrisation", self.parametrisation, Parametrisation, "images.Pyramid(256)")
        _check_made("objective", self.objective, Objective, "objectives.LGM()")
        if self.augmentation is not None:
            _check_made("augmentation", self.augmentation, Callable, "augment.Augmentation()")
        checks.in_range("num_classes", self.num_classes, 2, whole=True)
        checks.counts(self, "ipc", "copies")
        checks.in_range("crop", self.crop, 1, self.parametrisation.resolution, whole=True)
        checks.in_range("center_crop_copies", self.center_crop_copies, 0, self.copies, whole=True)
        checks.one_of("labels", self.labels, LABELS)

    @property
    def idle(self) -> frozenset[str]:
        """Fields that change no image as the others are; see `identity`."""
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
    """What a step changes.

    Attributes:
        step: Number of updates made, () int32.
        params: By name: the parameters of `images`, and the `logits` (s, k) of soft labels.
        opt_state: By the same names, states of their optimisers.
    """

    # JAX rebuilds pytrees around placeholders, so the fields cannot promise arrays.
    step: Any
    params: Params
    opt_state: Params


def init(
    task: Distillation, key: Key[Array, ""], *, params: Any = None, mesh: Mesh | None = None
) -> State:
    """The state before the first step, as it lies on the mesh.

    Args:
        task: What is to be made.
        key: The run's root key.
        params: Parameters of the images to start from, such as those of `images.from_images`; they
            are copied, and stay as they are.
        mesh: As for `make_step`.
    """
    return devices.place(
        _mesh_for(task, mesh), init_state(task, key, params=params), task.num_images
    )


def init_state(task: Distillation, key: Key[Array, ""], *, params: Any = None) -> State:
    """The state before the first step, whole and on one device; arguments as for `init`."""
    if params is None:
        init_key = jax.random.fold_in(key, _INIT)
        params = task.parametrisation.init_params(init_key, task.num_images)
    values = {"images": params}
    if task.labels == "soft":
        values["logits"] = init_logits(task)
    opt_state = {name: _optimizer(task, name).init(value) for name, value in values.items()}
    # Copied, since the first step takes the place of it all: parameters may be the caller's, and
    # some optimisers keep them a second time.
    return jax.tree.map(jnp.copy, State(jnp.zeros((), jnp.int32), values, opt_state))


def init_logits(task: Distillation) -> Float[Array, "s k"]:
    """Soft labels before the first step: each image is of its class with a probability of 0.9."""
    k = task.num_classes
    scale = jnp.log(_FIRST_PROBABILITY * (k - 1) / (1 - _FIRST_PROBABILITY))
    return scale * jax.nn.one_hot(hard_labels(task), k)


def abstract_params(task: Distillation, num_images: int) -> Any:
    """Shapes and types of the parameters of some images; computes nothing."""
    made: Any = task.parametrisation
    if getattr(made, "init", None) == "real":
        # Which has the same, but needs images.
        made = dataclasses.replace(made, init="noise")
    return jax.eval_shape(lambda key: made.init_params(key, num_images), jax.random.key(0))


def params_bytes(task: Distillation) -> int:
    """Bytes of the parameters of one image."""
    shapes = jax.tree.leaves(abstract_params(task, 1))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)


def hard_labels(task: Distillation) -> Int[Array, " s"]:
    """Classes of the synthetic images: class by class, `ipc` of each."""
    return jnp.repeat(jnp.arange(task.num_classes, dtype=jnp.int32), task.ipc)


def render(task: Distillation, state: State) -> Float[Array, "s r r 3"]:
    """The images in [0, 1] of a state, as its last step saw them and changed them."""
    params = jax.tree.map(lambda leaf: leaf[: task.num_images], state.params["images"])
    # The last update was made with the levels that counted before it.
    return task.parametrisation.decode(params, jnp.maximum(0, state.step - 1))


def probabilities(task: Distillation, state: State) -> Float[Array, "s k"] | None:
    """Class probabilities of the images of a state, where labels are learned."""
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

    A view depends on the image's number among all, the copy's and the step, and on nothing else.
    This is all that devices do each for themselves.

    Args:
        task: What is to be made.
        apply: The backbone's `apply(params, images)`.
        key: The run's root key.
        mesh: As for `make_step`.
        microbatch: As for `make_step`.
    """
    mesh, view_key = _mesh_for(task, mesh), jax.random.fold_in(key, _VIEW)
    copies_here = -(-task.copies // mesh.shape[devices.COPY])

    def part(backbone_params: Any, params: Params, step: Array) -> tuple[Array, ...]:
        """The rows of one device."""
        own = devices.varying(params, (devices.COPY,))
        own_params, own_step = devices.varying((backbone_params, step))
        key = jax.random.fold_in(view_key, own_step)
        here = jax.tree.leaves(params["images"])[0].shape[0]
        images = devices.numbers_here(here, devices.IMAGE)
        copies = devices.numbers_here(copies_here, devices.COPY)

        def features(params: Any, images: Array, copies: Array) -> Float[Array, "s c d"]:
            seen = _views(task, key, params, images, copies, own_step)
            found = apply(own_params, rearrange(seen, "s c ... -> (s c) ..."))
            return rearrange(found, "(s c) d -> s c d", c=len(copies))

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
    mapped = devices.on_mesh(part, mesh, in_specs, (rows,) * 5)
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
    """The views of some images in some copies; a view has a random key of its own."""
    pixels = task.parametrisation.decode(params, step)
    keys = jax.vmap(lambda i: _fold_each(jax.random.fold_in(key, i), copies))(images)
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
    mesh = _mesh_for(task, mesh)
    embeds = [make_embed(task, each, key, mesh=mesh, microbatch=microbatch) for each in applies]
    shares = [1 / len(applies)] * len(applies) if weights is None else list(weights)
    objective_key = jax.random.fold_in(key, _OBJECTIVE)

    def loss(
        params: Params, step: Array, backbone_params: Sequence[Any], real: Sequence[Any]
    ) -> Float[Array, ""]:
        # One backbone after the other, each with the same views and the same draws.
        drawn = jax.random.fold_in(objective_key, step)
        losses = []
        for share, embed, own, features in zip(shares, embeds, backbone_params, real, strict=True):
            synthetic = embed(params, own, step)
            # Where the mesh is in JAX's context, see `numerics.sum_of_parts`.
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                losses.append(share * task.objective(drawn, synthetic, features))
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

    It is compiled at its first call, and takes the place of the state that it is given. What comes
    out depends neither on the devices nor on the size of microbatches, but for rounding. A step
    whose loss is not finite returns the state as it was: nothing better would come of it.

    `backbone_params` and `real` have an entry for each backbone: its parameters, and the `Features`
    of real images, or what the objective's `prepare` returned. `metrics` holds the `loss`.

    Args:
        task: What is to be made.
        applies: Of each backbone, `apply(params, images)`.
        key: The run's root key; all randomness is folded from it and from `state.step`.
        weights: Of the loss by each backbone; equal by default.
        mesh: The devices to work on, from `devices.make_mesh`; by default all, divided as suits
            the numbers of images and copies.
        microbatch: Views in a backbone at a time on each device, which bounds the memory that a
            step takes; by default all at once.
    """
    update = make_update(task, applies, key, weights=weights, mesh=mesh, microbatch=microbatch)
    return Program(update, donate_argnums=0)


def make_update(
    task: Distillation,
    applies: Sequence[Apply],
    key: Key[Array, ""],
    *,
    weights: Sequence[float] | None = None,
    mesh: Mesh | None = None,
    microbatch: int | None = None,
) -> Step:
    """The pure function of `make_step`, to be jitted; arguments are the same."""
    loss_of = make_loss(task, applies, key, weights=weights, mesh=mesh, microbatch=microbatch)
    grow = _make_grow(task, key)

    def update(
        state: State, backbone_params: Sequence[Any], real: Sequence[Any]
    ) -> tuple[State, dict[str, Array]]:
        before = grow(state)
        loss, gradient = jax.value_and_grad(loss_of)(
            before.params, before.step, backbone_params, real
        )
        params, opt_state = {}, {}
        for name, value in before.params.items():
            updates, opt_state[name] = _optimizer(task, name).update(
                gradient[name], before.opt_state[name], value
            )
            if task.schedule is not None:
                # Not in the optimiser, whose count begins anew where parameters change meaning.
                factor = task.schedule(before.step)
                updates = jax.tree.map(lambda update, f=factor: f * update, updates)
            params[name] = optax.apply_updates(value, updates)
        after, sound = State(before.step + 1, params, opt_state), jnp.isfinite(loss)
        # Not the one that has grown, or it would grow again.
        kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, state)
        return kept, {"loss": loss}

    return update


def _make_grow(task: Distillation, key: Key[Array, ""]) -> Callable[[State], State]:
    """Makes the function that has the parametrisation grow where it does before a step."""
    growing = task.parametrisation
    if not isinstance(growing, Growing):
        return lambda state: state

    def grow(state: State) -> State:
        drawn = jax.random.fold_in(jax.random.fold_in(key, _GROW), state.step)
        grown = growing.grow(drawn, state.params["images"], state.step)
        return State(
            state.step,
            {**state.params, "images": grown},
            {**state.opt_state, "images": task.optimizer.init(grown)},
        )

    def grow_if_due(state: State) -> State:
        due = growing.grows_at(state.step)
        # Known to be false of one that has grown from the start.
        return state if due is False else jax.lax.cond(due, grow, lambda state: state, state)

    return grow_if_due


@jax.jit
def is_finite(state: State) -> Bool[Array, ""]:
    """Whether every number of a state is finite; from one that is not, no step leads back."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]).all()


def _check_made(name: str, value: Any, kind: Any, such_as: str) -> None:
    """Refuses the name or the class of a thing in its place."""
    if isinstance(value, type) or not isinstance(value, kind):
        raise UserError(f"{name} must be a thing such as {such_as}, not {value!r}")


def _mesh_for(task: Distillation, mesh: Mesh | None) -> Mesh:
    return devices.make_mesh(task.num_images, task.copies) if mesh is None else mesh


def _optimizer(task: Distillation, name: str) -> optax.GradientTransformation:
    return task.optimizer if name == "images" else task.labels_optimizer


def _fold_each(key: Key[Array, ""], indices: Int[Array, " n"]) -> Key[Array, " n"]:
    # Folding in an index, unlike splitting, gives image i the same key whatever their number is.
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
