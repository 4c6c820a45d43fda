"""All numbers of an experiment in one long table, and cells that summarise parts of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lgm_jax.errors import UserError
from lgm_jax.experiments.axes import joined
from lgm_jax.experiments.published import Key, Number
from lgm_jax.experiments.runner import Outcome
from lgm_jax.settings import split_list

if TYPE_CHECKING:
    import pandas as pd

TOP1, WORST = "top-1", "worst group"

# What tells one trained probe, or one measured number, from another.
ENTRY = ("set", "backbone", "variant", "seed", "evaluated", "method", "metric")

# Methods whose images differ by seed, and random heads, which are seeds of their own. What has no
# seed has no spread over seeds.
SEEDED = ("distilled", "neighbors", "heads")


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
        paper: The paper's mean and its std over probe runs.
    """

    mean: float | None = None
    std: float | None = None
    probe_std: float | None = None
    seeds: int = 0
    probe_runs: int = 0
    paper: Number | None = None


def import_pandas() -> Any:
    """Returns pandas.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError(
            "experiments need pandas: pip install 'lgm_jax[experiments]', and start again"
        ) from error
    return pd


def row_of(outcome: Outcome, metric: str, value: float, **others: Any) -> dict[str, Any]:
    """Returns a row of the frame: one number of a run."""
    axes = {"variant": "", "seed": None, **outcome.axes}
    places = {"evaluated": "", "method": "", "run": None}
    return {**axes, **places, "metric": metric, "value": value, **others}


def accuracies(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Returns the rows of what a run's probes reached, in percent, by probe run."""
    changes = outcome.planned.changes
    stages = split_list(changes["stages"])
    methods = ["distilled"] if "probe" in stages else []
    methods += split_list(changes["baselines"]) if "baselines" in stages else []
    for backbone in split_list(changes["eval_backbones"]):
        for method in methods:
            entry = outcome.accuracy(method, backbone)
            place = {"evaluated": joined(backbone), "method": method}
            for run, value in enumerate(entry["top1_runs"]):
                yield row_of(outcome, TOP1, value, run=run, **place)
            # Means over probe runs.
            for group, value in (entry.get("groups") or {}).items():
                yield row_of(outcome, f"group {group}", value, **place)
            if entry.get("worst_group") is not None:
                yield row_of(outcome, WORST, entry["worst_group"], **place)


def make(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns the frame of all rows."""
    columns = [*ENTRY[:-1], "run", "metric", "value"]
    frame = import_pandas().DataFrame(list(rows), columns=columns)
    return frame.astype({"seed": "Int64", "run": "Int64", "value": "float64"})


def cells(
    frame: pd.DataFrame, *, ddof: int, papers: Mapping[Key, Number]
) -> dict[tuple[str, str], Cell]:
    """Summarises a frame by its columns `row` and `column`.

    Args:
        frame: The numbers, with these two columns more.
        ddof: Of the standard deviation over probe runs.
        papers: The paper's numbers, by what they are numbers of.
    """
    probes = frame.groupby(["row", "column", *ENTRY], dropna=False, sort=False)["value"]
    # A number that is missing makes what it belongs to missing.
    summary = {
        "mean": probes.mean(skipna=False),
        "std": probes.std(ddof=ddof, skipna=False),
        "count": probes.size(),
    }
    entries = import_pandas().DataFrame(summary).reset_index()
    found = {}
    for place, part in entries.groupby(["row", "column"], sort=False):
        by_seed = part.groupby("seed", dropna=False)["mean"].mean(skipna=False)
        several = part["std"][part["count"] > 1]
        seeded = part["method"].iloc[0] in SEEDED
        found[place] = Cell(
            mean=float(by_seed.mean(skipna=False)),
            std=float(by_seed.std(skipna=False)) if seeded and len(by_seed) > 1 else None,
            probe_std=float(several.mean()) if len(several) else None,
            seeds=len(by_seed) if seeded else 0,
            probe_runs=int(part["count"].min()),
            paper=papers.get(_key_of(part)),
        )
    return found


def _key_of(part: pd.DataFrame) -> Key:
    """Returns what a part of a frame is about, as `published.numbers` is keyed."""
    pairs = frozenset(zip(part["backbone"], part["evaluated"], strict=True))
    first = part.iloc[0]
    return first["set"], first["variant"], first["method"], first["metric"], pairs


def with_average(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Returns a frame with a further value of `column`, under which everything is once more."""
    return import_pandas().concat([frame, frame.assign(column=name)])


def to_csv(frame: pd.DataFrame, papers: Mapping[str, Mapping[Key, Number]]) -> str:
    """Returns the text of `table.csv`: a line per number, and the paper's beside it.

    Args:
        frame: The numbers.
        papers: By set of images, the paper's numbers that may stand beside.
    """
    beside: list[Sequence[float | None]] = []
    for row in frame.itertuples(index=False):
        pair = frozenset([(row.backbone, row.evaluated)])
        key = (row.set, row.variant, row.method, row.metric, pair)
        beside.append(papers[row.set].get(key, (None, None)))
    means, stds = zip(*beside, strict=True) if beside else ((), ())
    written = frame.assign(
        value=frame["value"].map("{:.10g}".format),
        paper=np.array(means, float),
        paper_std=np.array(stds, float),
    )
    text: str = written.to_csv(index=False, lineterminator="\n")
    return text
