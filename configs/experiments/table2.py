"""Table 2 of the paper: images distilled against one backbone, evaluated on every other.

    python launch.py --config=configs/experiments/table2.py --workdir=runs/table2 \
        --config.experiment.share=runs/table1

reuses the runs of table 1 and adds probes; without `share` it makes them, at the cost of table 1.
See docs/experiments.md for the other scales: `:embedded`, `:imagenette`, `:quick`.
"""

from ml_collections import ConfigDict

from configs.experiments import _base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the experiment, at the scale of the argument."""
    return _base.build("table2", arg, {"paper": {"sets": "imagenet-100,imagenet-1k"}})
