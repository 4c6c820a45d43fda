"""Objectives lgm, sfm and clp against each other, and several backbones at once.

    python launch.py --config=configs/experiments/objectives.py --workdir=runs/objectives

Compares, at equal steps and at equal time, accuracy on the same backbone and on others, seconds and
memory; on the first backbone, the sources of real features (stream, cached, exact) and soft labels;
and images distilled against every pair of backbones at once with those of each alone. Not in the
paper.

ImageNet-100 and four backbones: 12 runs at equal steps and 8 at equal time, 6 of pairs, and 7 on
the first backbone; one run of the paper takes about 3 hours on one H200. See
docs/experiments.md for `:embedded`, `:imagenette`, `:quick`.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build,
    "objectives",
    {
        "all": {
            "objectives": "lgm,sfm,clp",
            "sources": "stream,cached,exact",
            # Learned labels, and pairs of backbones.
            "soft": True,
            "joint": True,
        },
        "embedded": _base.TWO,
        "imagenette": {"seeds": 1, "sources": "", "soft": False},
        "quick": _base.TWO | {"objectives": "sfm", "sources": "", "soft": False},
    },
    # By the experiment `clp`, on validation images, as good as the best within its error.
    changes={"embedded": {"clp.ridge": 0.02, "clp.temperature": 0.3}},
)
