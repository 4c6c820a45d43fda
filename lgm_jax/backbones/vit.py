"""One composable Vision Transformer in Flax NNX.

Dimension letters: `b` images, `h w c` pixels, `n` tokens, `d` width, `l` layers.
All blocks share one graph definition; their parameters are stacked along a leading layer axis and
scanned, so compile time does not grow with depth.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Pool = Literal["cls", "mean"]


@dataclasses.dataclass(frozen=True)
class ViTSpec:
    """The shape of a Vision Transformer, as published with its weights.

    Attributes:
        resolution: Side of the square input, in pixels.
        patch: Side of a square patch, in pixels; divides `resolution`.
        width: Token dimension `d`.
        depth: Number of transformer blocks.
        heads: Attention heads; divides `width`.
        mlp_width: Hidden dimension of the block's MLP.
        pool: `cls` takes the class token after the last norm; `mean` averages the patch tokens
            and normalises the average.
        norm_eps: LayerNorm epsilon (timm's ViTs use 1e-6, not PyTorch's default 1e-5).
    """

    resolution: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    pool: Pool = "cls"
    norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        return (self.resolution // self.patch) ** 2


class Attention(nnx.Module):
    """Multi-head self-attention with one fused query-key-value projection."""

    def __init__(self, spec: ViTSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads = spec.heads
        self.qkv = nnx.Linear(spec.width, 3 * spec.width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(spec.width, spec.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        query, key, value = rearrange(
            self.qkv(x), "b n (three heads e) -> three b n heads e", three=3, heads=self.heads
        )
        x = jax.nn.dot_product_attention(query, key, value)
        return self.out(rearrange(x, "b n heads e -> b n (heads e)"))


class Mlp(nnx.Module):
    """Two linear layers around an exact GELU (JAX's default is the tanh approximation)."""

    def __init__(self, spec: ViTSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.up = nnx.Linear(spec.width, spec.mlp_width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(spec.mlp_width, spec.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, spec: ViTSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm_attention = nnx.LayerNorm(
            spec.width, epsilon=spec.norm_eps, dtype=dtype, rngs=rngs
        )
        self.attention = Attention(spec, dtype=dtype, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(spec.width, epsilon=spec.norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(spec, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class ViT(nnx.Module):
    """Normalised pixels to one feature vector per image."""

    def __init__(self, spec: ViTSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.spec = spec
        self.embed = nnx.Linear(spec.patch**2 * 3, spec.width, dtype=dtype, rngs=rngs)
        init = nnx.initializers.truncated_normal(0.02)
        self.cls = nnx.Param(init(rngs.params(), (1, 1, spec.width), jnp.float32))
        # The class token has a position too: it is the first one.
        positions = (1, 1 + spec.num_patches, spec.width)
        self.positions = nnx.Param(init(rngs.params(), positions, jnp.float32))

        @nnx.split_rngs(splits=spec.depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(spec, dtype=dtype, rngs=rngs)

        self.blocks = stack(rngs)
        self.norm = nnx.LayerNorm(spec.width, epsilon=spec.norm_eps, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        x = self.tokens(images)
        if self.spec.pool == "cls":
            return self.norm(x)[:, 0]
        return self.norm(jnp.mean(x[:, 1:], axis=1))

    def tokens(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """The class and patch tokens after the last block, before the last norm."""
        patches = rearrange(
            images, "b (h p) (w q) c -> b (h w) (p q c)", p=self.spec.patch, q=self.spec.patch
        )
        x = self.embed(patches)
        cls = jnp.broadcast_to(self.cls[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1) + self.positions[...].astype(x.dtype)
        definition, stacked = nnx.split(self.blocks)

        def block(x: Array, params: nnx.State) -> tuple[Array, None]:
            return nnx.merge(definition, params)(x), None

        return jax.lax.scan(block, x, stacked)[0]
