"""Writes the paper's recipes, `configs/MODEL_IMAGES.py`, and their table in `docs/recipes.md`.

    python -m tools.write_recipes
    python -m tools.write_recipes --check

To be run in the root of the repository. All numbers are from `configs/_paper.py` and
`lgm_jax/experiments/paper.py`, costs from `lgm_jax.plan`. With `--check` nothing is written; files
that differ are named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from configs import _paper, _recipes, common
from lgm_jax import plan
from lgm_jax.data.sizes import known_size

ROOT = Path(__file__).parents[1]
PAGE = "docs/recipes.md"

# What the table stands between.
_START, _END = "<!-- recipes -->\n", "<!-- end of recipes -->\n"
_WIDTH = 100

# The device of the predictions: bfloat16 products of an H100.
_DEVICE, _PEAK, _MEMORY = "H100", 790.0, 80.0

# Minutes; shorter predictions are not told apart.
_SHORTEST = 5

_TFDS = "`{name}` as TFDS prepares it (`tfds build {name} --file_format=array_record`)"
_IMAGENET = (
    "`imagenet2012` as TFDS prepares it from the archives of image-net.org, or ImageNet's own "
    "folders, with `--config.data.name=imagenet --config.data.folder=FOLDER`"
)
_DATA: Mapping[str, str] = {
    "imagenet2012": _IMAGENET,
    "imagenette": (
        "`imagenette` as TFDS prepares it, which anyone can get. It is split otherwise than the "
        "paper's, which is `--config.data.name=imagenet2012 --config.data.subset=imagenette`"
    ),
    "artbench": (
        "FOLDER is where `artbench-10-imagefolder-split.tar` was unpacked, the archive of 256 px "
        "images that ArtBench's authors give (github.com/liaopeiyuan/artbench)"
    ),
    "spawrious_o2o_hard": (
        "FOLDER is `spawrious224`, as the archive of Spawrious' authors unpacks "
        "(github.com/aengusl/spawrious)"
    ),
    "waterbirds": "FOLDER is `waterbirds_v1.0`, as WILDS unpacks it (wilds.stanford.edu)",
}

# Sets whose recipes have to be told where they lie.
_IN_FOLDERS = ("artbench", "spawrious_o2o_hard", "waterbirds")

_CODE = '''
from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "{model}", "{images}")
'''


class Cost(NamedTuple):
    """What a recipe is predicted to take on one device.

    Attributes:
        flops: Floating-point operations of a step.
        hours: Of distillation.
        photos: Real images that a second of it reads.
        probe_hours: Of the probes of all rows.
    """

    flops: float
    hours: float
    photos: float
    probe_hours: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, name what differs")
    options = parser.parse_args(arguments)
    different = {path: text for path, text in files().items() if _read(path) != text}
    for path, text in different.items():
        if options.check:
            print(f"{path} is not what tools/write_recipes.py writes", file=sys.stderr)
        else:
            (ROOT / path).write_text(text)
            print(path)
    return 1 if options.check and different else 0


def recipes() -> list[tuple[str, str]]:
    """Model and images of every recipe: the models that the paper compares, DINO for ArtBench."""
    return [
        (model, images)
        for images in _paper.IMAGES
        for model in _paper.MODELS
        if model in _paper.COMPARED or images == "artbench"
    ]


def files() -> dict[str, str]:
    """What every file is to be, by its path in the repository."""
    written = {f"configs/{m}_{i}.py": config_file(m, i) for m, i in recipes()}
    before, rest = _read(PAGE).split(_START)
    written[PAGE] = before + _START + table() + _END + rest.split(_END)[1]
    return written


def config_file(model: str, images: str) -> str:
    """The file of one recipe."""
    chosen, titled = _paper.IMAGES[images], _paper.MODELS[model].title
    config, size = _recipes.recipe(None, model, images), known_size(chosen.name, chosen.subset)
    if size is None:
        raise ValueError(f"lgm_jax/data/sizes.py lacks {chosen.name}")
    cost, count = predict(model, images), config.ipc * size.classes
    name = f"{model}_{images}"
    folder = " --config.data.folder=FOLDER \\\n       " if chosen.name in _IN_FOLDERS else ""
    paragraphs = [
        f'"""{chosen.title[:1].upper()}{chosen.title[1:]} in {count:,} images, for {titled}: the '
        "paper's recipe.",
        f"    python launch.py --config=configs/{name}.py{folder} --workdir=runs/{name}",
        f"Cost: {config.steps:,} steps of {count * config.copies:,} views of the images and as "
        f"many real ones, {cost.flops / 1e12:.3g} TFLOP each. Predicted, not measured: the "
        f"arithmetic alone takes {_duration(cost.hours)} on one {_DEVICE} at {plan.SHARE:.0%} of "
        f"{_PEAK:.0f} TFLOP/s, if the host decodes {_rate(cost.photos)} photos a second, and "
        f"{_duration(cost.probe_hours)} for the probes."
        + (f" The authors: {chosen.took}." if chosen.took else ""),
        *_accuracy(model, images),
        f"Data: {_DATA.get(chosen.name, _TFDS.format(name=chosen.name))}. See docs/data.md; "
        f"{size.train:,} training and {size.test:,} test images"
        + (", about." if chosen.subset else "."),
        f"Behind a colon: {', '.join(f'`{word}`' for word in words())}; see docs/recipes.md.",
    ]
    docstring = "\n\n".join(map(_wrap, paragraphs))
    return f'{docstring}\n"""\n' + _CODE.format(model=model, images=images)


