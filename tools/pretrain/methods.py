"""Networks and losses of training without labels: MoCo-v3's, DINO's, a masked autoencoder's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key

from lgm_jax.backbones.vit import Block, ViT
from lgm_jax.backbones.vit_spec import AttentionSpec, MlpSpec, ViTSpec

MEAN, STD = 0.5, 0.5
HEAD_WIDTH, EMBEDDING, PROTOTYPES = 512, 128, 512
DECODER_WIDTH, DECODER_DEPTH = 64, 2


class Batch(NamedTuple):
    """The arguments of a loss.

    Attributes:
        views: Groups of views of one size, each (v, b, s, s, 3); the first has the whole size.
        scans: What `masked` fills in, (v, b, s, s); none for photos.
        key: Random key of the step.
    """

    views: tuple[jax.Array, ...]
    scans: jax.Array | None
    key: Key[Array, ""]


class Head(nnx.Module):
    """A two-layer MLP with batch normalisation from the batch's own statistics."""

    def __init__(self, inputs: int, outputs: int, *, normalize: bool, rngs: nnx.Rngs):
        self.up = nnx.Linear(inputs, HEAD_WIDTH, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(HEAD_WIDTH, outputs, use_bias=False, rngs=rngs)
        self.normalize = normalize

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        x = self.down(jax.nn.relu(_standardize(self.up(x))))
        return _standardize(x) if self.normalize else x


class Prototypes(nnx.Module):
    """Cosines with learned unit vectors: DINO's weight-normalised last layer."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs)))

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        return _unit(x) @ _unit(self.kernel[...].T).T


class Network(nnx.Module):
    """Backbone, projector, and what the method puts on top."""

    def __init__(self, spec: ViTSpec, method: str, *, rngs: nnx.Rngs):
        self.backbone = ViT(spec, dtype=jnp.float32, rngs=rngs)
        self.projector = Head(spec.width, EMBEDDING, normalize=method == "contrastive", rngs=rngs)
        self.predictor: nnx.Module = (
            Head(EMBEDDING, EMBEDDING, normalize=False, rngs=rngs)
            if method == "contrastive"
            else Prototypes(EMBEDDING, PROTOTYPES, rngs=rngs)
        )

    def features(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b f"]:
        """Features of images of the backbone's size, or of a smaller one."""
        return _sized(self.backbone, images.shape[1])((images - MEAN) / STD)


class MaskedNetwork(nnx.Module):
    """Backbone, and the light decoder that fills in the patches it has not seen."""

    def __init__(self, spec: ViTSpec, masked: float, *, rngs: nnx.Rngs):
        self.backbone = ViT(spec, dtype=jnp.float32, rngs=rngs)
        self.visible = round((1 - masked) * spec.grid**2)
        light = dataclasses.replace(
            spec,
            width=DECODER_WIDTH,
            attention=AttentionSpec(DECODER_WIDTH // 32),
            mlp=MlpSpec(4 * DECODER_WIDTH),
        )
        self.narrow = nnx.Linear(spec.width, light.width, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.mask = nnx.Param(normal(rngs.params(), (1, 1, light.width)))
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + spec.grid**2, light.width)))
        self.blocks = nnx.List(
            Block(light, dtype=jnp.float32, kernel="xla", rngs=rngs) for _ in range(DECODER_DEPTH)
        )
        self.norm = nnx.LayerNorm(light.width, epsilon=light.norm_eps, rngs=rngs)
        self.pixels = nnx.Linear(light.width, spec.embed.patch**2, rngs=rngs)

    def features(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b f"]:
        """Features of images of the backbone's size."""
        return self.backbone((images - MEAN) / STD)

    def fill_in(self, images: jax.Array, order: jax.Array) -> jax.Array:
        """Pixels (b, n, p * p) from the patches that come first in `order` (b, n)."""
        tokens = self.backbone.tokens((images - MEAN) / STD)
        seen = jnp.take_along_axis(tokens[:, 1:], order[:, : self.visible, None], axis=1)
        seen = jnp.concatenate([tokens[:, :1], seen], axis=1)
        seen = self.narrow(self.backbone.norm(self.backbone.blocks_out(seen)[-1]))
        hidden = order.shape[1] - self.visible
        masks = jnp.broadcast_to(self.mask[...], (len(images), hidden, seen.shape[-1]))
        patches = jnp.concatenate([seen[:, 1:], masks], axis=1)
        patches = jnp.take_along_axis(patches, jnp.argsort(order, axis=1)[..., None], axis=1)
        x = jnp.concatenate([seen[:, :1], patches], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x, None)
        return self.pixels(self.norm(x[:, 1:]))


Loss = Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, jax.Array]]
"""`loss(online, momentum, batch, center)` returns the loss and the next centre of the teacher."""


