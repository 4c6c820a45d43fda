"""The experiments, as a table: what varies, what is evaluated, what is reported."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lgm_jax.errors import unknown_name
from lgm_jax.experiments import figures, frame, look_reports, looks, objectives, reports
from lgm_jax.experiments.axes import (
    SECTION,
    ImageSet,
    backbones,
    counts,
    evaluated,
    label,
    scales,
    seeds,
    sets,
)
from lgm_jax.experiments.planning import Variant, distilled_run, look_at_real, real_run
from lgm_jax.experiments.runner import Measure, Outcome, Planned
from lgm_jax.experiments.study import Report, Study
from lgm_jax.settings import split_list

OWN, ALL, EACH = "own", "all", "each"

_REAL = ("random", "full")

# What can be left out, alone or together, and how.
_PARTS: Mapping[str, Mapping[str, Any]] = {
    "decorrelate": {"images.decorrelate": False},
    "pyramid": {"images.kind": "pixels"},
    # Without augmentation all views are the same.
    "augment": {"augment.distill": False, "real.views": 1},
}


def _as_configured(config: ConfigDict) -> list[Variant]:
    return [Variant()]


def _without(config: ConfigDict) -> list[Variant]:
    """Returns the full method, and it without parts, several with + between them."""
    prefix, found = config[SECTION].prefix, {}
    for words in ["none", *split_list(config[SECTION].without)]:
        changes: dict[str, Any] = {}
        for part in words.split("+"):
            if part not in (*_PARTS, "none"):
                raise unknown_name("part of the method", part, ["none", *_PARTS])
            changes |= _PARTS.get(part, {})
        name = "" if words == "none" else f"no-{words.replace('+', '-')}"
        found[name] = Variant("-".join(filter(None, [prefix, name])), changes)
    return list(found.values())


def _copies(config: ConfigDict) -> list[Variant]:
    return [Variant(f"copies{count}", {"copies": count}) for count in counts(config, "copies")]


def _ipc(config: ConfigDict) -> list[Variant]:
    # One image per class is the run of table 1.
    return [
        Variant("" if count == 1 else f"ipc{count}", {"ipc": count})
        for count in counts(config, "ipc")
    ]


def _closed_form(config: ConfigDict) -> list[Variant]:
    """Returns the closed-form probe with every ridge and temperature, on validation images."""
    changes = {"objective": "clp", "probe.split": "val"}
    return [
        Variant(
            f"ridge{ridge:g}-temperature{temperature:g}",
            {**changes, "clp.ridge": ridge, "clp.temperature": temperature},
        )
        for ridge, temperature in itertools.product(
            scales(config, "ridges"), scales(config, "temperatures")
        )
    ]


def _align(
    config: ConfigDict, name: str, images: ImageSet, _: Mapping[str, Outcome]
) -> list[Planned]:
    measure = looks.alignment(config[SECTION].neighbors)
    return [look_at_real(name, images, "real", backbones(config), "alignment", measure)]


def _head_gradients(
    config: ConfigDict, name: str, images: ImageSet, _: Mapping[str, Outcome]
) -> list[Planned]:
    measure = looks.head_gradients(scales(config, "head_stds"), config[SECTION].heads)
    return [
        look_at_real(name, images, label(backbone), [backbone], "class-means", measure)
        for backbone in backbones(config)
    ]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """An experiment: runs along sets of images, variants, backbones and seeds, and their report.

    Attributes:
        title: Of its `table.md`.
        report: Returns tables and claims of one set of images.
        draw: Draws, into an empty `matplotlib.figure.Figure`, what reports show.
        variants: Returns how the runs that distil differ from the config; none if none distils.
        evaluate: What a run evaluates on: `OWN` backbone, `ALL` of the experiment's besides, or
            `EACH` that is distilled against.
        real: Rows of real images, in one run for all backbones.
        beside: Rows of real images, in every run that distils.
        measure: What else to compute from runs that distil.
        further: Returns further runs of a set, given the finished ones by name.
        rows: Returns rows of the frame beside accuracies.
        notes: Returns what a reader must know.
    """

    title: str
    report: Callable[[Study], Report]
    draw: Callable[[Any, Sequence[Any]], None] = figures.bars
    variants: Callable[[ConfigDict], Sequence[Variant]] = _as_configured
    evaluate: str = OWN
    real: Sequence[str] = ()
    beside: Sequence[str] = ()
    measure: Measure | None = None
    further: Callable[[ConfigDict, str, ImageSet, Mapping[str, Outcome]], list[Planned]] = (
        lambda *_: []
    )
    rows: Callable[[ConfigDict, Outcome], Iterable[Mapping[str, Any]]] = lambda *_: ()
    notes: Callable[[ConfigDict], Sequence[str]] = lambda config: [reports.seed_note(config)]

    def plan(self, config: ConfigDict, finished: Mapping[str, Outcome]) -> list[Planned]:
        """Returns all runs that are known, given the finished ones by name.

        Raises:
            UserError: For bad values of the section `experiment`.
        """
        planned = []
        for name, images in sets(config).items():
            if self.real:
                seen = backbones(config) if self.evaluate == OWN else evaluated(config)
                planned.append(real_run(name, images, seen, self.real))
            planned += self.further(config, name, images, finished)
            planned += [
                distilled_run(
                    name,
                    images,
                    backbone,
                    seed,
                    variant,
                    evaluate=self._evaluated(config, backbone),
                    baselines=self.beside,
                    measure=self.measure,
                )
                for variant in self.variants(config)
                for backbone in backbones(config)
                for seed in seeds(config)
            ]
        return planned

    def _evaluated(self, config: ConfigDict, backbone: str) -> list[str]:
        if self.evaluate == EACH:
            return backbones(config)
        others = evaluated(config) if self.evaluate == ALL else []
        return list(dict.fromkeys([backbone, *others]))

    def studies(self, config: ConfigDict, outcomes: Sequence[Outcome]) -> list[Study]:
        """Returns what was found on each set of images."""
        found = []
        for name in sets(config):
            own = [each for each in outcomes if each.axes["set"] == name]
            rows = itertools.chain.from_iterable(
                itertools.chain(frame.accuracies(each), self.rows(config, each)) for each in own
            )
            found.append(Study(config, name, own, frame.make(rows)))
        return found


_BY_METHOD = Sweep(
    "Table 1: distilled images and real ones",
    reports.by_method,
    real=_REAL,
    beside=("centroids", "neighbors"),
)
_BY_BACKBONE = Sweep(
    "Table 2: distilled against one backbone, evaluated on another",
    reports.by_backbone,
    figures.matrices,
    evaluate=ALL,
    real=_REAL,
)

SWEEPS: Mapping[str, Sweep] = {
    "table1": _BY_METHOD,
    "table2": _BY_BACKBONE,
    "table3": Sweep(
        "Table 3: what each part of the method is worth",
        functools.partial(reports.by_part, parts=tuple(_PARTS)),
        variants=_without,
        evaluate=ALL,
    ),
    "table4": dataclasses.replace(
        _BY_METHOD,
        title="Table 4: backgrounds that mislead",
        report=reports.by_group,
        draw=figures.bars_beside,
        measure=looks.GROUPS,
        notes=lambda _: [reports.GROUP_NOTE],
    ),
    "table5": dataclasses.replace(_BY_METHOD, title="Tables 5 and B.1: classes that look alike"),
    "table6": Sweep(
        "Table 6: transfer of distilled images, and alignment of backbones",
        look_reports.transfer,
        figures.scatter,
        evaluate=EACH,
        measure=looks.NEAREST,
        further=_align,
        rows=look_reports.transfer_rows,
        notes=look_reports.transfer_notes,
    ),
    "figure3": Sweep(
        "Figure 3: augmentations of each image in a step",
        reports.by_copies,
        figures.curves,
        variants=_copies,
        evaluate=ALL,
    ),
    "figure4": Sweep(
        "Figure 4: where distilled images lie among the real ones of their class",
        look_reports.edges,
        figures.components,
        measure=looks.EDGES,
        rows=look_reports.edge_rows,
        notes=lambda _: [look_reports.EDGE_NOTE],
    ),
    "ipc": Sweep(
        "Images per class",
        reports.by_ipc,
        figures.curves,
        variants=_ipc,
        real=("full",),
        beside=("random", "centroids", "neighbors"),
    ),
    "sizes": dataclasses.replace(
        _BY_BACKBONE, title="Sizes of one family: distilled against one, evaluated on another"
    ),
    "class_means": Sweep(
        "Does the head gradient see more than class means?",
        look_reports.class_means,
        figures.curves,
        variants=lambda _: [],
        further=_head_gradients,
        rows=look_reports.head_rows,
        notes=look_reports.head_notes,
    ),
    "objectives": Sweep(
        "Objectives, and several backbones at once",
        objectives.report,
        variants=lambda _: [],
        evaluate=ALL,
        real=_REAL,
        further=objectives.plan,
        rows=objectives.rows,
        notes=objectives.notes,
    ),
    "clp": Sweep(
        "Ridge and temperature of the closed-form probe",
        reports.closed_form,
        figures.matrices,
        variants=_closed_form,
        notes=lambda _: [],
    ),
}
