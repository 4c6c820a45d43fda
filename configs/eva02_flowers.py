"""Flowers-102 in 102 images, for EVA-02 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/eva02_flowers.py --workdir=runs/eva02_flowers

Cost: 5,000 steps of 1,020 views of the images and as many real ones, 191 TFLOP each. Predicted, not
measured: the arithmetic alone takes 45 min on one H100 at 45% of 790 TFLOP/s, if the host decodes
1,900 photos a second, and 5.6 min for the probes.

Accuracy in the paper (Table B.1: top-1 in percent on test, one image per class, mean and std):

    distilled 97.8 ± 0.1
    neighbors 90.8 ± 0.2, centroids 95.6 ± 0.3, random 91.0 ± 0.8, full 98.9 ± 0.0

Data: `oxford_flowers102` as TFDS prepares it (`tfds build oxford_flowers102
--file_format=array_record`). See docs/data.md; 1,020 training and 6,149 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "eva02", "flowers")
