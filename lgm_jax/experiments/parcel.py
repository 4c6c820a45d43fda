"""One file of an experiment to send: its result, runs, plan and machine, without real images."""

from __future__ import annotations

import io
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import psutil
from etils import epath
from ml_collections import ConfigDict

from lgm_jax import files, plan, public, runs
from lgm_jax.distilled import ARRAYS
from lgm_jax.experiments import samples
from lgm_jax.experiments.axes import SECTION
from lgm_jax.experiments.result import FIGURES, TABLE_CSV, TABLE_MD
from lgm_jax.experiments.runner import RUNS, Outcome, by_step, configs_of
from lgm_jax.report.page import write_page
from lgm_jax.report.view import read_run

PLAN, MACHINE = "plan.txt", "machine.json"

_OF_EXPERIMENT = (TABLE_MD, TABLE_CSV, FIGURES[0], samples.FILE)

# Of a run: what holds no real image. Its page is made anew without the gallery, which does.
_OF_RUN = (
    *(runs.CONFIG, runs.STAGES, runs.RESULTS, runs.METRICS, runs.ANIMATION),
    *(f"{runs.DISTILLED}/{each}" for each in ("*.jsonl", "*.npz", "*/*.png")),
    f"{runs.TIMELAPSE}/*",
)


def write(folder: epath.Path, config: ConfigDict, outcomes: Sequence[Outcome]) -> epath.Path:
    """Writes `NAME.zip` into an experiment's folder, which has its result; returns it.

    It has neither weights, nor real images, nor paths of this machine.
    """
    name, content = config[SECTION].name, io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as parcel:
        for file in _OF_EXPERIMENT:
            if (folder / file).exists():
                parcel.writestr(f"{name}/{file}", (folder / file).read_bytes())
        parcel.writestr(f"{name}/{MACHINE}", json.dumps(describe_machine(), indent=1))
        parcel.writestr(f"{name}/{PLAN}", _plans(config, outcomes))
        for each in outcomes:
            for path, data in _of_run(each):
                parcel.writestr(f"{name}/{RUNS}/{each.planned.name}/{path}", data)
    target = folder / f"{name}.zip"
    with files.replacing(target) as temporary:
        temporary.write_bytes(content.getvalue())
    return target


def describe_machine() -> dict[str, Any]:
    """Returns versions, devices and the host, without names of people or machines."""
    device = jax.local_devices()[0]
    return {
        **runs.provenance(),
        "platform": device.platform,
        "compiler": device.client.platform_version,
        "compute_capability": getattr(device, "compute_capability", None),
        "memory_stats": device.memory_stats(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "host_bytes": psutil.virtual_memory().total,
    }


def _plans(config: ConfigDict, outcomes: Sequence[Outcome]) -> str:
    """Returns the plans of the runs that distil, on one device of the present memory."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    machine = plan.Machine(memory=limit / 1e9) if limit else plan.Machine()

    plans = []
    for names, each in by_step(configs_of([each.planned for each in outcomes], config)).items():
        if each is not None:
            shown = public.value("backbone.name", each.backbone.name)
            text = plan.describe(each, machine).replace(each.backbone.name, shown)
            plans.append(f"{names}\n{text}\n")
    return "\n".join(plans)


def _of_run(outcome: Outcome) -> Iterator[tuple[str, bytes]]:
    """Yields the names and contents of a run's files, the page among them."""
    assert outcome.path is not None
    with tempfile.TemporaryDirectory() as temporary:
        # Named as the run is, which the page shows.
        copy = epath.Path(temporary) / outcome.planned.name
        for pattern in _OF_RUN:
            for path in outcome.path.glob(pattern):
                target = copy / path.relative_to(outcome.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.copy(target)
        config = files.read_json(copy / runs.CONFIG) or {}
        shown = {**config, "config": public.settings(config["config"])}
        if config.get("command"):
            shown["command"] = public.command(config["command"])
        files.write_json(copy / runs.CONFIG, shown)
        write_page(read_run(copy))
        for path in sorted(Path(copy).rglob("*")):
            inside = path.relative_to(copy)
            # Sheets are in the animation, and unrounded images take megabytes.
            hidden = inside.parts[0] == runs.TIMELAPSE or path.name == ARRAYS
            if path.is_file() and not hidden:
                yield inside.as_posix(), path.read_bytes()
