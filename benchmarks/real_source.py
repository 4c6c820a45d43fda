"""Where the real gradient is from: time per step and accuracy of each way, over seeds.

    python benchmarks/real_source.py --config=configs/quickstart.py --seeds=5 --out=FOLDER
    python benchmarks/real_source.py --config=configs/dinov2_folder.py:embedded --seeds=2 \
        --out=FOLDER -- --config.data.folder=PHOTOS

Runs `launch.py` for `stream`, `cached` with one view of each image and with four, and `exact` with
one and with four, in turn within each seed, and prints a table. Arguments behind `--` go to every
run. Runs that are done are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

WAYS = [("stream", 1), ("cached", 1), ("cached", 4), ("exact", 1), ("exact", 4)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a recipe")
    parser.add_argument("--seeds", type=int, default=5, help="distillations of each kind")
    parser.add_argument("--out", required=True, type=Path, help="where runs and features go")
    parser.add_argument("rest", nargs="*", help="more arguments for launch.py, behind --")
    options = parser.parse_args()
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        for source, views in WAYS:
            found[source, views].append(run(options, seed, source, views))
            print(seed, source, views, found[source, views][-1], file=sys.stderr)
    print("| real gradient | views | distilled, top-1 % | ms per step | features first, s |")
    print("|---|---|---|---|---|")
    for (source, views), results in found.items():
        top1, step, first = (np.array(values) for values in zip(*results, strict=True))
        spread = f" ± {top1.std(ddof=1):.1f}" if len(top1) > 1 else ""
        print(
            f"| {source} | {views if source != 'stream' else 'fresh'} | {top1.mean():.1f}{spread} "
            f"| {1000 * np.median(step):.0f} | {np.median(first):.0f} |"
        )


def run(
    options: argparse.Namespace, seed: int, source: str, views: int
) -> tuple[float, float, float]:
    """One run: accuracy of its images on its own backbone, seconds per step, seconds before."""
    workdir = options.out / f"{source}_{views}_seed{seed}"
    arguments = [
        f"--config={options.config}",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        f"--config.real.source={source}",
        f"--config.real.views={views}",
        "--config.stages=distill,probe,report",
        "--config.eval_backbones=",
        *options.rest,
    ]
    subprocess.run([sys.executable, "launch.py", *arguments], check=True, stdout=sys.stderr)
    results = json.loads((workdir / "results.json").read_text())
    (probed,) = results["probe"].values()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    # The first lines hold compilation.
    per_step = (lines[-1]["seconds"] - lines[0]["seconds"]) / (lines[-1]["step"] - lines[0]["step"])
    before = lines[0]["seconds"] - lines[0]["step"] * per_step
    return probed["distilled"]["top1_mean"], per_step, before


if __name__ == "__main__":
    main()
