"""CUB-200-2011 in 200 images, for CLIP ViT-B/16: the paper's recipe.

    python launch.py --config=configs/clip_cub.py --workdir=runs/clip_cub

Cost: 5,000 steps of 2,000 views of the images and as many real ones, 284 TFLOP each. Predicted, not
measured: the arithmetic alone takes 1.1 h on one H100 at 45% of 790 TFLOP/s, if the host decodes
2,500 photos a second, and 12 min for the probes.

Accuracy in the paper (Table 5: top-1 in percent on test, one image per class, mean and std):

    distilled 62.2 ± 0.2
    neighbors 39.4 ± 0.1, centroids 54.3 ± 0.2, random 37.5 ± 1.6, full 77.5 ± 0.7

Data: `caltech_birds2011` as TFDS prepares it (`tfds build caltech_birds2011
--file_format=array_record`). See docs/data.md; 5,994 training and 5,794 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "clip", "cub")
