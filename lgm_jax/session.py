"""From a config to everything it names, loaded and checked: what the stages work with."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lgm_jax import backbones, baselines, data, distill, probe, runs
from lgm_jax.augment import PRESETS, Augmentation
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit, Dataset
from lgm_jax.distilled import ARRAYS, load_distilled
from lgm_jax.errors import UserError

# Training images are held in memory, decoded.
_MEMORY_LIMIT = 8 * 2**30

_DISTILL_KEYS = (
    "seed",
    "ipc",
    "copies",
    "objective",
    "learning_rate",
    "head_std",
    "images",
    "augment",
    "data.name",
    "backbone.normalization",
    "backbone.dtype",
)


@dataclasses.dataclass(frozen=True)
class Session:
    """A checked config with everything it names loaded, and the folder it writes to."""

    config: ConfigDict
    dataset: Dataset
    backbone: Backbone
    eval_backbones: Sequence[Backbone]
    recipe: distill.Recipe
    identity: Mapping[str, Any]
    source: ArraySplit | None
    run: runs.Run

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.config.seed)

    @functools.cached_property
    def train(self) -> ArraySplit:
        """The training images, decoded."""
        return data.in_memory(
            self.dataset.splits["train"], limit_bytes=_MEMORY_LIMIT, progress="training images"
        )

    @functools.cached_property
    def distilled(self) -> ArraySplit | None:
        """The images to evaluate: the run's own, or those of `images.source`."""
        if self.source is not None:
            return self.source
        if not (self.run.path / runs.DISTILLED / ARRAYS).exists():
            return None
        images, labels, _ = load_distilled(str(self.run.path))
        return ArraySplit(images, labels)

    def features(self, backbone: Backbone, split: str) -> np.ndarray:
        """Features of the centre crops of a split, computed once per run folder."""
        inputs = {
            "backbone": backbone.fingerprint,
            "data": self.dataset.fingerprint,
            "crop": self.recipe.crop,
        }
        path = self.run.path / runs.FEATURES / f"{split}_{backbone.name}_{runs.digest(inputs)}.npy"
        if path.exists():
            with path.open("rb") as file:
                return np.load(file, allow_pickle=False)
        features = probe.embed(
            backbone, self.dataset.splits[split], self.recipe.crop, f"{split}, {backbone.name}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with runs.replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, features)
        return features

    @functools.cached_property
    def centroids(self) -> np.ndarray:
        """Indices of the training images nearest to their class's mean, for the backbone."""
        return baselines.centroids(
            self.features(self.backbone, "train"),
            self.dataset.splits["train"].labels,
            self.config.ipc,
            self.dataset.num_classes,
        )


def open_session(
    config: ConfigDict, flat: Mapping[str, Any], workdir: str, *, overwrite: bool
) -> Session:
    """Loads what a config names, checks that it fits together, and opens the run folder.

    Args:
        config: The config.
        flat: Its values by dotted name.
        workdir: The run folder.
        overwrite: Whether another distillation in it may be thrown away.

    Raises:
        UserError: If anything is missing or does not fit; the folder is then as it was.
    """
    options = {"normalization": config.backbone.normalization, "dtype": config.backbone.dtype}
    backbone = backbones.load(config.backbone.name, **options)
    names = [name.strip() for name in config.eval_backbones.split(",") if name.strip()]
    others = {
        name: backbones.load(name, **options) for name in names if name != config.backbone.name
    }
    evaluated = [others.get(name, backbone) for name in names] or [backbone]

    crop = config.images.crop or backbone.resolution
    # The paper's 256 px for crops of 224.
    resolution = config.images.resolution or round(crop * 8 / 7)
    for b in [backbone, *evaluated]:
        if b.resolution != crop:
            raise UserError(f"config.images.crop is {crop}, but {b.name} takes {b.resolution} px")
    if resolution < crop:
        raise UserError(
            f"config.images.resolution ({resolution}) is smaller than the crop ({crop})"
        )
    dataset = data.load_dataset(
        config.data.name,
        folder=config.data.folder,
        resolution=resolution,
        seed=config.data.split_seed,
        val_fraction=config.data.val_fraction,
        subset=config.data.subset,
        on_bad_image=config.data.on_bad_image,
    )
    if config.probe.split not in dataset.splits:
        raise UserError(
            f"{dataset.name} has no {config.probe.split} images: to hold some training images out, "
            "set --config.data.val_fraction=0.1"
        )
    summary = data.describe(dataset)
    for note in summary["notes"]:
        print(f"note: {note}")
    smallest = np.bincount(dataset.splits["train"].labels, minlength=dataset.num_classes).min()
    if config.ipc > smallest:
        raise UserError(
            f"config.ipc is {config.ipc}, but the smallest class has {smallest} training images"
        )
    recipe = distill.Recipe(
        num_classes=dataset.num_classes,
        resolution=resolution,
        crop=crop,
        ipc=config.ipc,
        copies=config.copies,
        learning_rate=config.learning_rate,
        head_std=config.head_std,
        kind=config.images.kind,
        init=config.images.init,
        decorrelate=config.images.decorrelate,
        start_resolution=config.images.start_resolution,
        grow_every=config.images.grow_every,
        augmentation=_augmentation(config.augment),
    )
    if config.steps * recipe.batch >= 2**31:
        raise UserError(
            f"config.steps x {recipe.batch} images a step do not fit 32 bits; lower config.steps"
        )
    identity = {
        name: value
        for name, value in flat.items()
        if any(name == key or name.startswith(f"{key}.") for key in _DISTILL_KEYS)
    } | {
        "images.crop": crop,
        "images.resolution": resolution,
        "backbone.name": backbone.name,
        "backbone.fingerprint": backbone.fingerprint,
        "data.fingerprint": dataset.fingerprint,
    }
    description = {
        "config": {k: _without_path(v) for k, v in flat.items()},
        "provenance": runs.provenance()
        | {"weights": {b.name: b.sha256 for b in [backbone, *evaluated]}}
        | {"data": summary},
    }
    source = _read_source(config.images.source, dataset, resolution)
    if source is not None:
        if len(source.labels) != config.ipc * dataset.num_classes:
            raise UserError(
                f"{config.images.source} has {len(source.labels)} images for {dataset.num_classes} "
                f"classes; set config.ipc, which is {config.ipc}, to the number per class"
            )
        identity["images.source"] = content_hash(source)
    run = runs.open_run(workdir, identity, description, overwrite=overwrite)
    return Session(config, dataset, backbone, evaluated, recipe, identity, source, run)


def content_hash(split: ArraySplit) -> str:
    """Changes when images or labels do."""
    return hashlib.sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()


def _read_source(folder: str, dataset: Dataset, resolution: int) -> ArraySplit | None:
    """Finished images in the data set's label order and at the recipe's resolution."""
    if not folder:
        return None
    images, labels, names = load_distilled(folder)
    if len(names) != dataset.num_classes:
        raise UserError(
            f"{folder} has {len(names)} classes, but {dataset.name} has {dataset.num_classes}"
        )
    if set(names) == set(dataset.class_names):
        order = np.asarray([dataset.class_names.index(name) for name in names], np.int32)
        labels = order[labels]
    if images.shape[1] != images.shape[2]:
        raise UserError(f"the images in {folder} are not square")
    if images.shape[1] != resolution:
        shape = (len(images), resolution, resolution, 3)
        images = np.asarray(jax.image.resize(images, shape, "linear"))
    return ArraySplit(images, labels)


def _augmentation(config: ConfigDict) -> Augmentation | None:
    preset = PRESETS[config.preset]
    changes = {
        name: config[name]
        for name in ("flip", "noise", "noise_mean", "noise_std")
        if config[name] is not None
    }
    low, high = config.scale_min, config.scale_max
    if preset is None:
        if changes or low is not None or high is not None:
            raise UserError("config.augment.preset=none leaves nothing to change by other keys")
        return None
    low = preset.scale[0] if low is None else low
    high = preset.scale[1] if high is None else high
    if low > high:
        raise UserError(f"config.augment.scale_min ({low}) exceeds scale_max ({high})")
    return dataclasses.replace(preset, scale=(low, high), **changes)


def _without_path(value: Any) -> Any:
    return epath.Path(value).name if isinstance(value, str) and "/" in value else value
