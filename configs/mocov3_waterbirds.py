"""Waterbirds in 2 images, for MoCo-v3 ViT-B/16: the paper's recipe.

    python launch.py --config=configs/mocov3_waterbirds.py --config.data.folder=FOLDER \
        --workdir=runs/mocov3_waterbirds

Cost: 5,000 steps of 20 views of the images and as many real ones, 2.14 TFLOP each. Predicted, not
measured: the arithmetic alone takes under 5 min on one H100 at 45% of 790 TFLOP/s, if the host
decodes 3,300 photos a second, and under 5 min for the probes.

Accuracy in the paper (Table 4: top-1 in percent on test, one image per class, mean and std):

    distilled 77.8 ± 0.0
    neighbors 45.2 ± 11.4, centroids 62.0 ± 5.2, random 67.4 ± 5.7, full 74.3 ± 0.1

Data: FOLDER is `waterbirds_v1.0`, as WILDS unpacks it (wilds.stanford.edu). See docs/data.md; 4,795
training and 5,794 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "mocov3", "waterbirds")
