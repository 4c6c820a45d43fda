"""ImageNet-1k in 1,000 images, for MoCo-v3 ViT-B/16: the paper's recipe.

    python launch.py --config=configs/mocov3_in1k.py --workdir=runs/mocov3_in1k

Cost: 5,000 steps of 3,000 views of the images and as many real ones, 426 TFLOP each. Predicted, not
measured: the arithmetic alone takes 1.7 h on one H100 at 45% of 790 TFLOP/s, if the host decodes
2,500 photos a second, and 35 min for the probes. The authors: about 12 hours on four H200.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 63.2 ± 0.0
    neighbors 56.4 ± 0.0, centroids 57.4 ± 0.0, random 38.8 ± 0.6, full 76.5 ± 0.0

Data: `imagenet2012` as TFDS prepares it from the archives of image-net.org, or ImageNet's own
folders, with `--config.data.name=imagenet --config.data.folder=FOLDER`. See docs/data.md; 1,281,167
training and 50,000 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "mocov3", "in1k")
