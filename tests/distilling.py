"""What tests of distillation share: a task, and how it is run. Fixtures are in `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
import pytest

from lgm_jax import compilation, devices, distill
from lgm_jax.backbones import Backbone
from lgm_jax.compilation import Program
from lgm_jax.images import Pyramid
from tests.emitters import FUSION_EMITTERS

KEY = jax.random.key(0)
RATE, STEPS = 0.1, 11
# The pyramid of 8 px has sides 1, 2, 4, 8: it grows before the updates of number 3, 6 and 9.
TASK = distill.Distillation(2, Pyramid(8, grow_every=3), 8, copies=2, optimizer=optax.adam(RATE))

Real = Callable[[int], Sequence[Any]]


def compile_step(task: distill.Distillation, *backbones: Backbone, **arguments: Any) -> Program:
    """A step that leaves the state that it is given as it is."""
    applies = [backbone.apply for backbone in backbones]
    return Program(distill.make_step(task, applies, KEY, **arguments).function)


def with_fusion_emitters(step: Program) -> Program:
    """Has a step compiled as users do, not as `conftest.py` says.

    For what has to be equal to the bit: without these emitters, numbers depend on whether the
    state is donated.
    """
    released = {**compilation.options(), **FUSION_EMITTERS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "options", lambda platform=None: released)
        assert step.jitted
    return step


def run(
    step: Any, state: distill.State, params: Sequence[Any], real: Real, steps: int
) -> Iterator[tuple[distill.State, float]]:
    """States and losses after each update, up to that of number `steps`."""
    for number in range(int(state.step), steps):
        state, metrics = step(state, params, real(number))
        yield state, float(metrics["loss"])


def restore(task: distill.Distillation, state: distill.State) -> distill.State:
    """A state that was fetched, as it lies on the mesh."""
    mesh = devices.make_mesh(task.num_images, task.copies)
    return devices.place(mesh, state, task.num_images)


def assert_identical(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close_to_largest(actual: Any, expected: Any, tolerance: float) -> None:
    """Relative to the largest number of each array."""

    def compare(ours: Any, theirs: Any) -> None:
        limit = tolerance * float(np.max(np.abs(theirs)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)

    jax.tree.map(compare, actual, expected)
