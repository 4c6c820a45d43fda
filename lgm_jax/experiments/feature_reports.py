"""Reports of features: alignment of backbones, edges of classes, head gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from lgm_jax import analysis
from lgm_jax.experiments import measures, published
from lgm_jax.experiments.axes import SECTION, backbones, seeds
from lgm_jax.experiments.figures import Panel
from lgm_jax.experiments.frame import DISTILLED, Study
from lgm_jax.experiments.paper import BACKBONES
from lgm_jax.experiments.result import Cell, Claim, Result, Table

if TYPE_CHECKING:
    import pandas as pd

_COEFFICIENTS = {
    "Pearson r": "pearson",
    "p of Pearson": "pearson_p",
    "Spearman r": "spearman",
    "p of Spearman": "spearman_p",
}

_EDGE_NOTE = (
    "Features of centre crops, in all dimensions. Distance is that to the mean of the class's "
    "real training images, in parts of the radius that encloses 95 % of these; a quantile is the "
    "part of them that are nearer. Along class is the direction from the mean of the other classes "
    "to the class's own: beyond the edge there, an image is more of its class than 95 % of the "
    "class's images are. Means over images; outside and beyond are parts of the images. Random "
    "images are those of every probe run. The paper has no numbers, only the picture."
)

# By metric of head gradients, the title and the unit of its table, and whether it is drawn.
_GRADIENTS = {
    "cosine": (
        "cosine of the head gradient and the one that knows class means alone",
        "cosine",
        False,
    ),
    "share": ("share of the head gradient that class means explain", "share", True),
    "overall": ("share of the head gradient that the mean of all images explains", "share", True),
    "rest": ("share that class means explain of what the mean of all leaves", "share", True),
    "scores": ("std of the class scores", "std", False),
}


# Of what class means explain nearly all with small heads.
_CLAIMED = {"share": "the gradient", "rest": "what the overall mean leaves"}


def transfer(study: Study) -> Result:
    """1-NN transfer, alignment, and how they go together."""
    own = study.metric(measures.NEAREST)
    normalised = [analysis.normalized_transfer(_matrix(study, of)) for _, of in own.groupby("seed")]
    mean = np.mean(normalised, axis=0)
    share = {
        (a, b, seed): each[i, j]
        for seed, each in zip(seeds(study.config), normalised, strict=True)
        for (i, a), (j, b) in itertools.product(enumerate(study.sources), repeat=2)
    }
    places = zip(own["backbone"], own["evaluated"], own["seed"], strict=True)
    relative = own.assign(metric=published.NORMALISED, value=[share[place] for place in places])
    tables = [
        study.table(
            part, f": 1-NN accuracy, {title}", "distilled against", "against", "on", unit=unit
        )
        for part, title, unit in (
            (relative, "in % of the column's own images", "1-NN accuracy, normalised"),
            (own, "as it is", "1-NN accuracy, top-1 %"),
        )
    ]
    correlations, panels, claims = {}, [], []
    knn = f"mutual {study.config[SECTION].neighbors}-NN alignment"
    for kind, metric in ((knn, measures.ALIGNMENT), (measures.CKA, measures.CKA)):
        of = study.metric(metric)
        table = study.table(of, f": {kind}", "backbone", "against", "on", unit=kind, digits=2)
        tables.append(table)
        matrix = _matrix(study, of)
        correlations[kind] = found = analysis.correlate_pairs(mean, matrix)
        panels.append(_panel(study, kind, matrix, mean, found))
        if math.isfinite(found.pearson):
            text = f"transfer is strongly correlated with {kind} (r of at least 0.7)"
            detail = (
                f"r = {found.pearson:.2f} over {found.pairs} pairs, p = "
                f"{found.pearson_p:.2f} of {found.permutations} permutations"
            )
            claims.append(Claim(f"on {study.title}, {text}", found.pearson >= 0.7, detail))
    tables.append(_correlations(study, correlations))
    return Result(tables, claims, [_transfer_note(study.config)], panels)


def _transfer_note(config: ConfigDict) -> str:
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
    return (
        f"Distillation seeds: {len(seeds(config))}; steps: {config.steps}. 1-NN by cosine "
        "similarity, one centre crop per image. Correlations are over ordered pairs of "
        "backbones, of means over seeds; p is that of a two-sided Mantel test, which permutes "
        f"backbones: {many} The paper gives no coefficient; those in [] are computed here from its "
        "table."
    )


def _matrix(study: Study, own: pd.DataFrame) -> Float[np.ndarray, "m m"]:
    """Returns a number for each pair of backbones."""
    square = own.pivot(index="backbone", columns="evaluated", values="value")
    matrix: np.ndarray = square.loc[study.sources, study.sources].to_numpy()
    return matrix


def _correlations(study: Study, correlations: Mapping[str, analysis.Correlation]) -> Table:
    papers = analysis.correlate_pairs(*published.transfer_and_alignment())
    cells = {}
    for kind, correlation in correlations.items():
        for column, field in _COEFFICIENTS.items():
            theirs = None if kind == measures.CKA else (float(getattr(papers, field)), None)
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
    named = [
        f"{study.titled(a)} to {study.titled(b)}"
        for a, b in itertools.permutations(study.sources, 2)
    ]
    own, off = (~np.eye(len(names), dtype=bool) for names in (study.sources, BACKBONES))
    r = f"r = {found.pearson:.2f}" if math.isfinite(found.pearson) else "too few for a correlation"
    papers = [each[off].tolist() for each in published.transfer_and_alignment()]
    return Panel(
        f"{study.title}: {found.pairs} pairs, {r}",
        kind,
        "1-NN accuracy, % of own",
        dict(zip(named, zip(matrix[own], mean[own], strict=True), strict=True)),
        None if kind == measures.CKA else (papers[1], papers[0]),
    )


def edges(study: Study) -> Result:
    """How far outside their class images lie, by backbone."""
    tables, claims, shown = [], [], []
    columns = [*measures.EDGES, *measures.OUTSIDE]
    own = study.metric(*columns)
    for backbone in study.sources:
        of = own[own["backbone"] == backbone]
        title, order = f", {study.titled(backbone)}", ((), columns)
        table = study.table(
            of, title, "images", "images", "metric", order=order, unit="parts", digits=2
        )
        tables.append(table)
        for how, ratio, outside in (
            ("by distance", columns[1], columns[4]),
            ("along its class's direction", columns[3], columns[5]),
        ):
            part, mean = (table.mean(DISTILLED, column) for column in (outside, ratio))
            text = f"{table.title}: a distilled image lies beyond the edge of its class, {how}"
            detail = f"{100 * part:.0f} % do; on average {mean:.2f} of the edge"
            claims.append(Claim(text, part > 0.5, detail))
        shown.append((table.title, study.first_outcome(backbone).measured))
    return Result(tables, claims, [_EDGE_NOTE], shown)


def class_means(study: Study) -> Result:
    """Scales of random heads by backbones, for each kind of share."""
    tables, claims = [], []
    for kind, (title, unit, drawn) in _GRADIENTS.items():
        part = study.metric(kind)
        rows = part["variant"].str.removeprefix("head_std")
        table = study.table(
            part,
            f": {title}",
            "std of the head",
            rows,
            "against",
            unit=unit,
            digits=4,
            repeats="random heads",
            drawn=drawn,
        )
        tables.append(table)
        if kind in _CLAIMED:
            claims += _head_claims(study, table, _CLAIMED[kind])
    return Result(tables, claims, [_head_note(study.config)])


def _head_claims(study: Study, table: Table, of: str) -> list[Claim]:
    """Returns the claims that with small heads class means are nearly all, with large ones not."""
    claims = []
    for row, high, words in (("0.01", True, "99 % or more"), ("1", False, "less than 99 %")):
        if row in table.rows:
            shares = {column: table.mean(row, column) for column in table.columns}
            text = f"on {study.title}, with heads of {row}, class means explain {words} of {of}"
            holds = all((share >= 0.99) == high for share in shares.values())
            detail = "; ".join(f"{name} {100 * share:.2f} %" for name, share in shares.items())
            claims.append(Claim(text, holds, detail))
    return claims


def _head_note(config: ConfigDict) -> str:
    return (
        f"Random heads of each scale: {config[SECTION].heads}; augmented views of every training "
        f"image: {config.real.views}. The head gradient g is compared with m, that of features "
        "each replaced by the mean of its class, and o, that of features all replaced by the mean "
        "of all. Shares are 1 - |g - m|² / |g|², 1 - |g - o|² / |g|² and "
        "1 - |g - m|² / |g - o|²; below 0, m or o is farther away than what it is compared "
        "with. The authors' code has heads of 0.01, the paper's text of 1; but what leaves "
        "the softmax near uniform is the std of the class scores: the head's, times the root "
        "mean square norm of the features, which differs between backbones."
    )
