"""The experiments, as a table: what varies, what is evaluated, and how it is reported."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lgm_jax.errors import unknown_name
from lgm_jax.experiments import (
    axes,
    dots,
    feature_reports,
    figures,
    frame,
    measures,
    reports,
    verification,
)
from lgm_jax.experiments.axes import SECTION, backbones, label, numbers, seeds
from lgm_jax.experiments.frame import Study
from lgm_jax.experiments.result import Result
from lgm_jax.experiments.runner import Measure, Outcome, Planned
from lgm_jax.settings import split_list

_CHOSEN = ("centroids", "neighbors")

# The parts of the method, and the config values that leave each out.
_PARTS: Mapping[str, Mapping[str, Any]] = {
    "decorrelate": {"images.decorrelate": False},
    "pyramid": {"images.kind": "pixels"},
    # Without augmentation all views are the same.
    "augment": {"augment.distill": False, "real.views": 1},
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A difference of runs from their experiment's config.

    Attributes:
        name: In few words; empty for the config as it is.
        changes: Config values by dotted key.
        backbones: What to distil against, one after another, several at once comma-separated; by
            default each backbone of the experiment.
        measure: What else to compute from the run of the first seed.
        shown: What pictures call it, if not by its name.
    """

    name: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    backbones: Sequence[str] = ()
    measure: Measure | None = None
    shown: str = ""


def _look(
    evaluated: Sequence[str],
    *methods: str,
    measure: Measure | None = None,
    backbone: str = "real",
    variant: str = "",
) -> Planned:
    """Returns a run that distils nothing, for any image set: real images by some backbones."""
    changes = {
        "backbone.name": evaluated[0],
        "eval_backbones": ",".join(evaluated),
        "stages": "baselines,report" if methods else "report",
        **({"baselines": ",".join(methods)} if methods else {}),
    }
    return Planned({"backbone": backbone, "variant": variant}, changes, measure)


Variants = Callable[[ConfigDict, Sequence[Outcome]], Iterable[Variant]]
Looks = Callable[[ConfigDict], Iterable[Planned]]


def _without(config: ConfigDict, _: Sequence[Outcome]) -> list[Variant]:
    """Returns the full method, and the method without parts, several with + between them."""
    variants = {config[SECTION].prefix: Variant(config[SECTION].prefix, shown="full method")}
    for words in split_list(config[SECTION].without):
        changes: dict[str, Any] = {}
        for part in words.split("+"):
            if part not in _PARTS:
                raise unknown_name("part of the method", part, list(_PARTS))
            changes |= _PARTS[part]
        name = "-".join(filter(None, [config[SECTION].prefix, "no", *words.split("+")]))
        variants[name] = Variant(name, changes, shown=f"without {', '.join(words.split('+'))}")
    return list(variants.values())


def _each(key: str, counted: str) -> Variants:
    """Returns variants by the number of what is counted; the recipe's own has no name."""
    return lambda config, _: [
        Variant(
            "" if each == config[key] else f"{key}{each}", {key: each}, shown=f"{counted}: {each}"
        )
        for each in numbers(config, key, int)
    ]


def _closed_form(config: ConfigDict, _: Sequence[Outcome]) -> list[Variant]:
    """Returns the closed-form probe with every ridge and temperature, on validation images."""
    pairs = itertools.product(*(numbers(config, key, float) for key in ("ridges", "temperatures")))
    changes = {"objective": "clp", "probe.split": "val"}
    return [
        Variant(
            f"ridge{ridge:g}-temperature{temperature:g}",
            {**changes, "clp.ridge": ridge, "clp.temperature": temperature},
            shown=f"ridge {ridge:g}, temperature {temperature:g}",
        )
        for ridge, temperature in pairs
    ]


