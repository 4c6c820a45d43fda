"""Figures, a function for each kind. matplotlib is imported only here, and only to draw."""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lgm_jax.errors import UserError
from lgm_jax.report import vocabulary
from lgm_jax.report.vocabulary import COLOURS, SERIES, TITLES, class_colours

if TYPE_CHECKING:
    from lgm_jax.experiments.result import Table

STYLE = Path(__file__).parents[1] / "report" / "style.mplstyle"

# Inches: the width of a page of the documentation, so that letters are as large as its text.
WIDTH = 7.2

INK, SOFT, LINE = (pair[0] for pair in (vocabulary.INK, vocabulary.SOFT, vocabulary.LINE))

_LOOK = {
    # The same numbers make the same file.
    "svg.hashsalt": "lgm_jax",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
}

# By title of a row.
COLOUR_OF = {title: COLOURS[method][0] for method, title in TITLES.items()}

# A legend at the right of the axes.
_BESIDE: Mapping[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}

# The kinds of images among principal components.
_MARKERS: Mapping[str, Mapping[str, Any]] = {
    "distilled": {"marker": "*", "s": 130},
    "centroids": {"marker": "s", "s": 40},
    "random": {"marker": "^", "s": 40},
}

# The most classes that have a name and a colour of their own.
NAMED = 30


