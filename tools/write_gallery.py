"""Writes pictures of finished runs, and what made them, into `docs/gallery.md`.

    python -m tools.write_gallery --title="Imagenette, as published" runs/imagenette_published

Of each run, known by the name of its folder, `docs/gallery/` gets `NAME.json` (command, commit,
seed, time, accuracy), `NAME.webp` (the first images of ten classes, without loss),
`NAME_shown.webp` (the picture of the page, made from it) and `NAME_timelapse.webp`. The page is
written from all records there; a run of a name that it has already takes its place.

    python -m tools.write_gallery --records=docs/quickstart.json runs/seed0 runs/seed1 runs/seed2

writes records alone, into one file: those of the quickstart, from which a test takes the numbers
that README and docs have of it.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from lgm_jax import names, objectives, runs
from lgm_jax.distilled import first_of_classes
from lgm_jax.errors import UserError
from lgm_jax.objectives import OBJECTIVES
from lgm_jax.report import pictures, words
from lgm_jax.report.view import RunView, read_run
from lgm_jax.report.vocabulary import TITLES

DOCS = Path(__file__).parents[1] / "docs"

# Images, of as many classes; pixels of a picture's images, and between them.
_MOST, _CELL, _GAP = 10, 224, 8

_HEAD = """# Gallery: what runs made

Each picture is of one finished run, with the command, the commit and the seed that make it again,
the time that it took, by the clock of a machine that did other work as well, and what a linear
classifier learns from all its distilled images. A command with `real.cache` found the features of
real images there: computing them is not in its time.
`python -m tools.write_gallery RUN` adds a run.
"""


def collect(run: RunView, title: str = "") -> dict[str, Any]:
    """Returns the record of a finished run; its title names data and backbones by default."""
    if not run.results or not run.backbones:
        raise UserError(f"{run.path} is no finished run that distilled")
    shown = first_of_classes(run.path, _MOST)
    process = run.made_by[-1]
    # Earlier versions, which had no objectives but ours, recorded the name alone.
    about = run.results.get("about_objective") or objectives.about(
        OBJECTIVES[run.results["objective"]]
    )
    return {
        "title": title or f"{run.data['name']}, {names.join(run.backbones)}",
        "classes": [name for name, _ in shown],
        "images": run.num_images,
        "side": run.side,
        "real_images": run.counts["train"]["images"],
        "objective": about["title"],
        "steps": run.results["steps"],
        "seed": run.results["seed"],
        "command": run.config["command"],
        "commit": process["commit"],
        "devices": words.devices(process["devices"]),
        "seconds": run.results["seconds"],
        "accuracy": {
            backbone: {
                method: {key: entries[method][key] for key in ("top1_mean", "top1_std")}
                for method in TITLES
                if method in entries
            }
            for backbone, entries in run.probes.items()
        },
    }


def join_images(images: Sequence[np.ndarray]) -> Image.Image:
    """Returns images side by side."""
    return Image.fromarray(np.concatenate([pictures.to_bytes(image) for image in images], axis=1))


def compose(joined: Image.Image) -> Image.Image:
    """Returns the picture of the page: images that lie side by side, in rows of five."""
    side = joined.height
    count = joined.width // side
    columns = min(5, count)
    step, rows = _CELL + _GAP, -(-count // columns)
    canvas = Image.new("RGBA", (columns * step - _GAP, rows * step - _GAP))
    for i in range(count):
        image = joined.crop((i * side, 0, (i + 1) * side, side))
        canvas.paste(pictures.resize(image, _CELL), (i % columns * step, i // columns * step))
    return canvas


def encode(image: Image.Image, *, lossless: bool) -> bytes:
    """Returns an image as WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=90, method=6)
    return buffer.getvalue()


def page(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the text of `docs/gallery.md`."""
    return "\n".join([_HEAD, *(_section(name, record) for name, record in records.items())])


def _section(name: str, record: Mapping[str, Any]) -> str:
    methods = [m for m in TITLES if any(m in of for of in record["accuracy"].values())]
    rows = [
        " | ".join([backbone, *(_cell(entries.get(method)) for method in methods)])
        for backbone, entries in record["accuracy"].items()
    ]
    head = " | ".join(["top-1 % on", *(TITLES[method] for method in methods)])
    rule = " | ".join(["---"] * (1 + len(methods)))
    lines = "\n".join(f"| {line} |" for line in [head, rule, *rows])
    seconds = record["seconds"]
    times = [words.duration(seconds["distill"]), words.duration(sum(seconds.values()))]
    made = (
        f"{record['images']:,} images of {record['side']} px in place of "
        f"{record['real_images']:,}, by {record['objective']} in {record['steps']:,} steps: "
        f"{times[0]}, {times[1]} with evaluation, on {record['devices']}. Seed {record['seed']}, "
        f"commit `{record['commit'][:10]}`. From left to right: {', '.join(record['classes'])}."
    )
    return f"""## {record["title"]}

![Distilled images of {names.join(record["classes"])}](gallery/{name}_shown.webp)

{made}

{lines}

```sh
{wrap(record["command"])}
```

![The same images while they were made](gallery/{name}_timelapse.webp)
"""


def wrap(command: str) -> str:
    """Returns a command in lines that a page does not clip."""
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if len(lines[-1]) + len(word) > 76:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n    ".join(lines)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    spread = "" if entry["top1_std"] is None else f" ± {entry['top1_std']:.1f}"
    return f"{entry['top1_mean']:.1f}{spread}"


def read_records(folder: Path) -> dict[str, Any]:
    """Returns the records of a gallery by name, the largest images first."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return dict(sorted(records.items(), key=lambda item: -item[1]["side"]))


def to_json(value: Any) -> str:
    """Returns the text of a file of records."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def main(run_folders: Sequence[str], docs: Path = DOCS, records: str = "", title: str = "") -> int:
    """Adds runs and writes the page, or writes their records alone; returns the exit code."""
    try:
        added = {epath.Path(path): collect(read_run(path), title) for path in run_folders}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if records:
        Path(records).write_text(to_json(list(added.values())))
        return 0
    folder = docs / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    for path, record in added.items():
        joined = join_images([image for _, image in first_of_classes(path, _MOST)])
        (folder / f"{path.name}.webp").write_bytes(encode(joined, lossless=True))
        shown = encode(compose(joined), lossless=False)
        (folder / f"{path.name}_shown.webp").write_bytes(shown)
        timelapse = (path / runs.ANIMATION).read_bytes()
        (folder / f"{path.name}_timelapse.webp").write_bytes(timelapse)
        (folder / f"{path.name}.json").write_text(to_json(record))
    (docs / "gallery.md").write_text(page(read_records(folder)))
    print(docs / "gallery.md")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument("--records", default="", help="a file for the records alone")
    parser.add_argument("--title", default="", help="above the picture, in place of its data")
    options = parser.parse_args()
    sys.exit(main(options.runs, records=options.records, title=options.title))