def _objectives(config: ConfigDict, finished: Sequence[Outcome]) -> Iterator[Variant]:
    """Returns objectives at equal steps and equal time, sources, soft labels, joint backbones.

    The runs at equal time follow once the others have measured what a step of each costs.
    """
    named, every = axes.objectives(config), backbones(config)
    costs = measures.costs_of_steps(config)
    for objective in named:
        own = objective == config.objective
        name = reports.variant_of(config, objective)
        measure = costs if own else None
        yield Variant(name, {"objective": objective}, measure=measure, shown=objective)
    for source, objective in itertools.product(axes.sources(config)[1:], named):
        changes = {"objective": objective, "real.source": source}
        name, shown = reports.variant_of(config, objective, source), f"{objective}, {source}"
        yield Variant(name, changes, every[:1], shown=shown)
    if config[SECTION].soft:
        yield Variant(reports.SOFT, {"labels": "soft"}, every[:1], shown="soft labels")
    if joint := [",".join(pair) for pair in axes.pairs(config)]:
        yield Variant(backbones=joint)
    costs_of = {each.axes["backbone"]: each.measured for each in finished if each.measured}
    for backbone, objective in itertools.product(every if costs_of else [], named):
        seconds = {name: cost["seconds"] for name, cost in costs_of[label(backbone)].items()}
        # In tenths, since the time of a step is not known more precisely.
        tenths = max(1, round(10 * seconds[config.objective] / seconds[objective]))
        steps = max(1, round(config.steps * tenths / 10))
        if steps != config.steps:
            # The number is in the name: on another machine, another number is another run.
            changes = {"objective": objective, "steps": steps}
            name, shown = f"{objective}-{steps}-steps", f"{objective}, {steps} steps"
            yield Variant(name, changes, [backbone], shown=shown)


def _real(evaluated: Callable[[ConfigDict], list[str]], *methods: str) -> Looks:
    return lambda config: [_look(evaluated(config), *methods)]


def _align(config: ConfigDict) -> list[Planned]:
    measure = measures.alignment(config[SECTION].neighbors)
    return [_look(backbones(config), measure=measure, variant="alignment")]


def _head_gradients(config: ConfigDict) -> list[Planned]:
    stds = numbers(config, "head_stds", float)
    measure = measures.head_gradients(stds, config[SECTION].heads)
    return [
        _look([name], measure=measure, backbone=label(name), variant="class-means")
        for name in backbones(config)
    ]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """An experiment: runs by image set, variant, backbone and seed, and their report.

    Attributes:
        title: The title of its `table.md`.
        report: Returns the result on one image set.
        draw: Draws, into an empty `matplotlib.figure.Figure`, what results show.
        variants: Returns the variants that are distilled on an image set, given its finished runs.
        others: Returns what a run evaluates on, beside the backbones that it distils against.
        looks: Returns runs on real images.
        beside: Choices of real images that every run that distils evaluates, too.
        measure: What else to compute from runs that distil.
        rows: Returns rows of the frame, beside accuracies and measures, of a run.
        classes: Names of classes that come first in the picture of images.
        prepare: Completes the config before the first run, or refuses it.
        sent: The page that says how to send the result, which is then packed into one file.
    """

    title: str
    report: Callable[[Study], Result]
    draw: Callable[[Any, Sequence[Any]], None] = dots.dots
    variants: Variants = lambda *_: [Variant()]
    others: Callable[[ConfigDict], Iterable[str]] = lambda _: ()
    looks: Looks = lambda _: ()
    beside: Sequence[str] = ()
    measure: Measure | None = None
    rows: Callable[[ConfigDict, Outcome], Iterable[Mapping[str, Any]]] = lambda *_: ()
    classes: Sequence[str] = ()
    prepare: Callable[[ConfigDict], None] = lambda _: None
    sent: str = ""

    def plan(self, config: ConfigDict, finished: Mapping[str, Outcome]) -> list[Planned]:
        """Returns the runs that are known, given the finished ones by name.

        Bad values of the section `experiment` raise a `UserError`.
        """
        planned = []
        for name, images in axes.sets(config).items():
            done = [each for each in finished.values() if each.axes["set"] == name]
            runs = itertools.chain(
                self.looks(config),
                (
                    self._distil(config, variant, backbone, seed)
                    for variant in self.variants(config, done)
                    for backbone in variant.backbones or backbones(config)
                    for seed in seeds(config)
                ),
            )
            for each in runs:
                place = {"set": name, **each.axes}
                changes = {**images.changes, **each.changes}
                planned.append(dataclasses.replace(each, axes=place, changes=changes))
        return planned

    def _distil(self, config: ConfigDict, variant: Variant, backbone: str, seed: int) -> Planned:
        """Returns a run that distils, for any image set."""
        beside = list(self.beside)
        if config.probe.teacher:
            # The head of the teacher; and real images that learn from it as well.
            beside = list(dict.fromkeys([*beside, "random", "full"]))
        stages = ["distill", "probe", *(["baselines"] if beside else []), "report"]
        evaluated = dict.fromkeys([*split_list(backbone), *self.others(config)])
        changes = {
            "backbone.name": backbone,
            "eval_backbones": ",".join(evaluated),
            "seed": seed,
            "stages": ",".join(stages),
            **({"baselines": ",".join(beside)} if beside else {}),
            **variant.changes,
        }
        place = {"backbone": axes.joined(backbone), "variant": variant.name, "seed": seed}
        measure = self.measure or (variant.measure if seed == config.seed else None)
        return Planned(place, changes, measure, variant.shown)

    def studies(self, config: ConfigDict, outcomes: Sequence[Outcome]) -> list[Study]:
        """Returns the runs and numbers on each image set."""
        studies = []
        taught = split_list(config.probe.teacher)
        for name in axes.sets(config):
            own = [each for each in outcomes if each.axes["set"] == name]
            rows = (
                itertools.chain(frame.rows_of(each, self.beside, taught), self.rows(config, each))
                for each in own
            )
            every = frame.make(itertools.chain.from_iterable(rows))
            studies.append(Study(config, name, own, every))
        return studies


