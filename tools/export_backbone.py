"""Writes a backbone to a folder that `backbones.load` reads back identically.

    python tools/export_backbone.py --backbone=dinov2_vitb14 --out=FOLDER

For machines without network, for archives of a run, and for weights that came from the hub at one
commit. The weights keep their published names and layouts, in float32 or, with
`--dtype=bfloat16`, in half of the space; a classifier or a text tower is left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import safetensors.numpy
from absl import app, flags

from lgm_jax import backbones
from lgm_jax.backbones import configs, files, port
from lgm_jax.errors import UserError

_BACKBONE = flags.DEFINE_string("backbone", None, "Name, folder or hub id.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit, for the hub.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(backbones.DTYPES), "Of the weights.")


def export(source: str, out: Path, *, revision: str | None = None, dtype: str = "float32") -> None:
    """Reads a backbone and writes it.

    Args:
        source: As for `backbones.load`.
        out: The folder to make.
        revision: As for `backbones.load`.
        dtype: What weights are written in.

    Raises:
        UserError: If it cannot be read, or the folder exists.
    """
    if out.exists():
        raise UserError(f"{out} exists already: name another folder")
    _, published, params = backbones.read_checkpoint(source, params_dtype=dtype, revision=revision)
    tensors = port.export_params(port.FORMATS[published.form], published.spec, params)
    out.mkdir(parents=True)
    safetensors.numpy.save_file(tensors, out / files.WEIGHTS)
    (out / files.CONFIG).write_text(json.dumps(configs.to_ours(published), indent=1) + "\n")


def main(_: list[str]) -> None:
    try:
        export(_BACKBONE.value, Path(_OUT.value), revision=_REVISION.value, dtype=_DTYPE.value)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{_BACKBONE.value}: {_OUT.value}/{files.CONFIG}, {files.WEIGHTS}")


if __name__ == "__main__":
    app.run(main)
