"""A grid of captioned images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from lgm_jax.report import fonts
from lgm_jax.report.pictures import to_bytes

_CELL, _GAP, _FONT = 128, 8, 13
INK, PAPER = (32, 32, 32), (255, 255, 255)


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
    font = fonts.find([*captions, "…"], size)
    step_x, step_y = cell + _GAP, cell + _GAP + size + 6
    canvas = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = _GAP + i % columns * step_x, _GAP + i // columns * step_y
        pixels = Image.fromarray(to_bytes(image))
        canvas.paste(pixels.resize((cell, cell), Image.Resampling.BICUBIC), (x, y))
        draw.text((x, y + cell + 2), fit(caption, font, cell), font=font, fill=INK)
    return canvas


def fit(text: str, font: fonts.Font, width: int) -> str:
    """Cuts a text with an ellipsis where it takes more than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