def render(draw: Callable[[Any], None], formats: Sequence[str]) -> list[bytes]:
    """Draws a figure; returns the content of a file in each format.

    PNG is on white. SVG has no paper, and light ink where the page that shows it is dark.

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

    with matplotlib.style.context([STYLE, _LOOK]):
        figure = Figure(layout="constrained", dpi=150)
        draw(figure)
        files = []
        for name in formats:
            buffer, vector = io.BytesIO(), name == "svg"
            metadata = {"Date": None} if vector else {"Software": f"matplotlib {mpl.__version__}"}
            figure.savefig(buffer, format=name, metadata=metadata, transparent=vector)
            files.append(_adapt(buffer.getvalue()) if vector else buffer.getvalue())
    return files


def _adapt(svg: bytes) -> bytes:
    """Returns an SVG that follows the light or dark scheme of the page that shows it."""
    classes = (pair for count in range(1, NAMED + 1) for pair in class_colours(count))
    pairs = {
        *COLOURS.values(),
        *SERIES,
        *(vocabulary.INK, vocabulary.SOFT, vocabulary.LINE),
        *classes,
    }
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in sorted(pairs)
        for what in ("fill", "stroke")
        if f"{what}: {light}".encode() in svg
    )
    style = (
        f"<style>:root{{color-scheme:light dark}}"
        f"@media(prefers-color-scheme:dark){{{rules}}}</style>"
    )
    return svg.replace(b" <defs>", f" {style}\n <defs>".encode(), 1)


def matrices(figure: Any, tables: Sequence[Table]) -> None:
    """For each table, its numbers on shades of the colour of distilled images."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("distilled", ["#f9efea", COLOURS["distilled"][0]])
    for axes, table in _panels(figure, tables, sum(1.0 + 0.34 * len(t.rows) for t in tables)):
        grid = [[table.mean(row, column) for column in table.columns] for row in table.rows]
        image = axes.imshow(grid, aspect="auto", cmap=shades)
        # Lines of the style would run through the numbers.
        axes.grid(visible=False)
        low, high = image.get_clim()
        for i, line in enumerate(grid):
            for j, value in enumerate(line):
                # Neither is a colour that follows the page: those of the cells do not.
                colour = "#ffffff" if value > 0.4 * low + 0.6 * high else "#000000"
                if value == value:
                    text = f"{value:.{table.digits}f}"
                    axes.text(j, i, text, ha="center", va="center", color=colour)
        axes.set_xticks(range(len(table.columns)), [wrap(name, 18) for name in table.columns])
        axes.set_yticks(range(len(table.rows)), [wrap(name, 24) for name in table.rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        rows, _, columns = table.corner.partition(" by ")
        axes.set_ylabel(rows)
        axes.set_xlabel(columns)
        unit = "" if table.unit in table.title else f", {table.unit}"
        axes.set_title(wrap(table.title + unit, 80))


def curves(figure: Any, tables: Sequence[Table]) -> None:
    """For each table, a curve per column over its rows, which are numbers; the paper's dashed."""
    for axes, table in _panels(figure, tables, 2.9 * len(tables)):
        _draw_curves(axes, table)


def _draw_curves(axes: Any, table: Table) -> None:
    is_spread = any(cell.spread for cell in table.cells.values())
    for i, column in enumerate(table.columns):
        of = {float(row): cell for (row, other), cell in table.cells.items() if other == column}
        ours = {x: (cell.mean, cell.spread) for x, cell in of.items() if cell.mean is not None}
        theirs = {x: cell.paper[0] for x, cell in of.items() if cell.paper is not None}
        look = {"color": COLOUR_OF.get(column, SERIES[i % len(SERIES)][0]), "markersize": 5}
        if ours:
            # Side by side, or error bars would hide each other.
            shift = 1.03 ** (i - (len(table.columns) - 1) / 2) if is_spread else 1.0
            means, spreads = zip(*ours.values(), strict=True)
            places = [x * shift for x in ours]
            axes.errorbar(places, means, spreads, fmt="o-", label=wrap(column, 24), **look)
        if theirs:
            label, hollow = wrap(f"{column}, the paper's", 24), {"markerfacecolor": "none"}
            axes.plot(theirs.keys(), theirs.values(), "D--", label=label, **look, **hollow)
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
    axes.set_title(wrap(table.title, 80))
    axes.legend(**_BESIDE)


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


def scatter(figure: Any, panels: Sequence[Panel]) -> None:
    """For each two panels, a line of dots of their own looks, and below them what they are."""
    figure.set_size_inches(WIDTH, 3.4 * len(panels) / 2 + 0.2 * len(panels[0].dots))
    grid = figure.subplots(len(panels) // 2, 2, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=True):
        if panel.grey is not None:
            look = {"color": SOFT, "markerfacecolor": "none", "linestyle": "none"}
            axes.plot(*panel.grey, "D", label="the paper's, ImageNet-1k", **look)
        for n, (name, (x, y)) in enumerate(panel.dots.items()):
            colour = SERIES[n % len(SERIES)][0]
            axes.plot(x, y, "os^vD<>ph*"[n % 10], color=colour, label=name, markersize=7)
        axes.set_title(wrap(panel.title, 40))
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2)


def components(figure: Any, shown: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Left, principal components; right, how far outside its class each image is.

    Args:
        figure: Where to draw.
        shown: By title, the values of `measures.AT_EDGES`.
    """
    from matplotlib.lines import Line2D

    figure.set_size_inches(WIDTH, 0.4 + 3.4 * len(shown))
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for (left, right), (title, measured) in zip(grid, shown, strict=True):
        colours = [light for light, _ in class_colours(len(measured["class_names"]))]
        _draw_real(left, measured["real"], colours)
        for kind, found in measured["kinds"].items():
            places, own = np.asarray(found["points"]), [colours[k] for k in found["labels"]]
            look = {**_MARKERS[kind], "edgecolors": INK, "linewidths": 0.8}
            left.scatter(*places.T, c=own[: len(places)], **look)
            right.scatter(found["ratio"], found["ratio_along"], c=own, **look)
        first, second = (100 * part for part in measured["share"])
        left.set_xlabel(f"first principal component, {first:.0f} % of the variance")
        left.set_ylabel(f"second, {second:.0f} %")
        left.set_title(title)
        right.axvline(1, color=SOFT, linewidth=0.8)
        right.axhline(1, color=SOFT, linewidth=0.8)
        right.set_xlabel("distance to the class's mean / 95 % radius")
        right.set_ylabel("along the class's direction / 95 % edge")
        right.set_title("beyond 1: outside 95 % of its class")
    outlined: dict[str, Any] = {"color": INK, "markerfacecolor": "none", "linestyle": "none"}
    handles = [
        # Without a class's colour; sizes of dots are areas.
        Line2D([], [], marker=look["marker"], ms=look["s"] ** 0.5, label=TITLES[kind], **outlined)
        for kind, look in _MARKERS.items()
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
    # Before places on paper are known, nothing tells whether names cover each other.
    figure.draw_without_rendering()
    for axes, (_, measured) in zip(grid[:, 0], shown, strict=True):
        made, names = measured["kinds"]["distilled"], measured["class_names"]
        if len(names) <= NAMED:
            places = np.asarray(made["points"])
            _name(axes, [names[k] for k in made["labels"][: len(places)]], places)


def _name(axes: Any, names: Sequence[str], places: np.ndarray) -> None:
    """Writes names beside places, where they cover neither each other nor a place, if they can."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    marks = axes.transData.transform(places)
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in marks]
    frame = axes.get_window_extent()
    # Names are no formulas, whatever signs are in them.
    look = {"textcoords": "offset points", "fontsize": "x-small", "parse_math": False}
    line = {"arrowstyle": "-", "linewidth": 0.6, "color": SOFT, "shrinkA": 0, "shrinkB": 5}
    offsets = list(itertools.product((7, -7, 32, -32), (5, -11, 12, -18, 19, -25, 26, -32)))
    # From above, so that names below find what is left.
    for i in np.argsort(-places[:, 1]):
        tried = []
        for dx, dy in offsets:
            side = "left" if dx > 0 else "right"
            text = axes.annotate(names[i], places[i], (dx, dy), ha=side, arrowprops=line, **look)
            # Without its line.
            box = Text.get_window_extent(text)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1
            tried.append((sum(map(box.overlaps, taken)) + 100 * outside, text, box))
            text.set_visible(False)
        _, text, box = min(tried, key=lambda each: each[0])
        text.set_visible(True)
        taken.append(box)
        for _, other, _ in tried:
            if other is not text:
                other.remove()


def _draw_real(axes: Any, real: Mapping[str, Any], colours: Sequence[str]) -> None:
    """Draws a dot for each real image, in one path a class: in SVG a fraction of a mark each."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    points, labels = np.asarray(real["points"], float), np.asarray(real["labels"])
    for label in np.unique(labels):
        own = points[labels == label]
        # Lines of hardly any length, of which round ends are seen.
        ends = np.stack([own, own + np.array([[1e-4 * np.ptp(points[:, 0]), 0]])], axis=1)
        codes = [Outline.MOVETO, Outline.LINETO] * len(own)
        outline = Outline(ends.reshape(-1, 2), codes)
        outline.should_simplify = False
        look = {"edgecolor": colours[label], "facecolor": "none", "alpha": 0.5, "snap": False}
        axes.add_patch(PathPatch(outline, linewidth=2.2, capstyle="round", **look))
    axes.autoscale_view()


def _panels(figure: Any, tables: Sequence[Table], height: float) -> Any:
    """Returns axes below each other, with the table of each."""
    figure.set_size_inches(WIDTH, height)
    return zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True)


def wrap(name: str, width: int) -> str:
    """Returns a name in lines of so many characters; names of backbones break after underscores."""
    # Words in parentheses stay together.
    name = re.sub(r"\(.*?\)", lambda words: words[0].replace(" ", "\u00a0"), name)
    lines = textwrap.fill(name.replace("_", "_ "), width).replace("_ ", "_")
    return lines.replace("\u00a0", " ")
