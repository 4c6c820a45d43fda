"""The ten classes of ImageNet called B in 10 images, for DINOv2 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/dinov2_in10_b.py --workdir=runs/dinov2_in10_b

Cost: 5,000 steps of 100 views of the images and as many real ones, 14.1 TFLOP each. Predicted, not
measured: the arithmetic alone takes under 5 min on one H100 at 45% of 790 TFLOP/s, if the host
decodes 2,500 photos a second, and 14 min for the probes. The authors: about 30 minutes on one RTX
4090, for ImageNet-Birds.

The paper gives no accuracy for it.

Data: `imagenet2012` as TFDS prepares it from the archives of image-net.org, or ImageNet's own
folders, with `--config.data.name=imagenet --config.data.folder=FOLDER`. See docs/data.md; 12,811
training and 500 test images, about.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "dinov2", "in10_b")
