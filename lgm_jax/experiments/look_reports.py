"""Tables and claims of features: alignment, edges of classes, head gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from lgm_jax import analysis
from lgm_jax.experiments import frame, published
from lgm_jax.experiments.axes import SECTION, backbones, joined, seeds
from lgm_jax.experiments.figures import Panel
from lgm_jax.experiments.frame import Cell
from lgm_jax.experiments.paper import BACKBONES
from lgm_jax.experiments.result import Claim, Table
from lgm_jax.experiments.runner import Outcome
from lgm_jax.experiments.study import METHODS, Report, Study
from lgm_jax.settings import split_list

if TYPE_CHECKING:
    import pandas as pd

_NEAREST, _NORMALISED, _ALIGNMENT, _CKA = "1-NN", "normalised 1-NN", "alignment", "linear CKA"

_COEFFICIENTS = {
    "Pearson r": "pearson",
    "p of Pearson": "pearson_p",
    "Spearman r": "spearman",
    "p of Spearman": "spearman_p",
}

# By column, what it is of an image: see `analysis.Outsideness`.
_EDGES = {
    "distance: quantile": "quantile",
    "distance / 95 % radius": "ratio",
    "along class: quantile": "quantile_along",
    "along class / 95 % edge": "ratio_along",
}
_OUTSIDE = {"outside the radius": "ratio", "beyond the edge along class": "ratio_along"}

EDGE_NOTE = (
    "Features of centre crops, all dimensions of them. Distance is that to the mean of the class's "
    "real training images, in parts of the radius that encloses 95 % of these; a quantile is the "
    "part of them that are nearer. Along class is the direction from the mean of the other classes "
    "to the class's own: beyond the edge there, an image is more of its class than 95 % of the "
    "class's images are. Means over images; outside and beyond are parts of the images. Random "
    "images are those of every probe run. The paper gives no number, only the picture."
)

# By what is measured of head gradients, the title of its table.
_GRADIENTS = {
    "cosine": "cosine of the head gradient and the one that knows class means alone",
    "share": "share of the head gradient that class means explain",
    "overall": "share of it that the mean of all images explains",
    "rest": "of what that leaves, the share that class means explain",
    "scores": "std of the class scores",
}
_DRAWN = ("share", "overall", "rest")


def transfer_rows(config: ConfigDict, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Returns the rows of 1-NN accuracies, or of alignments of pairs of backbones."""
    names = list(map(joined, split_list(outcome.planned.changes["eval_backbones"])))
    if outcome.axes["backbone"] != "real":
        for backbone, value in zip(names, outcome.measured, strict=True):
            yield frame.row_of(outcome, _NEAREST, value, evaluated=backbone, method="distilled")
        return
    for metric, key in ((_ALIGNMENT, "mutual_knn"), (_CKA, "linear_cka")):
        for (i, a), (j, b) in itertools.product(enumerate(names), repeat=2):
            place = {"backbone": a, "evaluated": b, "variant": ""}
            yield frame.row_of(outcome, metric, outcome.measured[key][i][j], **place)


def transfer(study: Study) -> Report:
    """1-NN transfer, alignment, and how they go together."""
    own = study.all[study.all["metric"] == _NEAREST]
    accuracy = [_matrix(study, of) for _, of in own.groupby("seed")]
    normalised = [analysis.normalized_transfer(each) for each in accuracy]
    mean = np.mean(normalised, axis=0)
    share = {
        (a, b, seed): each[i, j]
        for seed, each in zip(seeds(study.config), normalised, strict=True)
        for (i, a), (j, b) in itertools.product(enumerate(study.sources), repeat=2)
    }
    places = zip(own["backbone"], own["evaluated"], own["seed"], strict=True)
    relative = own.assign(metric=_NORMALISED, value=[share[place] for place in places])
    knn = f"mutual {study.config[SECTION].neighbors}-NN alignment"
    tables = [
        _by_pair(
            study,
            relative,
            ": 1-NN accuracy, in % of the column's own images",
            unit="1-NN accuracy, normalised",
        ),
        _by_pair(study, own, ": 1-NN accuracy, as it is", unit="1-NN accuracy, top-1 %"),
    ]
    found, panels, claims = {}, [], []
    for kind, metric in ((knn, _ALIGNMENT), (_CKA, _CKA)):
        of = study.all[study.all["metric"] == metric]
        tables.append(_by_pair(study, of, f": {kind}", "backbone", unit=kind, digits=2))
        matrix = _matrix(study, of)
        found[kind] = correlation = analysis.correlate_pairs(mean, matrix)
        panels.append(_panel(study, kind, matrix, mean, correlation))
        if math.isfinite(correlation.pearson):
            claims.append(
                Claim(
                    f"on {study.title}, transfer is strongly correlated with {kind} (r of at least "
                    "0.7)",
                    correlation.pearson >= 0.7,
                    f"r = {correlation.pearson:.2f} over {correlation.pairs} pairs, p = "
                    f"{correlation.pearson_p:.2f} of {correlation.permutations} permutations",
                )
            )
    return Report([*tables, _correlations(study, found)], claims, shown=panels)


