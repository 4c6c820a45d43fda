"""Table 1 of the paper: distilled images beside neighbours, centroids, random and all real images.

    python launch.py --config=configs/experiments/table1.py --workdir=runs/table1

ImageNet-100 and ImageNet-1k, four backbones: about 3 hours on one H200 for each of the first in the
paper, and 12 hours on four for each of the second; `--config.experiment.sets=imagenet-100` for the
first alone. Needs both, from TFDS or as folders; see docs/experiments.md, which has the other
scales: `:embedded`, `:imagenette`, `:quick`.
"""

from ml_collections import ConfigDict

from configs.experiments import _base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the experiment, at the scale of the argument."""
    return _base.build("table1", arg, {"paper": {"sets": "imagenet-100,imagenet-1k"}})
