"""Experiments without runs: their configs, and results as finished runs would have them."""

import functools
from pathlib import Path

import numpy as np

import launch
from lgm_jax import experiments
from lgm_jax.experiments import runner
from lgm_jax.settings import split_list

ROOT = Path(__file__).parents[1]


PATHS = sorted((ROOT / "configs" / "experiments").glob("[!_]*.py"))


GIVEN = "--config.experiment.backbones=here/first,there/second"


# Of a step of each objective.
SECONDS = {"lgm": 2.0, "sfm": 1.0, "clp": 4.0}


def load(name, scale="", *flags):
    """The config of an experiment."""
    path = ROOT / "configs" / "experiments" / f"{name}.py"
    arguments = ["launch.py", f"--config={path}{scale}", "--workdir=x", *flags]
    return launch.parse(arguments)[0]


def entry(*top1):
    """An entry of results.json."""
    std = float(np.std(top1, ddof=1)) if len(top1) > 1 else None
    return {"top1_mean": float(np.mean(top1)), "top1_std": std, "top1_runs": list(top1)}


def fabricate(planned, score, taught=()):
    """The outcome of a run whose accuracies are `score(axes, method, evaluated)`, two probes each.

    What it measures, if anything, is what the objectives cost. With a teacher, the method is
    `method, targets`.
    """
    changes = planned.changes
    stages = split_list(changes["stages"])
    methods = ["distilled"] if "distill" in stages else []
    if "baselines" in stages:
        methods += split_list(changes["baselines"])

    def probes(methods, more=""):
        return {
            # As a backbone of a folder is named.
            Path(name).name: {
                method: entry(*(score(planned.axes, method + more, name) + d for d in (-1, 1)))
                for method in methods
            }
            for name in split_list(changes["eval_backbones"])
        }

    seconds = SECONDS[changes.get("objective", "lgm")]
    # The first line's seconds hold compilation.
    lines = [{"step": step, "seconds": 100 + seconds * step} for step in (2, 4, 6)]
    few = [method for method in methods if method != "full"]
    results = {
        "probe": probes(methods),
        "taught": {targets: probes(few, f", {targets}") for targets in taught},
    }
    results |= {"dataset": "photos", "steps": changes.get("steps", 6), "labels": {"bytes": 40}}
    costs = {name: {"seconds": took, "bytes": 5_000_000} for name, took in SECONDS.items()}
    measured = costs if planned.measure else None
    return runner.Outcome(planned, results, lines, measured)


def outcomes_of(config, score):
    """Every run of an experiment, and of those that it plans once the first are finished."""
    plan = functools.partial(experiments.find(config).plan, config)
    taught = split_list(config.probe.teacher)
    return runner.find_outcomes(plan, lambda planned: fabricate(planned, score, taught))


def studies_of(config, score):
    return experiments.find(config).studies(config, outcomes_of(config, score))


def tabulate(config, score):
    return experiments.tabulate(experiments.find(config), config, studies_of(config, score))


def flat_score(where, method, backbone):
    """Real images 50, all 90, distilled 70."""
    return {"distilled": 70.0, "full": 90.0}.get(method, 50.0)