def transfer_notes(config: ConfigDict) -> list[str]:
    """Returns what a reader must know of 1-NN and correlations."""
    count = len(backbones(config))
    pairs = count * (count - 1)
    if count < 3:
        many = (
            f"with {count} backbones there is one alignment for all {pairs} pairs, and so no "
            "correlation."
        )
    else:
        few = ", far too few for a conclusion" if count == 3 else ""
        many = (
            f"with {count} backbones there are {pairs} pairs, {pairs // 2} alignments among them, "
            f"and p cannot be below {1 / math.factorial(count):.2g}{few}."
        )
    return [
        f"Distillation seeds: {len(seeds(config))}; steps: {config.steps}. 1-NN by cosine "
        "similarity, one centre crop per image. Correlations are over ordered pairs of "
        "backbones, of means over seeds; p is that of a two-sided Mantel test, which permutes "
        f"backbones: {many} The paper gives no coefficient; those in [] are computed here from its "
        "table."
    ]


def _matrix(study: Study, own: pd.DataFrame) -> np.ndarray:
    """Returns a number for each pair of backbones, (m, m)."""
    square = own.pivot(index="backbone", columns="evaluated", values="value")
    matrix: np.ndarray = square.loc[study.sources, study.sources].to_numpy()
    return matrix


def _by_pair(
    study: Study, own: pd.DataFrame, title: str, corner: str = "distilled against", **looks: Any
) -> Table:
    placed = own.assign(
        row=own["backbone"].map(study.titled), column=own["evaluated"].map(study.titled)
    )
    return study.table(placed, title, corner, **looks)


def _papers_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Returns the paper's normalised 1-NN transfer and alignment, (4, 4) each."""
    pairs = [(a, b) for a in BACKBONES for b in BACKBONES]
    keys = [
        [("imagenet-1k", "", method, metric, frozenset([pair])) for pair in pairs]
        for method, metric in (("distilled", _NORMALISED), ("", _ALIGNMENT))
    ]
    found = [[published.numbers()[key][0] for key in row] for row in keys]
    transfer, alignment = (np.reshape(row, (len(BACKBONES), -1)) for row in found)
    return transfer, alignment


def _correlations(study: Study, found: Mapping[str, analysis.Correlation]) -> Table:
    papers = analysis.correlate_pairs(*_papers_pairs())
    cells = {}
    for kind, correlation in found.items():
        for column, field in _COEFFICIENTS.items():
            theirs = None if kind == _CKA else (float(getattr(papers, field)), None)
            cells[kind, column] = Cell(mean=getattr(correlation, field), paper=theirs)
    return Table(
        f"{study.title}: correlation with normalised 1-NN transfer",
        "alignment",
        cells,
        unit="coefficient, or p",
        digits=2,
        papers="what the paper's table of ImageNet-1k and its four backbones comes to",
    )


def _panel(
    study: Study, kind: str, matrix: np.ndarray, mean: np.ndarray, found: analysis.Correlation
) -> Panel:
    off = ~np.eye(len(BACKBONES), dtype=bool)
    transfer, alignment = _papers_pairs()
    named = [
        f"{study.titled(a)} to {study.titled(b)}"
        for a, b in itertools.permutations(study.sources, 2)
    ]
    own = ~np.eye(len(study.sources), dtype=bool)
    r = f"r = {found.pearson:.2f}" if math.isfinite(found.pearson) else "too few for a correlation"
    return Panel(
        f"{study.title}: {found.pairs} pairs, {r}",
        kind,
        "1-NN accuracy, % of own",
        dict(zip(named, zip(matrix[own], mean[own], strict=True), strict=True)),
        None if kind == _CKA else (alignment[off].tolist(), transfer[off].tolist()),
    )


