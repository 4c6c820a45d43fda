"""`python -m lgm_jax.backbones`: the backbones that can be loaded by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from lgm_jax import terminal
from lgm_jax.backbones import abstract_module, specs


def format_table() -> str:
    """A row per registered backbone; parameters in millions, resolution and stride in pixels."""
    rows: list[tuple[str, ...]] = [
        ("name", "params", "features", "px", "stride", "licence", "weights", "what it is")
    ]
    for name, entry in specs.NAMES.items():
        count = sum(map(math.prod, abstract_module(entry.spec)[1].values()))
        numbers = (entry.spec.feature_dim, entry.resolution, entry.spec.stride)
        words = (entry.licence, entry.origin, entry.summary)
        rows.append((name, f"{count / 1e6:.1f} M", *map(str, numbers), *words))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, "<>>>><<<", strict=True)
        lines.append("  ".join(f"{cell:{side}{width}}" for cell, width, side in cells).rstrip())
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
