"""Spawrious (o2o hard) in 4 images, for CLIP ViT-B/16: the paper's recipe.

    python launch.py --config=configs/clip_spawrious.py --config.data.folder=FOLDER \
        --workdir=runs/clip_spawrious

Cost: 5,000 steps of 40 views of the images and as many real ones, 4.27 TFLOP each. Predicted, not
measured: the arithmetic alone takes under 5 min on one H100 at 45% of 790 TFLOP/s, if the host
decodes 3,300 photos a second, and 21 min for the probes.

Accuracy in the paper (Table 4: top-1 in percent on test, one image per class, mean and std):

    distilled 43.1 ± 6.4
    neighbors 41.7 ± 4.6, centroids 44.8 ± 5.0, random 46.2 ± 4.4, full 50.4 ± 0.3

Data: FOLDER is `spawrious224`, as the archive of Spawrious' authors unpacks
(github.com/aengusl/spawrious). See docs/data.md; 25,344 training and 25,344 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "clip", "spawrious")
