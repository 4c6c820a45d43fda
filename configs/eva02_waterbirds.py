"""Waterbirds in 2 images, for EVA-02 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/eva02_waterbirds.py --config.data.folder=FOLDER \
        --workdir=runs/eva02_waterbirds

Cost: 5,000 steps of 20 views of the images and as many real ones, 2.83 TFLOP each. Predicted, not
measured: the arithmetic alone takes under 5 min on one H100 at 45% of 790 TFLOP/s, if the host
decodes 2,500 photos a second, and 5.3 min for the probes.

Accuracy in the paper (Table 4: top-1 in percent on test, one image per class, mean and std):

    distilled 78.0 ± 0.8
    neighbors 74.3 ± 3.3, centroids 64.6 ± 7.9, random 59.8 ± 13.3, full 90.4 ± 0.2

Data: FOLDER is `waterbirds_v1.0`, as WILDS unpacks it (wilds.stanford.edu). See docs/data.md; 4,795
training and 5,794 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "eva02", "waterbirds")