_BY_METHOD = Sweep(
    "Table 1: distilled images and real ones",
    reports.by_method,
    looks=_real(backbones, "random", "full"),
    beside=_CHOSEN,
)
_BY_BACKBONE = Sweep(
    "Table 2: distilled against one backbone, evaluated on another",
    reports.by_backbone,
    figures.matrices,
    others=axes.evaluated,
    looks=_real(axes.evaluated, "random", "full"),
)

SWEEPS: Mapping[str, Sweep] = {
    "table1": _BY_METHOD,
    "table2": _BY_BACKBONE,
    "table3": Sweep(
        "Table 3: what each part of the method is worth",
        reports.by_part,
        dots.parts,
        variants=_without,
        others=axes.evaluated,
        # Number 13 of ImageNet-100, which the paper's figure 5 shows.
        classes=("pineapple",),
    ),
    "table4": dataclasses.replace(
        _BY_METHOD,
        title="Table 4: backgrounds that mislead",
        report=reports.by_group,
        draw=dots.dots_beside,
        measure=measures.OF_GROUPS,
    ),
    "table5": dataclasses.replace(_BY_METHOD, title="Tables 5 and B.1: classes that look alike"),
    "table6": Sweep(
        "Table 6: transfer of distilled images, and alignment of backbones",
        feature_reports.transfer,
        figures.scatter,
        others=backbones,
        measure=measures.BY_NEAREST,
        looks=_align,
    ),
    "figure3": Sweep(
        "Figure 3: augmentations of each image in a step",
        reports.by_copies,
        figures.curves,
        variants=_each("copies", "augmentations"),
        others=axes.evaluated,
    ),
    "figure4": Sweep(
        "Figure 4: where distilled images lie among the real ones of their class",
        feature_reports.edges,
        figures.components,
        measure=measures.AT_EDGES,
    ),
    "ipc": Sweep(
        "Images per class",
        reports.by_ipc,
        figures.curves,
        variants=_each("ipc", "images per class"),
        looks=_real(backbones, "full"),
        beside=("random", *_CHOSEN),
    ),
    "sizes": dataclasses.replace(
        _BY_BACKBONE, title="Sizes of one family: distilled against one, evaluated on another"
    ),
    "class_means": Sweep(
        "Does the head gradient see more than class means?",
        feature_reports.class_means,
        figures.curves,
        variants=lambda *_: [],
        looks=_head_gradients,
    ),
    "objectives": Sweep(
        "Objectives, and several backbones at once",
        reports.objectives,
        variants=_objectives,
        others=axes.evaluated,
        looks=_real(axes.evaluated, "random", "full"),
        rows=reports.rows_of_objectives,
    ),
    "clp": Sweep(
        "Ridge and temperature of the closed-form probe",
        reports.closed_form,
        figures.matrices,
        variants=_closed_form,
    ),
    "verify_gpu": dataclasses.replace(
        _BY_BACKBONE,
        title="One GPU: measured beside expected",
        report=verification.report,
        draw=dots.dots,
        beside=_CHOSEN,
        measure=verification.MEASURE,
        prepare=verification.prepare,
        sent="docs/verify_gpu.md",
    ),
}
