"""Table 1 of the paper: distilled images beside neighbours, centroids, random and all real images.

    python launch.py --config=configs/experiments/table1.py --workdir=runs/table1

ImageNet-100 and ImageNet-1k, four backbones: about 3 hours on one H200 for each of the first in the
paper, and 12 hours on four for each of the second; `--config.experiment.sets=imagenet-100` for the
first alone. Needs both, from TFDS or as folders; see docs/experiments.md, which has the other
scales: `:embedded`, `:imagenette`, `:quick`.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build, "table1", {"paper": {"sets": "imagenet-100,imagenet-1k"}}
)
