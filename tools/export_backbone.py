"""Writes a backbone to a folder that `backbones.load` reads back identically.

    python tools/export_backbone.py --backbone=dinov2_vitb14 --out=FOLDER

For machines without network, for archives of a run, and for weights that came from the hub at one
commit. The weights keep their published names and layouts, in float32 or, with
`--dtype=bfloat16`, in half of the space; a classifier or a text tower is left out. Where they are
from (repository, commit, hashes) is kept in the folder's `config.json`, and `load` gives it back.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags

from lgm_jax import backbones
from lgm_jax.backbones import files
from lgm_jax.errors import UserError

_BACKBONE = flags.DEFINE_string("backbone", None, "Name, folder or hub id.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit, for the hub.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(backbones.DTYPES), "Of the weights.")


def main(_: list[str]) -> None:
    try:
        backbones.export(
            _BACKBONE.value, Path(_OUT.value), revision=_REVISION.value, dtype=_DTYPE.value
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{_BACKBONE.value}: {_OUT.value}/{files.CONFIG}, {files.WEIGHTS}")


if __name__ == "__main__":
    app.run(main)
