"""Ridge and temperature of the objective `clp`, chosen on validation images.

    python launch.py --config=configs/experiments/clp.py --workdir=runs/clp

Twelve pairs for each of four backbones on ImageNet-100, of whose training images a tenth is held
out; about 3 hours on one H200 for each run of as many steps in the paper. The best pair is for
`--config.clp.ridge` and `--config.clp.temperature` of the experiment `objectives`. See
docs/experiments.md for `:embedded`, `:imagenette`, `:quick`.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build,
    "clp",
    {
        "all": {"ridges": "0.001,0.01,0.1,1", "temperatures": "0.03,0.1,0.3"},
        "embedded": _base.ONE | {"seeds": 1, "ridges": "0.002,0.02,0.2,2"},
        "imagenette": {"seeds": 1, "ridges": "0.01,0.1,1,10"},
        "quick": _base.ONE | {"ridges": "1", "temperatures": "0.1,0.3"},
    },
    changes={"paper": {"data.val_fraction": 0.1}},
)
