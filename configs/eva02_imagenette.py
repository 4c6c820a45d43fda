"""Imagenette in 10 images, for EVA-02 ViT-B/14: the paper's recipe.

    python launch.py --config=configs/eva02_imagenette.py --workdir=runs/eva02_imagenette

Cost: 5,000 steps of 100 views of the images and as many real ones, 14.1 TFLOP each. Predicted, not
measured: the arithmetic alone takes under 5 min on one H100 at 45% of 790 TFLOP/s, if the host
decodes 2,500 photos a second, and 11 min for the probes. The authors: about 30 minutes on one RTX
4090, for ImageNet-Birds.

The paper gives no accuracy for it.

Data: `imagenette` as TFDS prepares it, which anyone can get. It is split otherwise than the
paper's, which is `--config.data.name=imagenet2012 --config.data.subset=imagenette`. See
docs/data.md; 9,469 training and 3,925 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "eva02", "imagenette")
