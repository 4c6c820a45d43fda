"""Linear gradient matching: one pure step, and the loop that repeats it.

Source: arXiv 2511.16674, section 3 and appendix A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from lgm_jax import images as image_ops
from lgm_jax import objectives
from lgm_jax.augment import PRESETS, Augmentation, augment
from lgm_jax.data.sampling import step_indices
from lgm_jax.images import Levels

# Separate random streams, so that changing one kind of draw leaves the others as they were.
_INIT, _GROW, _HEAD, _REAL, _REAL_VIEW, _SYN_VIEW, _REAL_CROP = range(7)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides which images come out, given backbone and data.

    Attributes:
        num_classes: Number of classes `k`.
        resolution: Side of the synthetic images, in pixels.
        crop: Side of the augmented crops that the backbone sees.
        ipc: Synthetic images per class.
        copies: Augmentations of each synthetic image in a step; the real batch has as many images
            as there are augmented synthetic ones.
        learning_rate: Adam's.
        schedule: `constant` as in the paper, or `cosine`: the learning rate falls to zero over
            `steps` updates, whatever the pyramid does meanwhile.
        steps: Updates that a `cosine` schedule is made for; unused otherwise.
        sampling: Which real images a step sees, one of `data.sampling.SAMPLINGS`; `exact` sees all.
        head_std: Standard deviation of the random head's kernel.
        kind: `pyramid` or `pixels`.
        init: `noise`, `zero`, or `real` (pixels only: start from given images).
        decorrelate: Whether parameters are decorrelated colours.
        start_resolution: Pyramid levels up to this side count from the start.
        grow_every: Steps between one new level and the next.
        augmentation: Of real and synthetic images alike; `None` for the centre crop.
        real: Where the real gradient is from: `stream` embeds a batch of real images at every
            step, `cached` draws a batch from features of `real_views` augmentations of each that
            were computed once, `exact` takes all of these features at every step.
        real_views: Augmentations of each real image, for `cached` and `exact`.
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
    augmentation: Augmentation | None = PRESETS["paper"]
    real: str = "stream"
    real_views: int = 1
    schedule: str = "constant"
    steps: int = 0
    sampling: str = "shuffle"

    @property
    def num_images(self) -> int:
        return self.ipc * self.num_classes

    @property
    def batch(self) -> int:
        """Real images, and augmented synthetic images, per step."""
        return self.num_images * self.copies

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
        return image_ops.num_active(step, self.sizes, self.start_resolution, self.grow_every)

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
Real = Callable[[Any, Source, Int[Array, ""]], tuple[Float[Array, "b d"], Int[Array, " b"]]]
REALS = ("stream", "cached", "exact")
SCHEDULES = ("constant", "cosine")
Step = Callable[[State, Any, Source], tuple[State, Float[Array, ""]]]


def init_state(
    key: Key[Array, ""], recipe: Recipe, start: Float[Array, "s h w 3"] | None = None
) -> State:
    """The state before the first step.

    Args:
        key: The run's root key.
        recipe: The recipe.
        start: Images in [0, 1] to start from, for `init="real"`.
    """
    if recipe.init == "real":
        if start is None or recipe.kind != "pixels":
            raise ValueError("init='real' needs kind='pixels' and images to start from")
        levels = image_ops.from_images(start, decorrelate=recipe.decorrelate)
    else:
        levels = image_ops.init_pyramid(
            jax.random.fold_in(key, _INIT),
            recipe.num_images,
            recipe.resolution,
            kind=recipe.kind,
            init=recipe.init,
            active=recipe.num_active(0),
        )
    return State(jnp.zeros((), jnp.int32), levels, _optimizer(recipe).init(levels))


def make_stream(
    apply: Callable[[Any, Float[Array, "n r r 3"]], Float[Array, "n d"]],
    recipe: Recipe,
    key: Key[Array, ""],
) -> Real:
    """Real features of a batch of images, drawn from a `Memory` inside the step and augmented."""
    draw_key = jax.random.fold_in(key, _REAL)

    def stream(params: Any, memory: Memory, step: Int[Array, ""]) -> tuple[Array, Array]:
        chosen = step_indices(
            recipe.sampling, draw_key, step, recipe.batch, memory.labels, recipe.num_classes
        )
        keys = _keys(key, _REAL_VIEW, step, recipe.batch)
        images = to_float(memory.images[chosen])
        features = apply(params, augment(keys, images, recipe.crop, recipe.augmentation))
        return features, memory.labels[chosen]

    return stream


def make_given_images(
    apply: Callable[[Any, Float[Array, "n r r 3"]], Float[Array, "n d"]],
    recipe: Recipe,
    key: Key[Array, ""],
) -> Real:
    """Real features of images that the host has read, augmented as in `make_stream`."""
    view_key = jax.random.fold_in(key, _REAL_VIEW)

    def given_images(params: Any, batch: ImageBatch, step: Int[Array, ""]) -> tuple[Array, Array]:
        step_key = jax.random.fold_in(view_key, step)
        keys = jax.vmap(lambda number: jax.random.fold_in(step_key, number))(batch.numbers)
        images = to_float(batch.images)
        return apply(params, augment(keys, images, recipe.crop, recipe.augmentation)), batch.labels

    return given_images


def image_keys(key: Key[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Random keys for reading images on the host: of which ones, and of where they are cropped."""
    return jax.random.fold_in(key, _REAL), jax.random.fold_in(key, _REAL_CROP)


