"""Table 4 of the paper: misleading backgrounds, with the accuracy of each group and of the worst.

    python launch.py --config=configs/experiments/table4.py --workdir=runs/table4 \
        --config.experiment.folders=SPAWRIOUS,WATERBIRDS

`SPAWRIOUS` is the folder `spawrious224`, `WATERBIRDS` WILDS' `waterbirds_v1.0`; with one of them,
add `--config.experiment.sets=waterbirds`. Eight runs of 4 and 2 images, by prediction minutes each
on a GPU. `:embedded` has digits whose tint predicts their parity in training images only;
`:imagenette` takes any folder with groups, for example what `tools/mislead.py` makes of photos;
`:quick` tries everything. `figure.png` has distilled images beside real ones of each group.
"""

import functools

from configs.experiments import _base

_DIGITS = {"sets": "digits-spurious"}

get_config = functools.partial(
    _base.build,
    "table4",
    {
        "paper": {"sets": "spawrious,waterbirds"},
        "embedded": _DIGITS,
        "quick": _DIGITS | {"backbones": _base.EMBEDDED_BACKBONES[0]},
    },
    # Nothing is tuned: all training images are for training.
    changes={"imagenette": {"data.val_fraction": 0.0}},
)
