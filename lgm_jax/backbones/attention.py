"""How attention is computed: by XLA anywhere, by cuDNN's fused kernel where that runs."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lgm_jax.errors import UserError

AttentionKernel = Literal["xla", "cudnn"]

ATTENTIONS = ("auto", "cudnn", "xla")


def attend(
    query: Float[Array, "b n heads e"],
    key: Float[Array, "b n heads e"],
    value: Float[Array, "b n heads e"],
    kernel: AttentionKernel,
) -> Float[Array, "b n heads e"]:
    """Self-attention: softmax(query keyᵀ / √e) value, differentiable with either kernel.

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


def choose_kernel(attention: str, head_width: int, dtype: str) -> AttentionKernel:
    """Chooses how attention is computed on this process's devices.

    Args:
        attention: One of `ATTENTIONS`; `auto` takes the fused kernel where it runs.
        head_width: Features of one head.
        dtype: What the backbone computes in.

    Raises:
        UserError: If the fused kernel is asked for where it cannot run.
    """
    device = _device()
    # The limits of cuDNN's kernel, as JAX checks them.
    obstacles = {
        "an NVIDIA GPU of compute capability 8.0 or more": device.platform == "gpu"
        and _capability(device) >= (8, 0),
        "backbone.dtype=bfloat16": dtype == "bfloat16",
        "a head width of at most 128, divisible by 8": head_width <= 128 and head_width % 8 == 0,
    }
    lacking = [what for what, fulfilled in obstacles.items() if not fulfilled]
    if attention == "cudnn" and lacking:
        raise UserError(f"backbone.attention=cudnn needs {', '.join(lacking)}; set it to auto")
    return "xla" if attention == "xla" or lacking else "cudnn"


def _device() -> Any:
    """A device that the backbone will run on: the default, which a user may have set."""
    return next(iter(jnp.zeros(()).devices()))


def _capability(device: Any) -> tuple[int, ...]:
    # AMD's devices give a name like gfx942 in its place.
    parts = str(getattr(device, "compute_capability", "")).split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else (0,)
