"""Food-101 in 101 images, for EVA-02 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/eva02_food.py --workdir=runs/eva02_food

Cost: 5,000 steps of 1,010 views of the images and as many real ones, 190 TFLOP each. Predicted, not
measured: the arithmetic alone takes 44 min on one H100 at 45% of 790 TFLOP/s, if the host decodes
1,900 photos a second, and under 5 min for the probes.

Accuracy in the paper (Table B.1: top-1 in percent on test, one image per class, mean and std):

    distilled 83.9 ± 0.2
    neighbors 71.5 ± 0.3, centroids 76.4 ± 0.4, random 49.9 ± 0.6, full 92.0 ± 0.0

Data: `food101` as TFDS prepares it (`tfds build food101 --file_format=array_record`). See
docs/data.md; 75,750 training and 25,250 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "eva02", "food")
