"""Tables 5 and B.1 of the paper: fine-grained sets, Stanford Dogs, CUB, Flowers-102, Food-101.

    python launch.py --config=configs/experiments/table5.py --workdir=runs/table5

Four backbones on each of the four, which TFDS prepares; the paper does not say what they cost. One
set alone: `--config.experiment.sets=cub`. `:embedded` takes digits that are mistaken for each
other, 3, 5, 8, 9 and 1, 4, 7; see docs/experiments.md.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build,
    "table5",
    {
        "paper": {"sets": "dogs,cub,flowers,food"},
        "embedded": _base.TWO | {"sets": "digits-round,digits-straight"},
        "quick": {"sets": "digits-straight"},
    },
    missing={"imagenette": "its classes do not look alike; give a fine-grained folder to table1"},
)
