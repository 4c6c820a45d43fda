"""The timelapse of a distillation: contact sheets of its images, and their animation."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image

from lgm_jax.files import replacing
from lgm_jax.report import pictures
from lgm_jax.report.pictures import Place

if TYPE_CHECKING:
    from lgm_jax.report.view import RunView

# Sheets kept of a run, and frames of the animation.
_FRAMES = 30

# Columns on a wide screen, if there are many images.
_MOST_COLUMNS = 12

_SHEET = re.compile(r"step_(\d{6,})\.webp")


class Sheet(NamedTuple):
    """A contact sheet of the images after a step."""

    step: int
    path: epath.Path


def is_kept(step: int, steps: int) -> bool:
    """Returns whether a sheet is kept of a step: of 30 in all, denser early, when most changes."""
    return any(step == round(steps * (i / (_FRAMES - 1)) ** 2) for i in range(_FRAMES))


def images_shown(count: int) -> list[int]:
    """Returns the images, of so many, that a sheet shows."""
    return pictures.spread(count, pictures.SHEET_IMAGES)


def write_sheet(folder: epath.Path, step: int, images: Float[np.ndarray, "n h w 3"]) -> None:
    """Writes the contact sheet of a step."""
    with replacing(folder / f"step_{step:06d}.webp") as temporary:
        temporary.write_bytes(pictures.draw_sheet(images))


def find_sheets(folder: epath.Path, up_to: int | None = None) -> list[Sheet]:
    """Returns the contact sheets in a folder, by step; a note names those that cannot be read.

    Those after a step `up_to` do not count: a run that lost its checkpoints may have gone back.
    """
    paths = folder.iterdir() if folder.exists() else ()
    matches = ((_SHEET.fullmatch(path.name), path) for path in paths)
    sheets = []
    for sheet in sorted(Sheet(int(match[1]), path) for match, path in matches if match):
        if up_to is not None and sheet.step > up_to:
            break
        if pictures.is_readable(sheet.path.read_bytes()):
            sheets.append(sheet)
        else:
            print(f"note: {sheet.path} is damaged, and left out of the timelapse", flush=True)
    return sheets


def choose(sizes: Sequence[int], budget: int) -> list[int]:
    """Returns indices of evenly spread files, the last in any case, that fit a budget in bytes."""
    for most in range(len(sizes), 1, -1):
        chosen = pictures.spread_with_ends(len(sizes), most)
        if sum(sizes[i] for i in chosen) <= budget:
            return chosen
    return [len(sizes) - 1] if sizes else []


def write_animation(path: epath.Path, sheets: Sequence[Sheet], count: int, side: int) -> None:
    """Writes the contact sheets, if there are any, as one animated WebP.

    Those of another layout, as of earlier versions, are left out.

    Args:
        count: The number of distilled images.
        side: Their side in pixels.
    """
    images = min(count, pictures.SHEET_IMAGES)
    layout = pictures.sheet_layout(images, side)
    files = [file for sheet in sheets if _size(file := sheet.path.read_bytes()) == layout.size]
    if not files:
        return
    chosen = [files[i] for i in pictures.spread_with_ends(len(files), _FRAMES)]
    with replacing(path) as temporary:
        temporary.write_bytes(pictures.animate(chosen, layout, images))


def describe_timelapse(run: RunView, place: Place, budget: int) -> dict[str, Any] | None:
    """Returns the contact sheets of a run, or `None` if there are fewer than two.

    Args:
        budget: Bytes that the sheets may take of a page that is one file: as many are shown.
    """
    files = [sheet.path.read_bytes() for sheet in run.sheets]
    sizes = [_size(file) for file in files]
    # A run that an earlier version began has sheets of another layout, too.
    same = [i for i, size in enumerate(sizes) if size == sizes[-1]]
    chosen = [same[i] for i in pictures.spread_with_ends(len(same), _FRAMES)]
    if place.folder is None:
        chosen = [chosen[i] for i in choose([len(files[i]) for i in chosen], budget)]
    if len(chosen) < 2:
        return None
    losses = dict(run.losses)
    frames = [
        {
            "step": run.sheets[i].step,
            "src": place.put("timelapse", number, files[i]),
            "loss": losses.get(run.sheets[i].step),
        }
        for number, i in enumerate(chosen)
    ]
    count = run.num_images or 0
    images = images_shown(count)
    layout = pictures.sheet_layout(len(images), run.side) if images and run.side else None
    per_class = count // len(run.class_names) if run.class_names else 0
    cells = [
        {
            "name": run.class_names[number // per_class],
            "label": number // per_class,
            "corner": layout.corner(i),
        }
        for i, number in enumerate(images)
        if layout and layout.size == sizes[-1] and per_class
    ]
    return {
        # The page cuts a sheet into its images, to name them.
        "cells": cells,
        "cell": layout.cell if layout else 0,
        "columns": min(layout.columns, _MOST_COLUMNS) if layout else 1,
        "frames": frames,
        "width": sizes[-1][0],
        "height": sizes[-1][1],
        "images": len(images),
    }


def _size(file: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(file)) as picture:
        return picture.size
