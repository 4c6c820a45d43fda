"""ArtBench-10 in 10 images, for DINO ViT-B/16: the paper's recipe.

    python launch.py --config=configs/dino_artbench.py --config.data.folder=FOLDER \
        --workdir=runs/dino_artbench

Cost: 5,000 steps of 100 views of the images and as many real ones, 10.7 TFLOP each. Predicted, not
measured: the arithmetic alone takes under 5 min on one H100 at 45% of 790 TFLOP/s, if the host
decodes 3,300 photos a second, and under 5 min for the probes.

The paper shows images of this, and gives no accuracy for it.

Data: FOLDER is where `artbench-10-imagefolder-split.tar` was unpacked, the archive of 256 px images
that ArtBench's authors give (github.com/liaopeiyuan/artbench). See docs/data.md; 50,000 training
and 10,000 test images.

Behind a colon: `paper`, `authors_2025`, `authors_2026`, `cached`, `quick`; see docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import _recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `_recipes.recipe` says what `arg` may be."""
    return _recipes.recipe(arg, "dino", "artbench")
