"""Stanford Dogs in 120 images, for CLIP ViT-B/16: the paper's recipe.

    python launch.py --config=configs/clip_dogs.py --workdir=runs/clip_dogs

Cost: 5,000 steps of 1,200 views of the images and as many real ones, 170 TFLOP each. Predicted, not
measured: the arithmetic alone takes 40 min on one H100 at 45% of 790 TFLOP/s, if the host decodes
2,500 photos a second, and 14 min for the probes.

Accuracy in the paper (Table 5: top-1 in percent on test, one image per class, mean and std):

    distilled 52.1 ± 0.2
    neighbors 33.4 ± 0.1, centroids 43.3 ± 0.1, random 23.3 ± 1.5, full 76.9 ± 0.1

Data: `stanford_dogs` as TFDS prepares it (`tfds build stanford_dogs --file_format=array_record`).
See docs/data.md; 12,000 training and 8,580 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "clip", "dogs")
