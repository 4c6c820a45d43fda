"""ImageNet-100 in 100 images, for DINOv2 ViT-B/14: the recipe `configs/paper.py:dinov2,in100`.

    python launch.py --config=configs/dinov2_in100.py --workdir=runs/dinov2_in100

Cost: 5,000 steps of 1,000 views of the images and as many real ones, 141 TFLOP each. The authors:
about 3 hours on one H200. Predicted, not measured: 33 min of arithmetic on one H100 at 45% of 790
TFLOP/s, if the host decodes 2,500 photos a second, and 2.4 h for the probes: nearly all
of it on all real images, which `--config.probe.full_augment=none` makes minutes.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 91.5 ± 0.1
    neighbors 86.0 ± 0.2, centroids 86.9 ± 0.3, random 74.8 ± 2.8, full 95.2 ± 0.1

Data, and the words that may stand behind a colon: docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(arg: str | None = None) -> ConfigDict:
    return paper.recipe("dinov2", "in100", arg)
