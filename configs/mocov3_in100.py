"""ImageNet-100 in 100 images, for MoCo-v3 ViT-B/16: the paper's recipe.

    python launch.py --config=configs/mocov3_in100.py --workdir=runs/mocov3_in100

Cost: 5,000 steps of 1,000 views of the images and as many real ones, 142 TFLOP each. Predicted, not
measured: the arithmetic alone takes 33 min on one H100 at 45% of 790 TFLOP/s, if the host decodes
2,500 photos a second, and under 5 min for the probes. The authors: about 3 hours on one H200.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 83.4 ± 0.1
    neighbors 77.1 ± 0.1, centroids 77.7 ± 0.1, random 61.4 ± 2.6, full 89.4 ± 0.3

Data: `imagenet2012` as TFDS prepares it from the archives of image-net.org, or ImageNet's own
folders, with `--config.data.name=imagenet --config.data.folder=FOLDER`. See docs/data.md; 128,116
training and 5,000 test images, about.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "mocov3", "in100")
