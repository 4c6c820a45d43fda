"""Grids of captioned images, and fonts for names that data bring, whatever their script."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from lgm_jax.report.pictures import to_bytes

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CELL, _GAP, _FONT = 128, 8, 13
INK, PAPER = (32, 32, 32), (255, 255, 255)

# Where systems keep their fonts.
_FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts"),
)
_KINDS = {".ttf", ".ttc", ".otf"}

# Of no script, so that every font has a box for it.
_NOTHING = "\U0010fffd"


def draw_grid(
    images: Float[np.ndarray, "n h w 3"],
    captions: Sequence[str],
    columns: int | None = None,
    width: int = 0,
) -> Image.Image:
    """Draws images in rows, each above its caption.

    Small images are enlarged smoothly by whole numbers, which makes their shapes easier to read
    than blocks.

    Args:
        images: Images in [0, 1].
        captions: One per image; cut where they do not fit.
        columns: Images per row; about a square by default.
        width: Width in pixels that the picture has at least, if its images can be enlarged so.
    """
    side = images.shape[1]
    columns = columns or math.ceil(math.sqrt(len(images)))
    factor = max(1, _CELL // side, math.ceil((width / columns - _GAP) / side))
    cell = side * factor
    rows = math.ceil(len(images) / columns)
    # As large beside the images as in small pictures.
    size = max(_FONT, cell // 10)
    font = find_font([*captions, "…"], size)
    step_x, step_y = cell + _GAP, cell + _GAP + size + 6
    canvas = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = _GAP + i % columns * step_x, _GAP + i // columns * step_y
        pixels = Image.fromarray(to_bytes(image))
        canvas.paste(pixels.resize((cell, cell), Image.Resampling.BICUBIC), (x, y))
        draw.text((x, y + cell + 2), fit(caption, font, cell), font=font, fill=INK)
    return canvas


def fit(text: str, font: Font, width: int) -> str:
    """Cuts a text with an ellipsis where it takes more than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def find_font(texts: Iterable[str], size: int) -> Font:
    """Returns a font, of a size in pixels, with the letters of texts.

    It is Pillow's own, or the one of the machine that has most. A note names the letters that none
    has.
    """
    letters = "".join(sorted({letter for text in texts for letter in text if letter.isprintable()}))
    file = choose_font(letters)
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


@functools.cache
def choose_font(letters: str) -> str | None:
    """Returns the file of the font that has most of some letters; `None` for Pillow's own."""
    missing, best = find_lacking(ImageFont.load_default(20), letters), None
    for file in list_fonts() if missing else ():
        try:
            lacking = find_lacking(ImageFont.truetype(file, 20), letters)
        # No font, or of a kind that FreeType cannot read.
        except OSError:
            continue
        if len(lacking) < len(missing):
            missing, best = lacking, file
        if not missing:
            break
    if missing:
        some = " ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
        print(f"note: no font of this machine has all letters of the names: {some}", flush=True)
    return best


def list_fonts() -> list[str]:
    """Returns the machine's fonts, plain ones first."""

    def order(path: Path) -> tuple[bool, bool, str]:
        name = path.stem.lower()
        slanted = any(word in name for word in ("italic", "oblique", "bold", "mono", "serif"))
        return slanted, "sans" not in name, str(path)

    every = (path for folder in _FOLDERS for path in Path(folder).expanduser().rglob("*"))
    fonts = [path for path in every if path.suffix.lower() in _KINDS]
    return [str(path) for path in sorted(fonts, key=order)]


def find_lacking(font: Font, letters: str) -> list[str]:
    """Returns the letters for which a font draws the same box as for what no font has."""
    box = bytes(font.getmask(_NOTHING))
    return [each for each in letters if not each.isspace() and bytes(font.getmask(each)) == box]
