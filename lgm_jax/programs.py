"""The programs of a distillation, and the shapes of what they take, before there is an array.

What a run executes, a plan compiles: both are made here.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from lgm_jax import devices, distill, execution, features, flops, hosts, memory, real
from lgm_jax.backbones import residuals
from lgm_jax.backbones.residuals import Residuals
from lgm_jax.compilation import Program
from lgm_jax.embedding import Embedding, Network, shapes_of_params
from lgm_jax.execution import Execution
from lgm_jax.features import Views
from lgm_jax.settings import Recipe

Fit = Callable[[Embedding, int], int]
"""Finds the most images at a time of an embedding, for a limit in bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The step of a run and the embedding of its real images, for given devices.

    Attributes:
        recipe: What is to be made.
        networks: The backbones to distil against.
        on_host: Whether the host reads the images of a step, rather than all on the device.
        mesh: The devices, which the process need not have.
        weights: Of the losses by each backbone; equal by default.
        options: Of the compiler, which may have no such device at hand.
    """

    recipe: Recipe
    networks: Sequence[Network]
    key: jax.Array
    num_images: int
    on_host: bool
    mesh: Mesh
    weights: Sequence[float] | None = None
    options: Mapping[str, str] | None = None
    residuals: Residuals = "all"

    @property
    def offered(self) -> Sequence[Residuals]:
        """The activations that all backbones can keep for the gradient."""
        return min((residuals.offered(network) for network in self.networks), key=len)

    @property
    def device(self) -> jax.Device:
        """One of this process's, for all: they have the same memory, and as much of it is taken."""
        return self.mesh.local_devices[0]

    @property
    def here(self) -> tuple[int, int]:
        """Synthetic images of a device, and copies of each, those that fill up among them."""
        task = self.recipe.task
        images, copies = (self.mesh.shape[axis] for axis in devices.AXES)
        return -(-task.num_images // images), -(-task.copies // copies)

    @property
    def views(self) -> int:
        """Views of synthetic images of a device in a step."""
        images, copies = self.here
        return images * copies

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
        params = [shapes_of_params(network, mesh) for network in self.networks]
        given = [
            real.shapes(how.source, how.views, self.num_images, network.feature_dim, task, mesh)
            for network in self.networks
        ]
        return devices.place(mesh, state, task.num_images), params, given

    def lower(self, size: int | None) -> jax.stages.Lowered:
        """The step as its compiler gets it."""
        return self._on_devices(self.step(size)).lower(*self.arguments())

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
        images, copies = self.here
        sizes = {math.prod(devices.part(images, copies, size)) for size in range(1, self.views + 1)}
        free = limit - self.beside()
        fixed = devices.bytes_here(self.arguments())
        # Of the images, the gradient.
        fixed += images * distill.params_bytes(self.recipe.task)
        platform = self.mesh.devices.flat[0].platform
        first = memory.choose_size(self.view_bytes(), free - fixed, self.views, platform)
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

        def fit(program: Programs | Embedding, limit: int) -> int:
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

    def needed(self, size: int) -> int | float:
        """Bytes of each device that the step needs, by its compiler's account."""
        return memory.try_compile(self.lower(size), self.options)[1]

    def view_bytes(self) -> int:
        """Estimated bytes of a view in the backbones; XLA may have one's beside another's."""
        task, kept = self.recipe.task, self.residuals
        return sum(memory.view_bytes(task, each, kept) for each in self.networks)

    def beside(self) -> int:
        """Bytes of each device for real images and features that no step takes as they are."""
        how, task = self.recipe.real, self.recipe.task
        every = real.bytes_on_device(
            how.source,
            how.views,
            self.num_images,
            [network.feature_dim for network in self.networks],
            task,
            self.mesh.size,
            held=not self.on_host,
        )
        _, _, given = self.arguments()
        return max(0, every - devices.bytes_here(given))

    def flops(self, size: int | None) -> Mapping[tuple[str, str, bool], float]:
        """Operations of a step on all devices, with `size` views at a time; padding counts.

        Returns:
            By part of the step, type of the operands, and whether they are not to be rounded.
        """
        counted: dict[tuple[str, str, bool], float] = defaultdict(float)
        # Traced for itself: XLA's options are for no program within another.
        step = self._on_devices(self.step(size)).trace(*self.arguments())
        for kind, operations in flops.count_by_kind(step.jaxpr).items():
            counted[_part(kind.path), kind.dtype, kind.exact] += operations
        if self.recipe.real.source == "stream":
            for embedding in self.embeddings():
                traced = embedding.trace(None)
                for kind, operations in flops.count_by_kind(traced.jaxpr).items():
                    counted["real forward", kind.dtype, kind.exact] += operations
        return counted

    def _on_devices(self, program: Program[Any, Any]) -> Any:
        """The jitted program for the platform of the devices, which need not be the process's."""
        return program.for_platform(self.mesh.devices.flat[0].platform)


def _part(path: str) -> str:
    """Returns the part of a step that a product belongs to, by JAX's name of it."""
    if "shard_map" not in path:
        return "objective"
    if "rematted_computation" in path:
        return "again"
    return "backward" if "transpose" in path else "synthetic forward"
