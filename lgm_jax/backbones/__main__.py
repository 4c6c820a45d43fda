"""`python -m lgm_jax.backbones`: the backbones that can be loaded by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from lgm_jax import terminal
from lgm_jax.backbones import abstract_module, specs

_HEADINGS = ("name", "params", "features", "px", "stride", "licence", "weights", "what it is")


def main(arguments: Sequence[str]) -> int:
    """Prints a row for each; parameters in millions, resolution and stride in pixels."""
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for name, entry in specs.NAMES.items():
        count = sum(map(math.prod, abstract_module(entry.spec)[1].values()))
        numbers = map(str, (entry.spec.feature_dim, entry.resolution, entry.spec.stride))
        origin = next(iter(entry.sources), entry.pickle or "in the package")
        rows.append((name, f"{count / 1e6:.1f} M", *numbers, entry.licence, origin, entry.summary))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    for row in rows:
        cells = zip(row, widths, "<>>>><<<", strict=True)
        print("  ".join(f"{cell:{side}{width}}" for cell, width, side in cells).rstrip())
    print("\nAlso: a folder, or owner/name on the Hugging Face hub, with config.json (timm's or")
    print("transformers') and model.safetensors of one of these families.")
    return 0


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.run(main, sys.argv[1:]))
