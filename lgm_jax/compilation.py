"""Options for XLA where its defaults are slow."""

from __future__ import annotations

import functools

import jax

# XLA hands whole blocks of a transformer to the YNNPACK library, whose generated code takes longer
# than XLA's own fusions around plain matrix products: a step of a ViT-Ti is 1.15 to 1.3 times
# faster without (`docs/benchmarks.md`).
_CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def options() -> dict[str, str]:
    """For `jax.jit(..., compiler_options=options())` around a backbone; starts the backend.

    Empty where this jaxlib does not know them, and on accelerators.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=_CPU).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU
