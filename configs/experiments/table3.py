"""Table 3 of the paper: the method without colour decorrelation, pyramid or augmentation.

    python launch.py --config=configs/experiments/table3.py --workdir=runs/table3

ImageNet-100, four backbones, eight variants: about 3 hours on one H200 for each run in the paper.
`--config.experiment.without=decorrelate,pyramid,augment` makes only the paper's rows, as
`:imagenette` does; `+` leaves out several parts at once. On digits, which are grey, the images have
colour here, or there would be nothing to decorrelate. See docs/experiments.md for `:embedded`,
`:imagenette`, `:quick`.
"""

import functools

from configs.experiments import _base

_EVERY = (
    "decorrelate,pyramid,augment,decorrelate+pyramid,decorrelate+augment,pyramid+augment,"
    "decorrelate+pyramid+augment"
)
_COLOUR = _base.ONE | {"prefix": "colour"}

get_config = functools.partial(
    _base.build,
    "table3",
    {
        "all": {"without": _EVERY, "prefix": ""},
        "embedded": _COLOUR,
        "quick": _COLOUR | {"without": "pyramid+augment"},
        "imagenette": {"seeds": 1, "without": "decorrelate,pyramid,augment"},
    },
    changes={"all": {"images.grey": False}},
)
