"""Does the head gradient see more than class means? Not in the paper."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lgm_jax import analysis
from lgm_jax.errors import UserError
from lgm_jax.experiments.axes import SETS, backbones, select, sets, title_of
from lgm_jax.experiments.published import note_of
from lgm_jax.experiments.result import Cell, Claim, Result, Table, spread
from lgm_jax.experiments.runner import SECTION, Measure, Outcome, Planned, label
from lgm_jax.session import Session
from lgm_jax.settings import split_list

# The random stream of the heads.
_HEAD_STREAM = 104

# By what is measured, the title of its table.
_KINDS = {
    "cosine": "cosine of the head gradient and the one that knows class means alone",
    "share": "share of the head gradient that class means explain",
    "overall": "share of it that the mean of all images explains",
    "rest": "of what that leaves, the share that class means explain",
    "scores": "std of the class scores",
}

_DRAWN = ("share", "overall", "rest")


def plan_class_means(config: ConfigDict, _: Mapping[str, Outcome]) -> list[Planned]:
    """A look at real images through every backbone; nothing is distilled."""
    scales, heads = head_scales(config), config[SECTION].heads
    return [
        Planned(
            {"set": name, "backbone": label(backbone), "variant": "class-means"},
            {
                **image_set.changes,
                "backbone.name": backbone,
                "eval_backbones": backbone,
                "stages": "report",
            },
            Measure(
                "class_means",
                functools.partial(_inputs, scales=scales, heads=heads),
                functools.partial(_compare, scales=scales, heads=heads),
            ),
        )
        for name, image_set in sets(config).items()
        for backbone in backbones(config)
    ]


def tabulate_class_means(config: ConfigDict, outcomes: Sequence[Outcome]) -> Result:
    """Head scales by backbones, for each set."""
    tables, claims = [], []
    for name in sets(config):
        for kind, title in _KINDS.items():
            cells = {}
            for backbone in backbones(config):
                (own,) = select(outcomes, set=name, backbone=backbone)
                for scale in head_scales(config):
                    values = own.measured[_text(scale)][kind]
                    cells[_text(scale), title_of(backbone)] = Cell(
                        mean=float(np.mean(values)),
                        std=spread(values),
                        seeds=len(values) if len(values) > 1 else 0,
                    )
            table = Table(
                f"{SETS[name].title}: {title}",
                "std of the head",
                [_text(scale) for scale in head_scales(config)],
                list(map(title_of, backbones(config))),
                cells,
                unit=kind,
                digits=4,
                repeats="random heads",
            )
            tables.append(table)
            if kind in ("share", "rest"):
                claims += _claims(table, SETS[name].title)
    heads = config[SECTION].heads
    return Result(
        "Does the head gradient see more than class means?",
        tables,
        [
            note_of(config, outcomes),
            f"Random heads of each scale: {heads}; augmented views of every training image: "
            f"{config.real.views}. The head gradient g is held against m, that of features each "
            "replaced by the mean of its class, and o, that of features all replaced by the mean "
            "of all. Shares are 1 - |g - m|² / |g|², 1 - |g - o|² / |g|² and "
            "1 - |g - m|² / |g - o|²; below 0, m or o is farther away than what it is held "
            "against. The authors' code has heads of 0.01, the paper's text of 1; but what leaves "
            "the softmax near uniform is the std of the class scores: the head's, times the root "
            "mean square norm of the features, which differs between backbones.",
        ],
        claims,
        functools.partial(_draw, tables=[table for table in tables if table.unit in _DRAWN]),
    )


def head_scales(config: ConfigDict) -> list[float]:
    """Standard deviations of random heads.

    Raises:
        UserError: If they are no positive numbers.
    """
    words = split_list(config[SECTION].head_stds)
    try:
        scales = [float(word) for word in words]
    except ValueError:
        scales = []
    if not scales or not all(0 < scale <= 1e6 for scale in scales):
        raise UserError(
            "config.experiment.head_stds must be positive numbers, for example 0.01,0.1,1, not "
            f"{config[SECTION].head_stds!r}"
        )
    return scales


def _text(scale: float) -> str:
    return f"{scale:g}"


def _inputs(session: Session, *, scales: Sequence[float], heads: int) -> dict[str, Any]:
    recipe = session.recipe
    return {
        "data": session.dataset.fingerprint,
        "backbone": session.backbone.fingerprint,
        "crop": recipe.task.crop,
        "views": recipe.real.views,
        "augmentation": repr(recipe.real_augmentation),
        "seed": session.config.seed,
        "head_stds": list(scales),
        "heads": heads,
    }


def _compare(session: Session, *, scales: Sequence[float], heads: int) -> dict[str, Any]:
    rows = session.real_features(session.backbone)
    views, images, dim = rows.shape
    features = jnp.asarray(rows.whole().reshape(views * images, dim))
    labels = jnp.asarray(np.tile(session.dataset.splits["train"].labels, views))
    key = jax.random.fold_in(session.key, _HEAD_STREAM)
    norm = float(jnp.sqrt(jnp.mean(jnp.sum(features**2, axis=-1))))
    found: dict[str, Any] = {}
    for scale in scales:
        share = analysis.class_means_share(
            key, features, labels, session.dataset.num_classes, head_std=scale, heads=heads
        )
        found[_text(scale)] = {
            **{name: np.asarray(values).tolist() for name, values in share._asdict().items()},
            "scores": [scale * norm],
        }
    return found


def _claims(table: Table, where: str) -> list[Claim]:
    """With small heads class means are nearly all, and with large ones not."""
    claims = []
    of = "the gradient" if table.unit == "share" else "what the overall mean leaves"
    for scale, high in ((0.01, True), (1.0, False)):
        row = _text(scale)
        if row not in table.rows:
            continue
        shares = {column: table.cells[row, column].mean or 0.0 for column in table.columns}
        said = "99 % or more" if high else "less than 99 %"
        claims.append(
            Claim(
                f"on {where}, with heads of {row}, class means explain {said} of {of}",
                all((share >= 0.99) == high for share in shares.values()),
                "; ".join(f"{column} {100 * share:.2f} %" for column, share in shares.items()),
            )
        )
    return claims


def _draw(figure: Any, tables: Sequence[Table]) -> None:
    """A panel per table: its rows on a logarithmic axis, a curve per backbone."""
    count = len(_DRAWN)
    figure.set_size_inches(5.2 * count, 3.6 * len(tables) / count)
    grid = figure.subplots(len(tables) // count, count, squeeze=False).ravel()
    for axes, table in zip(grid, tables, strict=True):
        for column in table.columns:
            cells = [table.cells[row, column] for row in table.rows]
            axes.errorbar(
                list(map(float, table.rows)),
                [cell.mean for cell in cells],
                [cell.std or 0.0 for cell in cells],
                marker="o",
                capsize=2,
                label=column,
            )
        axes.set_xscale("log")
        axes.set_xlabel(table.corner)
        axes.set_ylabel(table.unit)
        lowest = min(cell.mean or 0.0 for cell in table.cells.values())
        axes.set_ylim(min(0.0, 1.1 * lowest), 1.03)
        axes.set_title(table.title.replace(": ", ":\n"), fontsize="medium")
        axes.legend(fontsize="small")
