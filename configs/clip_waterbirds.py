"""Waterbirds in 2 images, for CLIP ViT-B/16: the paper's recipe.

    python launch.py --config=configs/clip_waterbirds.py --config.data.folder=FOLDER \
        --workdir=runs/clip_waterbirds

Cost: 5,000 steps of 20 views of the images and as many real ones, 2.14 TFLOP each. Predicted, not
measured: the arithmetic alone takes under 5 min on one H100 at 45% of 790 TFLOP/s, if the host
decodes 3,300 photos a second, and under 5 min for the probes.

Accuracy in the paper (Table 4: top-1 in percent on test, one image per class, mean and std):

    distilled 77.9 ± 0.2
    neighbors 74.6 ± 6.5, centroids 69.8 ± 8.6, random 71.9 ± 4.5, full 86.0 ± 0.1

Data: FOLDER is `waterbirds_v1.0`, as WILDS unpacks it (wilds.stanford.edu). See docs/data.md; 4,795
training and 5,794 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "clip", "waterbirds")
