"""Handwritten digits and an embedded backbone: the whole path, offline, on a laptop's CPU.

python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `:quick` runs everything in seconds, for tests."""
    mode = common.parse_arg(arg, "quick")
    config = common.get_config()
    config.update(steps=500, copies=5, learning_rate=0.03, image_every=100)
    config.data.name = "digits"
    config.backbone.name = "digits_contrastive"
    config.images.update(resolution=32, crop=32, init="zero", start_resolution=4, grow_every=60)
    config.augment.update(preset="digits", scale_min=0.6)
    config.probe.update(solver="lbfgs", epochs=50, full_epochs=50, augment="views", views=4)
    return common.shrink(config) if mode == "quick" else config
