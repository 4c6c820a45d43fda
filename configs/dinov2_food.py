"""Food-101 in 101 images, for DINOv2 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/dinov2_food.py --workdir=runs/dinov2_food

Cost: 5,000 steps of 1,010 views of the images and as many real ones, 190 TFLOP each. Predicted, not
measured: the arithmetic alone takes 44 min on one H100 at 45% of 790 TFLOP/s, if the host decodes
1,900 photos a second, and under 5 min for the probes.

Accuracy in the paper (Table B.1: top-1 in percent on test, one image per class, mean and std):

    distilled 83.7 ± 0.3
    neighbors 73.8 ± 0.4, centroids 75.6 ± 0.1, random 52.8 ± 1.9, full 92.7 ± 0.1

Data: `food101` as TFDS prepares it (`tfds build food101 --file_format=array_record`). See
docs/data.md; 75,750 training and 25,250 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "dinov2", "food")
