"""ImageNet-100 in 100 images, for EVA-02 ViT-B/14: the recipe `configs/paper.py:eva02,in100`.

    python launch.py --config=configs/eva02_in100.py --workdir=runs/eva02_in100

Cost: 5,000 steps of 1,000 views of the images and as many real ones, 188 TFLOP each. The authors:
about 3 hours on one H200. Predicted, not measured: 44 min of arithmetic on one H100 at 45% of 790
TFLOP/s, if the host decodes 1,900 photos a second, and 2.4 h for the probes: nearly all
of it on all real images, which `--config.probe.full_augment=none` makes minutes.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 89.0 ± 0.0
    neighbors 78.8 ± 0.2, centroids 80.9 ± 0.2, random 64.5 ± 2.7, full 94.1 ± 0.1

Data, and the words that may stand behind a colon: docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(arg: str | None = None) -> ConfigDict:
    return paper.recipe("eva02", "in100", arg)
