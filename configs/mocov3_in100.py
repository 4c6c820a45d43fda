"""ImageNet-100 in 100 images, for MoCo-v3 ViT-B/16: the recipe `configs/paper.py:mocov3,in100`.

    python launch.py --config=configs/mocov3_in100.py --workdir=runs/mocov3_in100

Cost: 5,000 steps of 1,000 views of the images and as many real ones, 107 TFLOP each. The authors:
about 3 hours on one H200. Predicted, not measured: 25 min of arithmetic on one H100 at 45% of 790
TFLOP/s, if the host decodes 3,300 photos a second, and 1.8 h for the probes: nearly all
of it on all real images, which `--config.probe.full_augment=none` makes minutes.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 83.4 ± 0.1
    neighbors 77.1 ± 0.1, centroids 77.7 ± 0.1, random 61.4 ± 2.6, full 89.4 ± 0.3

Data, and the words that may stand behind a colon: docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(arg: str | None = None) -> ConfigDict:
    return paper.recipe("mocov3", "in100", arg)
