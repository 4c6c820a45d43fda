"""The runs that experiments are made of: those that distil, and looks at real images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lgm_jax.experiments.axes import ImageSet, joined
from lgm_jax.experiments.runner import Measure, Planned


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way in which runs differ from their experiment's config.

    Attributes:
        name: In few words; empty for the config as it is.
        changes: By dotted key.
    """

    name: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def distilled_run(
    name: str,
    images: ImageSet,
    backbone: str,
    seed: int,
    variant: Variant,
    *,
    evaluate: Iterable[str],
    baselines: Sequence[str] = (),
    measure: Measure | None = None,
) -> Planned:
    """Returns a run that distils images and probes them.

    Args:
        name: The set of images.
        images: The same.
        backbone: What to distil against; several, comma-separated, are distilled against at once.
        seed: The distillation seed.
        variant: What is special about it.
        evaluate: What to evaluate on.
        baselines: Rows of real images to evaluate beside.
        measure: What else to compute.
    """
    stages = ["distill", "probe", *(["baselines"] if baselines else []), "report"]
    changes = {
        **images.changes,
        "backbone.name": backbone,
        "eval_backbones": ",".join(evaluate),
        "seed": seed,
        "stages": ",".join(stages),
        **({"baselines": ",".join(baselines)} if baselines else {}),
        **variant.changes,
    }
    place = {"set": name, "backbone": joined(backbone), "variant": variant.name, "seed": seed}
    return Planned(place, changes, measure)


def real_run(
    name: str, images: ImageSet, evaluate: Sequence[str], methods: Sequence[str]
) -> Planned:
    """Returns a run that distils nothing and probes real images; see `distilled_run`."""
    planned = look_at_real(name, images, "real", evaluate, "", None)
    probed = {"stages": "baselines,report", "baselines": ",".join(methods)}
    return dataclasses.replace(planned, changes={**planned.changes, **probed})


def look_at_real(
    name: str,
    images: ImageSet,
    backbone: str,
    evaluate: Sequence[str],
    variant: str,
    measure: Measure | None,
) -> Planned:
    """Returns a run that only measures something of real images; see `distilled_run`."""
    changes = {
        **images.changes,
        "backbone.name": evaluate[0],
        "eval_backbones": ",".join(evaluate),
        "stages": "report",
    }
    return Planned({"set": name, "backbone": backbone, "variant": variant}, changes, measure)
