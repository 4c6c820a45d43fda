"""How attention is computed: by XLA anywhere, by a fused kernel where one runs."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from lgm_jax.backbones import pallas
from lgm_jax.backbones.rotary import Layout, Tables, rotate

AttentionKernel = Literal["xla", "cudnn", "pallas"]

ATTENTIONS = ("auto", "cudnn", "pallas", "xla")


def attend(
    qkv: Float[Array, "b n three_d"],
    heads: int,
    kernel: AttentionKernel,
    tables: Tables | None = None,
    layout: Layout = "half",
) -> Float[Array, "b n d"]:
    """Self-attention: softmax(query keyᵀ / √e) value, differentiable with every kernel.

    Args:
        qkv: Queries, keys and values of all heads, one behind the other.
        tables: Of `rotary_tables`, where queries and keys turn, as `layout` says.
    """
    if kernel == "pallas":
        return pallas.attend(qkv, heads, tables, layout)
    query, key, value = rearrange(
        qkv, "b n (three heads e) -> three b n heads e", three=3, heads=heads
    )
    if tables is not None:
        query, key = (rotate(part, *tables, layout) for part in (query, key))
    attended = _by_jax(query, key, value, kernel)
    return rearrange(attended, "b n heads e -> b n (heads e)")


def _by_jax(
    query: Float[Array, "b n heads e"],
    key: Float[Array, "b n heads e"],
    value: Float[Array, "b n heads e"],
    kernel: Literal["xla", "cudnn"],
) -> Float[Array, "b n heads e"]:
    """Attention by a kernel of JAX's own.

    JAX (0.10 to 0.12) refuses the gradient of cuDNN's kernel for an odd number of tokens, which
    most backbones have: a class token and an even number of patches. Then there is one more token,
    which no other attends to and whose own result is cut off.
    """
    attention = functools.partial(jax.nn.dot_product_attention, implementation=kernel)
    count, tokens = query.shape[:2]
    if kernel == "xla" or tokens % 2 == 0:
        return attention(query, key, value)
    lengths = jnp.full((count,), tokens, jnp.int32)
    padded = [jnp.pad(part, ((0, 0), (0, 1), (0, 0), (0, 0))) for part in (query, key, value)]
    return attention(*padded, query_seq_lengths=lengths, key_value_seq_lengths=lengths)[:, :tokens]
