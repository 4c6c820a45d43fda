"""Food-101 in 101 images, for MoCo-v3 ViT-B/16: the paper's recipe.

    python launch.py --config=configs/mocov3_food.py --workdir=runs/mocov3_food

Cost: 5,000 steps of 1,010 views of the images and as many real ones, 143 TFLOP each. Predicted, not
measured: the arithmetic alone takes 34 min on one H100 at 45% of 790 TFLOP/s, if the host decodes
2,500 photos a second, and under 5 min for the probes.

Accuracy in the paper (Table B.1: top-1 in percent on test, one image per class, mean and std):

    distilled 31.6 ± 3.2
    neighbors 25.2 ± 1.3, centroids 22.7 ± 2.0, random 13.5 ± 1.7, full 78.3 ± 0.0

Data: `food101` as TFDS prepares it (`tfds build food101 --file_format=array_record`). See
docs/data.md; 75,750 training and 25,250 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "mocov3", "food")
