"""A finished run, as others may see it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lgm_jax import public, runs
from lgm_jax.distilled import ARRAYS, DistilledSet, read_distilled
from lgm_jax.errors import UserError


class Finished(NamedTuple):
    """What a finished run made.

    Attributes:
        images: The distilled set.
        results: `results.json`.
        record: The distillation's in `stages.json`: `inputs` and `made_by`.
        settings: The run's, by config key, as others may see them.
    """

    images: DistilledSet
    results: Mapping[str, Any]
    record: Mapping[str, Any]
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def data_name(self) -> str | None:
        """`data.name`, which version 0.1 recorded with the distillation."""
        return self.settings.get("data.name", self.record["inputs"].get("data.name"))


def read_run(workdir: str | Path) -> Finished:
    """Reads the folder of a finished run.

    Raises:
        UserError: If it is no run's folder, if the run is not finished, or if the run made no
            images of its own.
    """
    path, config, stages, results = runs.read_folder(workdir)
    record = stages.get("distill") or {}
    if config["identity"].get("images.source"):
        raise UserError(f"{workdir} evaluates images of another source, and made none to share")
    lacking = None
    if "result" not in record or not (path / runs.DISTILLED / ARRAYS).exists():
        lacking = "its images are not distilled yet"
    elif results is None:
        lacking = f"it has no {runs.RESULTS} yet"
    elif results.get("steps") != record["result"]["steps"]:
        lacking = f"its results are of {results.get('steps')} steps, its images of another number"
    if lacking is not None or results is None:
        raise UserError(f"{workdir} is not finished: {lacking}; start its command again")
    settings = public.settings(config.get("config", {}))
    return Finished(read_distilled(str(path)), results, record, settings)
