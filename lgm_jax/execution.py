"""How a step is executed: how many views are taken at a time, and what is kept for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lgm_jax.backbones.residuals import Residuals

_Order = tuple[Sequence[Residuals], Residuals]


class Execution(NamedTuple):
    """One way to execute a step, whose result is the same but for rounding.

    Attributes:
        microbatch: Views in a backbone at a time on each device.
        residuals: What is kept of them for the gradient.
        real_microbatch: The same of real images; `None` where steps embed none.
    """

    microbatch: int
    residuals: Residuals = "all"
    real_microbatch: int | None = None

    def __str__(self) -> str:
        words = f"{self.microbatch} views at a time"
        if self.residuals == "products":
            words += ", products with weights kept"
        if self.real_microbatch not in (None, self.microbatch):
            words += f", {self.real_microbatch} real images at a time"
        return words

    def repeats(self, parts: int) -> str:
        """Returns what a step of so many parts computes twice, in words."""
        if self.residuals == "products":
            return f"products with weights {'kept' if parts == 1 else 'computed twice'}"
        return "nothing computed twice" if parts == 1 else "forward twice"


# Activations to keep: with all views at once, the fastest first, and in parts. Measured on CPUs
# (docs/benchmarks.md): all at once takes as long either way, and to keep all is to keep the bits of
# earlier runs; parts take half as long again, whatever they keep. On accelerators compilers count
# fewer bytes moved where products alone are kept (docs/scaling.md), and these bound most of a step.
_CPU: _Order = ("all", "products"), "all"
_ACCELERATOR: _Order = ("products",), "products"


def choose(
    fitting: Callable[[Residuals], int], offered: Sequence[Residuals], views: int, platform: str
) -> Execution:
    """The fastest way of those that fit in memory.

    Args:
        fitting: Returns the most views at a time that fit, if so much is kept of them.
        offered: What backbones can keep, "all" among it.
        views: Those of one device in a step.
    """
    at_once, in_parts = _CPU if platform == "cpu" else _ACCELERATOR
    sizes: dict[Residuals, int] = {}
    for residuals in [each for each in at_once if each in offered] or ["all"]:
        sizes[residuals] = fitting(residuals)
        if sizes[residuals] >= views:
            return Execution(views, residuals)
    residuals = in_parts if in_parts in sizes else "all"
    return Execution(sizes[residuals], residuals)
