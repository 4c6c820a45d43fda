"""ImageNet-100 in 100 images, for CLIP ViT-B/16: the recipe `configs/paper.py:clip,in100`.

    python launch.py --config=configs/clip_in100.py --workdir=runs/clip_in100

Cost: 5,000 steps of 1,000 views of the images and as many real ones, 107 TFLOP each. The authors:
about 3 hours on one H200. Predicted, not measured: 25 min of arithmetic on one H100 at 45% of 790
TFLOP/s, if the host decodes 3,300 photos a second, and 1.8 h for the probes: nearly all
of it on all real images, which `--config.probe.full_augment=none` makes minutes.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 84.9 ± 0.1
    neighbors 67.8 ± 0.3, centroids 77.1 ± 0.1, random 56.6 ± 1.6, full 92.5 ± 0.0

Data, and the words that may stand behind a colon: docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(arg: str | None = None) -> ConfigDict:
    return paper.recipe("clip", "in100", arg)
