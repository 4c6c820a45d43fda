"""What reports are made of: the numbers on one set of images, as tables that are pivots of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from lgm_jax.experiments import axes, frame, published
from lgm_jax.experiments.frame import Cell
from lgm_jax.experiments.published import Key, Number
from lgm_jax.experiments.result import Claim, Table
from lgm_jax.experiments.runner import Outcome

if TYPE_CHECKING:
    import pandas as pd

METHODS: Mapping[str, str] = {
    "distilled": "Distilled",
    "neighbors": "Neighbors",
    "centroids": "Centroids",
    "random": "Random",
    "full": "Full",
}

AVERAGE = "Average"

# Beside numbers of other data and backbones, to compare orders, not numbers.
PAPERS_AVERAGE = "the paper's average, ImageNet-100"


@dataclasses.dataclass(frozen=True)
class Report:
    """What comes of one set of images.

    Attributes:
        tables: In the order in which they are written.
        claims: Of the paper, or of ours.
        notes: What a reader must know of this set.
        shown: What is drawn, as the sweep's figure takes it; by default the tables that are drawn.
    """

    tables: Sequence[Table]
    claims: Sequence[Claim] = ()
    notes: Sequence[str] = ()
    shown: Sequence[Any] | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """The finished runs of an experiment on one set of images.

    Attributes:
        config: Of the experiment.
        name: The set of images.
        outcomes: The runs, in the plan's order.
        all: Their numbers: see `frame`.
    """

    config: ConfigDict
    name: str
    outcomes: Sequence[Outcome]
    all: pd.DataFrame

    @property
    def title(self) -> str:
        return axes.SETS[self.name].title

    @property
    def top1(self) -> pd.DataFrame:
        return self.all[self.all["metric"] == frame.TOP1]

    @functools.cached_property
    def papers(self) -> Mapping[Key, Number]:
        return published.papers(self.config, self.name, self.outcomes)

    @functools.cached_property
    def sources(self) -> list[str]:
        """The backbones that images are distilled against, as the frame names them."""
        return list(map(axes.joined, axes.backbones(self.config)))

    @functools.cached_property
    def evaluated(self) -> list[str]:
        """The backbones that images are evaluated on, as the frame names them."""
        return list(map(axes.joined, axes.evaluated(self.config)))

    def titled(self, backbone: str) -> str:
        """Returns the name of a backbone, or of several, in a table."""
        return " + ".join(self._titles.get(name, name) for name in backbone.split("+"))

    @functools.cached_property
    def _titles(self) -> Mapping[str, str]:
        every = [*axes.backbones(self.config), *axes.evaluated(self.config)]
        return {axes.joined(name): axes.TITLES.get(name, axes.joined(name)) for name in every}

    def table(
        self,
        placed: pd.DataFrame,
        title: str,
        corner: str,
        *,
        rows: Iterable[str] = (),
        columns: Iterable[str] = (),
        **looks: Any,
    ) -> Table:
        """Returns a table of this set.

        Args:
            placed: The numbers, with the columns `row` and `column` more.
            title: What follows the name of the set.
            corner: What the rows are.
            rows: The first of them, in order; others follow as they come.
            columns: Likewise.
            looks: Other attributes of the table.
        """
        cells = frame.cells(placed, ddof=self.config.probe.ddof, papers=self.papers)
        every = [
            dict.fromkeys([*first, *found])
            for first, found in (
                (rows, (row for row, _ in cells)),
                (columns, (column for _, column in cells)),
            )
        ]
        places = [(row, column) for row in every[0] for column in every[1]]
        cells = {place: cells[place] for place in places if place in cells}
        return Table(f"{self.title}{title}", corner, cells, **looks)


def with_papers_average(
    table: Table,
    rows: Mapping[str, tuple[str, str]],
    *,
    name: str = "imagenet-100",
    over: str = "same",
    column: str = PAPERS_AVERAGE,
) -> Table:
    """Returns a table with a further column, the paper's average over its four backbones.

    Args:
        table: The table.
        rows: By its rows, the variant and the method that the paper's are of.
        name: The paper's set of images.
        over: Whether the `same` backbones evaluate, or `others`.
        column: The column's name.
    """
    cells = dict(table.cells)
    for row, (variant, method) in rows.items():
        number = published.average(name, variant, method, over)
        if number is not None:
            cells[row, column] = Cell(paper=number)
    return dataclasses.replace(table, cells=cells)


def has_papers(table: Table) -> bool:
    """Whether a number of the paper stands in a table."""
    return any(cell.paper is not None for cell in table.cells.values())
