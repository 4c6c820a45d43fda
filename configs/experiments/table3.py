"""Table 3 of the paper: the method without colour decorrelation, pyramid or augmentation.

    python launch.py --config=configs/experiments/table3.py --workdir=runs/table3

ImageNet-100, four backbones, eight variants: about 3 hours on one H200 for each run in the paper.
`--config.experiment.without=decorrelate,pyramid,augment` makes only the paper's rows; `+` leaves
out several parts at once. See docs/experiments.md for `:embedded`, `:imagenette`, `:quick`.

`:imagenette` has the paper's rows alone. On digits, which are grey,
the images have colour here, or there would be nothing to decorrelate.
"""

from ml_collections import ConfigDict

from configs.experiments import _base

_EVERY = (
    "decorrelate,pyramid,augment,decorrelate+pyramid,decorrelate+augment,pyramid+augment,"
    "decorrelate+pyramid+augment"
)


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the experiment, at the scale of the argument."""
    colour = _base.ONE | {"prefix": "colour"}
    config = _base.build(
        "table3",
        arg,
        {
            "all": {"without": _EVERY, "prefix": ""},
            "embedded": colour,
            "quick": colour | {"without": "pyramid+augment"},
            "imagenette": {"seeds": 1, "without": "decorrelate,pyramid,augment"},
        },
    )
    config.images.grey = False
    return config
