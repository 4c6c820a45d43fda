"""The results of an experiment as one long table, a number a row, and tables that pivot it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from lgm_jax.errors import UserError
from lgm_jax.experiments import axes, published
from lgm_jax.experiments.published import TOP1, Key, Number
from lgm_jax.experiments.result import AVERAGE, Cell, Table
from lgm_jax.experiments.runner import Outcome
from lgm_jax.report.vocabulary import TITLES
from lgm_jax.settings import split_list

if TYPE_CHECKING:
    import pandas as pd

WORST = "worst group"

# These tell one trained probe, or one measured number, from another.
ENTRY = ("set", "backbone", "variant", "seed", "evaluated", "method", "metric")

DISTILLED, RANDOM, FULL = (TITLES[method] for method in ("distilled", "random", "full"))

# Methods whose images differ by seed, and random heads, which are seeds themselves. The others have
# no spread over seeds.
_SEEDED = ("distilled", "neighbors", "heads")

SAME, OTHERS = "same backbone", "other backbones"

# Beside numbers of other data and backbones, to compare orders, not numbers.
_PAPERS_AVERAGE = "the paper's average, ImageNet-100"


def import_pandas() -> Any:
    """Returns pandas; a `UserError` if it is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError(
            "experiments need pandas: pip install 'lgm_jax[experiments]', and start again"
        ) from error
    return pd


def row_of(outcome: Outcome, metric: str, value: float, **others: Any) -> dict[str, Any]:
    """Returns a row of the frame: one number of a run."""
    places = {"variant": "", "seed": None, "evaluated": "", "method": "", "run": None}
    return {**places, **outcome.axes, "metric": metric, "value": value, **others}


def taught(targets: str) -> str:
    """Returns the metric of the accuracy of probes with a teacher."""
    return f"{TOP1}, {targets}"


def rows_of(
    outcome: Outcome, beside: Sequence[str] = (), teachers: Sequence[str] = ()
) -> Iterator[Mapping[str, Any]]:
    """Returns the rows of a run: accuracies in percent by probe run, and what it measured.

    Its folder may have other results, too, of experiments that share the run.

    Args:
        outcome: The run.
        beside: The choices of real images that the sweep evaluates beside distilled ones.
        teachers: What probes with a teacher learn.
    """
    changes, results = outcome.planned.changes, outcome.results
    stages = split_list(changes["stages"])
    distilled = ["distilled"] if "probe" in stages else []
    chosen = split_list(changes["baselines"]) if "baselines" in stages else []
    few = [*distilled, *(method for method in chosen if method != "full")]
    tables = [(taught(name), results.get("taught", {}).get(name, {}), few) for name in teachers]
    tables.append((TOP1, results["probe"], [*distilled, *beside] if distilled else chosen))
    for metric, probes, methods in tables:
        for backbone, method in itertools.product(outcome.evaluated, methods):
            entry, place = probes[backbone][method], {"evaluated": backbone, "method": method}
            for run, value in enumerate(entry["top1_runs"]):
                yield row_of(outcome, metric, value, run=run, **place)
            if metric == TOP1:
                # Means over probe runs.
                for group, value in (entry.get("groups") or {}).items():
                    yield row_of(outcome, f"group {group}", value, **place)
                if entry.get("worst_group") is not None:
                    yield row_of(outcome, WORST, entry["worst_group"], **place)
    if outcome.planned.measure is not None:
        for metric, value, others in outcome.planned.measure.rows(outcome):
            yield row_of(outcome, metric, value, **others)


