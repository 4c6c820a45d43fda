"""Figure 3 of the paper: augmentations of each synthetic image in a step, from 1 to 20.

    python launch.py --config=configs/experiments/figure3.py --workdir=runs/figure3

ImageNet-100, distilled against DINO-v2, evaluated on all four; a step's cost grows with the number:
39 units in all, where 10 augmentations are about 3 hours on one H200 in the paper. See
docs/experiments.md for `:embedded`, `:imagenette`, `:quick`.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build,
    "figure3",
    {
        "all": {"copies": "1,3,5,10,20"},
        "paper": {"backbones": "dinov2_vitb14", "evaluate": _base.PAPERS},
        "embedded": _base.ONE,
        "quick": {"copies": "1,2", "backbones": "digits_contrastive"},
        "imagenette": {"copies": "1,3,5,10", "seeds": 1},
    },
)
