"""Does the head gradient see more than class means? Not in the paper.

    python launch.py --config=configs/experiments/class_means.py --workdir=runs/class_means

Compares the head gradient of all training images of ImageNet-100 with the one in which each feature
is replaced by the mean of its class, for random heads of three scales. Distils nothing: the cost is
one pass over the images for each of four backbones. `:embedded`, `:quick`, `:imagenette`.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build,
    "class_means",
    {
        "all": {"head_stds": "0.01,0.1,1", "heads": 20},
        "quick": {"heads": 2, "backbones": _base.EMBEDDED_BACKBONES[0]},
    },
)
