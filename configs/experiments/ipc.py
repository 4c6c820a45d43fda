"""Images per class: 1, 2, 5 and 10, beside as many real ones. The paper has one alone.

    python launch.py --config=configs/experiments/ipc.py --workdir=runs/ipc

ImageNet-100, four backbones. A step's cost grows with the number of images: 18 units in all for
each backbone, where one image per class is about 3 hours on one H200 in the paper. See
docs/experiments.md for `:embedded`, `:imagenette`, `:quick`.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build,
    "ipc",
    {
        "all": {"ipc": "1,2,5,10"},
        "embedded": _base.ONE,
        "quick": {"ipc": "1,2", "backbones": "digits_contrastive"},
        "imagenette": {"seeds": 1},
    },
)