def words() -> list[str]:
    """What may follow the colon."""
    return [*_paper.PRESETS, _recipes.CACHED, _recipes.QUICK]


def table() -> str:
    """The table of all recipes, in Markdown."""
    rows = list(next(iter(_paper.ACCURACY.values())))
    lines = [
        f"| recipe | images | backbone | {' | '.join(rows)} | arithmetic alone | "
        "photos/s to decode |",
        "|---|---|---|" + "---|" * (len(rows) + 2),
    ]
    for model, images in recipes():
        cells = [
            f"`{model}_{images}`",
            _paper.IMAGES[images].title,
            _paper.MODELS[model].title,
            *(_paper.accuracy(images, model, row) or "" for row in rows),
            _duration(predict(model, images).hours),
            _rate(predict(model, images).photos),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@functools.cache
def predict(model: str, images: str) -> Cost:
    """What a recipe takes by `lgm_jax.plan`, in arithmetic alone."""
    chosen, config = _paper.IMAGES[images], _recipes.recipe(None, model, images)
    size = known_size(chosen.name, chosen.subset)
    if size is None:
        raise ValueError(f"lgm_jax/data/sizes.py lacks {chosen.name}")
    common.check(config)
    machine = plan.Machine(memory=_MEMORY, tflops=_PEAK)
    told = plan.forecast(config, machine, size.classes, size.train)
    if told.seconds is None:
        raise ValueError("no time without a peak")
    probe = config.probe
    # Distilled, neighbours, centroids and random images, in new views every epoch; then all.
    views = 4 * probe.epochs * probe.runs * told.recipe.task.num_images
    views += probe.full_epochs * probe.runs * size.train * (probe.full_augment == "fresh")
    # Features that images are chosen by, and that heads are tried on.
    views += size.train + size.test
    rate = plan.SHARE * _PEAK * 1e12
    return Cost(
        sum(told.plan.flops.values()),
        config.steps * told.seconds / 3600,
        told.recipe.task.num_views / told.seconds,
        views * told.view_flops / rate / 3600,
    )


def _accuracy(model: str, images: str) -> list[str]:
    """Paragraphs on what the paper found."""
    rows = _paper.ACCURACY.get(images)
    if rows is None:
        shown = "shows images of this, and " if (model, images) == ("dino", "artbench") else ""
        return [f"The paper {shown}gives no accuracy for it."]
    where = _paper.IMAGES[images].table
    distilled, *others = (f"{row} {_paper.accuracy(images, model, row)}" for row in rows)
    return [
        f"Accuracy in the paper ({where}: top-1 in percent on test, one image per class, mean and "
        "std):",
        f"    {distilled}\n    {', '.join(others)}",
    ]


def _wrap(paragraph: str) -> str:
    # Commands and tables stand as they are.
    if paragraph.startswith(" "):
        return paragraph
    return textwrap.fill(paragraph, _WIDTH, break_on_hyphens=False, break_long_words=False)


def _duration(hours: float) -> str:
    # Below that, a run's time is that of everything that is no arithmetic.
    if 60 * hours < _SHORTEST:
        return f"under {_SHORTEST} min"
    return f"{hours:.2g} h" if hours >= 1 else f"{60 * hours:.2g} min"


def _rate(photos: float) -> str:
    return f"{round(photos, -2):,.0f}"


def _read(path: str) -> str:
    file = ROOT / path
    return file.read_text() if file.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
