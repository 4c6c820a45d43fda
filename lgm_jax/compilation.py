"""Compile programs with options for XLA where its defaults are slow."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")

# XLA hands whole blocks of a transformer to the YNNPACK library, whose generated code takes longer
# than XLA's own fusions around plain matrix products: a step of a ViT-Ti is 1.15 to 1.3 times
# faster without (`docs/benchmarks.md`). And it is not always right: with jaxlib 0.10.2, probes by
# L-BFGS on several devices were NaN in a quarter of all processes, from the same compiled program
# and features, and in none of 28 without.
CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Options for CPUs."""


@functools.cache
def options(platform: str | None = None) -> dict[str, str]:
    """Returns `compiler_options` of `jax.jit` for a program with a backbone; starts the backend.

    They are empty on accelerators, and where this jaxlib does not know them.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=CPU).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return CPU


class Program(Generic[P, T]):
    """A function under `jax.jit` with `options()`, which XLA ignores within another program."""

    def __init__(self, function: Callable[P, T], **arguments: Any):
        self.function, self._arguments = function, arguments

    @functools.cached_property
    def jitted(self) -> Any:
        """The jitted function; starts the backend."""
        return self.for_platform(jax.default_backend())

    def for_platform(self, platform: str) -> Any:
        """Returns the jitted function, to be lowered for devices that the process may not have."""
        return jax.jit(self.function, compiler_options=options(platform), **self._arguments)

    def lower(self, *values: P.args, **named: P.kwargs) -> Any:
        """Lowers the jitted function for arguments."""
        return self.jitted.lower(*values, **named)

    def __call__(self, *values: P.args, **named: P.kwargs) -> T:
        return self.jitted(*values, **named)
