"""Table 4 of the paper: backgrounds that mislead, with the accuracy of each group and the worst.

    python launch.py --config=configs/experiments/table4.py --workdir=runs/table4 \
        --config.experiment.folders=SPAWRIOUS,WATERBIRDS

`SPAWRIOUS` is the folder `spawrious224`, `WATERBIRDS` WILDS' `waterbirds_v1.0`; with one of them,
add `--config.experiment.sets=waterbirds`. Eight runs of 4 and 2 images, minutes each on a GPU.
`:embedded` has digits whose tint goes with their parity in training images alone; `:quick` tries
all of it. Result: `table.md`, and beside it `figure.png` with distilled images beside real ones.
"""

from ml_collections import ConfigDict

from configs.experiments import _base


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment, at the scale that the argument names."""
    digits = {"sets": "digits-spurious"}
    return _base.build(
        "table4",
        arg,
        {
            "paper": {"sets": "spawrious,waterbirds"},
            "embedded": digits,
            "quick": digits | {"backbones": _base.embedded_backbones()[0]},
        },
        missing={_base.IMAGENETTE: "it has no groups"},
    )
