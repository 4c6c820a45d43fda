"""Other sizes of one family: images distilled against DINOv2 S, B or L, evaluated on all three.

    python launch.py --config=configs/experiments/sizes.py --workdir=runs/sizes

ImageNet-100; the paper has ViT-B alone, which takes about 3 hours on one H200; S takes about a
quarter of its operations and L three and a half times as many. Another family:
`--config.experiment.backbones=mocov3_vits16,mocov3_vitb16`. `--plan` says what a step of each
takes, without data or weights.
"""

import functools

from configs.experiments import _base

_SMALL = (
    "its backbones are of one size; see --config=configs/experiments/sizes.py --plan for what the "
    "paper's scale takes"
)

get_config = functools.partial(
    _base.build,
    "sizes",
    {"paper": {"backbones": "dinov2_vits14,dinov2_vitb14,dinov2_vitl14"}},
    missing={"embedded": _SMALL, "quick": _SMALL},
)
