"""Writes what experiments gave into the documentation: `docs/results/NAME.md` and its pictures.

    python -m tools.write_results runs/table1 runs/figure3

NAME is the name of an experiment's workdir. Its page is `table.md` with the figure below the notes,
`NAME.webp`, and the distilled images at the end, `NAME_images.webp`; `docs/results.md`, which says
what it all means, is written by hand.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

from lgm_jax.experiments import samples

DOCS = Path(__file__).parents[1] / "docs" / "results"

# Pixels, enough for a page on a sharp display.
_WIDTH = 1800


def page(table: str, picture: str, images: str | None) -> str:
    """The page of an experiment: its tables, the picture before the first of them, the images."""
    notes, heading, tables = table.partition("\n## ")
    title = notes.partition("\n")[0].removeprefix("# ")
    shown = f"\n## Images\n\n![Distilled images: a row for each kind of run]({images})\n"
    return f"{notes}\n![{title}]({picture})\n{heading}{tables}{shown if images else ''}"


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
        picture, images = f"{folder.name}.webp", f"{folder.name}_images.webp"
        distilled = folder / samples.FILE
        has_images = distilled.exists()
        text = page(table.read_text(), picture, images if has_images else None)
        (out / f"{folder.name}.md").write_text(text)
        (out / picture).write_bytes(shrink(figure))
        (out / images).unlink(missing_ok=True)
        if has_images:
            (out / images).write_bytes(shrink(distilled))
        print(out / f"{folder.name}.md")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", help="workdirs of finished experiments")
    sys.exit(main(parser.parse_args().workdirs))
