"""The timelapse of a distillation: contact sheets of its images, and their animation."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image

from lgm_jax.files import replacing
from lgm_jax.report import pictures
from lgm_jax.report.place import Place

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
    number = round(math.sqrt(step / steps) * (_FRAMES - 1)) if steps else 0
    return any(
        step == round(steps * (near / (_FRAMES - 1)) ** 2) for near in range(number - 1, number + 2)
    )


def images_shown(count: int) -> list[int]:
    """Returns the images, of so many, that a sheet shows."""
    return pictures.spread(count, pictures.SHEET_IMAGES)


def write_sheet(folder: epath.Path, step: int, images: Float[np.ndarray, "n h w 3"]) -> None:
    """Writes the contact sheet of a step."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"step_{step:06d}.webp") as temporary:
        temporary.write_bytes(pictures.draw_sheet(images))


def find_sheets(folder: epath.Path, up_to: int | None = None) -> list[Sheet]:
    """Returns the contact sheets in a folder, by step; a note names those that cannot be read.

    Args:
        folder: The folder; it need not exist.
        up_to: The last step that counts: a run that lost its checkpoints may have gone back.
    """
    if not folder.exists():
        return []
    matches = [(_SHEET.fullmatch(path.name), path) for path in folder.iterdir()]
    sheets = []
    for step, path in sorted((int(match[1]), path) for match, path in matches if match):
        if up_to is not None and step > up_to:
            continue
        if pictures.is_readable(path.read_bytes()):
            sheets.append(Sheet(step, path))
        else:
            print(f"note: {path} is damaged, and left out of the timelapse", flush=True)
    return sheets


def choose(sizes: Sequence[int], budget: int) -> list[int]:
    """Returns indices of evenly spread files, from the first to the last, that fit a budget.

    Args:
        sizes: Bytes of each file.
        budget: Bytes that all chosen may take; the last is chosen in any case.
    """
    for most in range(len(sizes), 1, -1):
        chosen = pictures.spread_with_ends(len(sizes), most)
        if sum(sizes[i] for i in chosen) <= budget:
            return chosen
    return [len(sizes) - 1] if sizes else []


def write_animation(path: epath.Path, sheets: Sequence[Sheet], count: int, side: int) -> None:
    """Writes the contact sheets, if there are any, as one animated WebP.

    Args:
        path: The file.
        sheets: The sheets, by step; those of another layout, as of earlier versions, are left out.
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


def describe_timelapse(
    sheets: Sequence[Sheet],
    losses: Mapping[int, float],
    place: Place,
    budget: int,
    class_names: Sequence[str],
    num_images: int | None,
    side: int | None,
) -> dict[str, Any] | None:
    """Returns the contact sheets, as many as fit into a page that is one file.

    Args:
        sheets: The sheets, by step.
        losses: Losses by step.
        place: The place of pictures.
        budget: Bytes that the sheets may take of a page that is one file.
        class_names: Names of all classes, in label order.
        num_images: The number of distilled images, which go class by class, if known.
        side: Their side in pixels, if known.
    """
    files = [sheet.path.read_bytes() for sheet in sheets]
    if not files:
        return None
    width, height = size = _size(files[-1])
    # A run that an earlier version began has sheets of another layout, too.
    same = [i for i, file in enumerate(files) if _size(file) == size]
    few = [same[i] for i in pictures.spread_with_ends(len(same), _FRAMES)]
    chosen = few if place.lazy else [few[i] for i in choose([len(files[i]) for i in few], budget)]
    if len(chosen) < 2:
        return None
    frames = [
        {
            "step": sheets[i].step,
            "src": place.put("timelapse", number, files[i]),
            "loss": losses.get(sheets[i].step),
        }
        for number, i in enumerate(chosen)
    ]
    images = min(pictures.SHEET_IMAGES, num_images or 0)
    layout = pictures.sheet_layout(images, side) if images and side else None
    return {
        # The page cuts a sheet into its images, to name them.
        "cells": _cells(layout, class_names, num_images or 0)
        if layout and layout.size == size
        else [],
        "cell": layout.cell if layout else 0,
        "columns": min(layout.columns, _MOST_COLUMNS) if layout else 1,
        "frames": frames,
        "width": width,
        "height": height,
        "images": images,
    }


def _cells(
    layout: pictures.SheetLayout, class_names: Sequence[str], num_images: int
) -> list[dict[str, Any]]:
    """Returns the class of each image of a sheet, with its corner."""
    per_class = num_images // len(class_names) if class_names else 0
    return [
        {
            "name": class_names[number // per_class],
            "label": number // per_class,
            "corner": layout.corner(i),
        }
        for i, number in enumerate(images_shown(num_images) if per_class else [])
    ]


def _size(file: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(file)) as picture:
        return picture.size
