"""Every config key: its default (the paper's value where the paper has one), meaning and limits.

Other configs start from `get_config()` and change what differs. Not meant to be run by itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from configs._checks import Check, above_zero, at_least, between, each, named, one_of, weight
from lgm_jax import (
    backbones,
    baselines,
    data,
    distill,
    images,
    real,
    solvers,
    teachers,
    tracking,
)
from lgm_jax.augment import CROPS, PRESETS
from lgm_jax.data.sampling import SAMPLINGS
from lgm_jax.errors import UserError, unknown_name
from lgm_jax.objectives import OBJECTIVES
from lgm_jax.settings import SCHEDULES, flatten, split_list

STAGES = ("distill", "probe", "baselines", "report")
OPTIONS = ("objective_options", "images.options", "augment.options")
"""Sections for the options of what is not ours, under any names."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One config key.

    Attributes:
        default: The default; a bare type stands for "unset, of this type".
        help: One line for `--help`.
        check: Raises for a value that is not allowed; or the values that are. An unset key passes.
    """

    default: Any
    help: str
    check: Check | Iterable[str] | None = None


KEYS: Mapping[str, Key] = {
    "seed": Key(0, "root of all randomness", between(0, 2**31 - 1)),
    "ipc": Key(1, "synthetic images per class", at_least(1)),
    "steps": Key(5000, "updates of the images", at_least(0)),
    "copies": Key(10, "augmentations of each synthetic image in a step", at_least(1)),
    "objective": Key(
        "lgm",
        "lgm: match head gradients; sfm: flows of class means; clp: fit a closed-form probe",
        named("objective", OBJECTIVES),
    ),
    "learning_rate": Key(0.002, "of Adam on the images", above_zero),
    "schedule": Key("constant", "of the learning rate: constant, or cosine to zero", SCHEDULES),
    "labels": Key("hard", "hard, or soft: learned along", distill.LABELS),
    "labels_learning_rate": Key(0.01, "of Adam on soft labels", above_zero),
    "head_std": Key(0.01, "std of the random head (the paper's text: 1.0)", between(0, 1e6)),
    "clp.ridge": Key(
        0.001,
        "for objective=clp: ridge, in square norms of the views of a class added up",
        between(1e-6, 1e4),
    ),
    "clp.temperature": Key(0.1, "for objective=clp: divides the scores", between(1e-4, 1e4)),
    "clp.head_per_copy": Key(False, "for objective=clp: a head of each copy's views alone"),
    "microbatch": Key(
        int, "views in the backbone at a time on each device (default: what fits)", at_least(1)
    ),
    "deterministic": Key(
        False, "on GPUs: bit for bit the same after a restart, and slower; CPUs are so anyway"
    ),
    "images.kind": Key(
        "pyramid", "parametrisation", named("parametrisation", images.PARAMETRISATIONS)
    ),
    "images.resolution": Key(
        int, "side of the images in px (default: 8/7 of the crop)", between(1, 4096)
    ),
    "images.crop": Key(
        int, "side of the crops the backbone sees (default: the backbone's)", between(1, 4096)
    ),
    "images.init": Key("noise", "start: noise, zero, or real (pixels only)", images.STARTS),
    "images.source": Key("", "evaluate the images of this folder; needs stages without distill"),
    "images.decorrelate": Key(True, "parametrise decorrelated colours"),
    "images.grey": Key(False, "images without colour, for data without"),
    "images.start_resolution": Key(1, "pyramid levels up to this side from the start", at_least(1)),
    "images.grow_every": Key(
        int, "steps per new pyramid level; 0: all at once (default: by grow_until)", at_least(0)
    ),
    "images.grow_until": Key(
        0.32,
        "part of the steps after which all levels count, unless grow_every is set",
        between(1e-3, 1),
    ),
    "images.grow_delay": Key(
        0, "steps by which every new level comes later (the authors' code: 1)", at_least(0)
    ),
    "augment.preset": Key("paper", "of synthetic and real images", named("augmentation", PRESETS)),
    "augment.distill": Key(True, "augment while distilling; probes are augmented in any case"),
    "augment.center_crops": Key(0, "centre crops among the copies in a step", at_least(0)),
    "augment.real": Key(True, "augment real images too; False: centre crops"),
    "augment.flip": Key(float, "probability of a flip, instead of the preset's", between(0, 1)),
    "augment.scale_min": Key(float, "smallest area of a crop, likewise", between(1e-4, 1)),
    "augment.scale_max": Key(float, "largest area of a crop, likewise", between(1e-4, 1)),
    "augment.crops": Key(
        str,
        "law of the crops, likewise: inside (torchvision's), or beyond the image too (the "
        "authors' code)",
        CROPS,
    ),
    "augment.noise": Key(float, "probability of noise, likewise", between(0, 1)),
    "augment.noise_mean": Key(float, "mean of the noise, likewise", between(-1, 1)),
    "augment.noise_std": Key(float, "std of the noise, likewise", between(0, 10)),
    "data.name": Key("digits", "data set: see docs/data.md", lambda _, name: data.get_source(name)),
    "data.folder": Key("", "where the images lie; for TFDS: its data_dir"),
    "data.subset": Key("", "classes to keep: a subset of ImageNet, or names or indices"),
    "data.label": Key("", "column of labels, where a set of Hugging Face or TFDS has several"),
    "data.on_bad_image": Key("stop", "unreadable images: stop, or skip them", data.ON_BAD_IMAGE),
    "data.val_fraction": Key(
        float, "train images to tune on, where none are (default: 0.2 of your own)", between(0, 0.9)
    ),
    "data.split_seed": Key(0, "of the split, where the data has none", between(0, 2**31 - 1)),
    "data.placement": Key(
        "auto",
        "images to stream: all on the device, or read by the host as needed; auto: by size",
        ("auto", "device", "host"),
    ),
    "data.workers": Key(
        int, "processes that read (default: cores less one); 0: threads", between(0, 1000)
    ),
    "data.crop": Key(
        "auto",
        "square of a streamed image: center; random, as in the paper, if the host reads; or auto",
        ("auto", "center", "random"),
    ),
    "data.sampling": Key("shuffle", "images of a step: shuffle, or balanced by class", SAMPLINGS),
    "backbone.name": Key(
        "digits_contrastive",
        "what to distil against, comma-separated: names (python -m lgm_jax.backbones), folders or "
        "hub ids",
        each(some=True, twice=False),
    ),
    "backbone.weights": Key("", "of their losses, comma-separated (default: equal)", each(weight)),
    "backbone.normalization": Key("native", "mean and std of the inputs", backbones.NORMALIZATIONS),
    "backbone.dtype": Key("float32", "what it computes in", backbones.DTYPES),
    "backbone.params_dtype": Key("float32", "what its weights are rounded to", backbones.DTYPES),
    "backbone.attention": Key("auto", "attention kernel", backbones.ATTENTIONS),
    "backbone.pooling": Key(
        "native",
        "features: native, cls, mean, cls+mean; cls:4 of the last 4 blocks",
        lambda _, value: backbones.check_pooling(value),
    ),
    "backbone.position_offset": Key(
        0.0,
        "added to the side of the patch grid where DINOv2's positions are resized (its own code: "
        "0.1); other backbones have none",
        between(0, 0.9),
    ),
    "backbone.resize": Key(
        "positions",
        "what fits where crops have another side than a backbone is used at: its positions, or the "
        "images, antialiased",
        backbones.RESIZED,
    ),
    "backbone.revision": Key("", "branch, tag or commit of a backbone from the hub"),
    "real.source": Key(
        "stream",
        "real gradient: stream images, draw cached features, or exact over all of these",
        real.SOURCES,
    ),
    "real.views": Key(1, "for cached and exact: augmentations of each image", between(1, 1000)),
    "real.cache": Key("", "folder of features that runs share (default: in the workdir)"),
    "eval_backbones": Key(
        "", "backbones, comma-separated (default: backbone.name)", each(twice=False)
    ),
    "baselines": Key(
        ",".join(baselines.METHODS),
        "real images to compare with, comma-separated",
        each(one_of(*baselines.METHODS), some=True),
    ),
    "probe.epochs": Key(1000, "epochs on distilled images and on few real ones", at_least(1)),
    "probe.full_epochs": Key(100, "epochs on the full training set", at_least(1)),
    "probe.batch": Key(100, "images per update, at most", at_least(1)),
    "probe.full_batch": Key(int, "on the full training set (default: probe.batch)", at_least(1)),
    "probe.learning_rate": Key(
        0.001,
        "Adam's for a batch of 256, scaled with the images of an update: the batch, or all "
        "where they are fewer",
        above_zero,
    ),
    "probe.decay": Key(
        "update",
        "Adam's rate falls with every update, or every epoch as in the authors' code",
        solvers.DECAYS,
    ),
    "probe.drop_last": Key(
        False, "for adam: leave out an epoch's last images that fill no batch, as the authors' code"
    ),
    "probe.runs": Key(5, "repetitions, trained side by side", between(1, 1000)),
    "probe.ddof": Key(
        1, "of the std over runs: 1, the sample's; 0, the authors' code", between(0, 1)
    ),
    "probe.augment": Key("fresh", "fresh every epoch, a few views, or none", solvers.AUGMENTS),
    "probe.full_augment": Key(
        str, "the same on the full training set (default: probe.augment)", solvers.AUGMENTS
    ),
    "probe.noise": Key(
        False, "noise in the probe's augmentation: in the paper's text, not in the authors' code"
    ),
    "probe.views": Key(10, "for probe.augment=views: augmentations per image", between(1, 1000)),
    "probe.share_views": Key(False, "runs share augmentations; understates the spread"),
    "probe.solver": Key(
        "adam",
        "adam as in the paper, or lbfgs on views (epochs: iterations)",
        named("solver", solvers.SOLVERS),
    ),
    "probe.ridge": Key(0.01, "for probe.solver=lbfgs: weight of the ridge", between(0, 1e6)),
    "probe.teacher": Key(
        "",
        "more probes, which learn from the first backbone's head on all real images too, "
        "comma-separated: kd, its soft labels; ci, itself behind a projection of features",
        each(one_of(*teachers.TAUGHT)),
    ),
    "probe.split": Key("test", "evaluate on test, or on val to tune a recipe", ("test", "val")),
    "checkpoint_every": Key(500, "steps", at_least(1)),
    "keep_checkpoints": Key(2, "newest checkpoints to keep", at_least(1)),
    "log_every": Key(50, "steps per line of metrics.jsonl, which has twenty at least", at_least(1)),
    "profile": Key(0, "steps to trace to WORKDIR/profile, after the first two", at_least(0)),
    "image_every": Key(500, "steps per picture of all images", at_least(1)),
    "track": Key(
        "",
        "where else to follow a distillation: tensorboard, wandb, comma-separated",
        each(one_of(*tracking.TRACKERS)),
    ),
    "stages": Key(
        ",".join(STAGES), "what to do, comma-separated", each(named("stage", STAGES), some=True)
    ),
}


def get_config() -> ml_collections.ConfigDict:
    """All keys at their defaults, locked."""
    nested: dict[str, Any] = {}
    for name, key in KEYS.items():
        *sections, leaf = name.split(".")
        unset = isinstance(key.default, type)
        value = config_dict.placeholder(key.default) if unset else key.default
        functools.reduce(_subsection, sections, nested)[leaf] = value
    for name in OPTIONS:
        functools.reduce(_subsection, name.split("."), nested)
    return ml_collections.ConfigDict(nested).lock()


def _subsection(section: dict[str, Any], name: str) -> dict[str, Any]:
    return section.setdefault(name, {})


def is_option(name: str) -> bool:
    """Whether a key is in one of the sections where any is."""
    return any(name.startswith(f"{section}.") for section in OPTIONS)


def parse_arg(arg: str | None, *allowed: str) -> str:
    """Checks the part of `--config=file.py:arg` behind the colon.

    Raises:
        UserError: If the config does not know the argument.
    """
    if arg and arg not in allowed:
        raise unknown_name("config argument", arg, list(allowed), "this config has")
    return arg or ""


def parse_args(arg: str | None, *choices: Sequence[str]) -> list[str]:
    """Checks what is behind the colon where several words may be, joined by commas, in any order.

    Args:
        arg: What is behind the colon.
        choices: Groups of words of which one each may be given.

    Returns:
        The word given of each group, empty where there is none.

    Raises:
        UserError: If a word is unknown, or two are of the same group.
    """
    words = list(dict.fromkeys(split_list(arg or "")))
    known = [word for group in choices for word in group]
    for word in words:
        parse_arg(word, *known)
    found = [[word for word in words if word in group] for group in choices]
    for given in found:
        if len(given) > 1:
            raise UserError(
                f"config argument {arg!r}: {given[0]} and {given[1]} exclude each other"
            )
    return [given[0] if given else "" for given in found]


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Turns a recipe into a short test: a few steps and epochs; images are embedded as before."""
    config.update(steps=6, copies=1, checkpoint_every=3, image_every=3, log_every=2)
    config.probe.update(epochs=2, full_epochs=1, runs=2, views=1)
    return config


