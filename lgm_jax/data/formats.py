"""Formats of images that are read, how names and bytes tell them, and why others are not read.

The list is what the installed Pillow opens, but for what is no picture or runs other programs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import struct
from collections.abc import Mapping
from typing import Any

import PIL
from PIL import Image

from lgm_jax import stand_ins

# EPS starts Ghostscript, WMF the Windows renderer; the others are documents, films or stubs.
_REFUSED = frozenset({"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "PDF", "WMF"})

# Of cameras: Pillow would take the small preview in a TIFF for the photo.
_RAW = frozenset({".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"})
# Formats of pictures that Pillow may not read. A file with one of these suffixes counts as an
# image all the same: to ignore it would lose one without a word.
_UNREAD = _RAW | {".heic", ".heif", ".hif", ".avif", ".avifs", ".jxl", ".webp", ".jp2"}
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@functools.cache
def read_by_pillow() -> Mapping[str, Any]:
    """Returns the functions that open images, by names of formats, common ones first."""
    Image.init()
    common = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
    names = [*common, *(name for name in Image.ID if name not in common)]
    return {name: Image.OPEN[name] for name in names if name in Image.OPEN and name not in _REFUSED}


@functools.cache
def suffixes() -> Mapping[str, str]:
    """From suffixes of images, in lower case, to the format that they promise, if it is read."""
    # A JPEG of several pictures, MPO, is opened as JPEG.
    read, known = {*read_by_pillow(), "MPO"}, Image.registered_extensions().items()
    return dict.fromkeys(_UNREAD, "") | {suffix: name for suffix, name in known if name in read}


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in lower case."""
    return os.path.splitext(name)[1].lower()


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file counts as an image: by its suffix.

    One without a suffix, or with a number for one (`2020.01.05`), counts if its first bytes do.
    """
    suffix = suffix_of(os.fspath(path))
    if suffix in suffixes() or re.match(r"\.\D", suffix):
        return suffix in suffixes()
    head = _head(path) or b""
    return bool(head.strip()) and bool(matching(head) or explain(head))


def matching(source: bytes, name: str = "") -> list[str]:
    """The formats that a file, or its first bytes, may be in.

    By their signature or, for formats without one, the suffix of the file's name.
    """
    promised, found = suffixes().get(suffix_of(name)), []
    for format, (_, accept) in read_by_pillow().items():
        # Of short files it may raise. What is no boolean is Pillow's reason for not reading.
        with contextlib.suppress(IndexError, TypeError, ValueError, struct.error):
            if format == promised if accept is None else accept(source[:16]) is True:
                found.append(format)
    return found


def explain_file(path: str | os.PathLike[str]) -> str | None:
    """As `explain`, of a file that need be no image, as a table or an archive."""
    head = _head(path)
    return None if head is None else explain(head)


def _head(path: str | os.PathLike[str]) -> bytes | None:
    """The first bytes of a file; `None` of one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(stand_ins.HEAD)
    except OSError:
        return None


def explain(source: bytes, name: str = "") -> str | None:
    """Says why a file, or its first bytes, is not read, and what to do; `None` if unknown."""
    head = source[: stand_ins.HEAD]
    if stand_in := stand_ins.explain(source):
        return stand_in
    if suffix_of(name) in _RAW:
        return "it is a camera's raw file: export it as JPEG, PNG or TIFF"
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis") and "AVIF" not in read_by_pillow():
        return f"it is AVIF, which Pillow {PIL.__version__} does not read: upgrade pillow"
    if brand in _HEIC:
        return "it is HEIC, which is not read: convert it, for example magick mogrify -format jpg"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "it is JPEG XL, which is not read: convert it, for example djxl a.jxl a.png"
    return None
