"""One GPU, 20 minutes: the paper's recipe on Imagenette for DINOv2 ViT-S/14 and CLIP ViT-B/32.

    python launch.py --config=configs/experiments/verify_gpu.py --workdir=runs/verify_gpu

Whoever has a GPU for that long closes our last gap: docs/verify_gpu.md says what is compared and
how to send `verify_gpu.zip`, which the command writes beside `table.md`. It downloads what it
needs: weights from the hub (700 MB), and Imagenette's archive (342 MB), unless TFDS has prepared
the set (`imagenette/320px-v2`) or `--config.data.folder` names the folder that the archive unpacks
to.

The paper's recipe, 5,000 steps, but for the probe of all real images, which sees four augmentations
of each instead of new ones in every epoch. No accuracy is known to expect, and the time is
predicted, not measured. `:quick` takes two steps for the backbones of the package, on a CPU too.
"""

import functools

from configs.experiments import _base

_MISSING = "it is for the published backbones; try it with :quick"

get_config = functools.partial(
    _base.build,
    "verify_gpu",
    {
        "all": {"sets": "imagenette"},
        "paper": {"backbones": "dinov2_vits14,clip_vitb32"},
        "quick": {"backbones": "digits_contrastive,digits_distilled"},
    },
    changes={
        "paper": {"probe.full_augment": "views", "probe.views": 4},
        "quick": {"images.grey": False},
    },
    missing={"embedded": _MISSING, "imagenette": _MISSING},
)
