"""The 100 classes of ImageNet-100 in 100 images, for DINOv2 ViT-B/14.

    python launch.py --config=configs/dinov2_in100.py --workdir=runs/dinov2_in100

Cost in the paper: about 3 hours on one H200 GPU. Accuracy in the paper (one image per class, five
probes): distilled 91.5 %, all images 95.2 %.

Data: `imagenet2012` as TFDS prepares it, or ImageNet's own folders, with
`--config.data.name=imagenet --config.data.folder=FOLDER`; see docs/data.md.
"""

from ml_collections import ConfigDict

from configs import _imagenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `:quick` runs everything in seconds, for tests."""
    return _imagenet.recipe(arg, "dinov2_vitb14", subset="imagenet-100")
