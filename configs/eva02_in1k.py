"""ImageNet-1k in 1,000 images, for EVA-02 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/eva02_in1k.py --workdir=runs/eva02_in1k

Cost: 5,000 steps of 3,000 views of the images and as many real ones, 563 TFLOP each. Predicted, not
measured: the arithmetic alone takes 2.2 h on one H100 at 45% of 790 TFLOP/s, if the host decodes
1,900 photos a second, and 46 min for the probes. The authors: about 12 hours on four H200.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 70.3 ± 0.1
    neighbors 49.9 ± 0.1, centroids 58.1 ± 0.1, random 37.7 ± 0.4, full 81.7 ± 0.1

Data: `imagenet2012` as TFDS prepares it from the archives of image-net.org, or ImageNet's own
folders, with `--config.data.name=imagenet --config.data.folder=FOLDER`. See docs/data.md; 1,281,167
training and 50,000 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "eva02", "in1k")
