"""Distillation: one pure step, and the loop that repeats it.

Source: arXiv 2511.16674, section 3 and appendix A; for other objectives, see `objectives`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange, repeat
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from lgm_jax import checks, microbatch, objectives, sharding
from lgm_jax import images as image_ops
from lgm_jax.augment import Augmentation, augment, center_crop, to_float
from lgm_jax.data.sampling import SAMPLINGS, step_indices
from lgm_jax.errors import UserError
from lgm_jax.images import Levels

# Separate random streams, so that changing one kind of draw leaves the others as they were.
_INIT, _GROW, _HEAD, _REAL, _REAL_VIEW, _SYN_VIEW, _REAL_CROP = range(7)


# Not a preset, of which another may be the best one day: released defaults stay; see `identity`.
_AUGMENTATION = Augmentation()

OBJECTIVES = ("lgm", "sfm", "clp")
REALS = ("stream", "cached", "exact")
SCHEDULES = ("constant", "cosine")
LABEL_KINDS = ("hard", "soft")
INITS = (*image_ops.INITS, "real")

CHOICES: Mapping[str, Sequence[str]] = {
    "objective": OBJECTIVES,
    "real": REALS,
    "schedule": SCHEDULES,
    "label_kind": LABEL_KINDS,
    "sampling": SAMPLINGS,
    "kind": image_ops.KINDS,
    "init": INITS,
}
"""Fields of a recipe whose values are names, and these."""

# Of an image's class when labels are learned.
_FIRST_PROBABILITY = 0.9


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides which images come out, given backbone and data.

    Attributes:
        num_classes: Number of classes `k`.
        resolution: Side of the synthetic images, in pixels.
        crop: Side of the augmented crops that the backbone sees.
        ipc: Synthetic images per class.
        copies: Views of each synthetic image in a step, augmented but for `center_crop_copies`;
            the real batch has as many images as there are views.
        learning_rate: Adam's.
        schedule: `constant` as in the paper, or `cosine`: the learning rate falls to zero over
            `steps` updates, whatever the pyramid does meanwhile.
        steps: Updates that a `cosine` schedule is made for; unused otherwise.
        sampling: Which real images a step sees, one of `data.sampling.SAMPLINGS`; `exact` sees all.
        head_std: Standard deviation of the random head's kernel, for `lgm`.
        kind: `pyramid` or `pixels`.
        init: `noise`, `zero`, or `real` (pixels only: start from given images).
        decorrelate: Whether parameters are decorrelated colours.
        grey: Whether images have no colour.
        start_resolution: Pyramid levels up to this side count from the start.
        grow_every: Steps between one new level and the next.
        grow_delay: Steps by which every new level comes later; the authors' code has one.
        augmentation: Of synthetic images, and of real ones with `augment_real`; `None` for the
            centre crop.
        center_crop_copies: How many of the copies are centre crops instead: probes that are
            trained on centre crops see no other view.
        augment_real: Whether real images are augmented, rather than centre crops.
        real: Where real features are from: `stream` embeds a batch of real images at every
            step, `cached` draws a batch from features of `real_views` augmentations of each that
            were computed once, `exact` takes all of these features at every step.
        real_views: Augmentations of each real image, for `cached` and `exact`.
        objective: What images are distilled by, one of `OBJECTIVES`.
        ridge: Of the closed-form probe, for `clp`, of which `objectives.ridge_head` says what it is
            relative to: the same number means the same whatever `ipc` and `copies`.
        temperature: What its scores are divided by.
        head_per_copy: For `clp`: whether each copy's views of all images give a head of their own,
            the mean of whose losses counts, rather than all views together one.
        label_kind: Whether labels of synthetic images are `hard`, or `soft` and learned.
        labels_learning_rate: Adam's, for soft ones.

    Raises:
        UserError: If a value is unknown or out of range, or contradicts another: one class leaves
            nothing to tell apart, a crop is no larger than the images, `center_crop_copies` are no
            more than `copies`, a `cosine` schedule has steps, and `init="real"` needs `pixels`.
    """

    num_classes: int
    resolution: int
    crop: int
    ipc: int = 1
    copies: int = 10
    learning_rate: float = 0.002
    head_std: float = 0.01
    kind: str = "pyramid"
    init: str = "noise"
    decorrelate: bool = True
    start_resolution: int = 1
    grow_every: int = 200
    augmentation: Augmentation | None = _AUGMENTATION
    real: str = "stream"
    real_views: int = 1
    schedule: str = "constant"
    steps: int = 0
    sampling: str = "shuffle"
    grey: bool = False
    objective: str = "lgm"
    ridge: float = 0.001
    temperature: float = 0.1
    label_kind: str = "hard"
    labels_learning_rate: float = 0.01
    grow_delay: int = 0
    head_per_copy: bool = False
    center_crop_copies: int = 0
    augment_real: bool = True

    def __post_init__(self) -> None:
        checks.in_range("num_classes", self.num_classes, 2, whole=True)
        checks.counts(self, "resolution", "ipc", "copies", "start_resolution", "real_views")
        checks.counts(self, "grow_every", "grow_delay", low=0)
        checks.in_range("crop", self.crop, 1, self.resolution, whole=True)
        checks.in_range("center_crop_copies", self.center_crop_copies, 0, self.copies, whole=True)
        checks.in_range("steps", self.steps, int(self.schedule == "cosine"), whole=True)
        checks.in_range("head_std", self.head_std, 0)
        for name in ("learning_rate", "labels_learning_rate", "ridge", "temperature"):
            checks.positive(name, getattr(self, name))
        for name, known in CHOICES.items():
            checks.one_of(name, getattr(self, name), known)
        checks.flags(self, "decorrelate", "grey", "head_per_copy", "augment_real")
        if not isinstance(self.augmentation, Augmentation | None):
            raise UserError(f"augmentation must be an Augmentation or None: {self.augmentation!r}")
        if self.init == "real" and self.kind != "pixels":
            raise UserError("init=real needs kind=pixels")

    @property
    def idle(self) -> frozenset[str]:
        """Fields that change no image as the others are; see `identity`."""
        read = {
            "head_std": self.objective == "lgm",
            **dict.fromkeys(("ridge", "temperature", "head_per_copy"), self.objective == "clp"),
            "labels_learning_rate": self.label_kind == "soft",
            "real_views": self.real != "stream",
            "sampling": self.real != "exact",
            **dict.fromkeys(("center_crop_copies", "augment_real"), self.augmentation is not None),
            "decorrelate": not self.grey,
            "steps": self.schedule != "constant",
            **dict.fromkeys(("start_resolution", "grow_delay"), self.grow_every > 0),
        }
        if self.kind == "pixels":
            read |= dict.fromkeys(("start_resolution", "grow_every", "grow_delay"), False)
        return frozenset(name for name, is_read in read.items() if not is_read)

    @property
    def real_augmentation(self) -> Augmentation | None:
        return self.augmentation if self.augment_real else None

    @property
    def num_images(self) -> int:
        return self.ipc * self.num_classes

    @property
    def batch(self) -> int:
        """Real images, and augmented synthetic images, per step."""
        return self.num_images * self.copies

    def images_on(self, devices: int) -> int:
        """Synthetic images that each of some devices has, padding included."""
        return -(-self.num_images // devices)

    @property
    def needs_means_alone(self) -> bool:
        """Whether all that a step asks of real images are the means of their classes."""
        return self.objective == "sfm" and self.real == "exact"

    @property
    def sizes(self) -> tuple[int, ...]:
        return image_ops.level_sizes(self.resolution, self.kind)

    def learning_rate_factor(self, step: Any) -> Any:
        """What the schedule multiplies the learning rate by, after `step` updates."""
        if self.schedule == "constant":
            return 1.0
        done = jnp.minimum(jnp.asarray(step, jnp.float32) / self.steps, 1)
        return 0.5 * (1 + jnp.cos(jnp.pi * done))

    def num_active(self, step: Any) -> Any:
        return image_ops.num_active(
            step, self.sizes, self.start_resolution, self.grow_every, self.grow_delay
        )

    def labels(self) -> Int[Array, " s"]:
        """Labels of the synthetic images: class by class, `ipc` of each."""
        return jnp.repeat(jnp.arange(self.num_classes, dtype=jnp.int32), self.ipc)


class State(NamedTuple):
    """What a step changes.

    Attributes:
        step: Number of updates made, () int32.
        levels: The images' parameters, `images.Levels`.
        opt_state: Adam's.
    """

    # JAX rebuilds pytrees around placeholders, so the fields cannot promise arrays.
    step: Any
    levels: Any
    opt_state: Any


class SoftState(NamedTuple):
    """The same with labels that are learned along.

    Attributes:
        step: As of `State`.
        levels: Likewise.
        opt_state: Likewise.
        logits: Whose softmax is the images' class probabilities, (s, k).
        labels_opt_state: Their Adam's, which no new pyramid level touches.
    """

    step: Any
    levels: Any
    opt_state: Any
    logits: Any
    labels_opt_state: Any


class Memory(NamedTuple):
    """A whole real set on the device: images (n, h, w, 3) uint8, labels (n,) int32."""

    images: UInt8[Array, "n h w 3"]
    labels: Int[Array, " n"]


class ImageBatch(NamedTuple):
    """One step's real images, read on the host.

    Attributes:
        images: (b, h, w, 3) uint8.
        labels: (b,) int32.
        numbers: (b,) int32, which images of the step's batch these are: their random keys follow
            from it, so that processes may share a batch out as they like.
    """

    images: UInt8[Array, "b h w 3"]
    labels: Int[Array, " b"]
    numbers: Int[Array, " b"]


class FeatureMemory(NamedTuple):
    """Its features on the device: (views, n, d) float32, labels (n,) int32."""

    features: Float[Array, "views n d"]
    labels: Int[Array, " n"]


class Batch(NamedTuple):
    """One step's real features, drawn on the host: (b, d) float32, labels (b,) int32."""

    features: Float[Array, "b d"]
    labels: Int[Array, " b"]


Source = Any
Apply = Callable[[Any, Float[Array, "n r r 3"]], Float[Array, "n d"]]
Real = Callable[[Any, Source, Int[Array, ""]], tuple[Float[Array, "b d"], Int[Array, " b"]]]
Embed = Callable[
    [Any, Levels, Int[Array, " s"], Int[Array, " copies"], Int[Array, ""]],
    Float[Array, "s copies d"],
]
AnyState = State | SoftState
Match = Callable[[Float[Array, "n d"], objectives.Labels, Float[Array, " n"]], Float[Array, ""]]
Prepare = Callable[[Float[Array, "b d"], Int[Array, " b"], Int[Array, ""]], Match]
Gradient = Callable[[AnyState, Any, Source], tuple[Float[Array, ""], Any]]
Step = Callable[[AnyState, Any, Source], tuple[AnyState, Float[Array, ""]]]


def init_state(
    key: Key[Array, ""], recipe: Recipe, start: Float[Array, "s h w 3"] | None = None
) -> AnyState:
    """The state before the first step.

    Args:
        key: The run's root key.
        recipe: The recipe.
        start: Images in [0, 1] to start from, for `init="real"`.
    """
    if recipe.init == "real":
        if start is None:
            raise ValueError("init='real' needs images to start from")
        levels = image_ops.from_images(start, decorrelate=recipe.decorrelate, grey=recipe.grey)
    else:
        levels = image_ops.init_pyramid(
            jax.random.fold_in(key, _INIT),
            recipe.num_images,
            recipe.resolution,
            kind=recipe.kind,
            init=recipe.init,
            active=recipe.num_active(0),
        )
    state = State(jnp.zeros((), jnp.int32), levels, _optimizer(recipe).init(levels))
    if recipe.label_kind == "hard":
        return state
    logits = init_logits(recipe)
    return SoftState(*state, logits, _labels_optimizer(recipe).init(logits))


def init_logits(recipe: Recipe) -> Float[Array, "s k"]:
    """Soft labels before the first step: each image is of its class with a probability of 0.9."""
    k = recipe.num_classes
    scale = jnp.log(_FIRST_PROBABILITY * (k - 1) / (1 - _FIRST_PROBABILITY))
    return scale * jax.nn.one_hot(recipe.labels(), k)


def make_stream(
    apply: Apply,
    recipe: Recipe,
    key: Key[Array, ""],
    *,
    mesh: Mesh | None = None,
    microbatch_size: int | None = None,
) -> Real:
    """Real features of a batch of images, drawn from a `Memory` inside the step and augmented.

    Args:
        apply: The backbone's `apply(params, images)`.
        recipe: The recipe.
        key: The run's root key.
        mesh: The step's mesh, each device of which embeds its part of the batch; `None` gives the
            whole batch.
        microbatch_size: Images in the backbone at a time; all by default.
    """
    draw_key = jax.random.fold_in(key, _REAL)

    def stream(params: Any, memory: Memory, step: Int[Array, ""]) -> tuple[Array, Array]:
        drawn = step_indices(
            recipe.sampling, draw_key, step, recipe.batch, memory.labels, recipe.num_classes
        )
        view_key = jax.random.fold_in(jax.random.fold_in(key, _REAL_VIEW), step)

        def embed(positions: Int[Array, " n"], chosen: Int[Array, " n"]) -> Float[Array, "n d"]:
            images = to_float(memory.images[chosen])
            keys = _fold_each(view_key, positions)
            return apply(params, augment(keys, images, recipe.crop, recipe.real_augmentation))

        positions, chosen, labels = _own_part(drawn, memory.labels, mesh)
        return microbatch.map_in_parts(embed, microbatch_size, positions, chosen), labels

    return stream


def make_given_images(
    apply: Apply, recipe: Recipe, key: Key[Array, ""], *, microbatch_size: int | None = None
) -> Real:
    """Real features of images that the host has read, augmented as in `make_stream`.

    Args:
        apply: The backbone's `apply(params, images)`.
        recipe: The recipe.
        key: The run's root key.
        microbatch_size: Images in the backbone at a time; all by default.
    """
    view_key = jax.random.fold_in(key, _REAL_VIEW)

    def given_images(params: Any, batch: ImageBatch, step: Int[Array, ""]) -> tuple[Array, Array]:
        step_key = jax.random.fold_in(view_key, step)

        def embed(numbers: Int[Array, " n"], images: UInt8[Array, "n h w 3"]) -> Array:
            keys = _fold_each(step_key, numbers)
            pixels = to_float(images)
            return apply(params, augment(keys, pixels, recipe.crop, recipe.real_augmentation))

        features = microbatch.map_in_parts(embed, microbatch_size, batch.numbers, batch.images)
        return features, batch.labels

    return given_images


def image_keys(key: Key[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Random keys for reading images on the host: of which ones, and of where they are cropped."""
    return jax.random.fold_in(key, _REAL), jax.random.fold_in(key, _REAL_CROP)


def make_cached(recipe: Recipe, key: Key[Array, ""], *, mesh: Mesh | None = None) -> Real:
    """Real features of a batch, drawn from a `FeatureMemory` inside the step.

    Args:
        recipe: The recipe.
        key: The run's root key.
        mesh: The step's mesh, each device of which takes its part of the batch; `None` gives the
            whole batch.
    """
    rows = make_rows(recipe, key)

    def cached(_: Any, memory: FeatureMemory, step: Int[Array, ""]) -> tuple[Array, Array]:
        views, drawn = rows(step, memory.labels)
        positions, chosen, labels = _own_part(drawn, memory.labels, mesh)
        return memory.features[views[positions], chosen], labels

    return cached


def make_rows(
    recipe: Recipe, key: Key[Array, ""]
) -> Callable[[Int[Array, ""] | int, Int[Array, " n"]], tuple[Int[Array, " b"], Int[Array, " b"]]]:
    """Which cached features a step sees: `rows(step, labels)` gives views and images.

    Images come in the order in which they would be streamed; each is seen in a random view.
    """
    draw_key, view_key = (jax.random.fold_in(key, stream) for stream in (_REAL, _REAL_VIEW))

    def rows(step: Int[Array, ""] | int, labels: Int[Array, " n"]) -> tuple[Array, Array]:
        chosen = step_indices(
            recipe.sampling, draw_key, step, recipe.batch, labels, recipe.num_classes
        )
        view = jax.random.fold_in(view_key, step)
        return jax.random.randint(view, (recipe.batch,), 0, recipe.real_views), chosen

    return rows


def given(_: Any, batch: Batch, step: Int[Array, ""]) -> tuple[Array, Array]:
    """Real features that were drawn on the host."""
    return batch.features, batch.labels


def exact(_: Any, memory: FeatureMemory, step: Int[Array, ""]) -> tuple[Array, Array]:
    """All real features."""
    features = rearrange(memory.features, "views n d -> (views n) d")
    return features, jnp.tile(memory.labels, memory.features.shape[0])


def render(recipe: Recipe, levels: Levels, active: Any) -> Float[Array, "s h w 3"]:
    """The images in [0, 1] that levels stand for, of which the first `active` count."""
    return image_ops.decode(levels, active, decorrelate=recipe.decorrelate, grey=recipe.grey)


def make_embed(apply: Apply, recipe: Recipe, key: Key[Array, ""]) -> Embed:
    """Makes `embed(params, levels, indices, copies, step)`: features of augmented images.

    A view depends on the image's index among all, the copy's and the step, and on nothing else.

    Args:
        apply: The backbone's `apply(params, images)`.
        recipe: The recipe.
        key: The run's root key.
    """
    view_key = jax.random.fold_in(key, _SYN_VIEW)

    def embed(
        params: Any,
        levels: Levels,
        indices: Int[Array, " s"],
        copies: Int[Array, " copies"],
        step: Int[Array, ""],
    ) -> Float[Array, "s copies d"]:
        images = render(recipe, levels, recipe.num_active(step))
        keys = _fold_each(jax.random.fold_in(view_key, step), indices)
        keys = jax.vmap(lambda k: _fold_each(k, copies))(keys)
        views = augment(
            rearrange(keys, "s copies -> (s copies)"),
            repeat(images, "s h w c -> (s copies) h w c", copies=copies.shape[0]),
            recipe.crop,
            recipe.augmentation,
        )
        views = rearrange(views, "(s copies) ... -> s copies ...", s=indices.shape[0])
        if recipe.center_crop_copies:
            plain = center_crop(images, recipe.crop)[:, None]
            chosen = rearrange(copies < recipe.center_crop_copies, "copies -> 1 copies 1 1 1")
            views = jnp.where(chosen, plain, views)
        features = apply(params, rearrange(views, "s copies ... -> (s copies) ..."))
        return rearrange(features, "(s copies) d -> s copies d", s=indices.shape[0])

    return embed


def make_gradient(
    apply: Apply,
    recipe: Recipe,
    key: Key[Array, ""],
    real: Real,
    *,
    mesh: Mesh | None = None,
    microbatch_size: int | None = None,
) -> Gradient:
    """Makes `gradient(state, params, source)`: the loss, and its gradient in this device's levels.

    Of a `SoftState`, in levels and logits.

    On a mesh it is for `sharding.over_devices`; what devices exchange is up to `make_prepare`.

    Args:
        apply: The backbone's `apply(params, images)`.
        recipe: The recipe.
        key: The run's root key; all randomness is folded from it and from `state.step`.
        real: `real(params, source, step)` gives real features and labels, those of this device or
            the same on all; rows with the label `sharding.PADDING` have no weight.
        mesh: The devices; `None` for one.
        microbatch_size: Views in the backbone at a time; all by default.
    """
    embed = make_embed(apply, recipe, key)
    prepare = make_prepare(recipe, key, mesh=mesh)

    def gradient(state: AnyState, params: Any, source: Source) -> tuple[Float[Array, ""], Any]:
        match = prepare(*real(params, source, state.step), state.step)
        indices = sharding.own_positions(state.levels[0].shape[0], mesh)
        hard = jnp.where(indices < recipe.num_images, indices // recipe.ipc, sharding.PADDING)
        logits = state.logits if isinstance(state, SoftState) else None

        def embed_images(levels: Levels, indices: Int[Array, " s"]) -> Array:
            def embed_copies(copies: Int[Array, " copies"]) -> Float[Array, "copies s d"]:
                features = embed(params, levels, indices, copies, state.step)
                return rearrange(features, "s copies d -> copies s d")

            copies = jnp.arange(recipe.copies, dtype=jnp.int32)
            features = microbatch.map_in_parts(embed_copies, microbatch_size, copies)
            return rearrange(features, "copies s d -> s copies d")

        def loss_of(
            features: Float[Array, "s copies d"], logits: Float[Array, "s k"] | None
        ) -> Float[Array, ""]:
            views = rearrange(features, "s copies d -> (s copies) d")
            hard_labels, labels = (
                repeat(of_images, "s ... -> (s copies) ...", copies=recipe.copies)
                for of_images in (hard, hard if logits is None else jax.nn.softmax(logits))
            )
            return match(views, labels, _weights(views, hard_labels))

        # The loss needs the features of all images, and its gradient is one of features; so the
        # chain rule stops there. Images whose copies do not fit in a microbatch come one by one.
        size = microbatch_size and max(1, microbatch_size // recipe.copies)
        features, pullback = microbatch.vjp_in_parts(embed_images, size, state.levels, indices)
        loss, (gradient_features, gradient_logits) = jax.value_and_grad(loss_of, argnums=(0, 1))(
            features, logits
        )
        gradient_levels = pullback(gradient_features)
        return loss, gradient_levels if logits is None else (gradient_levels, gradient_logits)

    return gradient


def weigh_gradients(gradients: Sequence[Gradient], weights: Sequence[float]) -> Gradient:
    """The weighted sum of losses of the same images against several backbones, and its gradient.

    Its parameters and its source are sequences with an entry for each. One backbone comes after the
    other, and each has its images decoded and augmented anew, in the same views.

    Args:
        gradients: Of each backbone, from `make_gradient`.
        weights: Of each loss.
    """

    def gradient(
        state: AnyState, params: Sequence[Any], sources: Sequence[Source]
    ) -> tuple[Float[Array, ""], Any]:
        shares = [
            jax.tree.map(lambda leaf, weight=weight: weight * leaf, one(state, *own))
            for one, weight, *own in zip(gradients, weights, params, sources, strict=True)
        ]
        return jax.tree.map(lambda *leaves: functools.reduce(jnp.add, leaves), *shares)

    return gradient


def make_prepare(recipe: Recipe, key: Key[Array, ""], *, mesh: Mesh | None = None) -> Prepare:
    """Makes `prepare(features_real, labels_real, step)`: `match(features, labels, weights)`.

    The latter is the objective's loss of all synthetic images, differentiable with respect to the
    features and the probabilities of this device's. Both take what this device has; real rows with
    the label `sharding.PADDING` have no weight. The sums that devices exchange are, for `lgm`, the
    head gradients of real and synthetic images; for `sfm`, their features' by class. For `clp` each
    device gets the features of all synthetic images.

    Args:
        recipe: The recipe.
        key: The run's root key.
        mesh: The devices; `None` for one.
    """
    makers = {"lgm": _prepare_gradients, "sfm": _prepare_flows, "clp": _prepare_closed_form}
    return makers[recipe.objective](recipe, key, mesh)


def _prepare_gradients(recipe: Recipe, key: Key[Array, ""], mesh: Mesh | None) -> Prepare:
    head_key = jax.random.fold_in(key, _HEAD)

    def sum_head_gradients(
        head: objectives.Head, features: Array, labels: Array, weights: Array
    ) -> Any:
        """The head gradient of all devices' images, known to each."""
        share = objectives.head_gradient_in_parts(
            sharding.own(head, mesh), features, labels, weights, denominator=1.0
        )
        summed, count = sharding.total((share, jnp.sum(weights)), mesh)
        return jax.tree.map(lambda leaf: leaf / objectives.nonzero(count), summed)

    def prepare(features_real: Array, labels_real: Array, step: Int[Array, ""]) -> Match:
        head = objectives.init_head(
            jax.random.fold_in(head_key, step),
            features_real.shape[-1],
            recipe.num_classes,
            recipe.head_std,
        )
        weights_real = _weights(features_real, labels_real)
        gradient_real = sum_head_gradients(head, features_real, labels_real, weights_real)

        def match(features: Array, labels: Array, weights: Array) -> Float[Array, ""]:
            gradient_syn = sum_head_gradients(head, features, labels, weights)
            return objectives.cosine_distance(gradient_syn, gradient_real)

        return match

    return prepare


def _prepare_flows(recipe: Recipe, key: Key[Array, ""], mesh: Mesh | None) -> Prepare:
    def sum_classes(features: Array, labels: Array, weights: Array) -> objectives.ClassSums:
        """The sums of all devices' images, known to each."""
        total = functools.partial(sharding.total, mesh=mesh)
        return objectives.shifted_class_sums(
            features, labels, recipe.num_classes, weights, total=total
        )

    def prepare(features_real: Array, labels_real: Array, step: Int[Array, ""]) -> Match:
        weights_real = _weights(features_real, labels_real)
        sums_real = sum_classes(features_real, labels_real, weights_real)

        def match(features: Array, labels: Array, weights: Array) -> Float[Array, ""]:
            return objectives.flow_distance(sum_classes(features, labels, weights), sums_real)

        return match

    return prepare


def _prepare_closed_form(recipe: Recipe, key: Key[Array, ""], mesh: Mesh | None) -> Prepare:
    def prepare(features_real: Array, labels_real: Array, step: Int[Array, ""]) -> Match:
        weights_real = _weights(features_real, labels_real)
        count = sharding.total(jnp.sum(weights_real), mesh)

        def loss_of(features: Array, labels: Array, weights: Array) -> Float[Array, ""]:
            head = objectives.ridge_head(
                features, labels, recipe.num_classes, recipe.ridge, weights
            )
            return objectives.linear_probe_loss_in_parts(
                objectives.tempered(head, recipe.temperature),
                features_real,
                labels_real,
                weights_real,
                denominator=count,
            )

        def match(features: Array, labels: Array, weights: Array) -> Float[Array, ""]:
            # Every device solves for the head of all synthetic images, and tries it on its own
            # real ones.
            views = sharding.gather((features, labels, weights), mesh)
            if not recipe.head_per_copy:
                return sharding.total(loss_of(*views), mesh)
            by_copy = tuple(
                rearrange(array, "(s copies) ... -> copies s ...", copies=recipe.copies)
                for array in views
            )
            # One after another, for the class scores of all real images take memory.
            losses = jax.lax.map(lambda copy: loss_of(*copy), by_copy)
            return sharding.total(jnp.mean(losses), mesh)

        return match

    return prepare


def make_step(
    apply: Apply,
    recipe: Recipe,
    key: Key[Array, ""],
    real: Real,
    *,
    mesh: Mesh | None = None,
    source_specs: Any = sharding.EVERYWHERE,
    microbatch_size: int | None = None,
) -> Step:
    """Makes the update `step(state, params, source) -> state, loss`, pure and ready to be jitted.

    What comes out depends neither on the mesh nor on the size of microbatches, but for rounding. A
    step whose loss is not finite returns the state as it was: nothing better would come of it.

    Args:
        apply: The backbone's `apply(params, images)`.
        recipe: The recipe.
        key: The run's root key; all randomness is folded from it and from `state.step`.
        real: `real(params, source, step)` gives the step's real features and labels.
        mesh: The devices to work on, on which the state lies as `sharding.place` puts it; `None`
            for one.
        source_specs: How sources are laid out on them: each device has all of them, by default.
        microbatch_size: Views in the backbone at a time on each device, which bounds the memory
            that a step takes; by default all at once.
    """
    gradient = make_gradient(apply, recipe, key, real, mesh=mesh, microbatch_size=microbatch_size)
    return make_step_along(gradient, recipe, mesh=mesh, source_specs=source_specs)


def make_step_along(
    gradient_fn: Gradient,
    recipe: Recipe,
    *,
    mesh: Mesh | None = None,
    source_specs: Any = sharding.EVERYWHERE,
) -> Step:
    """`make_step` along a gradient that is there already, such as that of several backbones.

    Args:
        gradient_fn: From `make_gradient` or `weigh_gradients`, for the same mesh.
        recipe: The recipe.
        mesh: As for `make_step`.
        source_specs: Likewise.
    """
    optimizer, labels_optimizer = _optimizer(recipe), _labels_optimizer(recipe)

    def descend(
        optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, values: Any, at: Any
    ) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(gradient, opt_state)
        # Not in the optimiser, whose count starts anew with every pyramid level.
        factor = recipe.learning_rate_factor(at)
        updates = jax.tree.map(lambda update: factor * update, updates)
        return optax.apply_updates(values, updates), opt_state

    def update(state: AnyState, params: Any, source: Source) -> tuple[AnyState, Float[Array, ""]]:
        loss, gradient = gradient_fn(state, params, source)
        soft = isinstance(state, SoftState)
        levels, opt_state = descend(
            optimizer, gradient[0] if soft else gradient, state.opt_state, state.levels, state.step
        )
        updated = State(state.step + 1, levels, opt_state)
        after: AnyState = updated
        if isinstance(state, SoftState):
            logits, labels_opt_state = descend(
                labels_optimizer, gradient[1], state.labels_opt_state, state.logits, state.step
            )
            after = SoftState(*updated, logits, labels_opt_state)
        sound = jnp.isfinite(loss)
        return jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, state), loss

    def step(state: AnyState, params: Any, source: Source) -> tuple[AnyState, Float[Array, ""]]:
        specs = sharding.specs(state)
        layout = (specs, sharding.EVERYWHERE, source_specs)
        divided = sharding.over_devices(update, mesh, layout, (specs, sharding.EVERYWHERE))
        return divided(state, params, source)

    return step


def make_grow(
    recipe: Recipe, key: Key[Array, ""], *, mesh: Mesh | None = None
) -> Callable[[AnyState], AnyState]:
    """Makes the function that adds a pyramid level and creates Adam's state anew.

    Args:
        recipe: The recipe.
        key: The run's root key.
        mesh: As for `make_step`.
    """
    optimizer = _optimizer(recipe)

    def grow(state: AnyState) -> AnyState:
        levels = image_ops.grow_pyramid(
            state.levels,
            jax.random.fold_in(jax.random.fold_in(key, _GROW), state.step),
            recipe.num_active(state.step) - 1,
            recipe.init,
        )
        grown = state._replace(levels=levels, opt_state=optimizer.init(levels))
        return sharding.constrain(grown, mesh)

    return grow


def view_bytes(apply: Apply, params: Any, recipe: Recipe, key: Key[Array, ""]) -> int:
    """Bytes that a step holds of every view that is in the backbone at a time; runs nothing.

    Args:
        apply: The backbone's `apply(params, images)`.
        params: Its parameters, of which only shapes and types count.
        recipe: The recipe.
        key: Any random key.
    """
    embed = make_embed(apply, recipe, key)

    def kept(count: int) -> int:
        sides = recipe.sizes
        levels = tuple(jax.ShapeDtypeStruct((count, n, n, 3), jnp.float32) for n in sides)

        def features(levels: Levels, params: Any) -> Float[Array, "s copies d"]:
            return embed(params, levels, jnp.arange(count), jnp.arange(1), jnp.int32(0))

        return microbatch.kept_bytes(features, levels, params)

    # The difference leaves out what is kept once, such as parameters.
    return kept(2) - kept(1)


def grows_at(recipe: Recipe, step: int) -> bool:
    """Whether the pyramid gets a new level after `step` updates, before the next."""
    return step > 0 and recipe.num_active(step) > recipe.num_active(step - 1)


def run(
    step: Step,
    grow: Callable[[AnyState], AnyState],
    recipe: Recipe,
    state: AnyState,
    params: Any,
    sources: Callable[[int], Source],
    steps: int,
) -> Iterator[tuple[AnyState, Float[Array, ""]]]:
    """Repeats the step until `steps` updates are made, and yields after each.

    The yielded loss is still being computed: reading it waits for the device. `step` may donate
    its state's buffers, so a yielded state is to be read before the next one is asked for.

    Args:
        step: From `make_step`, jitted.
        grow: From `make_grow`, jitted.
        recipe: The recipe.
        state: Where to start; `init_state`, or a restored one.
        params: The backbone's parameters.
        sources: What `step` draws its real batch from, by step number.
        steps: Updates to have been made at the end.
    """
    for number in range(int(state.step), steps):
        if grows_at(recipe, number):
            state = grow(state)
        state, loss = step(state, params, sources(number))
        yield state, loss


@jax.jit
def is_finite(state: AnyState) -> Bool[Array, ""]:
    """Whether every number of a state is finite; from one that is not, no step leads back."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]).all()


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    return optax.adam(recipe.learning_rate)


def _weights(features: Float[Array, "n d"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    return (labels != sharding.PADDING).astype(features.dtype)


def _labels_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    return optax.adam(recipe.labels_learning_rate)


def _own_part(
    drawn: Int[Array, " b"], labels: Int[Array, " n"], mesh: Mesh | None
) -> tuple[Int[Array, " p"], Int[Array, " p"], Int[Array, " p"]]:
    """Positions in the batch, images and labels of this device's part of the images drawn."""
    batch = drawn.shape[0]
    each = batch if mesh is None else -(-batch // mesh.size)
    positions = sharding.own_positions(each, mesh)
    inside = jnp.minimum(positions, batch - 1)
    chosen = drawn[inside]
    return inside, chosen, jnp.where(positions < batch, labels[chosen], sharding.PADDING)


def _fold_each(key: Key[Array, ""], indices: Int[Array, " n"]) -> Key[Array, " n"]:
    # Folding in an index, unlike splitting, gives image i the same key whatever their number is.
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
