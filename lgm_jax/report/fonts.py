"""Fonts for the names that data bring, whatever their script."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Where systems keep their fonts.
_FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts"),
)
_KINDS = {".ttf", ".ttc", ".otf"}

# Of no script, so that every font has a box for it.
_NOTHING = "\U0010fffd"


def find(texts: Iterable[str], size: int) -> Font:
    """Returns a font, of a size in pixels, with the letters of texts.

    It is Pillow's own, or the one of the machine that has most. A note names the letters that none
    has.
    """
    letters = "".join(sorted({letter for text in texts for letter in text if letter.isprintable()}))
    file = choose(letters)
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


@functools.cache
def choose(letters: str) -> str | None:
    """Returns the file of the font that has most of some letters; `None` for Pillow's own."""
    missing, best = find_lacking(ImageFont.load_default(20), letters), None
    for file in list_files() if missing else ():
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


def list_files() -> list[str]:
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
