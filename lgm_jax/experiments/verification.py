"""A check of an accelerator: what it computes, takes and holds, beside what is expected."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lgm_jax import data, hosts, plan
from lgm_jax.accelerators import ACCELERATORS
from lgm_jax.backbones import Backbone, make_apply
from lgm_jax.compilation import Program
from lgm_jax.data import cache, download
from lgm_jax.errors import UserError
from lgm_jax.experiments import axes, reports
from lgm_jax.experiments.frame import SAME, TITLES, Study, with_papers_average
from lgm_jax.experiments.published import TOP1
from lgm_jax.experiments.result import Claim, Result, Table
from lgm_jax.experiments.runner import Measure, Outcome, Row
from lgm_jax.session import Session
from lgm_jax.stages.costs import step_costs

FEATURES, GRADIENT = ERRORS = ("error of features, %", "error of the images' gradient, %")
STEP, READING, MEMORY = "ms a step", "ms a step, with the reading of photos", "memory, GB"

MEASURED, EXPECTED = "measured", "expected"

# Test images that both the device and a CPU embed.
_IMAGES = 8

# Two ways to round are about as far from float32 as each other: the factor that kernels are tried
# with, too.
_TIMES = 2.0

# The random stream of the cotangents.
_STREAM = 105

# GPUs in the form that NVIDIA's data sheets have the peaks of.
_OTHER_FORMS = re.compile(r"pcie|nvl|mig", re.IGNORECASE)

_NOTES = (
    "Measured beside expected. Errors are those of the norm, against float32 on this machine's CPU "
    f"with the same weights and {_IMAGES} test images; expected is the error of the same type on "
    "the CPU. A step is expected to take as long as `--plan` says: "
    f"{plan.SHARE:.0%} of the published peak, where that is known; its memory is the compiler's "
    "account of the step, and measured is the most that the process has held so far.",
    "No accuracy is known for these backbones on Imagenette: the paper has larger backbones on "
    "ImageNet-100 and other sets. Its average stands beside ours to compare orders alone.",
)


def prepare(config: ConfigDict) -> None:
    """Sets the folder of Imagenette, which is downloaded where neither TFDS nor a folder has it.

    Raises:
        UserError: If a folder is named and has no Imagenette, or the download fails.
    """
    chosen = next(iter(axes.sets(config).values())).changes
    try:
        data.load_dataset(chosen["data.name"], folder=config.data.folder, resolution=1)
    except UserError:
        place = cache.folder()
        if config.data.folder or chosen["data.name"] != "imagenette" or place is None:
            raise
        folder = str(download.fetch(download.IMAGENETTE, place)) if hosts.is_first() else ""
        config.data.folder = hosts.first_says(folder)


def _compute(session: Session) -> dict[str, dict[str, float | None]]:
    """Returns what is measured and expected, by quantity; `None` where nothing is known."""
    print("comparing features and gradients with those of the CPU", flush=True)
    errors = compare(session.backbone, _images(session), session.key)
    objective = session.config.objective
    cost = step_costs(session, [objective])[objective]
    device, images = jax.local_devices()[0], session.dataset.splits["train"].labels
    expected = planned_ms(
        session.config, device.device_kind, session.dataset.num_classes, len(images)
    )
    held = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        **errors,
        STEP: {MEASURED: 1e3 * cost.seconds, EXPECTED: expected},
        MEMORY: {
            MEASURED: None if held is None else held / 1e9,
            EXPECTED: cost.num_bytes / 1e9,
        },
    }


def _images(session: Session) -> Float[np.ndarray, "n r r 3"]:
    """Returns centre crops of a few test images."""
    split = session.dataset.splits[session.config.probe.split]
    images = split.load(np.arange(min(_IMAGES, len(split.labels))))
    edge = (images.shape[1] - session.backbone.resolution) // 2
    inside = slice(edge, edge + session.backbone.resolution)
    return images[:, inside, inside].astype(np.float32) / 255


def compare(
    backbone: Backbone, images: Float[np.ndarray, "n r r 3"], key: Array
) -> dict[str, dict[str, float | None]]:
    """Compares features, and the gradient of a random sum of them, with float32 on a CPU.

    Args:
        backbone: The backbone, for the process's device.
        images: In [0, 1].
        key: Random key.

    Returns:
        Errors in percent by quantity: of the backbone on its device, and of the same type on the
        CPU, which is expected.

    Raises:
        UserError: If JAX has no CPU in this process.
    """
    settings = backbone.settings
    if settings is None:
        raise UserError(f"backbone {backbone.name} is made by hand: there is no other to compare")
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError("JAX sees no CPU to compare with: unset JAX_PLATFORMS") from error
    shape = len(images), backbone.feature_dim
    cotangent = np.asarray(jax.random.normal(jax.random.fold_in(key, _STREAM), shape))

    def run(apply: Any, params: Any, device: Any) -> list[np.ndarray]:
        def total(images: Array, params: Any) -> tuple[Array, Array]:
            features = apply(params, images)
            return jnp.sum(features * cotangent), features

        placed = jax.device_put((images, params), device)
        program = Program(jax.grad(total, has_aux=True)).for_platform(device.platform)
        gradient, features = program(*placed)
        return [np.asarray(features), np.asarray(gradient)]

    exact, rounded = (
        make_apply(settings.spec, settings.preprocessing, dtype, "xla")
        for dtype in ("float32", settings.dtype)
    )
    reference = run(exact, backbone.params, cpu)
    found = {
        MEASURED: run(backbone.apply, backbone.params, jax.local_devices()[0]),
        EXPECTED: run(rounded, backbone.params, cpu),
    }
    return {
        name: {
            kind: 100 * float(np.linalg.norm(values[i] - right) / np.linalg.norm(right))
            for kind, values in found.items()
        }
        for i, (name, right) in enumerate(zip(ERRORS, reference, strict=True))
    }


def planned_ms(config: ConfigDict, kind: str, num_classes: int, num_images: int) -> float | None:
    """Returns the time of a step that `--plan` says for a GPU, by the name that JAX gives it.

    `None` where its peak is unknown.
    """
    known = re.search("|".join(ACCELERATORS), kind.lower())
    if known is None or _OTHER_FORMS.search(kind):
        return None
    dtype = config.backbone.dtype
    peak = ACCELERATORS[known[0]].peak(dtype, exact=dtype == "float32")
    machine = plan.Machine(tflops=peak / 1e12)
    seconds = plan.plan_config(config, machine, num_classes, num_images).seconds
    return None if seconds is None else 1e3 * seconds


def _rows(outcome: Outcome) -> Iterator[Row]:
    reading = {MEASURED: 1e3 * outcome.seconds_per_step()}
    for name, values in {**outcome.measured, READING: reading}.items():
        for kind, value in values.items():
            if value is not None:
                yield f"{name}: {kind}", value, {"evaluated": outcome.axes["backbone"]}


MEASURE = Measure("verification", _compute, _rows, timed=True)


def report(study: Study) -> Result:
    """What is measured beside what is expected; accuracies, with the paper's claims.

    Methods are by backbones, each on the backbone it was chosen by; and the backbones are crossed.
    """
    own, beside = study.metric(TOP1), _beside(study)
    on_same = own[(own["where"] == SAME) | (own["backbone"] == "real")]
    title, order = ": images of each backbone", (TITLES.values(), ())
    table = study.table(on_same, title, "images", "images", "on", order=order)
    without = study.all[~study.all["method"].isin(["neighbors", "centroids"])]
    crossed = reports.by_backbone(dataclasses.replace(study, all=without))
    return Result(
        [beside, with_papers_average(table, reports.BY_METHOD), *crossed.tables],
        [*_claims(study, beside), reports.ahead_of_real(study, table), *crossed.claims],
        [*_NOTES, *crossed.notes],
        [table],
    )


def _beside(study: Study) -> Table:
    names, kinds = (*ERRORS, STEP, READING, MEMORY), (MEASURED, EXPECTED)
    part = study.metric(*(f"{name}: {kind}" for name in names for kind in kinds))
    words = part["metric"].str.rpartition(": ")
    rows = [f"{study.titled(each)}: {name}" for each in study.sources for name in names]
    return study.table(
        part,
        ": measured beside expected",
        "quantity",
        part["on"] + ": " + words[0],
        words[2],
        order=(rows, kinds),
        unit="in the unit of the row",
        digits=2,
        drawn=False,
    )


def _claims(study: Study, table: Table) -> list[Claim]:
    """Returns the claims that the device computes as precisely as is expected."""
    claims = []
    for name in ERRORS:
        pairs = {
            title: [table.mean(f"{title}: {name}", kind) for kind in (MEASURED, EXPECTED)]
            for title in map(study.titled, study.sources)
        }
        text = f"the {name.removesuffix(', %')} is at most twice what is expected"
        detail = "; ".join(f"{title} {a:.2f} for {b:.2f} %" for title, (a, b) in pairs.items())
        claims.append(Claim(text, all(a <= _TIMES * b for a, b in pairs.values()), detail))
    return claims
