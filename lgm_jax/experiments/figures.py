"""Draws tables: bars, matrices, curves. matplotlib is imported only here, and only to draw."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgm_jax.errors import UserError

if TYPE_CHECKING:
    from lgm_jax.experiments.result import Table

STYLE = Path(__file__).parents[1] / "report" / "style.mplstyle"

# The same numbers give the same file.
_FIXED = {"svg.hashsalt": "lgm_jax", "svg.fonttype": "none"}
_PLAIN = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def render(draw: Callable[[Any], None], formats: Sequence[str]) -> list[bytes]:
    """Draws a figure; gives the content of a file in each format.

    Raises:
        UserError: If matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "the tables are written, but figures need matplotlib: pip install 'lgm_jax[figures]', "
            "and start again"
        ) from error
    import matplotlib.style

    style = [STYLE] if STYLE.exists() else []
    with matplotlib.style.context([_PLAIN, *style, _FIXED]):
        figure = Figure(layout="constrained", dpi=150)
        draw(figure)
        files = []
        for name in formats:
            buffer = io.BytesIO()
            metadata = (
                {"Date": None} if name == "svg" else {"Software": f"matplotlib {mpl.__version__}"}
            )
            figure.savefig(buffer, format=name, metadata=metadata)
            files.append(buffer.getvalue())
    return files


def bars(figure: Any, tables: Sequence[Table]) -> None:
    """For each table, a group of bars per column, a bar per row; the paper's as black marks."""
    figure.set_size_inches(4.0 + 1.1 * max(len(t.columns) for t in tables), 3 * len(tables))
    for axes, table in zip(
        figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True
    ):
        draw_bars(axes, table)


def draw_bars(axes: Any, table: Table) -> None:
    """The bars of one table."""
    import matplotlib as mpl

    width, compared = 0.8 / len(table.rows), False
    colours = [look["color"] for look in mpl.rcParams["axes.prop_cycle"]]
    for i, row in enumerate(table.rows):
        marked = False
        for j, column in enumerate(table.columns):
            cell, x = table.cells.get((row, column)), j + (i + 0.5) * width - 0.4
            if cell is None:
                continue
            if cell.mean is not None:
                spread = cell.std if cell.std is not None else cell.probe_std
                axes.bar(
                    x,
                    cell.mean,
                    width,
                    yerr=spread,
                    color=colours[i % len(colours)],
                    # A colour that comes back is hatched, or two rows would look the same.
                    hatch="//" if i >= len(colours) else None,
                    edgecolor="white",
                    linewidth=0,
                    capsize=1.5,
                    error_kw={"linewidth": 0.8},
                    label="" if marked else row,
                )
                marked = True
            if cell.paper is not None:
                said = "" if compared else "the paper's"
                axes.plot(x, cell.paper, "k_", markersize=7, label=said)
                compared = True
    axes.set_xticks(range(len(table.columns)), _wrapped(table.columns))
    axes.set_ylabel(table.unit)
    axes.set_title(table.title)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def matrices(figure: Any, tables: Sequence[Table]) -> None:
    """For each table, its numbers on colours."""
    figure.set_size_inches(
        3.0 + 1.1 * max(len(t.columns) for t in tables),
        sum(1.2 + 0.5 * len(t.rows) for t in tables),
    )
    for axes, table in zip(
        figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True
    ):
        grid = [[_value(table, row, column) for column in table.columns] for row in table.rows]
        image = axes.imshow(grid, aspect="auto", cmap="viridis")
        # Lines of the style would run through the numbers.
        axes.grid(visible=False)
        low, high = image.get_clim()
        for i, line in enumerate(grid):
            for j, value in enumerate(line):
                colour = "white" if value < (low + high) / 2 else "black"
                if value == value:
                    text = f"{value:.{table.digits}f}"
                    axes.text(j, i, text, ha="center", va="center", color=colour)
        axes.set_xticks(range(len(table.columns)), _wrapped(table.columns))
        axes.set_yticks(range(len(table.rows)), table.rows)
        axes.set_ylabel(table.corner)
        axes.set_title(f"{table.title}, {table.unit}")


def curves(figure: Any, tables: Sequence[Table], x_label: str) -> None:
    """For each table, a curve per column over its rows, which are numbers; the paper's dashed."""
    figure.set_size_inches(6.5, 3.2 * len(tables))
    for axes, table in zip(
        figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True
    ):
        for i, column in enumerate(table.columns):
            cells = [(float(row), table.cells.get((row, column))) for row in table.rows]
            ours = [
                (x, c.mean, c.std or 0.0) for x, c in cells if c is not None and c.mean is not None
            ]
            theirs = [(x, c.paper) for x, c in cells if c is not None and c.paper is not None]
            if ours:
                xs, means, spreads = zip(*ours, strict=True)
                axes.errorbar(
                    xs, means, spreads, marker="o", capsize=2, color=f"C{i}", label=column
                )
            if theirs:
                name = f"{column}, the paper's"
                axes.plot(*zip(*theirs, strict=True), "--", marker="x", color=f"C{i}", label=name)
        axes.set_xscale("log")
        axes.set_xticks([float(row) for row in table.rows], list(table.rows))
        axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(table.unit)
        axes.set_title(table.title)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def wrap(name: str, width: int) -> str:
    """A name in lines of so many characters; those of backbones have no spaces to break at."""
    return textwrap.fill(name.replace("_", "_ "), width).replace("_ ", "_")


def _wrapped(names: Sequence[str]) -> list[str]:
    return [wrap(name, 15) for name in names]


def _value(table: Table, row: str, column: str) -> float:
    cell = table.cells.get((row, column))
    return float("nan") if cell is None or cell.mean is None else cell.mean
