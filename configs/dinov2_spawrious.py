"""Spawrious (o2o hard) in 4 images, for DINOv2 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/dinov2_spawrious.py --config.data.folder=FOLDER \
        --workdir=runs/dinov2_spawrious

Cost: 5,000 steps of 40 views of the images and as many real ones, 5.66 TFLOP each. Predicted, not
measured: the arithmetic alone takes under 5 min on one H100 at 45% of 790 TFLOP/s, if the host
decodes 2,500 photos a second, and 28 min for the probes.

Accuracy in the paper (Table 4: top-1 in percent on test, one image per class, mean and std):

    distilled 80.8 ± 3.1
    neighbors 76.9 ± 1.2, centroids 80.2 ± 2.7, random 68.1 ± 8.1, full 78.1 ± 0.1

Data: FOLDER is `spawrious224`, as the archive of Spawrious' authors unpacks
(github.com/aengusl/spawrious). See docs/data.md; 25,344 training and 25,344 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "dinov2", "spawrious")
