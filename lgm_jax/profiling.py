"""Trace a few steps, to see where their time goes."""

from __future__ import annotations

import os
from typing import Any

import jax
from etils import epath

from lgm_jax import paths

# The first step compiles, the second may still find caches cold.
_BEFORE = 2


class StepTrace:
    """A context that traces some of the steps of a loop, those after the first two.

    The folder has `plugins/profile/<time>/perfetto_trace.json.gz`, which https://ui.perfetto.dev
    opens, and the files of XProf and TensorBoard.
    """

    def __init__(self, folder: epath.Path, steps: int):
        self._folder, self._steps, self._done = folder, steps, 0
        self._runs = False

    def __enter__(self) -> StepTrace:
        return self

    def advance(self, result: Any) -> None:
        """Counts a step; to be called with its result."""
        self._done += 1
        if self._steps and self._done == _BEFORE:
            jax.block_until_ready(result)
            self._folder.mkdir(parents=True, exist_ok=True)
            place = paths.alias(self._folder)
            jax.profiler.start_trace(os.fspath(place), create_perfetto_trace=True)
            self._runs = True
        elif self._runs and self._done == _BEFORE + self._steps:
            jax.block_until_ready(result)
            self.__exit__()

    def __exit__(self, *_: object) -> None:
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()
            print(f"profile: {self._folder}, for https://ui.perfetto.dev", flush=True)
