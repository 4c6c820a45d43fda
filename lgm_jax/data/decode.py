"""From an image file's bytes to pixels, exactly as PIL and torchvision show them, but faster.

JPEG is most of what is decoded, so it has a path of its own: libjpeg-turbo through simplejpeg,
which gives the pixels that PIL gives and spares a copy. Whatever that path does not take, PIL
does: other formats, CMYK and damaged files, whose error messages are then PIL's.

Memory is bounded whatever the file: see `_MOST_PIXELS`, `LARGE` and `resize_and_crop`.
"""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import threading

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from lgm_jax.data import formats
from lgm_jax.data.resize import MOST, resize

_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Larger images are refused, but for JPEG, which decodes at a fraction of its size. The largest
# scans of medium-format cameras pass.
_MOST_PIXELS = 2**27
# Larger images are decoded one at a time, and to no more pixels than these. PIL takes 4 bytes each.
LARGE = 2**26
_one_large = threading.Lock()

# Taller images are cropped before they are resized.
_TALL = 8


class BadImageError(Exception):
    """Bytes that are no image, or a broken one; the message says why, in a few words."""


def decode(
    source: bytes | UInt8[np.ndarray, "h w *c"], *, orient: bool, name: str = ""
) -> Image.Image | UInt8[np.ndarray, "h w 3"]:
    """An RGB image from a file's bytes, or from pixels that are decoded already.

    It is PIL's, or an array, without a copy, where PIL did not decode it.

    Transparency is laid on white, 16-bit grey is scaled to 8 bits, and of an animation the first
    frame is taken. An image of more than 67 million pixels is returned at a fraction of its size.

    Args:
        source: The bytes, or grey, RGB or RGBA pixels.
        orient: Whether to apply the EXIF orientation. Published numbers of benchmark sets come
            from readers that ignore it.
        name: The file's name, whose suffix decides for formats without a signature.

    Raises:
        BadImageError: If they cannot be decoded.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(Image.fromarray(source), wide=False)
    if not orient and (pixels := _decode_jpeg(source)) is not None:
        return pixels
    if reason := formats.explain(source, name):
        raise BadImageError(reason)
    # Broken bytes make PIL's decoders raise almost anything, SyntaxError and struct.error included.
    try:
        with _open(source, name) as image:
            if orient and _orientation(image) == 1:
                pixels = _decode_jpeg(source)
                if pixels is not None:
                    return pixels
            return _decode(image, source, orient=orient)
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def resize_and_crop(
    image: Image.Image | UInt8[np.ndarray, "h w 3"],
    resolution: int,
    place: Float[np.ndarray, " 2"] | None = None,
) -> UInt8[np.ndarray, "r r 3"]:
    """torchvision's `Resize(r)` and `CenterCrop(r)`, or `RandomCrop(r)` where `place` says.

    The shorter side becomes `r` with PIL's antialiased bilinear filter. Of a wide image, only the
    part that is kept is resampled, with weights that are then summed from another start: measured,
    at most one pixel in 400 moves by one grey level. Of a tall one, PIL would filter the part in
    another order and move a quarter of them, so it is resampled whole and equal, unless it is so
    tall that it would take much memory.

    `place` is vertical and horizontal, from 0 (top, left) to below 1.
    """
    width, height = image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
    short = min(width, height)
    # The short side is exactly `resolution`; torchvision rounds the long one down.
    new_width, new_height = int(resolution * width / short), int(resolution * height / short)
    if place is None:
        top, left = round((new_height - resolution) / 2), round((new_width - resolution) / 2)
    else:
        top = int(place[0] * (new_height - resolution + 1))
        left = int(place[1] * (new_width - resolution + 1))
    across = width / new_width
    # Rounding may put the far edge a hair outside, which PIL refuses.
    wide = (left * across, 0.0, min((left + resolution) * across, width), float(height))
    if isinstance(image, np.ndarray):
        # A worker has one thread that decodes.
        alone = multiprocessing.parent_process() is not None
        if alone and new_height <= new_width and height <= MOST * resolution:
            return resize(image, resolution, wide)
        image = Image.fromarray(image)
    if new_height > _TALL * new_width:
        down = height / new_height
        # The rows that the filter sees, and one more on either side.
        first = max(0, int(top * down - max(down, 1)) - 1)
        last = min(height, int((top + resolution) * down + max(down, 1)) + 2)
        rows = image.crop((0, first, width, last))
        edges = (top * down - first, min((top + resolution) * down, last) - first)
        box = (0.0, edges[0], float(width), edges[1])
        return np.asarray(rows.resize((resolution,) * 2, Image.Resampling.BILINEAR, box=box))
    if new_height > new_width:
        whole = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
        return np.asarray(whole.crop((left, top, left + resolution, top + resolution)))
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=wide))


def _decode_jpeg(source: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    """The pixels of a sound, ordinary JPEG; `None` for anything that PIL should look at."""
    if not source.startswith(_JPEG):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(source)
        if space not in ("YCbCr", "Gray") or height * width > LARGE:
            return None
        return simplejpeg.decode_jpeg(source, "RGB")
    except ValueError:
        return None


def _open(source: bytes, name: str) -> Image.Image:
    """The image, its header read. `Image.open` would warn of large ones and refuse large JPEGs."""
    reason = ""
    for format in formats.matching(source, name):
        try:
            return formats.read_by_pillow()[format][0](io.BytesIO(source), "")
        except Exception as error:
            reason = reason or f"broken {format}: {error or type(error).__name__}"
    raise BadImageError(reason or "not in a format that is read, like JPEG or PNG")


def _orientation(image: Image.Image) -> int:
    # A sound image may have EXIF data that are not.
    with contextlib.suppress(Exception):
        return image.getexif().get(_ORIENTATION, 1)
    return 1


def _decode(image: Image.Image, source: bytes, *, orient: bool) -> Image.Image:
    """RGB, upright if asked for, of at most `LARGE` pixels."""
    pixels = image.width * image.height
    is_jpeg, size = isinstance(image, JpegImageFile), f"{image.width} x {image.height} pixels"
    with _one_large if pixels > LARGE else contextlib.nullcontext():
        if pixels > _MOST_PIXELS and not is_jpeg:
            what = f"{size} are more than {_MOST_PIXELS:,}"
            raise BadImageError(f"{what}: save it smaller, or as JPEG")
        if pixels > LARGE and is_jpeg:
            # Its decoder would keep all coefficients.
            if not _has_one_scan(source):
                what = f"{size} are too many for a progressive JPEG"
                raise BadImageError(f"{what}: save it smaller, or not progressive")
            factor = next(f for f in (2, 4, 8) if pixels <= f * f * LARGE)
            image.draft("RGB", (image.width // factor, image.height // factor))
        # Of PNG and PGM, whose values are 16 bits wide even where PIL holds them in 32.
        wide = image.format in ("PNG", "PPM")
        image.load()
        # TIFF is upright once it is loaded.
        turn = _TURNS.get(_orientation(image)) if orient else None
        rgb = _to_rgb(image, wide=wide) if pixels <= LARGE else _to_small_rgb(image, wide=wide)
    return rgb if turn is None else rgb.transpose(turn)


def _has_one_scan(source: bytes) -> bool:
    """Whether libjpeg decodes a JPEG row by row, rather than keep all its coefficients."""
    at, components = 2, 0
    while at + 9 < len(source) and source[at] == 0xFF:
        marker, length = source[at + 1], int.from_bytes(source[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return source[at + 4] == components
        if marker in (0xC2, 0xC6, 0xCA, 0xCE):
            return False
        if marker in (0xC0, 0xC1):
            components = source[at + 9]
        at += 2 + length
    return False


def _to_small_rgb(image: Image.Image, *, wide: bool) -> Image.Image:
    """As `_to_rgb`, strip by strip, so that only the result takes memory beside the image."""
    factor = math.ceil(math.sqrt(image.width * image.height / LARGE))
    factor = min(factor, max(1, min(image.size) // 1024))
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = factor * max(1, 2**22 // (factor * image.width))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(_to_rgb(strip, wide=wide).reduce(factor), (0, top // factor))
    return small


def _to_rgb(image: Image.Image, *, wide: bool) -> Image.Image:
    """RGB of 8 bits; `wide` says whether 32-bit grey has values of 16 bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and wide):
        # PIL would clip at 255.
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit grey has no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