def changed(config: ml_collections.ConfigDict) -> list[str]:
    """Names of the keys that have another value than by default."""
    default = flatten(get_config())
    return [name for name, value in flatten(config).items() if value != default.get(name)]


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses values that cannot work, before anything is computed.

    Raises:
        UserError: Naming the key, the value and what is allowed.
    """
    flat = flatten(config)
    for name in flat:
        if name not in KEYS and not is_option(name):
            raise unknown_name("config key", name, list(KEYS), "see --help")
    for name, key in KEYS.items():
        if name not in flat:
            raise UserError(f"the config has no {name}: start from configs/common.py")
        if key.check is not None and flat[name] is not None:
            refuse = key.check if callable(key.check) else one_of(*key.check)
            refuse(name, flat[name])
    # An experiment leaves open what its sets of images decide.
    if config.copies is not None and config.augment.center_crops > config.copies:
        raise UserError(
            f"config.augment.center_crops is {config.augment.center_crops}, but a step has "
            f"{config.copies} copies"
        )
    if config.images.init == "real" and config.images.kind == "pyramid":
        raise UserError("config.images.init=real needs config.images.kind=pixels")
    count, weighted = len(split_list(config.backbone.name)), split_list(config.backbone.weights)
    if weighted and len(weighted) != count:
        raise UserError(
            f"config.backbone.weights has {len(weighted)} numbers for the {count} backbones of "
            "config.backbone.name; give one each"
        )
    if config.backbone.revision and count > 1:
        raise UserError(
            "config.backbone.revision is for one backbone: download the others, and name folders"
        )
    solver, stages = solvers.find(config.probe.solver), split_list(config.stages)
    for name in ("augment", "full_augment"):
        if config.probe[name] == "fresh" and not solver.fresh:
            raise UserError(
                f"config.probe.solver={config.probe.solver} needs config.probe.{name}=views or none"
            )
    if config.images.source and "distill" in stages:
        raise UserError(
            "config.images.source names finished images: add --config.stages=probe,baselines,report"
        )
    taught = config.probe.teacher
    if not taught or not {"probe", "baselines"} & set(stages):
        return
    if not solver.taught:
        raise UserError(
            f"config.probe.solver={config.probe.solver} takes no teacher: "
            f"config.probe.teacher={taught} needs --config.probe.solver=adam"
        )
    if "baselines" not in stages or "full" not in split_list(config.baselines):
        raise UserError(
            f"config.probe.teacher={taught} needs the probe on all real images: add baselines to "
            "config.stages and full to config.baselines"
        )
