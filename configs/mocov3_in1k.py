"""ImageNet-1k in 1,000 images, for MoCo-v3 ViT-B/16: the recipe `configs/paper.py:mocov3,in1k`.

    python launch.py --config=configs/mocov3_in1k.py --workdir=runs/mocov3_in1k

Cost: 5,000 steps of 3,000 views of the images and as many real ones, 426 TFLOP each. The authors:
about 12 hours on four H200. Predicted, not measured: 1.7 h of arithmetic on one H100 at 45% of 790
TFLOP/s, if the host decodes 2,500 photos a second, and 18 h for the probes: nearly all
of it on all real images, which `--config.probe.full_augment=none` makes minutes.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 63.2 ± 0.0
    neighbors 56.4 ± 0.0, centroids 57.4 ± 0.0, random 38.8 ± 0.6, full 76.5 ± 0.0

Data, and the words that may stand behind a colon: docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(arg: str | None = None) -> ConfigDict:
    return paper.recipe("mocov3", "in1k", arg)
