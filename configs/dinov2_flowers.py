"""Flowers-102 in 102 images, for DINOv2 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/dinov2_flowers.py --workdir=runs/dinov2_flowers

Cost: 5,000 steps of 1,020 views of the images and as many real ones, 191 TFLOP each. Predicted, not
measured: the arithmetic alone takes 45 min on one H100 at 45% of 790 TFLOP/s, if the host decodes
1,900 photos a second, and 5.6 min for the probes.

Accuracy in the paper (Table B.1: top-1 in percent on test, one image per class, mean and std):

    distilled 99.6 ± 0.0
    neighbors 99.4 ± 0.2, centroids 99.4 ± 0.1, random 98.8 ± 0.4, full 99.7 ± 0.0

Data: `oxford_flowers102` as TFDS prepares it (`tfds build oxford_flowers102
--file_format=array_record`). See docs/data.md; 1,020 training and 6,149 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "dinov2", "flowers")
