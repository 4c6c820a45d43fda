"""What the paper (arXiv 2511.16674) says: images, hyperparameters, accuracies, as literal tables.

Recipes and experiments are made of these. Accuracies are those of tables 1, 4, 5 and B.1, one image
per class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Number = tuple[float, float | None]
"""A mean and a standard deviation, if there is one."""

Row = Sequence[Number]


class Images(NamedTuple):
    """Images of the paper.

    Attributes:
        title: What they are called in text.
        name: `config.data.name`.
        subset: `config.data.subset`.
        copies: Augmentations of each synthetic image in a step.
        table: Where the paper has accuracies, if it does.
        took: What distillation took the authors, where they say so.
        full_augment: `config.probe.full_augment`: `none` where decoded training images are more
            than memory is to hold.
    """

    title: str
    name: str
    subset: str = ""
    copies: int = 10
    table: str = ""
    took: str = ""
    full_augment: str = "fresh"


BACKBONES = ("clip_vitb16", "dinov2_vitb14", "eva02_vitb14", "mocov3_vitb16")
"""Those that the paper compares, in the order of its columns."""

_TEN = "about 30 minutes on one RTX 4090, for ImageNet-Birds"

IMAGES: Mapping[str, Images] = {
    "in1k": Images(
        "ImageNet-1k", "imagenet2012", "", 3, "Table 1", "about 12 hours on four H200", "none"
    ),
    "in100": Images(
        "ImageNet-100",
        "imagenet2012",
        "imagenet-100",
        table="Table 1",
        took="about 3 hours on one H200",
        full_augment="none",
    ),
    "birds": Images("ImageNet-Birds", "imagenet2012", "imagenet-birds", took=_TEN),
    "fruits": Images("ImageNet-Fruits", "imagenet2012", "imagenet-fruits", took=_TEN),
    "cats": Images("ImageNet-Cats", "imagenet2012", "imagenet-cats", took=_TEN),
    "imagenette": Images("Imagenette", "imagenette", took=_TEN),
    "imagewoof": Images("Imagewoof", "imagenet2012", "imagewoof", took=_TEN),
    **{
        f"in10_{letter}": Images(
            f"the ten classes of ImageNet called {letter.upper()}",
            "imagenet2012",
            f"imagenet-{letter}",
            took=_TEN,
        )
        for letter in "abcde"
    },
    "cub": Images("CUB-200-2011", "caltech_birds2011", table="Table 5"),
    "dogs": Images("Stanford Dogs", "stanford_dogs", table="Table 5"),
    "flowers": Images("Flowers-102", "oxford_flowers102", table="Table B.1"),
    "food": Images("Food-101", "food101", table="Table B.1", full_augment="none"),
    "artbench": Images("ArtBench-10", "artbench", full_augment="none"),
    "spawrious": Images("Spawrious (o2o hard)", "spawrious_o2o_hard", table="Table 4"),
    "waterbirds": Images("Waterbirds", "waterbirds", table="Table 4"),
}
"""By the second part of a recipe's name."""

