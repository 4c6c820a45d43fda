"""Figures, a function for each kind. matplotlib is imported only here, and only to draw."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lgm_jax.errors import UserError

if TYPE_CHECKING:
    from lgm_jax.experiments.result import Table

STYLE = Path(__file__).parents[1] / "report" / "style.mplstyle"


# The same numbers make the same file.
_FIXED = {"svg.hashsalt": "lgm_jax"}

# A legend at the right of the axes.
_BESIDE = {"fontsize": "small", "loc": "upper left", "bbox_to_anchor": (1, 1)}

# The kinds of images among principal components.
_MARKERS = {
    "distilled": {"marker": "*", "s": 130},
    "centroids": {"marker": "s", "s": 40},
    "random": {"marker": "^", "s": 40},
}

# Of matplotlib's; the style has seven, and many sets have ten classes.
_TEN = ("blue", "orange", "green", "red", "purple", "brown", "pink", "gray", "olive", "cyan")

# The box behind the name of a class, and the most classes that are named.
_BOX = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
_NAMED = 20


def render(draw: Callable[[Any], None], formats: Sequence[str]) -> list[bytes]:
    """Draws a figure; returns the content of a file in each format.

    Raises:
        UserError: If matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "the tables are written, but figures need matplotlib: pip install "
            "'lgm_jax[experiments]', and start again"
        ) from error
    import matplotlib.style

    with matplotlib.style.context([STYLE, _FIXED]):
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
    width = 4.0 + 1.1 * max(len(t.columns) for t in tables)
    for axes, table in _panels(figure, tables, (width, 3.0 * len(tables))):
        draw_bars(axes, table)


def draw_bars(axes: Any, table: Table) -> None:
    """Draws the bars of one table."""
    import matplotlib as mpl

    width, named = 0.8 / len(table.rows), set[str]()
    colours = [look["color"] for look in mpl.rcParams["axes.prop_cycle"]]

    def once(name: str) -> str:
        label = "" if name in named else name
        named.add(name)
        return label

    for (row, column), cell in table.cells.items():
        i, j = table.rows.index(row), table.columns.index(column)
        x = j + (i + 0.5) * width - 0.4
        if cell.mean is not None:
            axes.bar(
                x,
                cell.mean,
                width,
                yerr=cell.std if cell.std is not None else cell.probe_std,
                color=colours[i % len(colours)],
                # Rows of the same colour differ by their hatch.
                hatch="//" if i >= len(colours) else None,
                edgecolor="white",
                linewidth=0,
                capsize=1.5,
                error_kw={"linewidth": 0.8},
                label=once(row),
            )
        if cell.paper is not None:
            axes.plot(x, cell.paper[0], "k_", markersize=7, label=once("the paper's"))
    axes.set_xticks(range(len(table.columns)), _wrapped(table.columns))
    axes.set_ylabel(table.unit)
    axes.set_title(table.title)
    axes.legend(**_BESIDE)


def bars_beside(figure: Any, shown: Sequence[tuple[Table, np.ndarray | None]]) -> None:
    """For each table, its bars from 0 to 100, and its picture (h, w, 3), if any, at the right."""
    height, width = 4.5, max(5.0, *(2.5 + 1.3 * len(table.columns) for table, _ in shown))
    pictures = [picture for _, picture in shown if picture is not None]
    aspect = max((each.shape[1] / each.shape[0] for each in pictures), default=0.1)
    figure.set_size_inches(width + aspect * height, height * len(shown))
    ratios = {"width_ratios": [width, aspect * height]}
    grid = figure.subplots(len(shown), 2, squeeze=False, gridspec_kw=ratios)
    for (left, right), (table, picture) in zip(grid, shown, strict=True):
        draw_bars(left, table)
        left.set_ylim(0, 100)
        right.set_axis_off()
        if picture is not None:
            right.imshow(picture, interpolation="none")


def matrices(figure: Any, tables: Sequence[Table]) -> None:
    """For each table, its numbers on colours."""
    width = 3.0 + 1.1 * max(len(t.columns) for t in tables)
    for axes, table in _panels(
        figure, tables, (width, sum(1.2 + 0.5 * len(t.rows) for t in tables))
    ):
        grid = [[table.mean(row, column) for column in table.columns] for row in table.rows]
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


def curves(figure: Any, tables: Sequence[Table]) -> None:
    """For each table, a curve per column over its rows, which are numbers; the paper's dashed."""
    for axes, table in _panels(figure, tables, (6.5, 3.2 * len(tables))):
        _draw_curves(axes, table)