def make(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns the frame of all rows."""
    columns = [*ENTRY[:-1], "run", "metric", "value"]
    frame = import_pandas().DataFrame(list(rows), columns=columns)
    return frame.astype({"seed": "Int64", "run": "Int64", "value": "float64"})


def _key(words: Iterable[str], pairs: Iterable[tuple[str, str]]) -> Key:
    name, variant, method, metric = words
    return name, variant, method, metric, frozenset(pairs)


@dataclasses.dataclass(frozen=True)
class Study:
    """The finished runs of an experiment on one image set.

    Attributes:
        config: The config of the experiment.
        name: The image set.
        outcomes: The runs, in the order of the plan.
        all: Their numbers.
    """

    config: ConfigDict
    name: str
    outcomes: Sequence[Outcome]
    all: pd.DataFrame

    @property
    def title(self) -> str:
        """The name of the images; of given ones, that of their data set or folder."""
        names = [each.results["dataset"] for each in self.outcomes if self.name == axes.GIVEN]
        return names[0] if names else axes.SETS[self.name].title

    @functools.cached_property
    def papers(self) -> Mapping[Key, Number]:
        return published.papers(self.config, self.name, self.outcomes)

    @functools.cached_property
    def sources(self) -> list[str]:
        """The backbones that images are distilled against, by their labels in the frame."""
        return list(map(axes.joined, axes.backbones(self.config)))

    @functools.cached_property
    def evaluated(self) -> list[str]:
        """The backbones that images are evaluated on, by their labels in the frame."""
        return list(map(axes.joined, axes.evaluated(self.config)))

    def titled(self, backbone: str) -> str:
        """Returns the title of a backbone, or of several, in a table."""
        every = [*axes.backbones(self.config), *axes.evaluated(self.config)]
        titles = {axes.joined(name): axes.TITLES.get(name) for name in every}
        return " + ".join(titles.get(name) or name for name in backbone.split("+"))

    def first_outcome(self, backbone: str) -> Outcome:
        """Returns the first run that was distilled against a backbone."""
        return next(each for each in self.outcomes if each.axes["backbone"] == backbone)

    @functools.cached_property
    def placed(self) -> pd.DataFrame:
        """The numbers, with titles for the rows and columns of tables.

        `images` is the method; `against` the backbone that is distilled against, `source` the same
        for distilled images and the method for others; `on` the backbone that is evaluated on, and
        `where` whether it is the same.
        """
        own = self.all
        titles = {name: self.titled(name) for name in {*own["backbone"], *own["evaluated"]}}
        images, against = own["method"].map(TITLES), own["backbone"].map(titles)
        is_same = own["evaluated"] == own["backbone"]
        return own.assign(
            images=images,
            against=against,
            source=against.where(own["method"] == "distilled", images),
            on=own["evaluated"].map(titles),
            where=is_same.map({True: SAME, False: OTHERS}),
        )

    def metric(self, *names: str) -> pd.DataFrame:
        """Returns the numbers of some metrics."""
        return self.placed[self.placed["metric"].isin(names)]

    def by_source(
        self, part: pd.DataFrame, column: str = "backbone"
    ) -> Iterator[tuple[str, pd.DataFrame]]:
        """Returns the numbers of each backbone that is distilled against, with its title."""
        for backbone in self.sources:
            yield self.titled(backbone), part[part[column] == backbone]

    def table(
        self,
        part: pd.DataFrame,
        title: str,
        corner: str,
        rows: str | pd.Series,
        columns: str | pd.Series,
        *,
        order: tuple[Iterable[str], Iterable[str]] = ((), ()),
        average: bool = False,
        **looks: Any,
    ) -> Table:
        """Pivots a part of the frame.

        Args:
            part: The numbers.
            title: It follows the name of the set.
            corner: What the rows are.
            rows: The column of the frame, or the values, that places each number in a row.
            columns: Likewise.
            order: The first rows, and the first columns, in order; others follow as they come.
            average: Whether to add the average over columns.
            **looks: Other attributes of the table.
        """
        rows, columns = (part[by] if isinstance(by, str) else by for by in (rows, columns))
        part = part.assign(row=rows, column=columns)
        if average:
            part = import_pandas().concat([part, part.assign(column=AVERAGE)])
        cells = self._cells(part)
        every = [
            dict.fromkeys([*first, *(place[i] for place in cells)]) for i, first in enumerate(order)
        ]
        places = [(row, column) for row in every[0] for column in every[1]]
        cells = {place: cells[place] for place in places if place in cells}
        return Table(f"{self.title}{title}", corner, cells, **looks)

    def _cells(self, part: pd.DataFrame) -> dict[tuple[str, str], Cell]:
        """Summarises a part of the frame by its columns `row` and `column`."""
        probes = part.groupby(["row", "column", *ENTRY], dropna=False, sort=False)["value"]
        # A missing number makes the mean and the spread over it missing, too.
        summary = {
            "mean": probes.mean(skipna=False),
            "std": probes.std(ddof=self.config.probe.ddof, skipna=False),
            "count": probes.size(),
        }
        entries = import_pandas().DataFrame(summary).reset_index()
        cells = {}
        for place, of in entries.groupby(["row", "column"], sort=False):
            by_seed = of.groupby("seed", dropna=False)["mean"].mean(skipna=False)
            several = of["std"][of["count"] > 1]
            first = of.iloc[0]
            seeded = first["method"] in _SEEDED
            words = first[["set", "variant", "method", "metric"]]
            pairs = zip(of["backbone"], of["evaluated"], strict=True)
            cells[place] = Cell(
                mean=float(by_seed.mean(skipna=False)),
                std=float(by_seed.std(skipna=False)) if seeded and len(by_seed) > 1 else None,
                probe_std=float(several.mean()) if len(several) else None,
                seeds=len(by_seed) if seeded else 0,
                probe_runs=int(of["count"].min()),
                paper=self.papers.get(_key(words, pairs)),
            )
        return cells


def to_csv(studies: Sequence[Study]) -> str:
    """Returns the text of `table.csv`: a line per number of all sets, the paper's beside it."""
    frame = import_pandas().concat([study.all for study in studies])
    papers = {study.name: study.papers for study in studies}
    keys = (
        _key([row.set, row.variant, row.method, row.metric], [(row.backbone, row.evaluated)])
        for row in frame.itertuples(index=False)
    )
    beside = np.array([papers[key[0]].get(key, (None, None)) for key in keys], float).reshape(-1, 2)
    written = frame.assign(
        value=frame["value"].map("{:.10g}".format), paper=beside[:, 0], paper_std=beside[:, 1]
    )
    text: str = written.to_csv(index=False, lineterminator="\n")
    return text


def with_papers_average(
    table: Table,
    rows: Mapping[str, tuple[str, str]],
    *,
    name: str = "imagenet-100",
    over: str = "same",
    column: str = _PAPERS_AVERAGE,
) -> Table:
    """Returns a table with a further column, the paper's average over its four backbones.

    Args:
        table: The table.
        rows: By row of it, the variant and the method of the paper's number.
        name: The paper's image set.
        over: Whether the `same` backbones evaluate, or `others`.
        column: The title of the column.
    """
    numbers = {row: published.average(name, *place, over) for row, place in rows.items()}
    cells = {(row, column): Cell(paper=number) for row, number in numbers.items() if number}
    return dataclasses.replace(table, cells={**table.cells, **cells})
