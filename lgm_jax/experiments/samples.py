"""A picture of the images that runs distilled: a row for each kind of run, an image per class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from etils import epath
from PIL import Image, ImageDraw, ImageFont

from lgm_jax.distilled import first_of_classes
from lgm_jax.experiments import figures
from lgm_jax.experiments.axes import GIVEN, label
from lgm_jax.experiments.runner import Outcome
from lgm_jax.report import grid, pictures

FILE = "images.png"

# Rows and columns, so that the picture stays legible.
_MOST_RUNS, _MOST_CLASSES = 48, 10

# Pixels; and characters of a line beside a row.
_CELL, _GAP, _FONT, _TITLE, _LINE = 112, 4, 13, 170, 24


def titled_folders(outcomes: Sequence[Outcome]) -> dict[str, epath.Path]:
    """Returns the folders of runs that distilled, the first seed of each kind, by a title."""
    found: dict[tuple[str, ...], epath.Path] = {}
    for outcome in outcomes:
        axes = {key: value for key, value in outcome.axes.items() if key != "seed"}
        if outcome.planned.shown:
            axes["variant"] = outcome.planned.shown
        if outcome.path is not None and "seed" in outcome.axes:
            found.setdefault(tuple(map(_word, axes.values())), outcome.path)
    # Words that all share tell nothing apart.
    alike = [len(set(words)) == 1 < len(found) for words in zip(*found, strict=True)]
    titles = [
        " ".join(word for word, drop in zip(words, alike, strict=True) if word and not drop)
        for words in found
    ]
    # The recipe itself has no word of its own.
    named = zip(titles, found.values(), strict=True)
    return {title or "as configured": path for title, path in named}


def _word(value: object) -> str:
    return "" if value == GIVEN else label(str(value))


def write(
    folder: epath.Path, run_folders: Mapping[str, epath.Path], first: Collection[str] = ()
) -> list[epath.Path]:
    """Writes the picture of the first image of up to ten classes; returns the file, if any.

    Args:
        folder: Where to write.
        run_folders: By title of a row, of which there are at most 48.
        first: Names of classes that come before the others, where the images have them.

    Raises:
        UserError: If the images of a run cannot be read.
    """
    if not run_folders:
        return []
    titles = list(run_folders)[:_MOST_RUNS]
    rows = [first_of_classes(run_folders[title], _MOST_CLASSES, first) for title in titles]
    names = [[name for name, _ in row] for row in rows]
    # Names of the first row are wrong above rows of other classes.
    named = all(other == names[0] for other in names)
    font = ImageFont.load_default(_FONT)
    step, top = _CELL + _GAP, _FONT + 3 * _GAP
    size = _TITLE + step * max(map(len, rows)), top + step * len(rows)
    canvas = Image.new("RGB", size, grid.PAPER)
    draw = ImageDraw.Draw(canvas)
    for y, (title, row) in enumerate(zip(titles, rows, strict=True)):
        beside = _GAP, top + y * step + _CELL / 2
        draw.multiline_text(beside, figures.wrap(title, _LINE), grid.INK, font, anchor="lm")
        for x, (name, image) in enumerate(row):
            left = _TITLE + x * step
            picture = Image.fromarray(pictures.to_bytes(image))
            canvas.paste(pictures.resize(picture, _CELL), (left, top + y * step))
            if y == 0 and named:
                draw.text((left, _GAP), grid.fit(name, font, _CELL), grid.INK, font)
    pictures.write_png(folder / FILE, canvas)
    return [folder / FILE]
