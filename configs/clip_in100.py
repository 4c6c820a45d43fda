"""The 100 classes of ImageNet-100 in 100 images, for CLIP ViT-B/16.

    python launch.py --config=configs/clip_in100.py --workdir=runs/clip_in100

Cost in the paper: about 3 hours on one H200 GPU. Accuracy in the paper (one image per class, five
probes): distilled 84.9 %, all images 92.5 %.

Data: `imagenet2012` as TFDS prepares it, or ImageNet's own folders, with
`--config.data.name=imagenet --config.data.folder=FOLDER`; see docs/data.md.
"""

from ml_collections import ConfigDict

from configs import _imagenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `:quick` runs everything in seconds, for tests."""
    return _imagenet.recipe(arg, "clip_vitb16", subset="imagenet-100")
