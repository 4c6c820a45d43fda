"""Spawrious (o2o hard) in 4 images, for EVA-02 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/eva02_spawrious.py --config.data.folder=FOLDER \
        --workdir=runs/eva02_spawrious

Cost: 5,000 steps of 40 views of the images and as many real ones, 5.66 TFLOP each. Predicted, not
measured: the arithmetic alone takes under 5 min on one H100 at 45% of 790 TFLOP/s, if the host
decodes 2,500 photos a second, and 28 min for the probes.

Accuracy in the paper (Table 4: top-1 in percent on test, one image per class, mean and std):

    distilled 36.5 ± 3.1
    neighbors 40.7 ± 2.7, centroids 38.1 ± 3.3, random 33.3 ± 5.3, full 50.1 ± 0.4

Data: FOLDER is `spawrious224`, as the archive of Spawrious' authors unpacks
(github.com/aengusl/spawrious). See docs/data.md; 25,344 training and 25,344 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "eva02", "spawrious")