def contrastive_loss(
    online: Network, momentum: Network, batch: Batch, center: jax.Array, *, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE between queries of each view and keys of the other whole ones (MoCo-v3)."""
    queries = [_unit(online.predictor(online.projector(online.features(v)))) for v in _all(batch)]
    keys = [
        jax.lax.stop_gradient(_unit(momentum.projector(momentum.features(v))))
        for v in batch.views[0]
    ]
    labels = jnp.arange(len(queries[0]))
    losses = [
        jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(query @ key.T / temperature, labels)
        )
        for q, query in enumerate(queries)
        for k, key in enumerate(keys)
        if q != k
    ]
    return 2 * jnp.mean(jnp.stack(losses)), center


def distilled_loss(
    online: Network, momentum: Network, batch: Batch, center: jax.Array, *, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of a view to the teacher's other whole view, centred and sharpened (DINO)."""
    student = [online.predictor(online.projector(online.features(v))) / 0.1 for v in _all(batch)]
    raw = [momentum.predictor(momentum.projector(momentum.features(v))) for v in batch.views[0]]
    teacher = [
        jax.lax.stop_gradient(jax.nn.softmax((r - center) / (0.2 * temperature))) for r in raw
    ]
    pairs = [(s, t) for s in range(len(student)) for t in range(len(teacher)) if s != t]
    losses = [
        -jnp.mean(jnp.sum(teacher[t] * jax.nn.log_softmax(student[s]), axis=-1)) for s, t in pairs
    ]
    batch_center = jnp.mean(jnp.concatenate(raw), axis=0, keepdims=True)
    return jnp.mean(jnp.stack(losses)), 0.9 * center + 0.1 * jax.lax.stop_gradient(batch_center)


def masked_loss(
    online: MaskedNetwork, momentum: MaskedNetwork, batch: Batch, center: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean squared error of the scan's pixels in the patches of the view that were hidden (MAE)."""
    del momentum
    assert batch.scans is not None
    images, patch = batch.views[0][0], online.backbone.spec.embed.patch
    pixels = rearrange(batch.scans[0], "b (h p) (w q) -> b (h w) (p q)", p=patch, q=patch)
    order = jnp.argsort(jax.random.uniform(batch.key, pixels.shape[:2]), axis=1)
    error = jnp.mean((online.fill_in(images, order) - pixels) ** 2, axis=-1)
    return jnp.mean(jnp.take_along_axis(error, order[:, online.visible :], axis=1)), center


def standardize(params: Any, features: Float[np.ndarray, "n f"]) -> Any:
    """Folds batch normalisation of the features into the last norm.

    He et al. (A.1) put one without parameters before the linear head, since a masked autoencoder
    is not trained for features of one scale. Its mean and deviation are of the training part.
    """
    mean, std = features.mean(0), features.std(0)
    norm = params["norm"]
    return params | {"norm": {"scale": norm["scale"] / std, "bias": (norm["bias"] - mean) / std}}


MATCHING: Mapping[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "contrastive": contrastive_loss,
    "distilled": distilled_loss,
}
METHODS = (*MATCHING, "masked")


def make(
    method: str, spec: ViTSpec, *, temperature: float, masked: float, rngs: nnx.Rngs
) -> tuple[nnx.Module, Loss, int]:
    """The network of a method, its loss, and how many whole views of each image it takes.

    Args:
        method: One of `METHODS`.
        spec: Shape of the backbone.
        temperature: Of InfoNCE; DINO's teacher has a fifth of it.
        masked: Share of the patches that `masked` hides.
        rngs: For the weights.
    """
    if method == "masked":
        return MaskedNetwork(spec, masked, rngs=rngs), masked_loss, 1
    loss = functools.partial(MATCHING[method], temperature=temperature)
    return Network(spec, method, rngs=rngs), loss, 2


def _all(batch: Batch) -> list[Float[Array, "b s s 3"]]:
    return [view for group in batch.views for view in group]


def _sized(backbone: ViT, side: int) -> ViT:
    """A backbone for images of another side: its positions are resized, as for DINO's small views.

    The gradient reaches the positions themselves.
    """
    spec = backbone.spec
    if side == spec.resolution:
        return backbone
    small = dataclasses.replace(spec, resolution=side)
    blank = nnx.eval_shape(lambda: ViT(small, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(backbone))
    own = spec.num_positions - spec.grid**2
    positions = params["positions"]
    grid = rearrange(positions[0, own:], "(h w) d -> h w d", h=spec.grid)
    grid = jax.image.resize(grid, (small.grid, small.grid, spec.width), "cubic", antialias=False)
    patches = rearrange(grid, "h w d -> 1 (h w) d")
    params["positions"] = jnp.concatenate([positions[:, :own], patches], axis=1)
    return nnx.merge(nnx.graphdef(blank), nnx.State(params))


def _standardize(x: Float[Array, "b f"]) -> Float[Array, "b f"]:
    mean = jnp.mean(x, axis=0, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.var(x, axis=0, keepdims=True) + 1e-5)


def _unit(x: Float[Array, "b f"]) -> Float[Array, "b f"]:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-8)
