"""Do images transfer between backbones that see alike? Table 6 of the paper."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lgm_jax import analysis
from lgm_jax.experiments.axes import (
    SETS,
    backbones,
    distilled_run,
    seeds,
    select,
    sets,
    title_of,
)
from lgm_jax.experiments.measures import distilled_features, of_images, of_real_images
from lgm_jax.experiments.paper import BACKBONES
from lgm_jax.experiments.published import is_papers, note_of, place_of
from lgm_jax.experiments.result import Cell, Claim, Result, Table, summarize_values
from lgm_jax.experiments.runner import SECTION, Measure, Outcome, Planned
from lgm_jax.session import Session

# Of `paper.BACKBONES`, on ImageNet-1k. Row: distilled against; column: evaluated on.
PAPER_TRANSFER = np.array(
    [
        [100.0, 69.5, 72.3, 46.6],
        [77.2, 100.0, 95.5, 91.7],
        [66.1, 86.1, 100.0, 70.2],
        [57.2, 87.4, 76.8, 100.0],
    ]
)
PAPER_ALIGNMENT = np.array(
    [
        [1.0, 0.21, 0.26, 0.18],
        [0.21, 1.0, 0.39, 0.31],
        [0.26, 0.39, 1.0, 0.30],
        [0.18, 0.31, 0.30, 1.0],
    ]
)

_REAL = "alignment"
_COEFFICIENTS = {
    "Pearson r": "pearson",
    "p of Pearson": "pearson_p",
    "Spearman r": "spearman",
    "p of Spearman": "spearman_p",
}
_CKA = "linear CKA"


def plan_table6(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """A look at real images through every backbone, and distilled images of each, seen by all."""
    planned, every = [], backbones(config)
    neighbors = config[SECTION].neighbors
    for name, image_set in sets(config).items():
        planned.append(
            Planned(
                {"set": name, "backbone": "real", "variant": _REAL},
                {
                    **image_set.changes,
                    "backbone.name": every[0],
                    "eval_backbones": ",".join(every),
                    "stages": "report",
                },
                Measure(
                    "alignment",
                    lambda session: {**of_real_images(session), "neighbors": neighbors},
                    functools.partial(_align, neighbors=neighbors),
                ),
            )
        )
        planned += [
            distilled_run(
                config,
                name,
                image_set,
                backbone,
                seed,
                evaluate=every,
                measure=Measure("nearest", of_images, _classify),
            )
            for backbone in every
            for seed in seeds(config)
        ]
    return planned


def tabulate_table6(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """1-NN transfer, alignment, and how they go together, for each set."""
    tables, claims, scattered = [], [], []
    for name in sets(config):
        title = SETS[name].title
        own = select(outcomes, set=name)
        transfers = _transfers(config, own)
        (real,) = select(outcomes, set=name, variant=_REAL)
        alignments = {
            _knn(config): np.asarray(real.measured["mutual_knn"]),
            _CKA: np.asarray(real.measured["linear_cka"]),
        }
        normalized = np.stack([analysis.normalized_transfer(each) for each in transfers])
        mean = normalized.mean(axis=0)
        found = {
            kind: analysis.correlate_pairs(mean, matrix) for kind, matrix in alignments.items()
        }
        compared = {
            backbone: place_of(backbone)
            for backbone in backbones(config)
            if name == "imagenet-1k" and is_papers(config, name, backbone, outcomes=own)
        }
        tables.append(
            _matrix(
                config,
                f"{title}: 1-NN accuracy, in % of the column's own images",
                normalized,
                "1-NN accuracy, normalised",
                paper=PAPER_TRANSFER,
                places=compared,
            )
        )
        tables.append(
            _matrix(
                config, f"{title}: 1-NN accuracy, as it is", transfers, "1-NN accuracy, top-1 %"
            )
        )
        for kind, matrix in alignments.items():
            tables.append(
                _matrix(
                    config,
                    f"{title}: {kind}",
                    matrix[None],
                    kind,
                    digits=2,
                    of_seeds=False,
                    paper=PAPER_ALIGNMENT,
                    places={} if kind == _CKA else compared,
                )
            )
        tables.append(_correlations(title, found))
        claims += [_claim(title, kind, each) for kind, each in found.items() if _is_known(each)]
        scattered += [
            (title, kind, matrix, mean, found[kind]) for kind, matrix in alignments.items()
        ]
    return Result(
        "Table 6: transfer of distilled images, and alignment of backbones",
        tables,
        [
            note_of(config, outcomes),
            f"Distillation seeds: {len(seeds(config))}; steps: {config.steps}. 1-NN by cosine "
            "similarity, one centre crop per image. Correlations are over ordered pairs of "
            "backbones, of means over seeds; p is that of a two-sided Mantel test, which permutes "
            f"backbones: {_count_note(len(backbones(config)))} The paper gives no coefficient; "
            "those in [] are computed here from its table.",
        ],
        claims,
        functools.partial(_draw, config=config, scattered=scattered),
    )


def _align(session: Session, *, neighbors: int) -> dict[str, Any]:
    """Alignment of all pairs of backbones on the images that are evaluated."""
    split = session.config.probe.split
    features = [session.features(backbone, split) for backbone in session.eval_backbones]
    near = [analysis.nearest_others(each, neighbors) for each in features]
    return {
        "mutual_knn": _pairwise(analysis.shared_neighbors, near),
        "linear_cka": _pairwise(analysis.linear_cka, features),
    }


def _pairwise(compare: Callable[[Any, Any], float], items: Sequence[Any]) -> list[list[float]]:
    """A symmetric comparison of all pairs, whose diagonal is one."""
    found = np.eye(len(items))
    for i, j in itertools.combinations(range(len(items)), 2):
        found[i, j] = found[j, i] = compare(items[i], items[j])
    return found.tolist()


def _classify(session: Session) -> list[float]:
    """The accuracy of the nearest distilled image's label, by backbone."""
    split = session.config.probe.split
    images = session.distilled
    assert images is not None
    return [
        analysis.nearest_accuracy(
            distilled_features(session, backbone),
            images.labels,
            session.features(backbone, split),
            session.dataset.splits[split].labels,
        )
        for backbone in session.eval_backbones
    ]


