"""Figure 4 of the paper: principal components of real, distilled, centroid and random images.

    python launch.py --config=configs/experiments/figure4.py --workdir=runs/figure4

The ten fruits of ImageNet, four backbones (the paper shows DINO-v2): about half an hour each on an
RTX 4090, which the authors' README says of the ten birds. The table says how far outside its class
each kind of image lies, which the paper leaves to the eye. See docs/experiments.md for `:embedded`,
`:imagenette`, `:quick`.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build,
    "figure4",
    {
        "paper": {"sets": "imagenet-fruits"},
        "quick": {"backbones": _base.EMBEDDED_BACKBONES[0]},
    },
)
