"""One composable Vision Transformer in Flax NNX.

Dimension letters: `b` images, `h w c` pixels, `n` tokens, `d` width, `e` head width, `l` layers.
Tokens are in the order class, registers, patches (row by row). All blocks share one graph
definition; their parameters are stacked along a leading layer axis and scanned, so compile time
does not grow with depth.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgm_jax.backbones.activations import ACTIVATIONS
from lgm_jax.backbones.attention import AttentionKernel, attend
from lgm_jax.backbones.residuals import Residuals, scan, stack
from lgm_jax.backbones.rotary import Tables, rotary_tables, sines
from lgm_jax.backbones.vit_spec import MlpSpec, ViTSpec


class Attention(nnx.Module):
    """Multi-head self-attention with one fused query-key-value projection."""

    def __init__(self, spec: ViTSpec, *, dtype: DTypeLike, kernel: AttentionKernel, rngs: nnx.Rngs):
        self.spec = spec.attention
        self.kernel = kernel
        width, biased = spec.width, self.spec.biases == "qkv"
        self.qkv = nnx.Linear(width, 3 * width, use_bias=biased, dtype=dtype, rngs=rngs)
        if self.spec.biases == "qv":
            # Query's and value's, one behind the other.
            self.bias_qv = nnx.Param(jnp.zeros((2 * width,), jnp.float32))
        self.out = nnx.Linear(width, width, use_bias=self.spec.out_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], tables: Tables | None) -> Float[Array, "b n d"]:
        qkv = self.qkv(x)
        if self.spec.biases == "qv":
            query_bias, value_bias = jnp.split(self.bias_qv[...].astype(qkv.dtype), 2)
            bias = jnp.concatenate([query_bias, jnp.zeros_like(query_bias), value_bias])
            qkv = qkv + bias[None, None, :]
        rotary = self.spec.rotary
        layout = "half" if rotary is None else rotary.layout
        return self.out(attend(qkv, self.spec.heads, self.kernel, tables, layout))


class Mlp(nnx.Module):
    """Two linear layers around an activation, gated or not."""

    def __init__(self, spec: ViTSpec, mlp: MlpSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.spec = mlp
        hidden, bias = self.spec.width, self.spec.bias
        # The gate comes first.
        outputs = 2 * hidden if self.spec.gated else hidden
        self.up = nnx.Linear(spec.width, outputs, use_bias=bias, dtype=dtype, rngs=rngs)
        if self.spec.norm:
            self.norm = _norm(spec, hidden, dtype, rngs)
        self.down = nnx.Linear(hidden, spec.width, use_bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = self.up(x)
        activate = ACTIVATIONS[self.spec.activation]
        if self.spec.gated:
            gate, x = jnp.split(x, 2, axis=-1)
            x = activate(gate) * x
        else:
            x = activate(x)
        return self.down(self.norm(x) if self.spec.norm else x)


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, spec: ViTSpec, *, dtype: DTypeLike, kernel: AttentionKernel, rngs: nnx.Rngs):
        self.norm_attention = _norm(spec, spec.width, dtype, rngs)
        self.attention = Attention(spec, dtype=dtype, kernel=kernel, rngs=rngs)
        self.norm_mlp = _norm(spec, spec.width, dtype, rngs)
        self.mlp = Mlp(spec, spec.mlp, dtype=dtype, rngs=rngs)
        if spec.layer_scale:
            self.scale_attention = nnx.Param(jnp.ones((spec.width,), jnp.float32))
            self.scale_mlp = nnx.Param(jnp.ones((spec.width,), jnp.float32))
        self.layer_scale = spec.layer_scale

    def __call__(self, x: Float[Array, "b n d"], tables: Tables | None) -> Float[Array, "b n d"]:
        attended = self.attention(self.norm_attention(x), tables)
        if self.layer_scale:
            attended = attended * self.scale_attention[...].astype(x.dtype)[None, None, :]
        x = x + attended
        expanded = self.mlp(self.norm_mlp(x))
        if self.layer_scale:
            expanded = expanded * self.scale_mlp[...].astype(x.dtype)[None, None, :]
        return x + expanded


class Embed(nnx.Module):
    """The patch projection: a convolution whose stride is its kernel, as one matrix product."""

    def __init__(self, spec: ViTSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.patch = spec.embed.patch
        inputs = 3 * self.patch**2
        self.project = nnx.Linear(
            inputs, spec.width, use_bias=spec.embed.bias, dtype=dtype, rngs=rngs
        )
        self.norm = _norm(spec, spec.width, dtype, rngs) if spec.embed.patch_norm else None

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        # A convolution leaves out what is left at the lower and right edge.
        side = images.shape[1] // self.patch * self.patch
        layout = "b (h p) (w q) c -> b (h w) (p q c)"
        x = self.project(rearrange(images[:, :side, :side], layout, p=self.patch, q=self.patch))
        return x if self.norm is None else self.norm(x)


class AttentionPool(nnx.Module):
    """One learned query attends to all patches: the pooling heads of SigLIP, PE-Core and AIMv2.

    The first two project the query, and an MLP follows.
    """

    def __init__(self, spec: ViTSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads, self.mapped = spec.pool.heads or spec.heads, spec.pool.kind == "map"
        self.query = _tokens(1, spec, rngs)
        self.out = nnx.Linear(spec.width, spec.width, dtype=dtype, rngs=rngs)
        if self.mapped:
            self.qkv = nnx.Linear(spec.width, 3 * spec.width, dtype=dtype, rngs=rngs)
            self.norm = _norm(spec, spec.width, dtype, rngs)
            self.mlp = Mlp(spec, spec.pool.mlp or spec.mlp, dtype=dtype, rngs=rngs)
        else:
            bias = spec.attention.biases == "qkv"
            self.kv = nnx.Linear(spec.width, 2 * spec.width, use_bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        query = jnp.broadcast_to(self.query[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        if self.mapped:
            # The projections share one matrix; the query's part of it sees one token only.
            width = x.shape[-1]
            params = nnx.to_pure_dict(nnx.state(self.qkv))
            weights, bias = params["kernel"].astype(x.dtype), params["bias"].astype(x.dtype)
            query = query @ weights[:, :width] + bias[None, None, :width]
            key_value = x @ weights[:, width:] + bias[None, None, width:]
        else:
            key_value = self.kv(x)
        key, value = jnp.split(key_value, 2, axis=-1)
        split = functools.partial(rearrange, pattern="b n (heads e) -> b n heads e")
        query, key, value = (split(part, heads=self.heads) for part in (query, key, value))
        # By XLA everywhere: one query has no scores of n by n to save, and cuDNN's kernel no
        # gradient of one. Spelt out, since XLA for CPUs refuses the gradient in bfloat16 of what
        # `jax.nn.dot_product_attention` makes of one query.
        scores = jnp.einsum("bqhe,bnhe->bhqn", query, key, preferred_element_type=jnp.float32)
        shares = jax.nn.softmax(scores * (1 / math.sqrt(query.shape[-1]))).astype(value.dtype)
        pooled = jnp.einsum("bhqn,bnhe->bqhe", shares, value)
        pooled = self.out(rearrange(pooled, "b n heads e -> b n (heads e)"))
        return (pooled + self.mlp(self.norm(pooled)) if self.mapped else pooled)[:, 0]


class ViT(nnx.Module):
    """Normalised pixels to one feature vector per image."""

    def __init__(
        self,
        spec: ViTSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        kernel: AttentionKernel = "xla",
    ):
        self.spec = spec
        embed = spec.embed
        self.embed = Embed(spec, dtype=dtype, rngs=rngs)
        if embed.class_token:
            self.cls = _tokens(1, spec, rngs)
        if embed.registers:
            self.registers = _tokens(embed.registers, spec, rngs)
        if spec.num_positions:
            self.positions = _tokens(spec.num_positions, spec, rngs)
        if embed.norm:
            self.norm_embed = _norm(spec, spec.width, dtype, rngs)

        self.blocks = stack(
            lambda rngs: Block(spec, dtype=dtype, kernel=kernel, rngs=rngs), spec.depth, rngs
        )
        self.norm = _norm(spec, spec.width, dtype, rngs)
        if spec.pool.kind in ("map", "query"):
            self.pool = AttentionPool(spec, dtype=dtype, rngs=rngs)
        if projection := spec.pool.projection:
            self.project = nnx.Linear(
                spec.width, projection, use_bias=False, dtype=dtype, rngs=rngs
            )

    def __call__(
        self, images: Float[Array, "b h w 3"], residuals: Residuals = "all"
    ) -> Float[Array, "b f"]:
        outputs = self.blocks_out(self.tokens(images), residuals)
        features = self.pooled(outputs)
        return self.project(features) if self.spec.pool.projection else features

    def tokens(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """The tokens that enter the first block."""
        embed = self.spec.embed
        x = self.embed(images)

        def repeated(token: nnx.Param) -> Array:
            value = token[...].astype(x.dtype)
            return jnp.broadcast_to(value, (x.shape[0], *value.shape[1:]))

        before = [repeated(self.cls)] if embed.class_token else []
        registers = [repeated(self.registers)] if embed.registers else []
        if embed.positions in ("all", "tokens"):
            if embed.positions == "tokens":
                before, registers = before + registers, []
            x = jnp.concatenate([*before, x], axis=1) + self.positions[...].astype(x.dtype)
            if registers:
                x = jnp.concatenate([x[:, : len(before)], *registers, x[:, len(before) :]], axis=1)
        else:
            if embed.positions == "patches":
                x = x + self.positions[...].astype(x.dtype)
            elif embed.positions == "sines":
                x = x + sines(self.spec.grid, self.spec.width).astype(x.dtype)
            x = jnp.concatenate([*before, *registers, x], axis=1)
        return self.norm_embed(x) if embed.norm else x

    def blocks_out(
        self, x: Float[Array, "b n d"], residuals: Residuals = "all"
    ) -> Float[Array, "l b n d"]:
        """Outputs of the last `pool.blocks` blocks, before the last norm."""
        spec, rotary, tables = self.spec, self.spec.attention.rotary, None
        if rotary is not None:
            tables = rotary_tables(rotary, spec.grid, spec.head_width, spec.embed.num_prefix)
        return scan(self.blocks, x, tables, residuals=residuals, last=spec.pool.blocks)

    def pooled(self, outputs: Float[Array, "l b n d"]) -> Float[Array, "b f"]:
        """Features before a last projection."""
        kind, prefix = self.spec.pool.kind, self.spec.embed.num_prefix
        if kind == "mean_norm":
            return self.norm(jnp.mean(outputs[-1][:, prefix:], axis=1))
        # The class token alone does not need the other tokens normalised.
        x = self.norm(outputs[:, :, :1] if kind == "cls" else outputs)
        if kind in ("map", "query"):
            return self.pool(x[-1] if self.spec.pool.prefix else x[-1, :, prefix:])
        cls = rearrange(x[:, :, 0], "l b d -> b (l d)")
        if kind == "cls":
            return cls
        means = jnp.mean(x[:, :, prefix:], axis=2)
        if kind == "mean":
            return rearrange(means, "l b d -> b (l d)")
        return jnp.concatenate([cls, means[-1]], axis=-1)


def _tokens(count: int, spec: ViTSpec, rngs: nnx.Rngs) -> nnx.Param:
    init = nnx.initializers.truncated_normal(0.02)
    return nnx.Param(init(rngs.params(), (1, count, spec.width), jnp.float32))


def _norm(
    spec: ViTSpec, width: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.LayerNorm | nnx.RMSNorm:
    if spec.norm == "rms":
        return nnx.RMSNorm(width, epsilon=spec.norm_eps, dtype=dtype, rngs=rngs)
    # The variance as a mean of squares less a square of means loses digits where means are large,
    # as they are in the few outlier dimensions of large transformers.
    return nnx.LayerNorm(
        width, epsilon=spec.norm_eps, dtype=dtype, use_fast_variance=False, rngs=rngs
    )
