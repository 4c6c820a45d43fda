"""Objectives lgm, sfm and clp against each other, and several backbones at once.

    python launch.py --config=configs/experiments/objectives.py --workdir=runs/objectives

At equal steps and at equal time: accuracy on the same backbone and on others, seconds, memory. The
sources of real features (stream, cached, exact) and soft labels on the first backbone; and images
distilled against every pair of backbones at once beside those of each alone, evaluated on all.
Nobody has published this comparison.

ImageNet-100 and four backbones at this scale: 12 runs at equal steps and 8 at equal time, 6 of
pairs, and 7 on the first backbone; the paper's run takes about 3 hours on one H200. See
docs/experiments.md for `:embedded`, `:imagenette` (100 steps), `:quick`.
"""

from ml_collections import ConfigDict

from configs.experiments import _base


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment, at the scale that the argument names."""
    config = _base.build(
        "objectives",
        arg,
        {
            "all": {
                "objectives": "lgm,sfm,clp",
                "sources": "stream,cached,exact",
                # Learned labels, and pairs of backbones.
                "soft": True,
                "joint": True,
            },
            "embedded": _base.TWO,
            "quick": _base.TWO | {"objectives": "sfm", "sources": "", "soft": False},
        },
    )
    if config.experiment.scale == "embedded":
        # The best that the experiment `clp` found on validation images.
        config.clp.update(ridge=0.02, temperature=0.3)
    return _base.as_published(config, "clp", steps=100, grow_until=0.48)
