"""From an image file's bytes to pixels, exactly as PIL and torchvision show them, but faster.

JPEG is most of what is decoded, so it has a path of its own: libjpeg-turbo through simplejpeg,
which gives the pixels that PIL gives and spares a copy. Whatever that path does not take, PIL
does: other formats, CMYK and damaged files, whose error messages are then PIL's.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

# Naming them keeps PIL from handing a disguised file to its other plugins: EPS runs Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112


class BadImageError(Exception):
    """Bytes that are no image, or a broken one; the message says why, in a few words."""


def decode(source: bytes | UInt8[np.ndarray, "h w *c"], *, orient: bool) -> Image.Image:
    """An RGB image from a file's bytes, or from pixels that are decoded already.

    Transparency is laid on white, 16-bit grey is scaled to 8 bits, and of an animation the first
    frame is taken.

    Args:
        source: The bytes, or grey, RGB or RGBA pixels.
        orient: Whether to apply the EXIF orientation. Published numbers of benchmark sets come
            from readers that ignore it.

    Raises:
        BadImageError: If they cannot be decoded.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(Image.fromarray(source))
    if not orient and (pixels := _decode_jpeg(source)) is not None:
        return Image.fromarray(pixels)
    try:
        # Without JPEG's draft mode, which is faster but gives other pixels.
        with Image.open(io.BytesIO(source), formats=_FORMATS) as image:
            if orient and image.getexif().get(_ORIENTATION, 1) == 1:
                pixels = _decode_jpeg(source)
                if pixels is not None:
                    return Image.fromarray(pixels)
            return _to_rgb(ImageOps.exif_transpose(image) if orient else image)
    except UnidentifiedImageError as error:
        raise BadImageError(f"not one of {', '.join(_FORMATS)}") from error
    # Broken bytes make PIL's decoders raise almost anything, SyntaxError and struct.error included.
    except Exception as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def resize_and_crop(
    image: Image.Image, resolution: int, place: Float[np.ndarray, " 2"] | None = None
) -> UInt8[np.ndarray, "r r 3"]:
    """torchvision's `Resize(r)` and `CenterCrop(r)`, or `RandomCrop(r)` where `place` says.

    The shorter side becomes `r` with PIL's antialiased bilinear filter. Of a wide image, only the
    part that is kept is resampled, with weights that are then summed from another start: measured,
    at most one pixel in 400 moves by one grey level. Of a tall one, PIL would filter the part in
    another order and move a quarter of them, so it is resampled whole and equal.

    Args:
        image: An RGB image.
        resolution: Side `r` of the result, in pixels.
        place: Where to crop, vertically and horizontally, from 0 (top, left) to below 1.
    """
    width, height = image.size
    short = min(width, height)
    # The short side is exactly `resolution`; torchvision rounds the long one down.
    new_width, new_height = int(resolution * width / short), int(resolution * height / short)
    if place is None:
        top, left = round((new_height - resolution) / 2), round((new_width - resolution) / 2)
    else:
        top = int(place[0] * (new_height - resolution + 1))
        left = int(place[1] * (new_width - resolution + 1))
    if new_height > new_width:
        whole = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
        return np.asarray(whole.crop((left, top, left + resolution, top + resolution)))
    across = width / new_width
    # Rounding may put the far edge a hair outside, which PIL refuses.
    box = (left * across, 0, min((left + resolution) * across, width), height)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box))


def _decode_jpeg(source: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    """The pixels of a sound, ordinary JPEG; `None` for anything that PIL should look at."""
    if not source.startswith(_JPEG):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(source)
        if space not in ("YCbCr", "Gray") or height * width > (Image.MAX_IMAGE_PIXELS or np.inf):
            return None
        return simplejpeg.decode_jpeg(source, "RGB")
    except ValueError:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # PIL would clip at 255.
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit grey has no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
