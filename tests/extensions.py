"""What a researcher adds from outside: named in a config as `tests.extensions:Name`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lgm_jax.augment import to_float
from lgm_jax.objectives import Features
from lgm_jax.session import Session


@dataclasses.dataclass(frozen=True)
class SquaredError:
    """Matches the gradients of a squared-error probe at a head of zero, under noise."""

    noise: float = 0.1

    title: ClassVar[str] = "squared-error gradient matching"
    each_step: ClassVar[str] = "Each step compares the first steps of two regressions."

    def __call__(self, key: Any, synthetic: Features, real: Features) -> Any:
        def draw(image: Any, copy: Any) -> Any:
            row_key = jax.random.fold_in(jax.random.fold_in(key, image), copy)
            return jax.random.normal(row_key, synthetic.values.shape[-1:])

        noise = jax.vmap(draw)(synthetic.image, synthetic.copy)
        noisy = dataclasses.replace(synthetic, values=synthetic.values + self.noise * noise)
        step_syn, step_real = self.first_step(noisy), self.first_step(real)
        apart = step_syn / jnp.linalg.norm(step_syn) - step_real / jnp.linalg.norm(step_real)
        return jnp.sum(apart**2) / 2

    def first_step(self, features: Features) -> Any:
        labels, k = features.labels, features.num_classes
        targets = labels if labels.ndim == 2 else jax.nn.one_hot(labels, k)
        rows = features.weights[:, None] * features.values
        return jnp.einsum("nd,nk->dk", rows, targets - 1 / k) / jnp.sum(features.weights)


@dataclasses.dataclass(frozen=True)
class Fourier:
    """Images as the amplitudes of their frequencies, of which low ones weigh more."""

    resolution: int
    decay: float = 1.0

    def init_params(self, key: Any, num_images: int) -> Any:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_images))
        shape = (2, self.resolution, self.resolution // 2 + 1, 3)
        return jax.vmap(lambda k: jax.random.normal(k, shape))(keys) / 10

    def decode(self, params: Any, step: Any) -> Any:
        rows = jnp.fft.fftfreq(self.resolution)[:, None] * self.resolution
        columns = jnp.fft.rfftfreq(self.resolution)[None, :] * self.resolution
        scale = self.resolution / (1 + jnp.hypot(rows, columns)) ** self.decay
        waves = jax.lax.complex(params[:, 0], params[:, 1]) * scale[None, :, :, None]
        size = (self.resolution, self.resolution)
        return jax.nn.sigmoid(jnp.fft.irfft2(waves, s=size, axes=(1, 2)))


@dataclasses.dataclass(frozen=True)
class Shift:
    """Moves an image by some pixels, around its edges, and takes the middle."""

    pixels: int = 2

    def __call__(self, keys: Any, images: Any, resolution: int) -> Any:
        def shift(key: Any, image: Any) -> Any:
            by = jax.random.randint(key, (2,), -self.pixels, self.pixels + 1)
            return jnp.roll(image, by, axis=(0, 1))

        top, left = (round((side - resolution) / 2) for side in images.shape[1:3])
        moved = jax.vmap(shift)(keys, to_float(images))
        return moved[:, top : top + resolution, left : left + resolution]


def class_means(key: Any, table: Any, labels: Any, num_classes: int, protocol: Any) -> Any:
    """The nearest class mean, as a linear head."""
    features, labels = table.reshape(-1, table.shape[-1]), jnp.tile(labels, len(table))
    members = jax.nn.one_hot(labels, num_classes)
    means = (members.T @ features) / members.sum(axis=0)[:, None]
    return {"kernel": means.T, "bias": -jnp.sum(means**2, axis=-1) / 2}


def count_stage(session: Session) -> None:
    """Counts the distilled images, once."""
    inputs = {"images": 0 if session.distilled is None else len(session.distilled.labels)}
    if session.run.find("count", inputs) is None:
        session.run.finish("count", inputs, inputs, 0.0, [session.process_with()])
