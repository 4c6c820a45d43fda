"""The place of a page's pictures: the page itself, or a folder beside it."""

from __future__ import annotations

import dataclasses
import urllib.parse

from etils import epath

from lgm_jax.report import pictures


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
            return pictures.data_uri(webp)
        name = f"{kind}/{number:05d}.webp"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(webp)
        return urllib.parse.quote(f"{self.folder.name}/{name}")
