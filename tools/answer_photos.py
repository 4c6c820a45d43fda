"""Writes the answers to the questions of docs/photos.md: `docs/results/photos_answers.md`.

    python -m tools.answer_photos

It reads `docs/results/runs/imagenette_*.json`, which `tools.write_results` keeps. A question whose
runs were not made, or failed, has no answer.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lgm_jax.experiments import axes, frame, measures
from lgm_jax.experiments.frame import WORST, taught
from lgm_jax.experiments.published import TOP1
from tools import write_results

if TYPE_CHECKING:
    import pandas as pd

PAGE = "photos_answers.md"

P, S = "vit_tiny_patch16_224", "moco_vit_112"
NAMES = {P: "P", S: "S"}
_OWN, _OTHER = ((P, P), (S, S)), ((P, S), (S, P))

# Test photos of Imagenette; of the misleading ones, and of each of their four groups.
_TEST, _MISLEADING, _GROUP = 3_925, 712, 178

_CHOICES = ("random", "centroids", "neighbors")


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """An accuracy in percent, and its standard error; not numbers where it was not measured."""

    value: float = math.nan
    error: float = math.nan

    @classmethod
    def over_seeds(cls, mean: float, std: float, seeds: int, images: int = _TEST) -> Accuracy:
        """Returns a mean with its error: of so many test images, and of the deviation of seeds."""
        return cls(mean, math.sqrt(mean * (100 - mean) / images + std**2 / seeds))

    def __sub__(self, other: Accuracy) -> Accuracy:
        return Accuracy(self.value - other.value, math.hypot(self.error, other.error))

    @property
    def verdict(self) -> str:
        """Whether a difference is positive by two standard errors."""
        # One of unknown error is not decided, either.
        if not abs(self.value) > 2 * self.error:
            return "undecided"
        return "yes" if self.value > 0 else "**no**"


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """Returns the numbers of each experiment on photos: those of all its pages, each once."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for path in sorted(folder.glob("imagenette_*.json")):
        (study,) = write_results.studies(json.loads(path.read_text()))
        parts.setdefault(study.config[axes.SECTION].name, []).append(study.all)
    once = [*frame.ENTRY, "run"]
    return {
        name: frame.import_pandas().concat(each).drop_duplicates(once, ignore_index=True)
        for name, each in parts.items()
    }


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the runs say.

    Attributes:
        frames: The numbers of each experiment.
    """

    frames: dict[str, pd.DataFrame]

    def accuracy(
        self,
        experiment: str,
        pair: tuple[str, str],
        method: str = "distilled",
        variant: str = "",
        metric: str = TOP1,
    ) -> Accuracy:
        """Returns the accuracy of a row, over distillation seeds, or over draws of random images.

        Args:
            experiment: Where the row is.
            pair: The backbone that images are distilled against, and the one that evaluates.
            method: The row of table 1.
            variant: The change of the method.
            metric: Top-1, that of the worst group, or that of probes with a teacher.
        """
        if experiment not in self.frames:
            return Accuracy()
        own = self.frames[experiment]
        own = own[(own["method"] == method) & (own["metric"] == metric)]
        own = own[(own["evaluated"] == pair[1]) & (own["variant"] == variant)]
        # Beside the run's own probes where it has them, with the same protocol.
        beside = own[own["backbone"] == pair[0]]
        own = own[own["backbone"] == "real"] if beside.empty else beside
        if own.empty:
            return Accuracy()
        each = own.groupby("run" if method == "random" else "seed", dropna=False)["value"].mean()
        whole = _MISLEADING if experiment == "table4" else _TEST
        mean, images = float(each.mean()), _GROUP if metric == WORST else whole
        std = float(each.std()) if len(each) > 1 else self._spread(pair)
        return Accuracy.over_seeds(mean, std, len(each), images)

    def _spread(self, pair: tuple[str, str]) -> float:
        """Returns the standard deviation over distillation seeds of the headline's row.

        Of a row with one seed it is not known, and the largest of the others stands in for it.
        """
        if "table2" not in self.frames:
            return math.nan
        own = self.frames["table2"]
        own = own[(own["metric"] == TOP1) & (own["method"] == "distilled")]
        each = own.groupby(["backbone", "evaluated", "seed"])["value"].mean()
        spreads = each.groupby(["backbone", "evaluated"]).std()
        spread = spreads.get(pair, math.nan)
        return float(spreads.max() if math.isnan(spread) else spread)

    def best_real(self, experiment: str, backbone: str, metric: str = TOP1) -> Accuracy:
        """Returns the best choice of real images, by the backbone that evaluates."""
        pair = (backbone, backbone)
        every = [self.accuracy(experiment, pair, each, metric=metric) for each in _CHOICES]
        measured = [each for each in every if not math.isnan(each.value)]
        return max(measured, key=lambda each: each.value, default=Accuracy())

    def rows(self) -> Iterator[tuple[str, str, tuple[str, str], Accuracy]]:
        """Yields number, question, backbones, and the difference that answers."""
        headline = {pair: self.accuracy("table2", pair) for pair in (*_OWN, *_OTHER)}
        for number, words, pairs in (("1", "own", _OWN), ("2", "other", _OTHER)):
            for pair in pairs:
                apart = headline[pair] - self.best_real("table1", pair[1])
                yield number, f"distilled - best real, {words} backbone", pair, apart
                more = self.accuracy("figure3", pair, variant="copies10")
                apart = more - self.best_real("table1", pair[1])
                yield number, f"the same, with 10 copies, {words} backbone", pair, apart
        for pair in _OTHER:
            yield "3", "own images - the other's", pair, headline[pair[1], pair[1]] - headline[pair]
        for number, part in (("4", "augment"), ("6", "pyramid"), ("7", "decorrelate")):
            for pair in (*_OWN, *_OTHER):
                shown = "5" if number == "4" and pair in _OTHER else number
                full, less = (
                    self.accuracy("table3", pair, variant=each) for each in ("", f"no-{part}")
                )
                yield shown, f"full - without {part}", pair, full - less
        for pair in (*_OWN, *_OTHER):
            many, one = (
                self.accuracy("figure3", pair, variant=each) for each in ("copies10", "copies1")
            )
            yield "8", "10 copies - 1", pair, many - one
        for pair in _OWN:
            for metric, words in ((TOP1, "on average"), (WORST, "in the worst group")):
                apart = self.accuracy("table4", pair, metric=metric)
                apart -= self.best_real("table4", pair[1], metric)
                yield "10", f"distilled - best real, {words}", pair, apart
        for teacher, method, pair in itertools.product(
            ("kd", "ci"), ("distilled", "random"), ((S, S), (S, P))
        ):
            soft, hard = (
                self.accuracy("objectives", pair, method, metric=metric)
                for metric in (taught(teacher), TOP1)
            )
            yield "11", f"{method}: {teacher} - hard labels", pair, soft - hard

    def edges(self) -> Iterator[tuple[str, float, float]]:
        """Yields, by backbone, the shares of images outside their class: radius, and direction."""
        own = self.frames.get("figure4")
        if own is None:
            return
        own = own[own["method"] == "distilled"]
        for backbone, name in NAMES.items():
            of = own[own["backbone"] == backbone].groupby("metric")["value"].mean()
            if not of.empty:
                outside, beyond = (float(of[metric]) for metric in measures.OUTSIDE)
                yield name, outside, beyond


_INTRODUCTION = """# Photos: the answers

