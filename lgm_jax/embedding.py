"""The program that embeds a batch of real images, and how many of them it takes at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from lgm_jax import devices, features, memory
from lgm_jax.backbones import Backbone
from lgm_jax.compilation import Program
from lgm_jax.features import Views
from lgm_jax.outlines import Outline

Network = Backbone | Outline


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding:
    """The embedding of a batch of images, of which nothing is kept for a gradient.

    Attributes:
        images: Of a batch, on all devices.
        side: Of an image, in pixels.
        mesh: The devices, which the process need not have.
        numbers: How many numbers place a view.
    """

    network: Network
    images: int
    side: int
    views: Views
    mesh: Mesh
    numbers: int = 1
    key: Key[Array, ""] = dataclasses.field(default_factory=lambda: jax.random.key(0))
    options: Mapping[str, str] | None = None

    @property
    def here(self) -> int:
        """Images of a device, those that fill up among them."""
        return -(-self.images // self.mesh.size)

    @property
    def device(self) -> jax.Device:
        """One of this process's, for all."""
        return self.mesh.local_devices[0]

    @property
    def platform(self) -> str:
        """The platform of the devices, as JAX calls it."""
        return self.mesh.devices.flat[0].platform

    def lower(self, size: int | None) -> jax.stages.Lowered:
        """The program as its compiler gets it, with so many images in the backbone at a time."""
        arguments, options = self._call(size)
        return self._program().lower(*arguments, **options)

    def trace(self, size: int | None) -> Any:
        """The program as JAX understands it."""
        arguments, options = self._call(size)
        return self._program().trace(*arguments, **options)

    def needed(self, size: int) -> int | float:
        """Bytes of each device that the program needs, by its compiler's account."""
        return memory.try_compile(self.lower(size), self.options)[1]

    def fixed(self) -> int:
        """Bytes of each device for what the program takes and returns, whatever the size."""
        arguments, _ = self._call(None)
        return devices.bytes_here(arguments[:2]) + 4 * self.here * self.network.feature_dim

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
        has = devices.bytes_here(shapes_of_params(self.network, self.mesh))
        return self.fit(memory.free_bytes(self.device.memory_stats(), -has))

    def _program(self) -> Any:
        """The jitted program for the platform of the devices, which need not be the process's."""
        program: Program[Any, Any] = features.embed_views
        return program.for_platform(self.platform)

    def _call(self, size: int | None) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Shapes, types and layouts of the arguments of `features.embed_views`, and its options."""
        images = jax.ShapeDtypeStruct((self.images, self.side, self.side, 3), jnp.uint8)
        places = jax.ShapeDtypeStruct((self.images, self.numbers), jnp.int32)
        images, places = devices.put(self.mesh, (images, places), devices.ROWS)
        params = shapes_of_params(self.network, self.mesh)
        return (params, images, self.key, places), {
            "apply": self.network.apply,
            "crop": self.views.crop,
            "augmentation": self.views.augmentation,
            "mesh": self.mesh,
            "size": size,
        }


def shapes_of_params(network: Network, mesh: Mesh) -> Any:
    """Shapes, types and layouts of a backbone's parameters, on every device."""
    params = network.params
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return devices.put(mesh, shapes)
