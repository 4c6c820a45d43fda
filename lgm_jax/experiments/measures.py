"""What experiments find out of a finished run beyond its accuracies has in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from lgm_jax.backbones import Backbone
from lgm_jax.features import Views, embed
from lgm_jax.session import Session, content_hash


def of_real_images(session: Session) -> dict[str, Any]:
    """What a look at real images through the evaluation backbones depends on."""
    return {
        "data": session.dataset.fingerprint,
        "backbones": [backbone.fingerprint for backbone in session.eval_backbones],
        "crop": session.task.crop,
        "split": session.config.probe.split,
    }


def of_images(session: Session) -> dict[str, Any]:
    """What a look at distilled images beside real ones depends on."""
    if session.distilled is None:
        raise ValueError("there are no distilled images")
    return {**of_real_images(session), "images": content_hash(session.distilled)}


def distilled_features(session: Session, backbone: Backbone) -> np.ndarray:
    """Features (s, d) of the centre crops of the distilled images."""
    if session.distilled is None:
        raise ValueError("there are no distilled images")
    rows = embed(
        backbone,
        session.distilled,
        Views(session.task.crop),
        session.key,
        label=f"distilled, {backbone.name}",
    )
    return rows.whole()[0]
