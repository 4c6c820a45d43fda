"""Images per class: 1, 2, 5 and 10, beside as many real ones. The paper has one alone.

    python launch.py --config=configs/experiments/ipc.py --workdir=runs/ipc

ImageNet-100, four backbones. A step's cost grows with the number of images: 18 units in all for
each backbone, where one image per class is about 3 hours on one H200 in the paper. See
docs/experiments.md for `:embedded`, `:imagenette`, `:quick`.
"""

from ml_collections import ConfigDict

from configs.experiments import _base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the experiment, at the scale of the argument."""
    return _base.build(
        "ipc",
        arg,
        {
            "all": {"ipc": "1,2,5,10"},
            "embedded": _base.ONE,
            "quick": {"ipc": "1,2", "backbones": "digits_contrastive"},
            "imagenette": {"seeds": 1},
        },
    )
