"""ImageNet-1k in 1,000 images, for DINOv2 ViT-B/14.

    python launch.py --config=configs/dinov2_in1k.py --workdir=runs/dinov2_in1k

Cost in the paper: about 12 hours on four H200 GPUs. Accuracy in the paper (one image per class,
five probes): distilled 75.0 %, all of ImageNet 83.0 %.

Data: `imagenet2012` as TFDS prepares it, or ImageNet's own folders, with
`--config.data.name=imagenet --config.data.folder=FOLDER`; see docs/data.md.
"""

from ml_collections import ConfigDict

from configs import _imagenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `:quick` runs everything in seconds, for tests."""
    return _imagenet.recipe(arg, "dinov2_vitb14", copies=3)
