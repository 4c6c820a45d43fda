"""ImageNet-1k in 1,000 images, for DINOv2 ViT-B/14: the recipe `configs/paper.py:dinov2,in1k`.

    python launch.py --config=configs/dinov2_in1k.py --workdir=runs/dinov2_in1k

Cost: 5,000 steps of 3,000 views of the images and as many real ones, 563 TFLOP each. The authors:
about 12 hours on four H200. Predicted, not measured: 2.2 h of arithmetic on one H100 at 45% of 790
TFLOP/s, if the host decodes 1,900 photos a second, and 24 h for the probes: nearly all
of it on all real images, which `--config.probe.full_augment=none` makes minutes.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 75.0 ± 0.1
    neighbors 67.7 ± 0.1, centroids 69.5 ± 0.1, random 50.3 ± 0.5, full 83.0 ± 0.0

Data, and the words that may stand behind a colon: docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(arg: str | None = None) -> ConfigDict:
    return paper.recipe("dinov2", "in1k", arg)
