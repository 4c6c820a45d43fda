"""ImageNet-1k in 1,000 images, for CLIP ViT-B/16: the recipe `configs/paper.py:clip,in1k`.

    python launch.py --config=configs/clip_in1k.py --workdir=runs/clip_in1k

Cost: 5,000 steps of 3,000 views of the images and as many real ones, 426 TFLOP each. The authors:
about 12 hours on four H200. Predicted, not measured: 1.7 h of arithmetic on one H100 at 45% of 790
TFLOP/s, if the host decodes 2,500 photos a second, and 18 h for the probes: nearly all
of it on all real images, which `--config.probe.full_augment=none` makes minutes.

Accuracy in the paper (Table 1: top-1 in percent on test, one image per class, mean and std):

    distilled 63.0 ± 0.0
    neighbors 38.8 ± 0.1, centroids 53.9 ± 0.0, random 31.7 ± 0.5, full 78.7 ± 0.0

Data, and the words that may stand behind a colon: docs/recipes.md.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(arg: str | None = None) -> ConfigDict:
    return paper.recipe("clip", "in1k", arg)
