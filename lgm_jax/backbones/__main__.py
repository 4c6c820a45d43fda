"""`python -m lgm_jax.backbones`: the backbones that can be loaded by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from lgm_jax import terminal
from lgm_jax.backbones import abstract_module, specs


def format_table() -> str:
    """A row per registered backbone; parameters in millions, resolution and stride in pixels."""
    rows = [("name", "params", "features", "px", "stride", "licence", "weights", "what it is")]
    for name, entry in specs.NAMES.items():
        _, shapes = abstract_module(entry.spec)
        count = sum(math.prod(shape) for shape in shapes.values())
        rows.append(
            (
                name,
                f"{count / 1e6:.1f} M",
                str(entry.spec.feature_dim),
                str(entry.resolution),
                str(entry.spec.stride),
                entry.licence,
                entry.origin,
                entry.summary,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = range(1, 5)
    lines = [
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def main(arguments: Sequence[str]) -> int:
    """Prints the table."""
    print(format_table())
    print()
    print("Also: a folder, or owner/name on the Hugging Face hub, with config.json (timm's or")
    print("transformers') and model.safetensors of one of these families.")
    return 0


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.run(main, sys.argv[1:]))
