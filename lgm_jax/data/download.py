"""Download archives whose checksums are published."""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from lgm_jax.errors import UserError, explain
from lgm_jax.progress import progress

_CHUNK = 2**20

# Without a byte for so many seconds, a download has failed.
_PATIENCE = 60


class Archive(NamedTuple):
    """A published archive: its address, hash, size, and the folder that it unpacks to."""

    url: str
    sha256: str
    num_bytes: int
    folder: str


IMAGENETTE = Archive(
    "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
    "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
    341_663_724,
    "imagenette2-320",
)
"""The archive that TFDS builds `imagenette/320px-v2` of. Source: the checksums of TFDS."""


def fetch(archive: Archive, place: Path) -> Path:
    """Returns the folder that an archive unpacks to in `place`, downloaded where it is missing."""
    folder = place / archive.folder
    if folder.is_dir():
        return folder
    print(f"downloading {archive.url} ({archive.num_bytes / 1e6:.0f} MB) to {place}", flush=True)
    try:
        place.mkdir(parents=True, exist_ok=True)
        # Renamed at the end, so that no folder of this name is incomplete.
        with tempfile.TemporaryDirectory(dir=place, prefix=".download-") as temporary:
            packed, hashed = Path(temporary, "archive"), hashlib.sha256()
            source = urllib.request.urlopen(archive.url, timeout=_PATIENCE)
            with source, packed.open("wb") as file:
                for _ in progress(range(-(-archive.num_bytes // _CHUNK)), archive.folder):
                    hashed.update(chunk := source.read(_CHUNK))
                    file.write(chunk)
            if (found := hashed.hexdigest()) != archive.sha256:
                raise UserError(
                    f"{archive.url} is another file than expected: its SHA-256 is {found}, not "
                    f"{archive.sha256}"
                )
            with tarfile.open(packed) as members:
                members.extractall(temporary, filter="data")
            os.replace(Path(temporary, archive.folder), folder)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        said = explain(reason) if isinstance(reason, OSError) else str(reason)
        raise UserError(
            f"cannot download {archive.url} to {place} ({said}): fetch and unpack it elsewhere, "
            f"and set --config.data.folder={archive.folder}"
        ) from error
    return folder
