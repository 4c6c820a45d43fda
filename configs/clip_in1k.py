"""ImageNet-1k in 1,000 images, for CLIP ViT-B/16.

    python launch.py --config=configs/clip_in1k.py --workdir=runs/clip_in1k

Cost in the paper: about 12 hours on four H200 GPUs. Accuracy in the paper (one image per class,
five probes): distilled 63.0 %, all of ImageNet 78.7 %.

Data: `imagenet2012` as TFDS prepares it, or ImageNet's own folders, with
`--config.data.name=imagenet --config.data.folder=FOLDER`; see docs/data.md.
"""

from ml_collections import ConfigDict

from configs import _imagenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `:quick` runs everything in seconds, for tests."""
    return _imagenet.recipe(arg, "clip_vitb16", copies=3)
