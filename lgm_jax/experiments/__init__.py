"""Experiments: sets of runs, and the tables and figures that come of them.

An experiment's config is an ordinary config with one section more, `experiment`. `launch.py` hands
it to `run`, which makes the runs, each in a run folder of its own, and writes `table.md`,
`table.csv`, `figure.png`, `figure.svg` and `images.png` beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from lgm_jax.errors import unknown_name
from lgm_jax.experiments import (
    ablations,
    accuracy,
    alignment,
    class_means,
    edges,
    groups,
    objectives,
)
from lgm_jax.experiments.runner import SECTION, Experiment, configs_of, run, without_section

__all__ = ["NAMES", "SECTION", "find", "planned_configs", "run", "without_section"]

NAMES: Mapping[str, Experiment] = {
    "table1": Experiment(accuracy.plan_table1, accuracy.tabulate_table1),
    "table2": Experiment(accuracy.plan_table2, accuracy.tabulate_table2),
    "table3": Experiment(ablations.plan_table3, ablations.tabulate_table3),
    "figure3": Experiment(ablations.plan_figure3, ablations.tabulate_figure3),
    "table4": Experiment(groups.plan_table4, groups.tabulate_table4),
    "table6": Experiment(alignment.plan_table6, alignment.tabulate_table6),
    "figure4": Experiment(edges.plan_figure4, edges.tabulate_figure4),
    "class_means": Experiment(class_means.plan_class_means, class_means.tabulate_class_means),
    "table5": Experiment(accuracy.plan_table1, accuracy.tabulate_table5),
    "ipc": Experiment(ablations.plan_ipc, ablations.tabulate_ipc),
    "sizes": Experiment(accuracy.plan_table2, accuracy.tabulate_sizes),
    "objectives": Experiment(objectives.plan_objectives, objectives.tabulate_objectives),
    "clp": Experiment(objectives.plan_clp, objectives.tabulate_clp),
}


def find(config: ConfigDict) -> Experiment:
    """The experiment that a config's section names.

    Raises:
        UserError: If there is no such experiment.
    """
    name = config[SECTION].name
    if name not in NAMES:
        raise unknown_name("experiment", name, list(NAMES))
    return NAMES[name]


def planned_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """The configs of an experiment's runs, by name, as far as they are known before any is made."""
    return configs_of(find(config).plan(config, {}), config)
