"""Places for the pictures of a page: the page itself, or a folder beside it."""

from __future__ import annotations

import urllib.parse

from etils import epath

from lgm_jax.report import pictures


class Embedded:
    """Pictures are part of the page itself."""

    lazy = False

    def put(self, kind: str, number: int, webp: bytes) -> str:
        """Returns the picture as the address of an image."""
        return pictures.data_uri(webp)


class Beside:
    """Pictures lie in a folder beside the page, and load when they are scrolled to."""

    lazy = True

    def __init__(self, folder: epath.Path):
        self._folder = folder

    def put(self, kind: str, number: int, webp: bytes) -> str:
        """Writes the picture; returns its address relative to the page."""
        name = f"{kind}/{number:05d}.webp"
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(webp)
        return urllib.parse.quote(f"{self._folder.name}/{name}")


Place = Embedded | Beside
