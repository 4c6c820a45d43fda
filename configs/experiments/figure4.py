"""Figure 4 of the paper: principal components of real, distilled, centroid and random images.

    python launch.py --config=configs/experiments/figure4.py --workdir=runs/figure4

The ten fruits of ImageNet, four backbones (the paper shows DINO-v2): about half an hour each on an
RTX 4090, says the authors' README. The table says how far outside its class each kind of image
lies, which the paper leaves to the eye. `:embedded`, `:quick`, and, for a folder of photos and one
of weights,

    python launch.py --config=configs/experiments/figure4.py:imagenette --workdir=runs/figure4 \
        --config.data.folder=IMAGENETTE --config.experiment.backbones=WEIGHTS
"""

from ml_collections import ConfigDict

from configs.experiments import _base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the experiment, at the scale of the argument."""
    quick = {"backbones": _base.embedded_backbones()[0]}
    return _base.build("figure4", arg, {"paper": {"sets": "imagenet-fruits"}, "quick": quick})
