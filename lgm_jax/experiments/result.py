"""Results of experiments: tables of cells, claims, a figure; and how they are written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from lgm_jax import files
from lgm_jax.experiments import figures
from lgm_jax.experiments.published import Number

AVERAGE = "Average"

TABLE_MD, TABLE_CSV, FIGURES = "table.md", "table.csv", ("figure.png", "figure.svg")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of ours, and the paper's.

    Attributes:
        mean: Over distillation seeds; `None` where only the paper has a number.
        std: Over distillation seeds, of the sample (ddof 1); `None` for one seed, or where nothing
            is distilled.
        probe_std: Mean over seeds of the std over probe runs; `None` where probes ran once.
        seeds: Number of distillation seeds.
        probe_runs: Number of probe runs for each.
        paper: The paper's mean and its std over probe runs.
    """

    mean: float | None = None
    std: float | None = None
    probe_std: float | None = None
    seeds: int = 0
    probe_runs: int = 0
    paper: Number | None = None

    @property
    def spread(self) -> float:
        """Half the length of an error bar: over seeds, or where there are none, over probe runs."""
        return self.std if self.std is not None else self.probe_std or 0.0


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells by row and column, in the order of their first cells.

    Attributes:
        title: The heading.
        corner: What the rows are; `ROWS by COLUMNS` where columns need a name, too.
        cells: By row and column; some places may have none.
        unit: Of the cells.
        digits: Behind the point.
        repeats: What the spread and number of seeds of the cells are over.
        papers: What stands in [].
        integers: Columns without digits behind the point.
        drawn: Whether it is part of the figure.
    """

    title: str
    corner: str
    cells: Mapping[tuple[str, str], Cell]
    unit: str = "top-1 %"
    digits: int = 1
    repeats: str = "distillation seeds"
    papers: str = "the paper's mean ± std over probe runs"
    integers: Sequence[str] = ()
    drawn: bool = True

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.cells))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for _, column in self.cells))

    @property
    def has_papers(self) -> bool:
        """Whether a number of the paper stands in it."""
        return any(cell.paper is not None for cell in self.cells.values())

    def mean(self, row: str, column: str) -> float:
        """Returns our number in a cell; NaN where there is none."""
        mean = self.cells.get((row, column), Cell()).mean
        return math.nan if mean is None else mean


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, or of ours, and whether our numbers show it.

    Attributes:
        text: The claim.
        holds: Whether they do.
        detail: By how much.
    """

    text: str
    holds: bool
    detail: str

    @classmethod
    def ahead(cls, text: str, margins: Mapping[str, float]) -> Claim:
        """Returns the claim that all margins, by their names, are positive."""
        detail = "; ".join(f"{name} by {margin:+.1f}" for name, margin in margins.items())
        return cls(text, all(margin > 0 for margin in margins.values()), detail)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an experiment, or of one image set of it.

    Attributes:
        tables: In the order in which they are written.
        claims: Of the paper, or of ours.
        notes: Data, backbones, seeds: for the reader.
        shown: What the sweep's figure draws; by default the tables that are `drawn`.
        title: One line.
        draw: Draws what is shown into an empty `matplotlib.figure.Figure`.
    """

    tables: Sequence[Table]
    claims: Sequence[Claim] = ()
    notes: Sequence[str] = ()
    shown: Sequence[Any] | None = None
    title: str = ""
    draw: Callable[[Any], None] = lambda figure: None

    @property
    def to_draw(self) -> Sequence[Any]:
        """The data of the sweep's figure."""
        return self.shown or [table for table in self.tables if table.drawn]


def to_markdown(result: Result) -> str:
    """Returns the text of `table.md`."""
    parts = [f"# {result.title}", *result.notes]
    for table in result.tables:
        parts += [f"## {table.title}", _legend(table), _grid(table)]
    if result.claims:
        lines = [
            f"- {claim.text}: {'yes' if claim.holds else '**no**'} ({claim.detail})"
            for claim in result.claims
        ]
        parts += ["## Claims", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def write(folder: epath.Path, result: Result, lines: str) -> list[epath.Path]:
    """Writes a result, with `lines` as `table.csv`; returns the files.

    Raises:
        UserError: If the figure cannot be drawn because matplotlib is missing.
    """

    def write_all(contents: Mapping[str, bytes]) -> list[epath.Path]:
        for name, content in contents.items():
            with files.replacing(folder / name) as temporary:
                temporary.write_bytes(content)
        return [folder / name for name in contents]

    written = write_all({TABLE_MD: to_markdown(result).encode(), TABLE_CSV: lines.encode()})
    # The tables do not need matplotlib.
    drawn = figures.render(result.draw, [name.rpartition(".")[2] for name in FIGURES])
    return [*written, *write_all(dict(zip(FIGURES, drawn, strict=True)))]


def format_cell(cell: Cell | None, digits: int) -> str:
    """Returns a cell for a person: `89.4 ± 0.6 (0.3) [84.9 ± 0.1]`."""
    text = []
    if cell is not None and cell.mean is not None:
        text.append(_with_spread(cell.mean, cell.std, digits))
        if cell.probe_std is not None:
            text.append(f"({cell.probe_std:.{digits}f})")
    if cell is not None and cell.paper is not None:
        text.append(f"[{_with_spread(*cell.paper, digits)}]")
    return " ".join(text)


def _with_spread(mean: float, std: float | None, digits: int) -> str:
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def _legend(table: Table) -> str:
    cells = list(table.cells.values())
    words = [table.unit + ": mean"]
    seeds = max((cell.seeds for cell in cells), default=0)
    probe_runs = max((cell.probe_runs for cell in cells), default=0)
    if any(cell.std is not None for cell in cells):
        words[0] += f" ± std over {seeds} {table.repeats}"
    elif seeds == 1 and table.repeats == "distillation seeds":
        words[0] += " of one distillation seed"
    if any(cell.probe_std is not None for cell in cells):
        words.append(f"in (), std over {probe_runs} probe runs")
    if table.has_papers:
        words.append(f"in [], {table.papers}")
    return "; ".join(words) + "."


def _grid(table: Table) -> str:
    lines: list[Iterable[str]] = [[table.corner, *table.columns]]
    lines.append(["---"] * (1 + len(table.columns)))
    for row in table.rows:
        line = [row]
        for column in table.columns:
            digits = 0 if column in table.integers else table.digits
            line.append(format_cell(table.cells.get((row, column)), digits))
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
