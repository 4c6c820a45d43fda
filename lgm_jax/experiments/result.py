"""What comes of an experiment: tables of cells, claims, a figure; and how they are written."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from lgm_jax import files
from lgm_jax.experiments import figures

TABLE_MD, TABLE_CSV, FIGURES = "table.md", "table.csv", ("figure.png", "figure.svg")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of ours, and the paper's.

    Attributes:
        mean: Over distillation seeds; `None` where there is only the paper's.
        std: Over distillation seeds, of the sample (ddof 1); `None` for one seed, or where nothing
            is distilled.
        probe_std: Mean over seeds of the std over probe runs; `None` where probes ran once.
        seeds: Distillation seeds.
        probe_runs: Probe runs of each.
        paper: The paper's mean.
        paper_std: The paper's std, over probe runs.
    """

    mean: float | None = None
    std: float | None = None
    probe_std: float | None = None
    seeds: int = 0
    probe_runs: int = 0
    paper: float | None = None
    paper_std: float | None = None

    def beside(self, paper: tuple[float, float | None] | None) -> Cell:
        """The same with the paper's mean and std."""
        if paper is None:
            return self
        return dataclasses.replace(self, paper=paper[0], paper_std=paper[1])


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells by row and column.

    Attributes:
        title: What it shows.
        corner: What the rows are.
        rows: Their names.
        columns: Likewise.
        cells: By row and column; there may be none.
        unit: Of the cells.
        digits: Behind the point.
        repeats: What the spread and number of seeds of the cells are over.
        papers: What stands in [].
        integer_columns: Columns of which no digits behind the point are shown.
    """

    title: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Cell]
    unit: str = "top-1 %"
    digits: int = 1
    repeats: str = "distillation seeds"
    papers: str = "the paper's mean ± std over probe runs"
    integer_columns: Sequence[str] = ()


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


def summarize(
    by_seed: Sequence[Sequence[Mapping[str, Any]]], *, distilled: bool = True, key: str = "top1"
) -> Cell:
    """A cell of entries of `results.json`.

    Args:
        by_seed: For each seed, the entries whose mean counts: one, or one per backbone.
        distilled: Whether seeds are distillation seeds. The spread of what is not distilled is
            that over probe runs alone.
        key: Which accuracy.
    """
    means = [float(np.mean([entry[f"{key}_mean"] for entry in entries])) for entries in by_seed]
    every = [entry for entries in by_seed for entry in entries]
    return Cell(
        mean=float(np.mean(means)),
        std=spread(means) if distilled else None,
        probe_std=mean_of(entry[f"{key}_std"] for entry in every),
        seeds=len(by_seed) if distilled else 0,
        probe_runs=min(len(entry["top1_runs"]) for entry in every),
    )


def summarize_values(values: Sequence[float]) -> Cell:
    """A cell of one number per seed."""
    return Cell(mean=float(np.mean(values)), std=spread(values), seeds=len(values))


def mean(cells: Mapping[tuple[str, str], Cell], row: str, column: str) -> float:
    """Our number in a cell; NaN where there is none."""
    found = cells.get((row, column), Cell()).mean
    return math.nan if found is None else found


def spread(values: Sequence[float]) -> float | None:
    """Std of the sample; `None` of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known; `None` of none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def to_markdown(result: Result) -> str:
    """The text of `table.md`."""
    parts = [f"# {result.title}", *result.notes]
    for table in result.tables:
        parts += [f"## {table.title}", _legend(table), _grid(table)]
    if result.claims:
        parts.append("## Claims")
        parts.append(
            "\n".join(
                f"- {claim.text}: {'yes' if claim.holds else '**no**'} ({claim.detail})"
                for claim in result.claims
            )
        )
    return "\n\n".join(parts) + "\n"


def to_csv(result: Result) -> str:
    """The text of `table.csv`: a line per cell."""
    numbers = [field.name for field in dataclasses.fields(Cell)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "row", "column", "unit", *numbers])
    for table in result.tables:
        for row in table.rows:
            for column in table.columns:
                cell = table.cells.get((row, column))
                if cell is not None:
                    values = [_exact(getattr(cell, name)) for name in numbers]
                    writer.writerow([table.title, row, column, table.unit, *values])
    return buffer.getvalue()


def write(folder: epath.Path, result: Result) -> list[epath.Path]:
    """Writes a result; gives the files.

    Raises:
        UserError: If the figure cannot be drawn because matplotlib is missing.
    """
    contents = {TABLE_MD: to_markdown(result).encode(), TABLE_CSV: to_csv(result).encode()}
    for name, content in contents.items():
        with files.replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    written = [folder / name for name in contents]
    if result.draw is None:
        return written
    drawn = figures.render(result.draw, [name.rpartition(".")[2] for name in FIGURES])
    for name, content in zip(FIGURES, drawn, strict=True):
        with files.replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return [*written, *(folder / name for name in FIGURES)]


def format_cell(cell: Cell | None, digits: int) -> str:
    """For a person: `89.4 ± 0.6 (0.3) [84.9 ± 0.1]`."""
    if cell is None:
        return ""
    text = []
    if cell.mean is not None:
        text.append(_with_spread(cell.mean, cell.std, digits))
        if cell.probe_std is not None:
            text.append(f"({cell.probe_std:.{digits}f})")
    if cell.paper is not None:
        text.append(f"[{_with_spread(cell.paper, cell.paper_std, digits)}]")
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
    elif seeds == 1:
        words[0] += " of one distillation seed"
    if any(cell.probe_std is not None for cell in cells):
        words.append(f"in (), std over {probe_runs} probe runs")
    if any(cell.paper is not None for cell in cells):
        words.append(f"in [], {table.papers}")
    return "; ".join(words) + "."


def _grid(table: Table) -> str:
    lines = [[table.corner, *table.columns], ["---"] * (1 + len(table.columns))]
    for row in table.rows:
        lines.append([row])
        for column in table.columns:
            digits = 0 if column in table.integer_columns else table.digits
            lines[-1].append(format_cell(table.cells.get((row, column)), digits))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _exact(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6g}"
