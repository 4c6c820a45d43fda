"""Table 6 of the paper: 1-NN transfer of distilled images, and alignment of backbones.

    python launch.py --config=configs/experiments/table6.py --workdir=runs/table6 \
        --config.experiment.share=runs/table2

ImageNet-1k, four backbones; reuses the runs of table 2, and without `share` makes them: 12 hours on
four H200 each in the paper. Adds the correlation, which the paper does not report, and linear CKA
beside mutual k-NN; `--config.experiment.neighbors` is k, which the paper does not state.
`:embedded` takes all backbones of the package, which are few: see the result's note. `:quick` tries
everything; `:imagenette` needs `--config.experiment.backbones=FOLDER,FOLDER,...`.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build, "table6", {"all": {"neighbors": 10}, "paper": {"sets": "imagenet-1k"}}
)
