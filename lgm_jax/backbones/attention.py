"""How attention is computed: by XLA anywhere, by a fused kernel where one runs.

Which one that is depends on the device; ours is tried before its use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from lgm_jax.backbones import pallas
from lgm_jax.backbones.network import Network
from lgm_jax.backbones.rotary import Layout, Tables, rotate
from lgm_jax.errors import UserError, unknown_name

AttentionKernel = Literal["xla", "cudnn", "pallas"]

ATTENTIONS = ("auto", "cudnn", "pallas", "xla")

_MakeApply = Callable[[str, AttentionKernel], Callable[..., Float[Array, "n d"]]]


def attend(
    qkv: Float[Array, "b n three_d"],
    heads: int,
    kernel: AttentionKernel,
    tables: Tables | None = None,
    layout: Layout = "half",
) -> Float[Array, "b n d"]:
    """Self-attention: softmax(query keyᵀ / √e) value, differentiable with every kernel.

    JAX (0.10 to 0.12) refuses the gradient of cuDNN's kernel for an odd number of tokens, which
    most backbones have: a class token and an even number of patches. Then there is one more token,
    which no other attends to and whose own result is cut off.

    Args:
        qkv: Queries, keys and values of all heads, one behind the other.
        tables: Of `rotary_tables`, where queries and keys turn, as `layout` says.
    """
    if kernel == "pallas":
        return pallas.attend(qkv, heads, tables, layout)
    parts = rearrange(qkv, "b n (three heads e) -> three b n heads e", three=3, heads=heads)
    query, key, value = parts
    if tables is not None:
        query, key = (rotate(part, *tables, layout) for part in (query, key))
    attention = functools.partial(jax.nn.dot_product_attention, implementation=kernel)
    count, tokens, _ = qkv.shape
    if kernel == "xla" or tokens % 2 == 0:
        attended = attention(query, key, value)
    else:
        lengths = jnp.full((count,), tokens, jnp.int32)
        padded = [jnp.pad(part, ((0, 0), (0, 1), (0, 0), (0, 0))) for part in (query, key, value)]
        attended = attention(*padded, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
        attended = attended[:, :tokens]
    return rearrange(attended, "b n heads e -> b n (heads e)")


def choose_kernel(attention: str, spec: Network, dtype: str, device: Any = None) -> AttentionKernel:
    """Chooses how attention is computed: of `ATTENTIONS`, `auto` takes the fused kernel that runs.

    `device` is one of those that the backbone will run on, which may be one of a topology that is
    compiled for; by default this process's default, which a user may have set.

    Raises:
        UserError: If there is none of that name, or if one is asked for where it cannot run.
    """
    if attention not in ATTENTIONS:
        raise unknown_name("backbone.attention", str(attention), list(ATTENTIONS))
    if not spec.heads:
        if attention not in ("auto", "xla"):
            raise UserError(f"backbone.attention={attention}: the backbone has no attention")
        return "xla"
    device = first_device() if device is None else device
    fused: dict[AttentionKernel, Any] = {"cudnn": _cudnn_needs, "pallas": _pallas_needs}
    for kernel, needs in fused.items():
        if attention not in ("auto", kernel):
            continue
        lacking = [what for what, met in needs(device, spec, dtype).items() if not met]
        if not lacking:
            return kernel
        if attention == kernel:
            raise UserError(
                f"backbone.attention={kernel} needs {', '.join(lacking)}; set it to auto"
            )
    return "xla"


def first_device() -> Any:
    """A device that the backbone will run on: the default, which a user may have set."""
    return next(iter(jnp.zeros(()).devices()))


def _cudnn_needs(device: Any, spec: Any, dtype: str) -> dict[str, bool]:
    """Requirements of cuDNN's kernel, as JAX checks them, and whether each is met."""
    # AMD's devices give a name like gfx942 as their capability.
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    modern = device.platform in ("gpu", "cuda") and major.isdigit() and int(major) >= 8
    width = spec.head_width
    return {
        "an NVIDIA GPU of compute capability 8.0 or more": modern,
        "backbone.dtype=bfloat16": dtype == "bfloat16",
        "a head width of at most 128, divisible by 8": width <= 128 and width % 8 == 0,
    }


def _pallas_needs(device: Any, spec: Any, dtype: str) -> dict[str, bool]:
    """Requirements of our kernel, and whether each is met."""
    if device.platform != "tpu":
        return {"a TPU": False}
    most, width = pallas.MOST_TOKENS, spec.head_width
    needed = pallas.needed_bytes(spec.tokens, spec.heads, width, dtype)
    available = pallas.vmem_bytes(device.device_kind)
    memory = f"{needed >> 20} MiB of vector memory, where {available >> 20} are there"
    return {
        "a head width divisible by 8": width % 8 == 0,
        f"images of at most {most} tokens, not {spec.tokens}": spec.tokens <= most,
        memory: needed <= available,
    }


def try_pallas(
    attention: str, make_apply: _MakeApply, params: Any, side: int, dtype: str
) -> AttentionKernel:
    """Our kernel, or XLA's where ours fails on this device, if `attention` leaves the choice.

    `make_apply` makes the backbone's `apply(params, images)` for a type and a kernel; `side` is
    that of its images, in pixels.
    """
    fault = _find_fault(make_apply, params, side, dtype)
    if fault is None:
        return "pallas"
    told = f"backbone.attention=pallas fails on this device: {fault}"
    if attention == "pallas":
        raise UserError(f"{told}; set it to auto")
    print(f"note: {told}; attention is computed by XLA", flush=True)
    return "xla"


def _find_fault(make_apply: _MakeApply, params: Any, side: int, dtype: str) -> str | None:
    """Returns the fault of features or gradient of one batch; `None` if there is none.

    Neither may be further from the exact one, in float32, than twice as far as XLA's is.
    """
    images_key, cotangent_key = jax.random.split(jax.random.key(0))
    images = jax.random.uniform(images_key, (4, side, side, 3), jnp.float32)

    def results(dtype: str, kernel: AttentionKernel) -> tuple[Array, Array]:
        apply = make_apply(dtype, kernel)

        def both(params: Any, images: Array) -> tuple[Array, Array]:
            features, pullback = jax.vjp(lambda images: apply(params, images), images)
            return features, pullback(jax.random.normal(cotangent_key, features.shape))[0]

        return jax.block_until_ready(jax.jit(both)(params, images))

    try:
        found = results(dtype, "pallas")
    # Whatever the kernel's compiler refuses, XLA computes.
    except Exception as refusal:
        return str(refusal).split("\n")[0] or type(refusal).__name__
    others = results(dtype, "xla"), results("float32", "xla")
    for name, ours, theirs, right in zip(("features", "gradients"), found, *others, strict=True):
        size = jnp.linalg.norm(right)
        error, usual = (float(jnp.linalg.norm(each - right) / size) for each in (ours, theirs))
        # Two ways to round are about as far from float32 as each other; what is small is rounding
        # too. An error may be no number.
        if not error <= max(2 * usual, 1e-4):
            return f"{name} are {error:.1e} from those of float32, XLA's {usual:.1e}"
    return None