def _draw_curves(axes: Any, table: Table) -> None:
    is_spread = any(cell.std is not None for cell in table.cells.values())
    for i, column in enumerate(table.columns):
        of = {float(row): cell for (row, other), cell in table.cells.items() if other == column}
        ours = {x: (cell.mean, cell.std or 0.0) for x, cell in of.items() if cell.mean is not None}
        theirs = {x: cell.paper[0] for x, cell in of.items() if cell.paper is not None}
        if ours:
            # Side by side, or error bars would hide each other.
            shift = 1.03 ** (i - (len(table.columns) - 1) / 2) if is_spread else 1.0
            means, spreads = zip(*ours.values(), strict=True)
            look = {"marker": "o", "color": f"C{i}", "label": column}
            yerr = spreads if is_spread else None
            axes.errorbar([x * shift for x in ours], means, yerr, capsize=2, **look)
        if theirs:
            look = {"marker": "x", "color": f"C{i}", "label": f"{column}, the paper's"}
            axes.errorbar(theirs.keys(), theirs.values(), fmt="--", **look)
    axes.set_xscale("log")
    axes.set_xticks([float(row) for row in table.rows], list(table.rows))
    axes.minorticks_off()
    axes.ticklabel_format(axis="y", useOffset=False)
    # Differences of less than 2 % are not to look large.
    low, high = axes.get_ylim()
    missing = 0.02 * max(abs(low), abs(high)) - (high - low)
    if missing > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)
    axes.set_xlabel(table.corner)
    axes.set_ylabel(table.unit)
    axes.set_title(wrap(table.title, 80), fontsize="medium")
    axes.legend(**_BESIDE)


def scatter(figure: Any, panels: Sequence[Panel]) -> None:
    """For each two panels, a line of dots of their own looks."""
    figure.set_size_inches(10, 4.2 * len(panels) / 2)
    grid = figure.subplots(len(panels) // 2, 2, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=True):
        if panel.grey is not None:
            axes.plot(*panel.grey, "x", color="0.6", label="the paper's, ImageNet-1k")
        for n, (name, (x, y)) in enumerate(panel.dots.items()):
            axes.plot(x, y, "os^vD<>ph*"[n % 10], color=f"C{n % 10}", label=name)
        axes.set_title(panel.title)
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        axes.legend(fontsize="x-small")


class Panel(NamedTuple):
    """Dots.

    Attributes:
        title: Above.
        x_label: Below.
        y_label: At the left.
        dots: Places by name.
        grey: Abscissae and ordinates of the paper's dots.
    """

    title: str
    x_label: str
    y_label: str
    dots: Mapping[str, tuple[float, float]]
    grey: tuple[Sequence[float], Sequence[float]] | None = None


def components(figure: Any, shown: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Left, principal components; right, how far outside its class each image is.

    Args:
        figure: Where to draw.
        shown: By title, the values of `measures.AT_EDGES`.
    """
    figure.set_size_inches(11, 5 * len(shown))
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for (left, right), (title, measured) in zip(grid, shown, strict=True):
        points = np.asarray(measured["real"]["points"])
        colours = _colours(measured["real"]["labels"])
        left.scatter(*points.T, s=5, c=colours, alpha=0.45, linewidths=0)
        for kind, found in measured["kinds"].items():
            places, colours = np.asarray(found["points"]), _colours(found["labels"])
            look = {**_MARKERS[kind], "edgecolors": "black", "linewidths": 0.8}
            left.scatter(*places.T, c=colours[: len(places)], **look)
            # For the legend, without a class's colour.
            left.scatter([], [], c="white", label=kind.capitalize(), **look)
            right.scatter(found["ratio"], found["ratio_along"], c=colours, **look)
        _name_classes(left, measured)
        first, second = (100 * part for part in measured["share"])
        left.set_xlabel(f"first principal component, {first:.0f} % of the variance")
        left.set_ylabel(f"second, {second:.0f} %")
        left.set_title(title)
        left.legend(fontsize="small")
        right.axvline(1, color="0.6", linewidth=0.8)
        right.axhline(1, color="0.6", linewidth=0.8)
        right.set_xlabel("distance to the class's mean / 95 % radius")
        right.set_ylabel("along the class's direction / 95 % edge")
        right.set_title("beyond 1, outside 95 % of the class's real images")


def _name_classes(axes: Any, measured: Mapping[str, Any]) -> None:
    names, distilled = measured["class_names"], measured["kinds"]["distilled"]
    if len(names) <= _NAMED:
        for label, place in zip(distilled["labels"], distilled["points"], strict=True):
            # Names are no formulas, whatever signs are in them.
            at = {"textcoords": "offset points", "fontsize": "small", "parse_math": False}
            axes.annotate(names[label], place, (7, 5), bbox=_BOX, **at)


def _panels(figure: Any, tables: Sequence[Table], size: tuple[float, float]) -> Any:
    """Returns axes below each other, with the table of each."""
    figure.set_size_inches(*size)
    return zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True)


def _colours(labels: Sequence[int]) -> list[str]:
    """Returns colours by class: ten different ones, over and over."""
    return [f"tab:{_TEN[label % 10]}" for label in labels]


def wrap(name: str, width: int) -> str:
    """Returns a name in lines of so many characters; names of backbones break after underscores."""
    # Words in parentheses stay together.
    name = re.sub(r"\(.*?\)", lambda words: words[0].replace(" ", "\u00a0"), name)
    lines = textwrap.fill(name.replace("_", "_ "), width).replace("_ ", "_")
    return lines.replace("\u00a0", " ")


def _wrapped(names: Sequence[str]) -> list[str]:
    return [wrap(name, 15) for name in names]
