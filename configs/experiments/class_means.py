"""Does the head gradient see more than class means? Not in the paper.

    python launch.py --config=configs/experiments/class_means.py --workdir=runs/class_means

The head gradient of all training images of ImageNet-100 beside the one in which each feature is
replaced by its class's mean, for random heads of three scales. Nothing is distilled: the cost is
that of the features, one pass over the images for each of four backbones. `:embedded`, `:quick`,
`:imagenette`.
"""

from ml_collections import ConfigDict

from configs.experiments import _base


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment, at the scale that the argument names."""
    return _base.build(
        "class_means",
        arg,
        {
            "all": {"head_stds": "0.01,0.1,1", "heads": 20},
            "quick": {"heads": 2, "backbones": _base.embedded_backbones()[0]},
        },
    )