SHARED: Mapping[str, Any] = {
    "ipc": 1,
    "objective": "lgm",
    "schedule": "constant",
    "labels": "hard",
    "augment.distill": True,
    "augment.center_crops": 0,
    "augment.real": True,
    "learning_rate": 0.002,
    "head_std": 0.01,
    "images.kind": "pyramid",
    "images.init": "noise",
    "images.decorrelate": True,
    "images.start_resolution": 1,
    "augment.crops": "beyond",
    # Of 5,000 steps: a level of 256 px every 200, and 200 of 5,001.
    "images.grow_until": 0.32,
    "backbone.dtype": "bfloat16",
    "backbone.normalization": "imagenet",
    "backbone.position_offset": 0.1,
    "real.source": "stream",
    "data.placement": "host",
    "data.crop": "auto",
    "data.sampling": "shuffle",
    "probe.solver": "adam",
    "probe.epochs": 1000,
    "probe.full_epochs": 100,
    "probe.batch": 100,
    "probe.full_batch": 128,
    "probe.learning_rate": 0.001,
    "probe.decay": "epoch",
    "probe.drop_last": True,
    "probe.runs": 5,
    "probe.ddof": 0,
    "probe.augment": "fresh",
    "probe.split": "test",
}
"""Config keys that are the same for all: the paper's text and the code agree, or the text is silent
and the code decides. So it does of the head: the text has a std of 1 in one place and PyTorch's
default for a linear layer in another, the code 0.01. So it does of the law of random crops. The
code computes in float16; bfloat16 has no need of a scale for the loss."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "steps": 5000,
        "augment.preset": "paper",
        "images.grow_delay": 0,
        "probe.noise": True,
    },
    "authors_2025": {
        "steps": 5001,
        "augment.preset": "authors_2025",
        "images.grow_delay": 1,
        "probe.noise": False,
    },
    "authors_2026": {
        "steps": 5001,
        "augment.preset": "paper",
        "images.grow_delay": 1,
        "probe.noise": False,
    },
}
"""What differs: the paper's text, the code as it was published in November 2025 (commit 1d84ffd),
and the code since 31 March 2026 (33d004b)."""

PRESET_BACKBONES: Mapping[str, Mapping[str, str]] = {"authors_2025": {"clip_vitb16": "clip_vitb32"}}
"""What stands in for one of `BACKBONES`. Until 25 December 2025 (add2069) the authors' code loaded
ViT-B/32 by the name of B/16. Which of them the paper's numbers are of is not said."""


def backbones(preset: str) -> list[str]:
    """Those that a preset compares, in the order of the paper's columns."""
    instead = PRESET_BACKBONES.get(preset, {})
    return [instead.get(name, name) for name in BACKBONES]


