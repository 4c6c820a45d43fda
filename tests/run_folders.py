"""Run folders made by hand, for the tests of the page: everything but the distilling."""

from __future__ import annotations

import json
import shlex

import numpy as np
from etils import epath

from lgm_jax import files, predictions, runs
from lgm_jax.report import gallery, plane, timelapse

NAMES = ("zero", "one", "two", "three")

EMPTY = {"ipc": 1, "objective": "lgm", "steps": 3, "backbones": [], "probe": {}}
"""The least that `results.json` holds."""


def blobs(rng, count, side):
    """Smooth random images."""
    coarse = rng.random((count, 4, 4, 3), np.float32)
    return np.repeat(np.repeat(coarse, side // 4, axis=1), side // 4, axis=2)


def probe_entry(mean, std=1.0, groups=None):
    """An entry of `results.json`."""
    return {
        "top1_mean": mean,
        "top1_std": std,
        "top5_mean": None,
        "top5_std": None,
        "top1_runs": [mean, mean],
        "solver": "lbfgs",
        "epochs": 100,
        "augment": "views",
        "split": "test",
        "groups": groups,
        "worst_group": min(groups.values()) if groups else 0,
        "loss_curve": None,
        "per_class": None,
        "confusion": None,
        "against": None,
    }


def by_class(rng, mean, classes, images=20):
    """Accuracies by class and a confusion matrix of about that accuracy."""
    labels = np.repeat(np.arange(classes), images)
    # Wrong ones are taken for the next class.
    named = np.where(rng.random(len(labels)) < mean / 100, labels, (labels + 1) % classes)[None]
    return {
        "per_class": predictions.by_class(named, labels, classes),
        "confusion": predictions.confusion(named, labels),
    }


def write_run(
    folder,
    *,
    names=NAMES,
    ipc=1,
    side=32,
    backbone="near",
    evaluated=("near", "far"),
    groups=None,
    images=None,
    steps=(10, 20, 30),
    seed=0,
    finished=True,
):
    """Writes what a run leaves behind, as far as a page reads it; gives the folder."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(names), dtype=np.int32), ipc)
    images = blobs(rng, len(labels), side) if images is None else images
    identity = {"data.fingerprint": "d" * 64, "backbone.name": backbone}
    settings = {
        "ipc": ipc,
        "steps": steps[-1],
        "seed": seed,
        "objective": "lgm",
        "image_every": 10,
        "backbone.name": backbone,
        "images.kind": "pyramid",
        "images.init": "noise",
        "images.start_resolution": 8,
        "images.grow_every": 12,
    }
    counts = {
        split: {"images": each * len(names), "classes": dict.fromkeys(names, each)}
        for split, each in (("train", 50), ("test", 20))
    }
    data = {"name": "shapes", "fingerprint": "d" * 64, "counts": counts}
    where = f"--workdir=runs/{folder.name}"
    command = shlex.join(["python", "launch.py", "--config=configs/quickstart.py", where])
    files.write_json(
        folder / runs.CONFIG,
        {
            "identity": identity,
            "command": command,
            "config": settings,
            "changed": ["steps"],
            "data": data,
        },
    )
    made_by = {
        "from_step": 0,
        "versions": {"lgm_jax": "0.1.0"},
        "devices": ["cpu"],
        "commit": "abc",
        "weights": {backbone: {"sha256": {"model.safetensors": "f" * 64}}},
    }
    files.write_json(
        folder / runs.STAGES, {"distill": {"made_by": [made_by], "finished": "2026-01-02"}}
    )
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in steps]
    (folder / runs.METRICS).write_text("\n".join(lines) + "\n")
    for step in steps:
        timelapse.write_sheet(folder / runs.TIMELAPSE, step, images * (step / steps[-1]))
    if not finished:
        return folder
    scores = {"distilled": 80.5, "centroids": 70.0, "neighbors": 65.0, "random": 60.0, "full": 95.0}
    probe = {
        name: {
            method: probe_entry(score - 2 * place, groups=groups)
            | by_class(rng, score - 2 * place, len(names))
            for method, score in scores.items()
        }
        for place, name in enumerate(evaluated)
    }
    results = {
        "version": 1,
        "dataset": "shapes",
        "ipc": ipc,
        "objective": "lgm",
        "seed": seed,
        "num_classes": len(names),
        "steps": steps[-1],
        "final_loss": 1 / steps[-1],
        "backbones": [backbone],
        "seconds": {"distill": 3.0},
        "probe": probe,
    }
    files.write_json(folder / runs.RESULTS, results)
    shown = gallery.shown(labels)
    reals = {kind: (255 * blobs(rng, len(shown), side)).astype(np.uint8) for kind in gallery.REALS}
    count = max(300, len(shown))
    features = rng.normal(size=(count, 8)).astype(np.float32)
    near = plane.make_map(features, np.arange(count) % len(names), features[: len(shown)])
    made = gallery.make_gallery(images, labels, names, reals, near)
    gallery.save_gallery(folder / runs.GALLERY, made)
    return folder
