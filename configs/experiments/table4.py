"""Table 4 of the paper: misleading backgrounds, with the accuracy of each group and of the worst.

    python launch.py --config=configs/experiments/table4.py --workdir=runs/table4 \
        --config.experiment.folders=SPAWRIOUS,WATERBIRDS

`SPAWRIOUS` is the folder `spawrious224`, `WATERBIRDS` WILDS' `waterbirds_v1.0`; with one of them,
add `--config.experiment.sets=waterbirds`. Eight runs of 4 and 2 images, minutes each on a GPU.
`:embedded` has digits whose tint predicts their parity in training images only; `:quick` tries
everything. `figure.png` has distilled images beside real ones of each group. `:imagenette` takes
any folder with groups, for example what `tools/mislead.py` makes of photos, and folders of weights:

    python -m tools.mislead IMAGENETTE MISLEADING
    python launch.py --config=configs/experiments/table4.py:imagenette --workdir=runs/table4 \
        --config.data.folder=MISLEADING --config.experiment.backbones=WEIGHTS
"""

from ml_collections import ConfigDict

from configs.experiments import _base
from lgm_jax.experiments import SECTION


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the experiment, at the scale of the argument."""
    digits = {"sets": "digits-spurious"}
    config = _base.build(
        "table4",
        arg,
        {
            "paper": {"sets": "spawrious,waterbirds"},
            "embedded": digits,
            "quick": digits | {"backbones": _base.embedded_backbones()[0]},
        },
    )
    if config[SECTION].scale == _base.IMAGENETTE:
        # Nothing is tuned: all training images are for training.
        config.data.val_fraction = 0.0
    return config
