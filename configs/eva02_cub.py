"""CUB-200-2011 in 200 images, for EVA-02 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/eva02_cub.py --workdir=runs/eva02_cub

Cost: 5,000 steps of 2,000 views of the images and as many real ones, 375 TFLOP each. Predicted, not
measured: the arithmetic alone takes 1.5 h on one H100 at 45% of 790 TFLOP/s, if the host decodes
1,900 photos a second, and 15 min for the probes.

Accuracy in the paper (Table 5: top-1 in percent on test, one image per class, mean and std):

    distilled 74.1 ± 0.2
    neighbors 52.6 ± 0.3, centroids 59.9 ± 0.3, random 44.3 ± 1.5, full 84.0 ± 0.3

Data: `caltech_birds2011` as TFDS prepares it (`tfds build caltech_birds2011
--file_format=array_record`). See docs/data.md; 5,994 training and 5,794 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "eva02", "cub")