def _transfers(config: ConfigDict, outcomes: Sequence[Outcome]) -> np.ndarray:
    """1-NN accuracies by seed, backbone that is distilled against, and backbone that evaluates."""
    return np.asarray(
        [
            [
                select(outcomes, backbone=backbone, seed=seed)[0].measured
                for backbone in backbones(config)
            ]
            for seed in seeds(config)
        ]
    )


def _matrix(
    config: ConfigDict,
    title: str,
    by_seed: np.ndarray,
    unit: str,
    *,
    digits: int = 1,
    of_seeds: bool = True,
    paper: np.ndarray = PAPER_TRANSFER,
    places: Mapping[str, int | None] = types.MappingProxyType({}),
) -> Table:
    """Numbers by pair of backbones; `by_seed` is (seeds, m, m), or (1, m, m) of no seed.

    The paper's stand beside those of backbones that have a place in its table.
    """
    names, cells = backbones(config), {}
    for (i, row), (j, other) in itertools.product(enumerate(names), repeat=2):
        values = by_seed[:, i, j].tolist()
        ours = summarize_values(values) if of_seeds else Cell(mean=values[0])
        place = places.get(row), places.get(other)
        if None not in place:
            ours = ours.beside((float(paper[place]), None))
        cells[title_of(row), title_of(other)] = ours
    titles = list(map(title_of, names))
    corner = "distilled against" if "1-NN" in unit else "backbone"
    return Table(title, corner, titles, titles, cells, unit, digits)


def _correlations(title: str, found: Mapping[str, analysis.Correlation]) -> Table:
    papers = analysis.correlate_pairs(PAPER_TRANSFER, PAPER_ALIGNMENT)
    cells = {}
    for kind, correlation in found.items():
        for column, field in _COEFFICIENTS.items():
            ours = Cell(mean=getattr(correlation, field))
            theirs = None if kind == _CKA else (getattr(papers, field), None)
            cells[kind, column] = ours.beside(theirs)
    return Table(
        f"{title}: correlation with normalised 1-NN transfer",
        "alignment",
        list(found),
        list(_COEFFICIENTS),
        cells,
        unit="coefficient, or p",
        digits=2,
        papers="what the paper's table of ImageNet-1k and its four backbones comes to",
    )


def _is_known(correlation: analysis.Correlation) -> bool:
    return bool(np.isfinite(correlation.pearson))


def _claim(title: str, kind: str, found: analysis.Correlation) -> Claim:
    return Claim(
        f"on {title}, transfer is strongly correlated with {kind} (r of at least 0.7)",
        found.pearson >= 0.7,
        f"r = {found.pearson:.2f} over {found.pairs} pairs, p = {found.pearson_p:.2f} of "
        f"{found.permutations} permutations",
    )


def _knn(config: ConfigDict) -> str:
    return f"mutual {config[SECTION].neighbors}-NN alignment"


def _count_note(count: int) -> str:
    pairs = count * (count - 1)
    if count < 3:
        return (
            f"with {count} backbones there is one alignment for all {pairs} pairs, and so no "
            "correlation."
        )
    said = f"with {count} backbones there are {pairs} pairs, {pairs // 2} alignments among them"
    few = ", far too few for a conclusion" if count == 3 else ""
    return f"{said}, and p cannot be below {1 / np.prod(np.arange(1, count + 1)):.2g}{few}."


def _draw(figure: Any, config: ConfigDict, scattered: Sequence[Any]) -> None:
    """A panel per set and kind of alignment, a dot per ordered pair; the paper's pairs are grey."""
    figure.set_size_inches(10, 4.2 * len(scattered) / 2)
    names = list(map(title_of, backbones(config)))
    axes_of = figure.subplots(len(scattered) // 2, 2, squeeze=False).ravel()
    for axes, (title, kind, matrix, mean, found) in zip(axes_of, scattered, strict=True):
        if kind != _CKA:
            off = ~np.eye(len(BACKBONES), dtype=bool)
            axes.plot(
                PAPER_ALIGNMENT[off],
                PAPER_TRANSFER[off],
                "x",
                color="0.6",
                label="the paper's, ImageNet-1k",
            )
        for n, (i, j) in enumerate(itertools.permutations(range(len(names)), 2)):
            axes.plot(
                matrix[i, j],
                mean[i, j],
                "os^vD<>ph*"[n % 10],
                color=f"C{n % 10}",
                label=f"{names[i]} to {names[j]}",
            )
        coefficient = (
            f"r = {found.pearson:.2f}" if _is_known(found) else "too few for a correlation"
        )
        axes.set_title(f"{title}: {found.pairs} pairs, {coefficient}")
        axes.set_xlabel(kind)
        axes.set_ylabel("1-NN accuracy, % of own")
        axes.legend(fontsize="x-small")
