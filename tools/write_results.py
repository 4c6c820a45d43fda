"""Writes what experiments gave into the documentation: `docs/results/NAME.md` and its pictures.

    python -m tools.write_results runs/table1 runs/figure3

NAME is the name of an experiment's workdir. Its page is `table.md` with the figure below the notes,
`NAME.svg` (drawn anew, without real images, which are not ours), the distilled images,
`NAME_images.webp`, and the command with its commits; `docs/results.md`, which says what it all
means, is written by hand. `runs/NAME.json` has the command and, by run, `results.json`,
`metrics.jsonl` and what else was measured: a test makes the page from them again.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from PIL import Image

import launch
from lgm_jax import experiments, public, runs
from lgm_jax.experiments import dots, figures, result, runner, samples
from lgm_jax.experiments.frame import Study
from tools import write_gallery

DOCS = Path(__file__).parents[1] / "docs" / "results"

# Tables of dots that docs/results.md shows by themselves: by page and file, which of the figure's.
_PANELS: Mapping[str, Mapping[str, int]] = {
    "objectives": {"objectives_steps": 0, "objectives_joint": -1},
}

# Pixels, enough for a page on a sharp display.
_WIDTH = 1800


def page(name: str, table: str, collected: Mapping[str, Any], *, images: bool) -> str:
    """The page of an experiment.

    Args:
        name: Of the page, and of its pictures.
        table: Its `table.md`.
        collected: What made it.
        images: Whether it has a picture of distilled images.
    """
    notes, heading, tables = table.partition("\n## ")
    title = notes.partition("\n")[0].removeprefix("# ")
    shown = f"\n## Images\n\n![Distilled images: a row for each kind of run]({name}_images.webp)\n"
    commits = ", ".join(f"`{commit[:10]}`" for commit in collected["commits"])
    return f"""{notes}
![{title}]({name}.svg)
{heading}{tables}{shown if images else ""}
## Command

At commit {commits}:

```sh
{write_gallery.wrap(collected["command"])}
```
"""


def collect(folder: Path) -> dict[str, Any]:
    """The command of an experiment, without paths of this machine, and what its runs gave."""
    command = json.loads((folder / runner.RECORD).read_text())["command"]
    config = _parse(command)
    made = Path(config[experiments.SECTION].share or folder) / runner.RUNS
    gave: dict[str, Any] = {}
    commits: dict[str, None] = {}

    def find(planned: runner.Planned) -> runner.Outcome:
        path, measured = epath.Path(made / planned.name), None
        stages = json.loads((path / runs.STAGES).read_text())
        if planned.measure is not None:
            measured = stages[f"measure/{planned.measure.name}"]["result"]
        commits.update((each["commit"], None) for of in stages.values() for each in of["made_by"])
        gave[planned.name] = {
            "results": runs.read_results(path),
            "metrics": runs.read_metrics(path),
            "measured": measured,
        }
        return _outcome(planned, gave)

    runner.find_outcomes(functools.partial(experiments.find(config).plan, config), find)
    return {"command": public.command(command), "commits": list(commits), "runs": gave}


def tabulate(collected: Mapping[str, Any]) -> result.Result:
    """The result of what `collect` returned, without pictures of real images."""
    config = _parse(collected["command"])
    return experiments.tabulate(experiments.find(config), config, studies(collected))


def studies(collected: Mapping[str, Any]) -> list[Study]:
    """The runs and numbers of what `collect` returned, by image set."""
    config, gave = _parse(collected["command"]), collected["runs"]
    sweep = experiments.find(config)
    plan = functools.partial(sweep.plan, config)
    outcomes = runner.find_outcomes(plan, lambda planned: _outcome(planned, gave))
    return sweep.studies(config, outcomes)


def _parse(command: str) -> ConfigDict:
    _, *arguments = shlex.split(command)
    return launch.parse([*arguments, "--workdir=unused"], writes=False)[0]


def _outcome(planned: runner.Planned, gave: Mapping[str, Any]) -> runner.Outcome:
    run = gave[planned.name]
    return runner.Outcome(planned, run["results"], run["metrics"], run["measured"])


def shrink(picture: Path) -> bytes:
    """A picture as WebP, no wider than a page needs."""
    with Image.open(picture) as file:
        image = file.convert("RGB")
    image.thumbnail((_WIDTH, 4 * _WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=85, method=6)
    return buffer.getvalue()


def main(workdirs: list[str], out: Path = DOCS) -> int:
    """Writes the pages; gives the exit code."""
    for folder in map(Path, workdirs):
        table = folder / result.TABLE_MD
        if not table.exists():
            print(f"error: {folder} is no finished experiment: no {table.name}", file=sys.stderr)
            return 2
        out.mkdir(parents=True, exist_ok=True)
        distilled, images = folder / samples.FILE, out / f"{folder.name}_images.webp"
        collected = collect(folder)
        found = tabulate(collected)
        assert result.to_markdown(found) == table.read_text()
        (out / "runs").mkdir(exist_ok=True)
        (out / "runs" / f"{folder.name}.json").write_text(json.dumps(collected) + "\n")
        text = page(folder.name, table.read_text(), collected, images=distilled.exists())
        (out / f"{folder.name}.md").write_text(text)
        (drawn,) = figures.render(found.draw, ["svg"])
        (out / f"{folder.name}.svg").write_bytes(drawn)
        for panel, index in _PANELS.get(folder.name, {}).items():
            draw = functools.partial(dots.dots, tables=[found.to_draw[index]])
            (drawn,) = figures.render(draw, ["svg"])
            (out / f"{panel}.svg").write_bytes(drawn)
        images.unlink(missing_ok=True)
        if distilled.exists():
            images.write_bytes(shrink(distilled))
        print(out / f"{folder.name}.md")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", help="workdirs of finished experiments")
    sys.exit(main(parser.parse_args().workdirs))
