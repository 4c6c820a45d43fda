"""What comes of an experiment: tables of cells, claims, a figure; and how they are written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from lgm_jax import files
from lgm_jax.experiments import figures
from lgm_jax.experiments.frame import Cell

TABLE_MD, TABLE_CSV, FIGURES = "table.md", "table.csv", ("figure.png", "figure.svg")


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells by row and column, in the order in which they are first met.

    Attributes:
        title: What it shows.
        corner: What the rows are.
        cells: By row and column; some places may have none.
        unit: Of the cells.
        digits: Behind the point.
        repeats: What the spread and number of seeds of the cells are over.
        papers: What stands in [].
        integers: Columns of which no digits behind the point are shown.
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

    def mean(self, row: str, column: str) -> float:
        """Returns our number in a cell; NaN where there is none."""
        mean = self.cells.get((row, column), Cell()).mean
        return math.nan if mean is None else mean


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that the paper says or implies, and whether our numbers show it.

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
        """Returns the claim that all margins, by what they are margins on, are positive."""
        detail = "; ".join(f"{name} by {margin:+.1f}" for name, margin in margins.items())
        return cls(text, all(margin > 0 for margin in margins.values()), detail)


@dataclasses.dataclass(frozen=True)
class Result:
    """What comes of an experiment.

    Attributes:
        title: One line.
        notes: What a reader must know: data, backbones, seeds.
        tables: In the order in which they are written.
        claims: Of the paper.
        draw: Draws into an empty `matplotlib.figure.Figure`; `None` for no figure.
    """

    title: str
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    claims: Sequence[Claim] = ()
    draw: Callable[[Any], None] | None = None


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
    """Writes a result; returns the files.

    Args:
        folder: Where to write.
        result: The result.
        lines: The text of `table.csv`.

    Raises:
        UserError: If the figure cannot be drawn because matplotlib is missing.
    """
    contents = {TABLE_MD: to_markdown(result).encode(), TABLE_CSV: lines.encode()}
    written = _write_all(folder, contents)
    if result.draw is not None:
        drawn = figures.render(result.draw, [name.rpartition(".")[2] for name in FIGURES])
        written += _write_all(folder, dict(zip(FIGURES, drawn, strict=True)))
    return written


def _write_all(folder: epath.Path, contents: Mapping[str, bytes]) -> list[epath.Path]:
    for name, content in contents.items():
        with files.replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return [folder / name for name in contents]


def format_cell(cell: Cell | None, digits: int) -> str:
    """Returns a cell for a person: `89.4 ± 0.6 (0.3) [84.9 ± 0.1]`."""
    if cell is None:
        return ""
    text = []
    if cell.mean is not None:
        text.append(_with_spread(cell.mean, cell.std, digits))
        if cell.probe_std is not None:
            text.append(f"({cell.probe_std:.{digits}f})")
    if cell.paper is not None:
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
    if any(cell.paper is not None for cell in cells):
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
