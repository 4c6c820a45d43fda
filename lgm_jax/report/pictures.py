"""Pictures as bytes: WebP files within a budget, their place, contact sheets and animations."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import urllib.parse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image

from lgm_jax.files import replacing

# Images up to this side are encoded without loss: they are tiny anyway.
_LOSSLESS_SIDE = 64

# WebP's quality and a part of the side, tried in turn until pictures fit.
_LADDER = ((88, 1.0), (75, 1.0), (60, 1.0), (60, 0.6), (45, 0.6), (45, 0.35), (30, 0.25))

# Images by which a size is judged first.
_SAMPLE = 8

# A contact sheet shows this many images at most, fewer in larger cells: the side of a cell by the
# most images.
SHEET_IMAGES = 100
_CELLS = {12: 160, 36: 128, SHEET_IMAGES: 96}

# Milliseconds that a frame of an animation is shown, and that the last is.
_FRAME, _LAST_FRAME = 160, 2500

# Lossy WebP works on blocks of 16 pixels: a gap as wide keeps one image's out of the next.
_GAP = 16


def to_bytes(images: Float[np.ndarray, "*n h w 3"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """Rounds images in [0, 1] to 8 bits a channel."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def encode(
    images: UInt8[np.ndarray, "n h w 3"], largest: int, budget: int | None = None
) -> list[bytes]:
    """Encodes images as WebP files.

    Args:
        largest: Side in pixels that no file exceeds.
        budget: Bytes that all files together may take: quality, then size, is lowered until they
            fit. The last resort is taken whether it fits or not.
    """
    files: list[bytes] = []
    sample = images[spread(len(images), _SAMPLE)]
    for number, (quality, part) in enumerate(_LADDER):
        side = max(1, round(min(largest, images.shape[1]) * part))
        if budget is not None and number < len(_LADDER) - 1:
            # A few tell whether it is worth while to encode all.
            sizes = [len(_encode_one(image, side, quality)) for image in sample]
            if sum(sizes) * len(images) > budget * len(sizes):
                continue
        files = [_encode_one(image, side, quality) for image in images]
        if budget is None or sum(map(len, files)) <= budget:
            break
    return files


def data_uri(webp: bytes) -> str:
    """Returns a WebP file as an address that needs no file."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of pictures.

    Attributes:
        folder: A folder beside the page, from which pictures load when they are scrolled to;
            `None` for the page itself.
    """

    folder: epath.Path | None = None

    def put(self, kind: str, number: int, webp: bytes) -> str:
        """Puts a picture there; returns its address, which is relative to the page."""
        if self.folder is None:
            return data_uri(webp)
        name = f"{kind}/{number:05d}.webp"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(webp)
        return urllib.parse.quote(f"{self.folder.name}/{name}")


def spread(count: int, most: int) -> list[int]:
    """Returns at most `most` of the numbers below `count`, evenly spread, with the last."""
    if count <= most:
        return list(range(count))
    return sorted({round((i + 1) * count / most) - 1 for i in range(most)})


def spread_with_ends(count: int, most: int) -> list[int]:
    """Returns numbers as `spread`, with the first too; `most` is two or more."""
    return list(range(count)) if count <= most else sorted({0, *spread(count, most - 1)})


class SheetLayout(NamedTuple):
    """The layout of a contact sheet; `cell` is the side of an image in pixels."""

    cell: int
    columns: int
    rows: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        step = self.cell + _GAP
        return self.columns * step, self.rows * step

    def corner(self, number: int) -> tuple[int, int]:
        """Returns the left and the upper edge of an image."""
        row, column = divmod(number, self.columns)
        step = self.cell + _GAP
        return column * step + _GAP // 2, row * step + _GAP // 2


