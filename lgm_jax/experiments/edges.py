"""Where distilled images lie among the real ones of their class: figure 4 of the paper."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lgm_jax import analysis, baselines
from lgm_jax.experiments.axes import (
    SETS,
    backbones,
    distilled_run,
    seeds,
    select,
    sets,
    title_of,
)
from lgm_jax.experiments.measures import distilled_features, of_images
from lgm_jax.experiments.published import note_of
from lgm_jax.experiments.result import Cell, Claim, Result, Table, spread
from lgm_jax.experiments.runner import Measure, Outcome, Planned
from lgm_jax.session import Session

# Real images in a picture, at most.
_DOTS = 2000

# Classes, at most, to write the names of into a figure.
_NAMED = 20

# Rows of the table, markers and their sizes in the picture.
_KINDS = {
    "distilled": ("Distilled", "*", 130),
    "centroids": ("Centroids", "s", 40),
    "random": ("Random", "^", 40),
}

# By column, what it is of an image: see `analysis.Outsideness`.
_COLUMNS = {
    "distance: quantile": "quantile",
    "distance / 95 % radius": "ratio",
    "along class: quantile": "quantile_along",
    "along class / 95 % edge": "ratio_along",
}
_OUTSIDE = {"outside the radius": "ratio", "beyond the edge along class": "ratio_along"}


def plan_figure4(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """The distilled images of every backbone, seen by it."""
    return [
        distilled_run(
            config,
            name,
            image_set,
            backbone,
            seed,
            evaluate=[backbone],
            measure=Measure("edges", _inputs, _look),
        )
        for name, image_set in sets(config).items()
        for backbone in backbones(config)
        for seed in seeds(config)
    ]


def tabulate_figure4(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """How far outside their class images lie, by set and backbone."""
    tables, claims, shown = [], [], []
    for name in sets(config):
        for backbone in backbones(config):
            own = select(outcomes, set=name, backbone=backbone)
            table = _table(f"{SETS[name].title}, {title_of(backbone)}", own)
            tables.append(table)
            claims += _claims(table)
            shown.append((table.title, own[0].measured))
    return Result(
        "Figure 4: where distilled images lie among the real ones of their class",
        tables,
        [
            note_of(config, outcomes),
            "Features of centre crops, all dimensions of them. Distance is that to the mean of the "
            "class's real training images, in parts of the radius that encloses 95 % of these; a "
            "quantile is the part of them that are nearer. Along class is the direction from the "
            "mean of the other classes to the class's own: beyond the edge there, an image is more "
            "of its class than 95 % of the class's images are. Means over images; outside and "
            "beyond are parts of the images. Random images are those of every probe run. The paper "
            "gives no number, only the picture.",
        ],
        claims,
        functools.partial(_draw, shown=shown),
    )


def _inputs(session: Session) -> dict[str, Any]:
    config = session.config
    names = list(session.dataset.class_names)
    of_draw = {"runs": config.probe.runs, "seed": config.seed, "ipc": config.ipc}
    return {**of_images(session), **of_draw, "class_names": names}


def _look(session: Session) -> dict[str, Any]:
    """Outsideness of images of each kind, and the first two principal components of all."""
    train, classes = session.dataset.splits["train"], session.dataset.num_classes
    config, distilled = session.config, session.distilled
    assert distilled is not None
    real = session.features(session.backbone, "train")
    drawn = baselines.random(train.labels, config.ipc, classes, config.probe.runs, config.seed)
    pca = analysis.fit_pca(real)
    kinds: dict[str, Any] = {}
    for kind, features, labels, members, shown in (
        (
            "distilled",
            distilled_features(session, session.backbone),
            distilled.labels,
            False,
            len(distilled.labels),
        ),
        *(
            (kind, real[rows], train.labels[rows], True, shown)
            for kind, rows, shown in (
                ("centroids", session.centroids, len(session.centroids)),
                ("random", drawn.ravel(), drawn.shape[1]),
            )
        ),
    ):
        found = analysis.outsideness(features, labels, real, train.labels, members=members)
        kinds[kind] = {
            **{name: values.tolist() for name, values in found._asdict().items()},
            "labels": labels.tolist(),
            "points": pca.project(features[:shown]).tolist(),
        }
    some = np.random.default_rng(config.seed).permutation(len(real))[:_DOTS]
    return {
        "kinds": kinds,
        "real": {"points": pca.project(real[some]).tolist(), "labels": train.labels[some].tolist()},
        "share": pca.share.tolist(),
        "class_names": list(session.dataset.class_names),
    }


def _table(title: str, outcomes: Sequence[Outcome]) -> Table:
    cells = {}
    for kind, (row, *_) in _KINDS.items():
        found = [outcome.measured["kinds"][kind] for outcome in outcomes]
        for column, name in _COLUMNS.items():
            cells[row, column] = _cell([float(np.mean(each[name])) for each in found], kind)
        for column, name in _OUTSIDE.items():
            outside = [float(np.mean(np.asarray(each[name]) > 1)) for each in found]
            cells[row, column] = _cell(outside, kind)
    rows = [row for row, *_ in _KINDS.values()]
    return Table(title, "images", rows, [*_COLUMNS, *_OUTSIDE], cells, unit="parts", digits=2)


def _cell(by_seed: Sequence[float], kind: str) -> Cell:
    """Over seeds, of which only distilled images have their own."""
    mean = float(np.mean(by_seed))
    if kind != "distilled":
        return Cell(mean=mean)
    return Cell(mean=mean, std=spread(by_seed), seeds=len(by_seed))


def _claims(table: Table) -> list[Claim]:
    row = _KINDS["distilled"][0]
    claims = []
    for how, ratio, outside in (
        ("by distance", "distance / 95 % radius", "outside the radius"),
        ("along its class's direction", "along class / 95 % edge", "beyond the edge along class"),
    ):
        part = table.cells[row, outside].mean or 0.0
        claims.append(
            Claim(
                f"{table.title}: a distilled image lies beyond the edge of its class, {how}",
                part > 0.5,
                f"{100 * part:.0f} % do; on average {table.cells[row, ratio].mean:.2f} of the edge",
            )
        )
    return claims


def _draw(figure: Any, shown: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Left, principal components; right, the two ratios of each image, of which 1 is the edge."""
    figure.set_size_inches(11, 5 * len(shown))
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for (left, right), (title, measured) in zip(grid, shown, strict=True):
        points = np.asarray(measured["real"]["points"])
        left.scatter(
            *points.T, s=5, c=_colours(measured["real"]["labels"]), alpha=0.45, linewidths=0
        )
        for kind, (label, marker, size) in _KINDS.items():
            found = measured["kinds"][kind]
            places = np.asarray(found["points"])
            look = {"marker": marker, "s": size, "edgecolors": "black", "linewidths": 0.8}
            left.scatter(*places.T, c=_colours(found["labels"][: len(places)]), **look)
            # For the legend, without a class's colour.
            left.scatter([], [], c="white", label=label, **look)
            right.scatter(found["ratio"], found["ratio_along"], c=_colours(found["labels"]), **look)
        _name(left, measured)
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


def _name(axes: Any, measured: Mapping[str, Any]) -> None:
    """Writes the class beside each distilled image, where there are not too many to read."""
    names, distilled = measured["class_names"], measured["kinds"]["distilled"]
    if len(names) > _NAMED:
        return
    for label, place in zip(distilled["labels"], distilled["points"], strict=True):
        axes.annotate(
            names[label],
            place,
            (7, 5),
            textcoords="offset points",
            fontsize="small",
            # Names are no formulas, whatever signs are in them.
            parse_math=False,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0},
        )


def _colours(labels: Sequence[int]) -> list[str]:
    """Ten that are easily told apart, over and over."""
    return [f"C{label % 10}" for label in labels]
