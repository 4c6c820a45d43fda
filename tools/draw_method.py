"""Draws `method_views.png` of docs/method.md from a finished run of the quickstart.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
    python -m tools.draw_method --workdir=runs/quickstart --out=docs

To be run in the root of the repository. Of the other pictures there, `method.svg` is drawn by hand
and `method_timelapse.webp` is the run's own `timelapse.webp`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import lgm_jax
from configs import quickstart
from lgm_jax import augment, settings
from lgm_jax.report import pictures

_GAP = 4
_SCALE = 2
_SHOWN = (0, 4, 7)
_VIEWS = 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, help="a run of configs/quickstart.py"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    options = parser.parse_args()
    images, _, _ = lgm_jax.load_distilled(options.workdir)
    save(draw_views(images), options.out / "method_views.png")


def draw_views(images: np.ndarray) -> np.ndarray:
    """Some images, each beside views of it: rows by columns of squares."""
    augmentation = settings.make_augmentation(quickstart.get_config().augment)
    side = images.shape[1]
    rows = []
    for label in _SHOWN:
        keys = jax.random.split(jax.random.key(label), _VIEWS)
        copies = np.repeat(images[label : label + 1], _VIEWS, axis=0)
        views = np.asarray(augment.augment(keys, jnp.asarray(copies), side, augmentation))
        rows.append(np.concatenate([images[label : label + 1], views]))
    return np.stack(rows)


def save(squares: np.ndarray, path: Path) -> None:
    """Rows and columns of images in [0, 1] on white, enlarged."""
    rows, columns, side = squares.shape[:3]
    step = side + _GAP
    sheet = np.ones((rows * step - _GAP, columns * step - _GAP, 3))
    for row in range(rows):
        for column in range(columns):
            at = np.s_[row * step : row * step + side, column * step : column * step + side]
            sheet[at] = squares[row, column]
    picture = Image.fromarray(pictures.to_bytes(sheet))
    size = (_SCALE * picture.width, _SCALE * picture.height)
    picture.resize(size, Image.Resampling.NEAREST).save(path, optimize=True)


if __name__ == "__main__":
    main()