The questions of [the plan](../photos.md), each with its difference *d* in points of top-1 and its
standard error *e*, by the plan's rules. P is timm's `vit_tiny_patch16_224`, S our `moco_vit_112`; P
to S are images of P evaluated on S. `python -m tools.answer_photos` computes this page from the
results of all runs, `docs/results/runs/imagenette_*.json`.

| | *d* is | backbone | *d* | *e* | answer |
|---|---|---|---|---|---|
"""


def page(answers: Answers) -> str:
    """Returns the page of the answers."""
    lines = []
    for number, words, (source, evaluated), apart in answers.rows():
        where = " to ".join(dict.fromkeys((NAMES[source], NAMES[evaluated])))
        found = f"| {apart.value:+.1f} | {apart.error:.1f} | {apart.verdict} |"
        if math.isnan(apart.value):
            found = "| | | not run |"
        lines.append(f"| {number} | {words} | {where} {found}")
    for name, outside, beyond in answers.edges():
        for share, words in ((outside, "outside the radius"), (beyond, "beyond, along the class")):
            answer = "yes" if share > 0.5 else "**no**"
            lines.append(f"| 9 | share {words} | {name} | {share:.2f} | | {answer} |")
    lines.sort(key=lambda line: int(line.split("|")[1]))
    return _INTRODUCTION + "\n".join(lines) + "\n"


def main() -> int:
    """Writes the page; gives the exit code."""
    answers = Answers(read(write_results.DOCS / "runs"))
    (write_results.DOCS / PAGE).write_text(page(answers))
    print(write_results.DOCS / PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