ACCURACY: Mapping[str, Mapping[str, Row]] = {
    "imagenet-1k": {
        "distilled": ((63.0, 0.0), (75.0, 0.1), (70.3, 0.1), (63.2, 0.0), (67.9, 0.0)),
        "neighbors": ((38.8, 0.1), (67.7, 0.1), (49.9, 0.1), (56.4, 0.0), (53.2, 0.1)),
        "centroids": ((53.9, 0.0), (69.5, 0.1), (58.1, 0.1), (57.4, 0.0), (59.7, 0.1)),
        "random": ((31.7, 0.5), (50.3, 0.5), (37.7, 0.4), (38.8, 0.6), (39.6, 0.5)),
        "full": ((78.7, 0.0), (83.0, 0.0), (81.7, 0.1), (76.5, 0.0), (80.0, 0.0)),
    },
    "imagenet-100": {
        "distilled": ((84.9, 0.1), (91.5, 0.1), (89.0, 0.0), (83.4, 0.1), (87.2, 0.1)),
        "neighbors": ((67.8, 0.3), (86.0, 0.2), (78.8, 0.2), (77.1, 0.1), (77.4, 0.2)),
        "centroids": ((77.1, 0.1), (86.9, 0.3), (80.9, 0.2), (77.7, 0.1), (80.6, 0.2)),
        "random": ((56.6, 1.6), (74.8, 2.8), (64.5, 2.7), (61.4, 2.6), (64.3, 2.4)),
        "full": ((92.5, 0.0), (95.2, 0.1), (94.1, 0.1), (89.4, 0.3), (92.8, 0.1)),
    },
    "cub": {
        "distilled": ((62.2, 0.2), (86.0, 0.1), (74.1, 0.2), (42.5, 0.2), (66.2, 0.2)),
        "neighbors": ((39.4, 0.1), (76.9, 0.0), (52.6, 0.3), (28.1, 0.0), (49.2, 0.1)),
        "centroids": ((54.3, 0.2), (78.5, 0.2), (59.9, 0.3), (30.2, 0.1), (55.7, 0.2)),
        "random": ((37.5, 1.6), (64.4, 1.5), (44.3, 1.5), (19.1, 0.5), (41.3, 1.3)),
        "full": ((77.5, 0.7), (90.2, 0.2), (84.0, 0.3), (43.7, 0.8), (73.8, 0.5)),
    },
    "dogs": {
        "distilled": ((52.1, 0.2), (83.0, 0.1), (74.8, 0.1), (69.6, 0.2), (69.9, 0.2)),
        "neighbors": ((33.4, 0.1), (71.3, 0.2), (58.5, 0.2), (56.3, 0.1), (54.9, 0.2)),
        "centroids": ((43.3, 0.1), (73.0, 0.2), (60.9, 0.2), (55.2, 0.2), (58.1, 0.2)),
        "random": ((23.3, 1.5), (51.9, 1.8), (38.3, 1.8), (36.6, 1.4), (37.5, 1.6)),
        "full": ((76.9, 0.1), (88.6, 0.1), (82.6, 0.1), (72.3, 0.5), (80.1, 0.2)),
    },
    "flowers": {
        "distilled": ((79.5, 1.2), (99.6, 0.0), (97.8, 0.1), (56.4, 3.1), (83.3, 1.1)),
        "neighbors": ((69.4, 0.8), (99.4, 0.2), (90.8, 0.2), (48.6, 1.8), (77.0, 0.7)),
        "centroids": ((77.5, 0.7), (99.4, 0.1), (95.6, 0.3), (48.2, 2.6), (80.2, 0.9)),
        "random": ((67.9, 1.1), (98.8, 0.4), (91.0, 0.8), (36.8, 2.2), (73.6, 1.1)),
        "full": ((93.4, 0.1), (99.7, 0.0), (98.9, 0.0), (82.2, 0.1), (93.5, 0.1)),
    },
    "food": {
        "distilled": ((78.7, 1.6), (83.7, 0.3), (83.9, 0.2), (31.6, 3.2), (69.5, 1.3)),
        "neighbors": ((58.8, 1.3), (73.8, 0.4), (71.5, 0.3), (25.2, 1.3), (57.3, 0.8)),
        "centroids": ((74.1, 0.6), (75.6, 0.1), (76.4, 0.4), (22.7, 2.0), (62.2, 0.8)),
        "random": ((48.5, 1.0), (52.8, 1.9), (49.9, 0.6), (13.5, 1.7), (41.2, 1.3)),
        "full": ((91.9, 0.0), (92.7, 0.1), (92.0, 0.0), (78.3, 0.0), (88.7, 0.0)),
    },
    "spawrious": {
        "distilled": ((43.1, 6.4), (80.8, 3.1), (36.5, 3.1), (32.7, 2.3), (48.3, 3.7)),
        "neighbors": ((41.7, 4.6), (76.9, 1.2), (40.7, 2.7), (33.0, 3.4), (48.1, 3.0)),
        "centroids": ((44.8, 5.0), (80.2, 2.7), (38.1, 3.3), (30.5, 1.6), (48.4, 3.2)),
        "random": ((46.2, 4.4), (68.1, 8.1), (33.3, 5.3), (31.8, 2.5), (44.9, 5.1)),
        "full": ((50.4, 0.3), (78.1, 0.1), (50.1, 0.4), (35.8, 0.0), (53.6, 0.2)),
    },
    "waterbirds": {
        "distilled": ((77.9, 0.2), (82.1, 2.9), (78.0, 0.8), (77.8, 0.0), (79.0, 1.0)),
        "neighbors": ((74.6, 6.5), (67.3, 5.8), (74.3, 3.3), (45.2, 11.4), (65.3, 6.8)),
        "centroids": ((69.8, 8.6), (65.7, 3.4), (64.6, 7.9), (62.0, 5.2), (65.5, 6.3)),
        "random": ((71.9, 4.5), (57.1, 8.6), (59.8, 13.3), (67.4, 5.7), (64.0, 8.0)),
        "full": ((86.0, 0.1), (95.5, 0.1), (90.4, 0.2), (74.3, 0.1), (86.5, 0.1)),
    },
}
"""By images (a name of `axes.SETS`) and row: mean and std over probe runs of top-1 in percent on
test, for each of `BACKBONES`, and last the paper's mean over them."""
