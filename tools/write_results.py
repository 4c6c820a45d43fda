"""Writes what experiments gave into the documentation: `docs/results/NAME.md` and `NAME.webp`.

    python -m tools.write_results runs/table1 runs/figure3

NAME is the name of an experiment's workdir. Its page is `table.md` with the figure below the notes;
`docs/results.md`, which says what it all means, is written by hand.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs" / "results"

# Pixels, enough for a page on a sharp display.
_WIDTH = 1800


def page(table: str, picture: str) -> str:
    """The page of an experiment: its tables, and the picture before the first of them."""
    notes, heading, tables = table.partition("\n## ")
    title = notes.partition("\n")[0].removeprefix("# ")
    return f"{notes}\n![{title}]({picture})\n{heading}{tables}"


def shrink(figure: Path) -> bytes:
    """A figure as WebP, no wider than a page needs."""
    with Image.open(figure) as file:
        image = file.convert("RGB")
    image.thumbnail((_WIDTH, 4 * _WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=85, method=6)
    return buffer.getvalue()


def main(workdirs: list[str], out: Path = DOCS) -> int:
    """Writes the pages; gives the exit code."""
    for folder in map(Path, workdirs):
        table, figure = folder / "table.md", folder / "figure.png"
        if not (table.exists() and figure.exists()):
            said = f"error: {folder} is no finished experiment: no {table.name} or {figure.name}"
            print(said, file=sys.stderr)
            return 2
        out.mkdir(parents=True, exist_ok=True)
        picture = f"{folder.name}.webp"
        (out / f"{folder.name}.md").write_text(page(table.read_text(), picture))
        (out / picture).write_bytes(shrink(figure))
        print(out / f"{folder.name}.md")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", help="workdirs of finished experiments")
    sys.exit(main(parser.parse_args().workdirs))
