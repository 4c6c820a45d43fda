"""The program as a person starts it, in the process of a test, and what it is given."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

import launch
import lgm_jax
from lgm_jax.opening import open_session

QUICK = "--config=configs/quickstart.py:quick"
ROOT = Path(__file__).parents[1]
FOLDER = (QUICK, "--config.data.name=folder", "--config.stages=distill", "--config.steps=4")
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def start(*arguments, workdir=None):
    """Runs the program in this process; gives its exit code."""
    where = [f"--workdir={workdir}"] if workdir else []
    return launch.main(["launch.py", *map(str, arguments), *where])


def refuse(capsys, *arguments, workdir=None):
    """Runs the program, which must refuse with one line and exit code 2; gives the line."""
    capsys.readouterr()
    assert start(*arguments, workdir=workdir) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err), captured.err
    return captured.err


def snapshot(folder):
    """Content and modification time of every file."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def logged_steps(workdir):
    """The step of each line of metrics.jsonl."""
    return [
        json.loads(line)["step"]
        for line in (workdir / "metrics.jsonl").read_text().split("\n")
        if line
    ]


def commits(workdir, stage):
    """The steps from which processes contributed to a stage, with their commits."""
    made_by = json.loads((workdir / "stages.json").read_text())[stage]["made_by"]
    return [(made.get("from_step"), made["commit"]) for made in made_by]


def opened(workdir, *arguments):
    """The session of a command line."""
    config, *_ = launch.parse(["launch.py", *arguments, f"--workdir={workdir}"])
    return open_session(config, str(workdir), overwrite=False)


def write_classes(folder, names, count=1):
    """A folder of PNGs per class; image `i` is of grey level `10 i`."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((32, 32, 3), 10 * i, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def distilled_from(folder, workdir, *arguments):
    """The images of a quick run that streams photos."""
    where = f"--config.data.folder={folder}"
    assert start(*FOLDER, where, *arguments, workdir=workdir) == 0
    return lgm_jax.load_distilled(workdir)[0]
