"""Cards of classes: distilled images, with real ones and those of other runs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lgm_jax.names import join
from lgm_jax.report import pictures
from lgm_jax.report.gallery import DISTILLED, REALS, Gallery
from lgm_jax.report.pictures import Place
from lgm_jax.report.view import RunView, first_pictures
from lgm_jax.report.vocabulary import TITLES
from lgm_jax.report.words import CAPTIONS

# Bytes that other runs' images may take of a page that is one file, and their side.
BUDGET, _SIDE = 1_000_000, 160


def describe_cards(
    gallery: Gallery, others: Sequence[tuple[RunView, Sequence[int]]], place: Place
) -> list[dict[str, Any]]:
    """Returns a card for each class: distilled images, real ones, and other runs'."""
    cards: list[dict[str, Any]] = [
        {"name": str(name), "label": label, "rows": []}
        for label, name in enumerate(gallery.class_names)
    ]
    for i, label in enumerate(gallery.labels.tolist()):
        row = {
            "distilled": place.put(DISTILLED, i, gallery.files[DISTILLED][i]),
            "reals": [
                {**real, "src": place.put(real["method"], i, gallery.files[real["method"]][i])}
                for real in describe_reals(gallery, i)
            ],
            "others": [],
        }
        cards[label]["rows"].append(row)
    for number, (other, labels) in enumerate(others):
        whole = first_pictures(other.gallery)
        budget = None if place.folder else BUDGET // len(others)
        small = pictures.shrink(list(whole.values()), _SIDE, budget)
        first = dict(zip(whole, small, strict=True))
        for card, label in zip(cards, labels, strict=True):
            if label in first and card["rows"]:
                src = place.put(f"beside{number}", card["label"], first[label])
                name = f"distilled for {other.title}"
                card["rows"][0]["others"].append({"name": name, "src": src})
    return [card for card in cards if card["rows"]]


def describe_reals(gallery: Gallery, i: int) -> list[dict[str, str]]:
    """Returns the real pictures beside a distilled one: their kinds, names and descriptions.

    A picture of several kinds appears once, under the first of them.
    """
    kinds: dict[bytes, list[str]] = {}
    for kind in filter(gallery.files.__contains__, REALS):
        kinds.setdefault(gallery.files[kind][i], []).append(kind)
    described = []
    for same in kinds.values():
        titles = join([TITLES[kind].removesuffix(" real") for kind in same])
        text = CAPTIONS[same[0]][0]
        if len(same) > 1:
            text = f"one image: {join([CAPTIONS[kind][1] for kind in same])}"
        described.append({"name": f"{titles} real", "text": text, "method": same[0]})
    return described
