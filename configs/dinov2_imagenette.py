"""Imagenette in ten images, for DINOv2 ViT-B/14: the paper's method on a set that anyone can get.

    python launch.py --config=configs/dinov2_imagenette.py --workdir=runs/dinov2_imagenette

Cost: not measured yet; the paper's code takes about 30 minutes on one RTX 4090 for ten classes. The
paper gives no accuracy for this set.

Data: `imagenette` as TFDS prepares it. Its images are ImageNet's, but split otherwise; for
ImageNet's own split of the same classes, give
`--config.data.name=imagenet2012 --config.data.subset=imagenette`; see docs/data.md.
"""

from ml_collections import ConfigDict

from configs import _imagenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `:quick` runs everything in seconds, for tests."""
    config = _imagenet.recipe(arg, "dinov2_vitb14")
    config.data.name = "imagenette"
    return config
