"""The images along the way: a contact sheet per saved step, and an animation of all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from lgm_jax.files import replacing
from lgm_jax.report import pictures

# Sheets kept of a run, and frames of the animation.
_MOST_SHEETS, _MOST_FRAMES = 64, 48

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
