"""Table 2 of the paper: images distilled against one backbone, evaluated on every other.

    python launch.py --config=configs/experiments/table2.py --workdir=runs/table2 \
        --config.experiment.share=runs/table1

reuses the runs of table 1 and adds probes; without `share` it makes them, at the cost of table 1.
See docs/experiments.md for the other scales: `:embedded`, `:imagenette`, `:quick`.
"""

import functools

from configs.experiments import _base

get_config = functools.partial(
    _base.build, "table2", {"paper": {"sets": "imagenet-100,imagenet-1k"}}
)
