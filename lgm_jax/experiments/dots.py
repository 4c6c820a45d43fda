"""Figures of dots: a row for each number, its error bar, its value, and the paper's number."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lgm_jax.experiments.figures import COLOUR_OF, INK, LINE, SOFT, WIDTH, wrap
from lgm_jax.experiments.result import AVERAGE, Cell, Table, format_cell
from lgm_jax.report.vocabulary import TITLES

# Inches: of a row, and of a table's title, axis and gap.
_ROW, _AROUND = 0.21, 0.75

# Of a row that is none of the vocabulary: its images are distilled.
_OWN = COLOUR_OF[TITLES["distilled"]]

_HOLLOW: Mapping[str, Any] = {
    "marker": "D",
    "markersize": 5.5,
    "markerfacecolor": "none",
    "linestyle": "none",
}


class Row(NamedTuple):
    """A row of a figure.

    Attributes:
        title: At the left; of a heading, above the rows that follow.
        cell: Its numbers; `None` for a heading.
        paper: What the paper's number is, where it is of other images.
    """

    title: str
    cell: Cell | None = None
    paper: str = "the paper's"


Parts = tuple[str, Mapping[str, Collection[str]], Mapping[str, Table]]
"""A title; by row of the tables, the parts that it leaves out; tables, by what is above each."""


def dots(figure: Any, tables: Sequence[Table]) -> None:
    """For each table, its columns one below another, a dot for each row."""
    dots_beside(figure, [(table, None) for table in tables])


def dots_beside(figure: Any, shown: Sequence[tuple[Table, np.ndarray | None]]) -> None:
    """For each table, its dots, and its picture (h, w, 3), if any, at the right."""
    rows = [list(rows_of(table)) for table, _ in shown]
    heights = [_AROUND + _ROW * len(each) for each in rows]
    aspects = [each.shape[1] / each.shape[0] for _, each in shown if each is not None]
    figure.set_size_inches(WIDTH, sum(heights) + 0.3)
    # A picture is as high as its table, but takes no more than half the width.
    share = min(1.0, max(aspects, default=0) * max(heights) / WIDTH)
    columns = {"ncols": 2, "width_ratios": [1, share]} if aspects else {"ncols": 1}
    grid = figure.add_gridspec(len(shown), height_ratios=heights, **columns)
    ends = _ends([table for table, _ in shown])
    for i, ((table, picture), own) in enumerate(zip(shown, rows, strict=True)):
        axes = figure.add_subplot(grid[i, 0])
        draw_rows(axes, own, table.digits)
        axes.set_xlim(*ends[table.unit])
        axes.set_xlabel(table.unit)
        axes.set_title(wrap(table.title, 80 if not aspects else 50))
        if picture is not None:
            right = figure.add_subplot(grid[i, 1])
            right.set_axis_off()
            right.set_anchor("N")
            right.imshow(picture, interpolation="none")
    _explain(figure, [row for own in rows for row in own], shown[0][0].repeats)


def parts(figure: Any, shown: Sequence[Parts]) -> None:
    """For each set of images, marks of the parts that a row has, beside dots of its accuracies."""
    heights = [_AROUND + 0.3 + _ROW * len(without) for _, without, _ in shown]
    figure.set_size_inches(WIDTH, sum(heights) + 0.3)
    drawn: list[Row] = []
    places = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for within, (heading, without, tables) in zip(places, shown, strict=True):
        within.suptitle(heading, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
        every = list(dict.fromkeys(part for out in without.values() for part in out))
        ratios = [0.28 * len(every), *[2.0] * len(tables)]
        left, *others = within.subplots(1, len(ratios), width_ratios=ratios)
        _mark(left, every, list(without.values()))
        ends, width = _ends(list(tables.values())), 88 // len(tables)
        for axes, (title, table) in zip(others, tables.items(), strict=True):
            column = AVERAGE if AVERAGE in table.columns else table.columns[0]
            rows = [row for row in rows_of(table, [column]) if row.cell is not None]
            draw_rows(axes, rows, table.digits)
            axes.set_yticks([])
            axes.set_xlim(*ends[table.unit])
            axes.set_xlabel(table.unit)
            of = "average" if column == AVERAGE else f"made for {column}"
            axes.set_title(wrap(f"{title}, {of}", width), fontweight="normal")
            drawn += rows
    _explain(figure, drawn, "distillation seeds")


def _mark(axes: Any, every: Sequence[str], without: Sequence[Collection[str]]) -> None:
    for (y, out), (x, part) in itertools.product(enumerate(without), enumerate(every)):
        look = {"color": SOFT, "markerfacecolor": "none"} if part in out else {"color": INK}
        axes.plot(x, y, "o", markersize=4 if part in out else 7, **look)
    axes.set_xticks(range(len(every)), every, rotation=60, ha="left")
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.set_ylim(len(without) - 0.5, -0.5)
    axes.set_xlim(-0.6, len(every) - 0.4)
    axes.tick_params(length=0, pad=1)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def rows_of(table: Table, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Yields the rows of a figure: a heading for each column of a table, and its cells.

    Numbers of the paper's in a column of their own, which are of other images, stand on the rows of
    the average, or of the one column there is.

    Args:
        table: The table.
        columns: Which of its own columns; by default all.
    """
    measured = {column for (_, column), cell in table.cells.items() if cell.mean is not None}
    own = [name for name in table.columns if name in measured]
    theirs = [name for name in table.columns if name not in measured]
    target = AVERAGE if AVERAGE in own else own[0] if len(own) == 1 else None
    for column in [*own, *(theirs if target is None else [])]:
        if columns and column not in columns:
            continue
        yield Row(column)
        for row in table.rows:
            cell, paper = table.cells.get((row, column), Cell()), "the paper's"
            if column == target and theirs:
                paper = theirs[0]
                other = table.cells.get((row, paper))
                cell = dataclasses.replace(cell, paper=other.paper) if other else cell
            if cell.mean is not None or cell.paper is not None:
                yield Row(row, cell, paper)


