"""The choice of an attention kernel for a device, and the trial of ours before its use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lgm_jax.backbones import pallas
from lgm_jax.backbones.attention import ATTENTIONS, AttentionKernel
from lgm_jax.backbones.network import Network
from lgm_jax.errors import UserError, unknown_name

_Apply = Callable[[Any, Float[Array, "n r r 3"]], Float[Array, "n d"]]

# Images of a trial.
_IMAGES = 4

# Two ways to round are about as far from float32 as each other.
_TIMES = 2.0

# Part of the largest number; what is this small in float32 is rounding too.
_NOTHING = 1e-4


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
    lacking = {
        "cudnn": _cudnn_lacks(device, spec.head_width, dtype),
        "pallas": _pallas_lacks(device, spec, dtype),
    }
    if lacking.get(attention):
        needs = ", ".join(lacking[attention])
        raise UserError(f"backbone.attention={attention} needs {needs}; set it to auto")
    for kernel in ("cudnn", "pallas"):
        if attention in ("auto", kernel) and not lacking[kernel]:
            return kernel
    return "xla"


def try_kernel(
    kernel: AttentionKernel,
    attention: str,
    make_apply: Callable[[str, AttentionKernel], _Apply],
    params: Any,
    side: int,
    dtype: str,
) -> AttentionKernel:
    """The kernel, or XLA's where ours fails on this device; runs nothing for JAX's own kernels.

    `make_apply` makes the backbone's `apply(params, images)` for a type and a kernel; `side` is
    that of its images, in pixels.
    """
    if kernel != "pallas":
        return kernel
    applies = make_apply(dtype, kernel), make_apply(dtype, "xla"), make_apply("float32", "xla")
    fault = _find_fault(*applies, params, side)
    if fault is None:
        return kernel
    told = f"backbone.attention={kernel} fails on this device: {fault}"
    if attention == kernel:
        raise UserError(f"{told}; set it to auto")
    print(f"note: {told}; attention is computed by XLA", flush=True)
    return "xla"


def _cudnn_lacks(device: Any, head_width: int, dtype: str) -> list[str]:
    """Returns the requirements of cuDNN's kernel, as JAX checks them, that are not met."""
    # AMD's devices give a name like gfx942 as their capability.
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    modern = major.isdigit() and int(major) >= 8
    needs = {
        "an NVIDIA GPU of compute capability 8.0 or more": device.platform in ("gpu", "cuda")
        and modern,
        "backbone.dtype=bfloat16": dtype == "bfloat16",
        "a head width of at most 128, divisible by 8": head_width <= 128 and head_width % 8 == 0,
    }
    return [what for what, fulfilled in needs.items() if not fulfilled]


def _pallas_lacks(device: Any, spec: Network, dtype: str) -> list[str]:
    """Returns the requirements of our kernel that are not met."""
    if device.platform != "tpu":
        return ["a TPU"]
    most, width = pallas.MOST_TOKENS, spec.head_width
    needed = pallas.needed_bytes(spec.tokens, spec.heads, width, dtype)
    available = pallas.vmem_bytes(device.device_kind)
    needs = {
        "a head width divisible by 8": width % 8 == 0,
        f"images of at most {most} tokens, not {spec.tokens}": spec.tokens <= most,
        f"{needed >> 20} MiB of vector memory, where {available >> 20} are there": needed
        <= available,
    }
    return [what for what, fulfilled in needs.items() if not fulfilled]


def first_device() -> Any:
    """A device that the backbone will run on: the default, which a user may have set."""
    return next(iter(jnp.zeros(()).devices()))


def _find_fault(kernel: _Apply, xla: _Apply, exact: _Apply, params: Any, side: int) -> str | None:
    """Returns the fault of features or gradient of one batch; `None` if there is none.

    Neither may be further from the exact one, in float32, than twice as far as XLA's is.
    """
    images_key, cotangent_key = jax.random.split(jax.random.key(0))
    images = jax.random.uniform(images_key, (_IMAGES, side, side, 3), jnp.float32)

    def results(apply: _Apply) -> tuple[Array, Array]:
        def both(params: Any, images: Array) -> tuple[Array, Array]:
            features, pullback = jax.vjp(lambda images: apply(params, images), images)
            cotangent = jax.random.normal(cotangent_key, features.shape, features.dtype)
            return features, pullback(cotangent)[0]

        return jax.block_until_ready(jax.jit(both)(params, images))

    try:
        found = results(kernel)
    # Whatever the kernel's compiler refuses, XLA computes.
    except Exception as refusal:
        return str(refusal).split("\n")[0] or type(refusal).__name__
    names = "features", "gradients"
    for name, ours, theirs, right in zip(names, found, results(xla), results(exact), strict=True):
        size = jnp.linalg.norm(right)
        error, usual = (float(jnp.linalg.norm(each - right) / size) for each in (ours, theirs))
        # Also if it is not a number.
        if not error <= max(_TIMES * usual, _NOTHING):
            return f"{name} are {error:.1e} from those of float32, XLA's {usual:.1e}"
    return None