def edge_rows(config: ConfigDict, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Returns the rows of how far outside their class images of each kind lie, on average."""
    for method, found in outcome.measured["kinds"].items():
        place = {"evaluated": outcome.axes["backbone"], "method": method}
        for metric, name in _EDGES.items():
            yield frame.row_of(outcome, metric, float(np.mean(found[name])), **place)
        for metric, name in _OUTSIDE.items():
            beyond = float(np.mean(np.asarray(found[name]) > 1))
            yield frame.row_of(outcome, metric, beyond, **place)


def edges(study: Study) -> Report:
    """How far outside their class images lie, by backbone."""
    tables, claims, shown = [], [], []
    columns = [*_EDGES, *_OUTSIDE]
    own = study.all[study.all["metric"].isin(columns)]
    placed = own.assign(row=own["method"].map(METHODS), column=own["metric"])
    for backbone in study.sources:
        of = placed[placed["backbone"] == backbone]
        title = f", {study.titled(backbone)}"
        table = study.table(of, title, "images", columns=columns, unit="parts", digits=2)
        tables.append(table)
        for how, ratio, outside in (
            ("by distance", columns[1], columns[4]),
            ("along its class's direction", columns[3], columns[5]),
        ):
            part, mean = (table.mean("Distilled", column) for column in (outside, ratio))
            text = f"{table.title}: a distilled image lies beyond the edge of its class, {how}"
            detail = f"{100 * part:.0f} % do; on average {mean:.2f} of the edge"
            claims.append(Claim(text, part > 0.5, detail))
        first = next(each for each in study.outcomes if each.axes["backbone"] == backbone)
        shown.append((table.title, first.measured))
    return Report(tables, claims, shown=shown)


def head_rows(config: ConfigDict, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Returns the rows of every random head, which is a seed of its own."""
    for scale, found in outcome.measured.items():
        for metric, values in found.items():
            for head, value in enumerate(values):
                # The scores are those of all heads.
                seeded = {"seed": head, "method": "heads"} if metric != "scores" else {}
                place = {"variant": f"head_std{scale}", "evaluated": outcome.axes["backbone"]}
                yield frame.row_of(outcome, metric, value, **place, **seeded)


def class_means(study: Study) -> Report:
    """Head scales by backbones, for each kind of share."""
    tables, claims = [], []
    own = study.all[study.all["metric"].isin(_GRADIENTS)]
    placed = own.assign(
        row=own["variant"].str.removeprefix("head_std"), column=own["backbone"].map(study.titled)
    )
    for kind, title in _GRADIENTS.items():
        table = study.table(
            placed[placed["metric"] == kind],
            f": {title}",
            "std of the head",
            unit=kind,
            digits=4,
            repeats="random heads",
            drawn=kind in _DRAWN,
        )
        tables.append(table)
        if kind in ("share", "rest"):
            claims += _head_claims(study, table)
    return Report(tables, claims)


def _head_claims(study: Study, table: Table) -> list[Claim]:
    """With small heads class means are nearly all, and with large ones not."""
    claims = []
    of = "the gradient" if table.unit == "share" else "what the overall mean leaves"
    for row, high, said in (("0.01", True, "99 % or more"), ("1", False, "less than 99 %")):
        if row in table.rows:
            shares = {column: table.mean(row, column) for column in table.columns}
            text = f"on {study.title}, with heads of {row}, class means explain {said} of {of}"
            holds = all((share >= 0.99) == high for share in shares.values())
            detail = "; ".join(f"{name} {100 * share:.2f} %" for name, share in shares.items())
            claims.append(Claim(text, holds, detail))
    return claims


def head_notes(config: ConfigDict) -> list[str]:
    """Returns what a reader must know of shares and scales."""
    return [
        f"Random heads of each scale: {config[SECTION].heads}; augmented views of every training "
        f"image: {config.real.views}. The head gradient g is held against m, that of features each "
        "replaced by the mean of its class, and o, that of features all replaced by the mean "
        "of all. Shares are 1 - |g - m|² / |g|², 1 - |g - o|² / |g|² and "
        "1 - |g - m|² / |g - o|²; below 0, m or o is farther away than what it is held "
        "against. The authors' code has heads of 0.01, the paper's text of 1; but what leaves "
        "the softmax near uniform is the std of the class scores: the head's, times the root "
        "mean square norm of the features, which differs between backbones."
    ]