def make_cached(recipe: Recipe, key: Key[Array, ""]) -> Real:
    """Real features of a batch, drawn from a `FeatureMemory` inside the step."""
    rows = make_rows(recipe, key)

    def cached(_: Any, memory: FeatureMemory, step: Int[Array, ""]) -> tuple[Array, Array]:
        views, chosen = rows(step, memory.labels)
        return memory.features[views, chosen], memory.labels[chosen]

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


def make_step(
    apply: Callable[[Any, Float[Array, "n r r 3"]], Float[Array, "n d"]],
    recipe: Recipe,
    key: Key[Array, ""],
    real: Real,
) -> Step:
    """Makes the update `step(state, params, source) -> state, loss`, pure and ready to be jitted.

    Args:
        apply: The backbone's `apply(params, images)`.
        recipe: The recipe.
        key: The run's root key; all randomness is folded from it and from `state.step`.
        real: `real(params, source, step)` gives the step's real features and labels.
    """
    optimizer = _optimizer(recipe)
    labels_syn = repeat(recipe.labels(), "s -> (s copies)", copies=recipe.copies)

    def step(state: State, params: Any, source: Source) -> tuple[State, Float[Array, ""]]:
        keys_syn = _keys(key, _SYN_VIEW, state.step, recipe.num_images)
        keys_syn = jax.vmap(lambda k: _fold_range(k, recipe.copies))(keys_syn)
        active = recipe.num_active(state.step)

        features_real, labels_real = real(params, source, state.step)
        head = objectives.init_head(
            jax.random.fold_in(jax.random.fold_in(key, _HEAD), state.step),
            features_real.shape[-1],
            recipe.num_classes,
            recipe.head_std,
        )
        gradient_real = objectives.head_gradient_in_parts(head, features_real, labels_real)

        def loss_fn(levels: Levels) -> Float[Array, ""]:
            images_syn = image_ops.decode(levels, active, decorrelate=recipe.decorrelate)
            views_syn = augment(
                rearrange(keys_syn, "s copies -> (s copies)"),
                repeat(images_syn, "s h w c -> (s copies) h w c", copies=recipe.copies),
                recipe.crop,
                recipe.augmentation,
            )
            gradient_syn = objectives.head_gradient(head, apply(params, views_syn), labels_syn)
            return objectives.cosine_distance(gradient_syn, gradient_real)

        loss, gradient = jax.value_and_grad(loss_fn)(state.levels)
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        # Not in the optimiser, whose count starts anew with every pyramid level.
        factor = recipe.learning_rate_factor(state.step)
        updates = jax.tree.map(lambda update: factor * update, updates)
        levels = optax.apply_updates(state.levels, updates)
        return State(state.step + 1, levels, opt_state), loss

    return step


def make_grow(recipe: Recipe, key: Key[Array, ""]) -> Callable[[State], State]:
    """Makes the function that adds a pyramid level and creates Adam's state anew."""
    optimizer = _optimizer(recipe)

    def grow(state: State) -> State:
        levels = image_ops.grow_pyramid(
            state.levels,
            jax.random.fold_in(jax.random.fold_in(key, _GROW), state.step),
            recipe.num_active(state.step) - 1,
            recipe.init,
        )
        return State(state.step, levels, optimizer.init(levels))

    return grow


def grows_at(recipe: Recipe, step: int) -> bool:
    """Whether the pyramid gets a new level after `step` updates, before the next."""
    return step > 0 and recipe.num_active(step) > recipe.num_active(step - 1)


def run(
    step: Step,
    grow: Callable[[State], State],
    recipe: Recipe,
    state: State,
    params: Any,
    sources: Callable[[int], Source],
    steps: int,
) -> Iterator[tuple[State, Float[Array, ""]]]:
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
def is_finite(state: State) -> Bool[Array, ""]:
    """Whether every number of a state is finite; from one that is not, no step leads back."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]).all()


def to_float(
    images: UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"],
) -> Float[Array, "n h w 3"]:
    """uint8 images as float32 in [0, 1]; float ones as they are."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    return optax.adam(recipe.learning_rate)


def _keys(key: Key[Array, ""], stream: int, step: Int[Array, ""], count: int) -> Key[Array, " n"]:
    return _fold_range(jax.random.fold_in(jax.random.fold_in(key, stream), step), count)


def _fold_range(key: Key[Array, ""], count: int) -> Key[Array, " n"]:
    # Folding in an index, unlike splitting, gives image i the same key whatever their number is.
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
