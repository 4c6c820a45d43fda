"""Writes a backbone to a folder that `backbones.load` reads back identically.

    python tools/export_backbone.py --backbone=dinov2_vitb14 --out=FOLDER

For machines without network, for archives of a run, and for weights that came from the hub at one
commit. The weights keep their published names and layouts, in float32 or, with
`--dtype=bfloat16`, in half of the space; a classifier or a text tower is left out. Where they are
from (repository, commit, hashes) is kept in the folder's `config.json`, and `load` gives it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from lgm_jax import backbones, terminal
from lgm_jax.backbones import files

_BACKBONE = flags.DEFINE_string("backbone", None, "Name, folder or hub id.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit, for the hub.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(backbones.DTYPES), "Of the weights.")


@terminal.one_line_errors
def main(_: Sequence[str]) -> int:
    """Writes the backbone that the command line names; returns the exit code."""
    out = Path(_OUT.value)
    backbones.export(_BACKBONE.value, out, revision=_REVISION.value, dtype=_DTYPE.value)
    print(f"{_BACKBONE.value}: {out / files.CONFIG}, {files.WEIGHTS}")
    return 0


if __name__ == "__main__":
    app.run(main)
