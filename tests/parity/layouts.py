"""What key maps expect of checkpoints."""

from __future__ import annotations

import numpy as np
from einops import rearrange

from lgm_jax.backbones import abstract_module, port
from lgm_jax.backbones.network import Network


def layouts(form: port.Format, spec: Network) -> dict[str, tuple[int, ...]]:
    """The checkpoint that a key map reads: each key, and the shape it must have."""
    shapes, found = abstract_module(spec)[1], {}
    for row in form.rows(spec):
        shape = shapes[row.path] if row.layers is None else shapes[row.path][1:]
        one = np.broadcast_to(np.float32(0), shape)
        theirs = rearrange(one, f"{row.ours} -> {row.theirs}", **dict(row.sizes)).shape
        for key, share in zip(row.keys, row.shares or (1,) * len(row.keys), strict=True):
            part = (theirs[0] * share // row.ends[-1], *theirs[1:])
            for layer in range(1) if row.layers is None else row.layers:
                found[key.format(layer).removeprefix("/")] = part
    return found
