"""What the runs of an experiment distilled, in one picture: a row for each, an image per class."""

from __future__ import annotations

import io
from collections.abc import Mapping

from etils import epath
from PIL import Image, ImageDraw, ImageFont

from lgm_jax import files
from lgm_jax.distilled import first_of_classes
from lgm_jax.experiments import figures
from lgm_jax.report import grid, pictures

FILE = "images.png"

# Rows and columns that are drawn, so that the picture can still be looked at.
_MOST_RUNS, _MOST_CLASSES = 48, 10

# Pixels; characters of a line beside a row.
_CELL, _GAP, _FONT, _TITLE, _LINE = 112, 4, 13, 170, 24


def write(folder: epath.Path, run_folders: Mapping[str, epath.Path]) -> epath.Path | None:
    """Writes the picture of the first image of each class, of up to ten; gives the file.

    Args:
        folder: Where to write.
        run_folders: By what is written beside its row; `None` is given, and nothing written, if
            there is none. Rows beyond the 48th are left out.

    Raises:
        UserError: If the images of a run cannot be read.
    """
    if not run_folders:
        return None
    titles = list(run_folders)[:_MOST_RUNS]
    rows = [first_of_classes(run_folders[title], _MOST_CLASSES) for title in titles]
    names = [[name for name, _ in row] for row in rows]
    font = ImageFont.load_default(_FONT)
    step, top = _CELL + _GAP, _FONT + 3 * _GAP
    width = _TITLE + step * max(map(len, rows))
    canvas = Image.new("RGB", (width, top + step * len(rows)), grid.PAPER)
    draw = ImageDraw.Draw(canvas)
    for y, (title, row) in enumerate(zip(titles, rows, strict=True)):
        beside = _GAP, top + y * step + _CELL / 2
        draw.multiline_text(beside, figures.wrap(title, _LINE), grid.INK, font, anchor="lm")
        for x, (name, image) in enumerate(row):
            picture = Image.fromarray(pictures.to_bytes(image))
            place = _TITLE + x * step, top + y * step
            canvas.paste(pictures.resize(picture, _CELL), place)
            # Rows of other classes than the first's would belie its names.
            if y == 0 and all(other == names[0] for other in names):
                caption = grid.fit(name, font, _CELL)
                draw.text((place[0], _GAP), caption, grid.INK, font)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    with files.replacing(folder / FILE) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return folder / FILE