def draw_rows(axes: Any, rows: Sequence[Row], digits: int) -> None:
    """Draws rows from above: a dot of our mean, its error bar and value, the paper's hollow."""
    beside = axes.get_yaxis_transform()
    for y, row in enumerate(rows):
        if row.cell is None:
            axes.text(0, y + 0.2, wrap(row.title, 60), transform=beside, weight="bold", va="center")
            continue
        cell, colour = row.cell, COLOUR_OF.get(row.title, _OWN)
        if cell.mean is not None:
            ends = [cell.mean - cell.spread, cell.mean + cell.spread]
            # Thick over seeds; where there are none, thin over probe runs.
            look = {"linewidth": 2.6 if cell.std is not None else 1.0, "solid_capstyle": "butt"}
            axes.plot(ends, [y, y], color=colour, zorder=2, **look)
            axes.plot(cell.mean, y, "o", color=colour, markersize=6.5, zorder=3)
        if cell.paper is not None:
            axes.plot(cell.paper[0], y, color=SOFT, zorder=4, **_HOLLOW)
        axes.text(1.02, y, _value(cell, digits), transform=beside, va="center", color=INK)
    named = {y: row.title for y, row in enumerate(rows) if row.cell is not None}
    axes.set_yticks(list(named), [wrap(title, 44) for title in named.values()])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color=LINE)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _value(cell: Cell, digits: int) -> str:
    """Returns a cell with the spread that is drawn, and the paper's mean."""
    drawn = cell if cell.std is None else dataclasses.replace(cell, probe_std=None)
    paper = None if cell.paper is None else (cell.paper[0], None)
    return format_cell(dataclasses.replace(drawn, paper=paper), digits)


def _ends(tables: Sequence[Table]) -> dict[str, tuple[float, float]]:
    """Returns, by unit, the ends of an axis that all tables share."""
    every: dict[str, list[float]] = {}
    for table in tables:
        for cell in table.cells.values():
            known = [] if cell.mean is None else [cell.mean - cell.spread, cell.mean + cell.spread]
            known += [] if cell.paper is None else [cell.paper[0]]
            every.setdefault(table.unit, []).extend(x for x in known if np.isfinite(x))
    ends = {}
    for unit, known in every.items():
        low, high = min(known, default=0.0), max(known, default=1.0)
        # Differences of a few percent are not to look large.
        missing = max(0.0, 0.1 * max(abs(low), abs(high)) - (high - low)) / 2
        margin = 0.04 * (high - low + 2 * missing) or 1.0
        ends[unit] = low - missing - margin, high + missing + margin
    return ends


def _explain(figure: Any, rows: Sequence[Row], repeats: str) -> None:
    """Says below a figure what its marks are."""
    from matplotlib.lines import Line2D

    cells = [row.cell for row in rows if row.cell is not None]
    marks = [Line2D([], [], color=INK, marker="o", markersize=6.5, linestyle="none", label="mean")]
    seeds = max((cell.seeds for cell in cells if cell.std is not None), default=0)
    if seeds:
        label = f"± std over {seeds} {repeats}"
        marks.append(Line2D([], [], color=INK, linewidth=2.6, label=label))
    thin = [cell.probe_runs for cell in cells if cell.std is None and cell.probe_std is not None]
    if thin:
        label = f"(std over {max(thin)} probe runs)"
        marks.append(Line2D([], [], color=INK, linewidth=1, label=label))
    for paper in dict.fromkeys(row.paper for row in rows if row.cell and row.cell.paper):
        marks.append(Line2D([], [], color=SOFT, label=f"[{paper}]", **_HOLLOW))
    figure.legend(handles=marks, loc="outside lower left", ncols=2 if len(marks) > 3 else 3)
