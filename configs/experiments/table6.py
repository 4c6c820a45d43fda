"""Table 6 of the paper: 1-NN transfer of distilled images, and alignment of backbones.

    python launch.py --config=configs/experiments/table6.py --workdir=runs/table6 \
        --config.experiment.share=runs/table2

ImageNet-1k, four backbones; takes the runs of table 2 where it is given its workdir, and else makes
them: 12 hours on four H200 each in the paper. Gives the correlation that the paper leaves out, and
linear CKA beside mutual k-NN; `--config.experiment.neighbors` is k, which the paper does not say.
`:embedded` takes all backbones of the package, which are few: see the result's note. `:quick` tries
all of it; `:imagenette` needs `--config.experiment.backbones=FOLDER,FOLDER,...`.
"""

from ml_collections import ConfigDict

from configs.experiments import _base


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment, at the scale that the argument names."""
    return _base.build("table6", arg, {"all": {"neighbors": 10}, "paper": {"sets": "imagenet-1k"}})
