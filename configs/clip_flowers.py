"""Flowers-102 in 102 images, for CLIP ViT-B/16: the paper's recipe.

    python launch.py --config=configs/clip_flowers.py --workdir=runs/clip_flowers

Cost: 5,000 steps of 1,020 views of the images and as many real ones, 145 TFLOP each. Predicted, not
measured: the arithmetic alone takes 34 min on one H100 at 45% of 790 TFLOP/s, if the host decodes
2,500 photos a second, and under 5 min for the probes.

Accuracy in the paper (Table B.1: top-1 in percent on test, one image per class, mean and std):

    distilled 79.5 ± 1.2
    neighbors 69.4 ± 0.8, centroids 77.5 ± 0.7, random 67.9 ± 1.1, full 93.4 ± 0.1

Data: `oxford_flowers102` as TFDS prepares it (`tfds build oxford_flowers102
--file_format=array_record`). See docs/data.md; 1,020 training and 6,149 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "clip", "flowers")