def sheet_layout(count: int, side: int) -> SheetLayout:
    """Returns the layout of a contact sheet of so many images, at most `SHEET_IMAGES`.

    A cell is no larger than the images' side, in pixels.
    """
    # Wider than high, with the last row as full as it gets.
    ideal = math.sqrt(1.6 * count)
    candidates = range(math.ceil(math.sqrt(count)), math.ceil(math.sqrt(3 * count)) + 1)
    columns = min(candidates, key=lambda columns: (-count % columns, abs(columns - ideal)))
    cell = min(side, next(cell for most, cell in _CELLS.items() if count <= most))
    return SheetLayout(cell, columns, math.ceil(count / columns))


def draw_sheet(images: Float[np.ndarray, "n h w 3"]) -> bytes:
    """Draws a contact sheet, a WebP file of up to `SHEET_IMAGES` images.

    Half a gap around each image repeats its edge, so that nothing of its neighbours shows in it.
    """
    chosen = to_bytes(images[spread(len(images), SHEET_IMAGES)])
    layout = sheet_layout(len(chosen), images.shape[1])
    half = _GAP // 2
    canvas = Image.new("RGB", layout.size, "white")
    for i, image in enumerate(chosen):
        small = np.asarray(resize(Image.fromarray(image), layout.cell))
        x, y = layout.corner(i)
        edged = np.pad(small, ((half, half), (half, half), (0, 0)), "edge")
        canvas.paste(Image.fromarray(edged), (x - half, y - half))
    lossless = layout.cell <= _LOSSLESS_SIDE
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", quality=60 if lossless else 78, method=4, lossless=lossless)
    return buffer.getvalue()


def animate(sheets: Sequence[bytes], layout: SheetLayout, count: int) -> bytes:
    """Returns an animated WebP of contact sheets, on white, that rests on the last and repeats.

    Images, of which each sheet has `count`, are enlarged where they are small.
    """
    side = next(cell for most, cell in _CELLS.items() if count <= most)
    shown = layout._replace(cell=side)
    frames = []
    for sheet in sheets:
        frame = Image.new("RGB", shown.size, "white")
        with Image.open(io.BytesIO(sheet)) as picture:
            whole = picture.convert("RGB")
            for i in range(count):
                x, y = layout.corner(i)
                image = whole.crop((x, y, x + layout.cell, y + layout.cell))
                frame.paste(resize(image, side), shown.corner(i))
        frames.append(frame)
    buffer = io.BytesIO()
    durations = [_FRAME] * (len(frames) - 1) + [_LAST_FRAME]
    options = {"append_images": frames[1:], "duration": durations, "loop": 0, "quality": 80}
    frames[0].save(buffer, "WEBP", save_all=True, **options)
    return buffer.getvalue()


def shrink(files: Sequence[bytes], side: int, budget: int | None = None) -> list[bytes]:
    """Thumbnails of WebP files.

    Args:
        files: At least one file; all of one size.
        side: Side in pixels that no thumbnail exceeds.
        budget: Bytes that all thumbnails together may take, as for `encode`.
    """
    images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return encode(np.stack(images), side, budget)


def is_readable(file: bytes) -> bool:
    """Returns whether a file can be decoded as a picture."""
    try:
        with Image.open(io.BytesIO(file)) as picture:
            picture.load()
    # Pillow's errors for files that are no pictures, and for damaged ones.
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def write_png(path: epath.Path, picture: Image.Image) -> None:
    """Writes a picture so that a reader sees all of it or none."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _encode_one(image: UInt8[np.ndarray, "h w 3"], side: int, quality: int) -> bytes:
    buffer = io.BytesIO()
    lossless = image.shape[0] <= _LOSSLESS_SIDE
    # For lossless files, quality is effort.
    options = {"lossless": True, "quality": 60} if lossless else {"quality": quality}
    resize(Image.fromarray(image), side).save(buffer, "WEBP", method=4, **options)
    return buffer.getvalue()


def resize(picture: Image.Image, side: int) -> Image.Image:
    """Resizes a square picture to another side, in pixels."""
    if picture.size == (side, side):
        return picture
    # Small images are enlarged smoothly, which makes their shapes easier to read than blocks.
    shrinks = side < picture.size[0]
    how = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    return picture.resize((side, side), how)
