"""The images along the way: a contact sheet per saved step, and an animation of all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from lgm_jax.files import replacing
from lgm_jax.report import pictures
from lgm_jax.report.place import Place

# Sheets kept of a run, and frames of the animation.
_MOST_SHEETS, _MOST_FRAMES = 64, 48

# Columns on a wide screen, if there are many images.
_MOST_COLUMNS = 12

_SHEET = re.compile(r"step_(\d{6,})\.webp")


class Sheet(NamedTuple):
    """A contact sheet of the images after a step."""

    step: int
    path: epath.Path


def is_kept(step: int, steps: int, every: int) -> bool:
    """Whether the sheet of a step is kept, of those at every `every`-th of `steps`."""
    stride = every * -(-(steps // every) // _MOST_SHEETS)
    return step == steps or (stride > 0 and step % stride == 0)


def write_sheet(folder: epath.Path, step: int, images: Float[np.ndarray, "n h w 3"]) -> None:
    """Writes the contact sheet of a step."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"step_{step:06d}.webp") as temporary:
        temporary.write_bytes(pictures.draw_sheet(images))


def find_sheets(folder: epath.Path, up_to: int | None = None) -> list[Sheet]:
    """The contact sheets in a folder, by step; one that cannot be read is named and left out.

    Args:
        folder: The folder; it need not exist.
        up_to: The last step that counts: a run that lost its checkpoints may have gone back.
    """
    if not folder.exists():
        return []
    found = [(_SHEET.fullmatch(path.name), path) for path in folder.iterdir()]
    sheets = sorted(Sheet(int(match[1]), path) for match, path in found if match)
    kept = [sheet for sheet in sheets if up_to is None or sheet.step <= up_to]
    readable = [pictures.is_readable(sheet.path.read_bytes()) for sheet in kept]
    for sheet in (sheet for sheet, good in zip(kept, readable, strict=True) if not good):
        print(f"note: {sheet.path} is damaged, and left out of the timelapse", flush=True)
    return [sheet for sheet, good in zip(kept, readable, strict=True) if good]


def choose(sizes: Sequence[int], budget: int) -> list[int]:
    """Indices of evenly spread files, from the first to the last, that fit a budget of bytes.

    Args:
        sizes: Bytes of each file.
        budget: Bytes that all chosen may take; the last is chosen in any case.
    """
    most = len(sizes)
    while most > 1:
        chosen = pictures.spread_with_ends(len(sizes), most)
        if sum(sizes[i] for i in chosen) <= budget:
            return chosen
        most -= 1
    return [len(sizes) - 1] if sizes else []


def write_animation(path: epath.Path, sheets: Sequence[Sheet]) -> None:
    """Writes the contact sheets as one animated WebP; nothing if there is none."""
    if not sheets:
        return
    chosen = [sheets[i] for i in pictures.spread_with_ends(len(sheets), _MOST_FRAMES)]
    with replacing(path) as temporary:
        temporary.write_bytes(pictures.animate([sheet.path.read_bytes() for sheet in chosen]))


def describe_timelapse(
    sheets: Sequence[Sheet],
    losses: Mapping[int, float],
    place: Place,
    budget: int,
    class_names: Sequence[str],
    num_images: int | None,
) -> dict[str, Any] | None:
    """Returns the contact sheets: all beside a page, or as many as fit a page that is one file.

    Args:
        sheets: The sheets, by step.
        losses: Losses by step.
        place: Where pictures go.
        budget: Bytes that the sheets may take of one file.
        class_names: Names of all classes, in label order.
        num_images: How many distilled images there are, class by class, if known.
    """
    files = [sheet.path.read_bytes() for sheet in sheets]
    every = list(range(len(files)))
    chosen = every if place.lazy else choose([len(file) for file in files], budget)
    if len(chosen) < 2:
        return None
    frames = [
        (sheets[i].step, place.put("timelapse", number, files[i]))
        for number, i in enumerate(chosen)
    ]
    width, height = size = pictures.webp_size(files[-1])
    shown_images = min(pictures.SHEET_IMAGES, num_images or 0)
    layout = pictures.sheet_layout(shown_images) if shown_images else None
    per_class = num_images // len(class_names) if num_images and class_names else 0
    cells = []
    # The page cuts a sheet into its images, to name them.
    if layout and layout.size == size and per_class:
        step = layout.cell + layout.gap
        cells = [
            {
                "name": class_names[number // per_class],
                "x": i % layout.columns * step,
                "y": i // layout.columns * step,
            }
            for i, number in enumerate(pictures.spread(num_images or 0, pictures.SHEET_IMAGES))
        ]
    return {
        "cells": cells,
        "cell": layout.cell if layout else 0,
        "columns": min(layout.columns, _MOST_COLUMNS) if layout else 1,
        "frames": [{"step": step, "src": src, "loss": losses.get(step)} for step, src in frames],
        "width": width,
        "height": height,
        "images": shown_images,
    }
