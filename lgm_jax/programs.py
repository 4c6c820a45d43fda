"""The programs of a distillation, and the shapes of what they take, before there is an array.

What a run executes, a plan compiles: both are made here.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from lgm_jax import (
    backbones,
    devices,
    distill,
    execution,
    features,
    flops,
    hosts,
    memory,
    real,
)
from lgm_jax.backbones import Backbone, residuals
from lgm_jax.backbones.residuals import Residuals
from lgm_jax.devices import AnyMesh
from lgm_jax.execution import Execution
from lgm_jax.features import Views
from lgm_jax.settings import Recipe, split_list


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """A backbone without its weights, whose parameters are shapes and types."""

    spec: Any
    resolution: int
    apply: distill.Apply
    params: Any

    @property
    def feature_dim(self) -> int:
        """Number of features."""
        return self.spec.feature_dim

    @functools.cached_property
    def flops(self) -> tuple[float, float]:
        """Operations of the products of an image: forward, and backward with frozen weights."""

        def total(images: Any, params: Any) -> Any:
            return jnp.sum(self.apply(params, images))

        image = jax.ShapeDtypeStruct((1, self.resolution, self.resolution, 3), jnp.float32)
        forward = flops.count(total, image, self.params)
        return forward, flops.count(jax.grad(total), image, self.params) - forward


Network = Backbone | Outline


class Sized(abc.ABC):
    """A program that takes so many views in a backbone at a time, for given devices.

    Attributes:
        mesh: The devices, which the process need not have; abstract where nothing is compiled.
        options: Of the compiler, which may have no such device at hand.
    """

    mesh: Any
    options: Mapping[str, str] | None

    @abc.abstractmethod
    def trace(self, size: int | None) -> Any:
        """The program as JAX understands it."""

    @abc.abstractmethod
    def fit(self, limit: int, needed: memory.Needed | None = None) -> int:
        """The most views at a time for `limit` bytes a device, by the compiler's account."""

    @property
    def device(self) -> jax.Device:
        """One of this process's, for all: they have the same memory, and as much of it is taken."""
        return self.mesh.local_devices[0]

    @property
    def platform(self) -> str:
        """The platform of the devices, as JAX calls it."""
        return self.mesh.devices.flat[0].platform

    def lower(self, size: int | None) -> jax.stages.Lowered:
        """The program as its compiler gets it."""
        return self.trace(size).lower()

    def needed(self, size: int) -> int | float:
        """Bytes of each device that the program needs, by its compiler's account."""
        return memory.try_compile(self.lower(size), self.options)[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding(Sized):
    """The embedding of a batch of real images, of which nothing is kept for a gradient.

    Attributes:
        images: Of a batch, on all devices.
        side: Of an image, in pixels.
        numbers: How many numbers place a view.
    """

    network: Network
    images: int
    side: int
    views: Views
    mesh: Any
    numbers: int = 1
    key: Key[Array, ""] = dataclasses.field(default_factory=lambda: jax.random.key(0))
    options: Mapping[str, str] | None = None

    @property
    def here(self) -> int:
        """Images of a device, those that fill up among them."""
        return -(-self.images // self.mesh.size)

    def trace(self, size: int | None) -> Any:
        """The program of `features.embed_views`, with so many images in the backbone at a time."""
        params, images = self._given()
        places = jax.ShapeDtypeStruct((self.images, self.numbers), jnp.int32)
        return features.embed_views.for_platform(self.platform).trace(
            params,
            images,
            self.key,
            devices.put(self.mesh, places, devices.ROWS),
            apply=self.network.apply,
            crop=self.views.crop,
            augmentation=self.views.augmentation,
            mesh=self.mesh,
            size=size,
        )

    def fixed(self) -> int:
        """Bytes of each device for what the program takes and returns, whatever the size."""
        return devices.bytes_here(self._given()) + 4 * self.here * self.network.feature_dim

    def fit(self, limit: int, needed: memory.Needed | None = None) -> int:
        """The most images at a time for `limit` bytes a device, by the compiler's account."""
        most = features.most_at_once(self.platform, self.here)
        sizes = sorted({devices.even(self.here, size) for size in range(1, most + 1)})
        # All that are worth it are expected to fit: a block at a time takes little.
        return memory.fit(needed or self.needed, limit, sizes, most, self.fixed())

    def choose(self) -> int | None:
        """The most images at a time that fit this process's devices; on CPUs `None`, for all."""
        if self.device.platform == "cpu":
            return None
        has = devices.bytes_here(_params(self.network, self.mesh))
        return self.fit(memory.free_bytes(self.device.memory_stats(), -has))

    def _given(self) -> tuple[Any, Any]:
        """Shapes, types and layouts of weights and images."""
        images = jax.ShapeDtypeStruct((self.images, self.side, self.side, 3), jnp.uint8)
        return _params(self.network, self.mesh), devices.put(self.mesh, images, devices.ROWS)


Fit = Callable[[Embedding, int], int]
"""Finds the most images at a time of an embedding, for a limit in bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Programs(Sized):
    """The step of a run, and the embeddings of its real images.

    Attributes:
        recipe: What is to be made.
        networks: The backbones to distil against.
        on_host: Whether the host reads the images of a step, rather than all on the device.
        weights: Of the losses by each backbone; equal by default.
    """

    recipe: Recipe
    networks: Sequence[Network]
    key: jax.Array
    num_images: int
    on_host: bool
    mesh: Any
    weights: Sequence[float] | None = None
    options: Mapping[str, str] | None = None
    residuals: Residuals = "all"

    @property
    def offered(self) -> Sequence[Residuals]:
        """The activations that all backbones can keep for the gradient."""
        return min((residuals.offered(network) for network in self.networks), key=len)

    @property
    def here(self) -> tuple[int, int]:
        """Synthetic images of a device, and copies of each, those that fill up among them."""
        task = self.recipe.task
        images, copies = (self.mesh.shape[axis] for axis in devices.AXES)
        return -(-task.num_images // images), -(-task.copies // copies)

    @property
    def views(self) -> int:
        """Views of synthetic images of a device in a step."""
        return math.prod(self.here)

    def parts(self, size: int) -> tuple[int, int]:
        """Returns the views of a part, where it may have `size`, and the parts of a device."""
        images, copies = self.here
        rows, columns = devices.part(images, copies, size)
        return rows * columns, -(-images // rows) * -(-copies // columns)

    def step(self, size: int | None) -> Any:
        """The update, with so many views in a backbone at a time; see `distill.make_step`."""
        return distill.make_step(
            self.recipe.task,
            [residuals.keeping(network, self.residuals).apply for network in self.networks],
            self.key,
            weights=self.weights,
            mesh=self.mesh,
            microbatch=size,
        )

    def arguments(self) -> tuple[distill.State, list[Any], list[Any]]:
        """Shapes, types and layouts of what `step` takes."""
        task, how, mesh = self.recipe.task, self.recipe.real, self.mesh
        state = jax.eval_shape(
            lambda params: distill.init_state(task, self.key, params=params),
            distill.abstract_params(task, task.num_images),
        )
        params = [_params(network, mesh) for network in self.networks]
        given = [
            real.shapes(how.source, how.views, self.num_images, network.feature_dim, task, mesh)
            for network in self.networks
        ]
        return devices.place(mesh, state, task.num_images), params, given

    def trace(self, size: int | None) -> Any:
        """The step as JAX understands it."""
        return self.step(size).for_platform(self.platform).trace(*self.arguments())

    def embeddings(self) -> list[Embedding]:
        """Returns the embedding of a step's real images, or of a batch before, by each backbone."""
        task, streams = self.recipe.task, self.recipe.real.source == "stream"
        return [
            Embedding(
                network,
                task.num_views if streams else features.BATCH * self.mesh.size,
                task.parametrisation.resolution,
                Views(task.crop, self.recipe.real_augmentation),
                self.mesh,
                # Of kept features, a view's and an image's.
                numbers=1 if streams else 2,
                key=self.key,
                options=self.options,
            )
            for network in self.networks
        ]

    def fit(self, limit: int, needed: memory.Needed | None = None) -> int:
        """The most views at a time for `limit` bytes a device, by the compiler's account."""
        sizes = {self.parts(size)[0] for size in range(1, self.views + 1)}
        free = limit - self.beside()
        gradient = self.here[0] * distill.params_bytes(self.recipe.task)
        fixed = devices.bytes_here(self.arguments()) + gradient
        first = memory.choose_size(self.view_bytes(), free - fixed, self.views, self.platform)
        return memory.fit(needed or self.needed, free, sorted(sizes), first, fixed)

    def fit_real(self, limit: int, fit: Fit = Embedding.fit) -> int:
        """The most real images at a time beside all that a step takes, by the same account."""
        free = limit - devices.bytes_here(self.arguments()) - self.beside()
        return min(fit(each, free + each.fixed()) for each in self.embeddings())

    def choose(self, microbatch: int | None = None, *, placed: int = 0) -> Execution:
        """The fastest way to execute the step that fits this process's devices; process 0 decides.

        Args:
            microbatch: The views at a time, where they are given.
            placed: Bytes of the step's arguments that each device has already, beside the weights.
        """
        device, on_cpu = self.device, self.device.platform == "cpu"
        # What the step's account has again is not to count as taken.
        has = 0 if on_cpu else placed + devices.bytes_here(self.arguments()[1])
        free = hosts.first_says(memory.free_bytes(device.memory_stats(), -has))

        def fit(program: Sized, limit: int) -> int:
            # Processes compile together, the same; each compiler tunes for itself what it needs.
            return program.fit(limit, lambda size: hosts.first_says(program.needed(size)))

        def fitting(residuals: Residuals) -> int:
            """Views at a time that fit, if so much is kept of them."""
            if microbatch is not None:
                return microbatch
            some = dataclasses.replace(self, residuals=residuals)
            if on_cpu:
                return memory.choose_size(some.view_bytes(), free, self.views)
            return fit(some, free)

        chosen = execution.choose(fitting, self.offered, self.views, device.platform)
        if self.recipe.real.source == "stream":
            as_views = on_cpu or microbatch is not None
            size = chosen.microbatch if as_views else self.fit_real(free, fit)
            chosen = chosen._replace(real_microbatch=size)
        return Execution(*hosts.first_says(chosen))

    def view_bytes(self) -> int:
        """Estimated bytes of a view in the backbones; XLA may have one's beside another's."""
        task, kept = self.recipe.task, self.residuals
        return sum(memory.view_bytes(task, each, kept) for each in self.networks)

    def beside(self) -> int:
        """Bytes of each device for real images and features that no step takes as they are."""
        source, task = self.recipe.real.source, self.recipe.task
        if source == "exact":
            return 0
        # One batch is in use, and the next is on its way.
        rows = -(-task.num_views // self.mesh.size)
        features = 4 * rows * sum(network.feature_dim for network in self.networks)
        if source == "cached":
            return features
        pixels = 3 * task.parametrisation.resolution**2
        return features + pixels * (2 * rows + (0 if self.on_host else self.num_images))

    def flops(self, size: int | None) -> Mapping[tuple[str, str, bool], float]:
        """Operations of a step on all devices, with `size` views at a time; padding counts.

        Returns:
            By part of the step, type of the operands, and whether they are not to be rounded.
        """
        counted: dict[tuple[str, str, bool], float] = defaultdict(float)
        for kind, operations in flops.count_by_kind(self.trace(size).jaxpr).items():
            counted[_part(kind.path), kind.dtype, kind.exact] += operations
        if self.recipe.real.source == "stream":
            for embedding in self.embeddings():
                for kind, operations in flops.count_by_kind(embedding.trace(None).jaxpr).items():
                    counted["real forward", kind.dtype, kind.exact] += operations
        return counted


def make_outlines(config: ConfigDict, device: Any = None) -> list[Outline]:
    """Outlines the backbones that a config distils against.

    Args:
        device: A device that they are for; by default, attention is that of every device.
    """
    options = config.backbone
    outlines: list[Outline] = []
    for name in split_list(options.name):
        outline = _outline(
            os.path.expanduser(name),
            dtype=options.dtype,
            params_dtype=options.params_dtype,
            pooling=options.pooling,
            attention="xla" if device is None else options.attention,
            # The first decides the size of crops.
            resolution=outlines[0].resolution if outlines else config.images.crop,
            resize=options.resize,
            device=device,
        )
        outlines.append(outline)
    return outlines


@functools.lru_cache
def _outline(name: str, **options: Any) -> Outline:
    return Outline(*backbones.outline(name, **options))


def _params(network: Network, mesh: AnyMesh) -> Any:
    """Shapes, types and layouts of a backbone's parameters, on every device."""
    params = network.params
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return devices.put(mesh, shapes)


def _part(path: str) -> str:
    """Returns the part of a step that a product belongs to, by JAX's name of it."""
    if "shard_map" not in path:
        return "objective"
    if "rematted_computation" in path:
        return "again"
    return "backward" if "transpose" in path else "synthetic forward"
