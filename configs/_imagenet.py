"""ImageNet-1k, ImageNet-100 and Imagenette with the paper's settings, for its four backbones.

What `clip_in1k.py`, `dinov2_in100.py` and the others have in common. Not meant to be run by itself.
"""

from ml_collections import ConfigDict

from configs import common


def recipe(arg: str | None, backbone: str, *, subset: str = "", copies: int = 10) -> ConfigDict:
    """A recipe of the paper.

    Args:
        arg: What follows the colon: nothing, or `quick` for everything in seconds, for tests.
        backbone: What to distil against.
        subset: Classes to keep; all 1,000 by default.
        copies: Augmentations of each synthetic image in a step.
    """
    mode = common.parse_arg(arg, "quick")
    config = common.get_config()
    config.copies = copies
    config.data.update(name="imagenet2012", subset=subset)
    # Features of one view of each photo are computed once, and a step reads those; `real.views`
    # adds more. The paper streams new views, as `real.source=stream` does, if the host decodes
    # fast enough: thousands of photos a second.
    config.real.source = "cached"
    config.probe.augment = "none"
    # The authors' code normalises for every backbone with ImageNet's statistics.
    config.backbone.update(name=backbone, normalization="imagenet")
    return common.shrink(config) if mode == "quick" else config
