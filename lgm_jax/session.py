"""The session of a run: its backbones, data and recipe, loaded and checked, for the stages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lgm_jax import (
    backbones,
    baselines,
    data,
    devices,
    distill,
    hosts,
    paths,
    real,
    runs,
    settings,
)
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit, Dataset
from lgm_jax.data.loader import Loader, Parts
from lgm_jax.data.sampling import Crops, Order
from lgm_jax.distilled import ARRAYS, read_distilled
from lgm_jax.errors import UserError
from lgm_jax.features import BATCH, Rows, Views, embed
from lgm_jax.identity import describe
from lgm_jax.programs import Embedding

# Training images are held in memory, decoded, up to this size.
MEMORY_LIMIT = 8 * 2**30

# The random stream of the views whose features are stored.
_VIEW_STREAM = 103


@dataclasses.dataclass(frozen=True)
class Session:
    """A checked config, its backbones and data, and the run folder.

    Attributes:
        backbones: Backbones to distil against; the first chooses typical and look-alike images.
        recipe: The recipe of the distillation.
        identity: The identity of the distillation; see `settings.identity_of`.
        source: Finished images in place of a distillation.
        process: The record of this process.
        on_host: Whether the images of a step are read by the host, rather than all on the device.
        crop: Where streamed images are cropped before augmentation: `center` or `random`.
        settings: The config's values by dotted name, with the growth of the pyramid resolved.
    """

    config: ConfigDict
    dataset: Dataset
    backbones: Sequence[Backbone]
    eval_backbones: Sequence[Backbone]
    recipe: settings.Recipe
    identity: Mapping[str, Any]
    source: ArraySplit | None
    run: runs.Run
    process: Mapping[str, Any]
    on_host: bool
    crop: str
    settings: Mapping[str, Any]

    @property
    def task(self) -> distill.Distillation:
        """The distillation."""
        return self.recipe.task

    @property
    def backbone(self) -> Backbone:
        """The first backbone to distil against."""
        return self.backbones[0]

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.config.seed)

    def describe(self) -> str:
        """Returns what is made of what, by what and on what, in two lines for the terminal."""
        task, config = self.task, self.config
        named = f"{self.dataset.name}: {len(self.dataset.splits['train'].labels):,} images"
        side = task.parametrisation.resolution
        few = f"{task.num_images:,} image{'s' * (task.num_images > 1)} of {side} px"
        against = " + ".join(map(self.name_of, self.backbones))
        device, count = jax.devices()[0].device_kind, jax.device_count()
        where = f"{count} x {device}" if count > 1 else device
        if self.source is not None:
            return f"{named}, and {few} from {config.images.source}\n{against}, on {where}"
        return (
            f"{named} of {task.num_classes:,} classes -> {few}\n"
            f"{config.objective} against {against}, {config.steps:,} steps of {task.num_views:,} "
            f"views, on {where}"
        )

    def name_of(self, backbone: Backbone) -> str:
        """Returns the name of a backbone in results, which tells it from the others."""
        return self._names[backbone.fingerprint]

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        every = [*self.backbones, *self.eval_backbones]
        names = backbones.distinct_names(every)
        return {each.fingerprint: name for each, name in zip(every, names, strict=True)}

    @functools.cached_property
    def train(self) -> ArraySplit:
        """The decoded training images."""
        return data.in_memory(
            self.dataset.splits["train"], limit_bytes=MEMORY_LIMIT, progress="training images"
        )

    def loader(self) -> Loader:
        """Returns a reader of this process's part of each step's training images, to be closed."""
        train, config = self.dataset.splits["train"], self.config
        order_key, crop_key = real.image_keys(self.key)
        parts = Parts(
            train,
            Order(self.recipe.real.sampling, order_key, train.labels, self.dataset.num_classes),
            Crops(crop_key) if self.crop == "random" else None,
            self.task.num_views,
            config.steps,
            hosts.index(),
            hosts.count(),
        )
        return Loader(parts, config.data.workers)

    @functools.cached_property
    def distilled(self) -> ArraySplit | None:
        """The images to evaluate: the run's own, or those of `images.source`."""
        if self.source is not None:
            return self.source
        if not (self.run.path / runs.DISTILLED / ARRAYS).exists():
            return None
        images, labels, _, _, probabilities = read_distilled(self.run.path)
        return ArraySplit(images, labels, probabilities=probabilities)

    def features(self, backbone: Backbone, split: str) -> np.ndarray:
        """Returns features of the centre crops of a split, (n, d), computed once."""
        return self.embed(backbone, split, Views(self.task.crop)).whole()[0]

    def real_features(self, backbone: Backbone) -> Rows:
        """Returns features of `real.views` augmentations of each training image, computed once."""
        recipe = self.recipe
        views = Views(recipe.task.crop, recipe.real_augmentation, recipe.real.views)
        return self.embed(backbone, "train", views)

    @property
    def features_folder(self) -> epath.Path:
        """The folder of features, and of heads on all real images, which runs may share."""
        shared = self.config.real.cache
        return paths.locate(shared) if shared else self.run.path / runs.FEATURES

    def embed(self, backbone: Backbone, split: str, views: Views, draw: int = 0) -> Rows:
        """Returns features of views of a whole split, from the store where it has them.

        Args:
            draw: Number of the draw of augmentations; equal numbers mean equal views.
        """
        inputs = {
            "backbone": backbone.fingerprint,
            "data": self.dataset.fingerprint,
            "views": describe(views),
            "seed": [self.config.seed, draw] if views.augmentation else None,
        }
        name = f"{split}_{backbone.name}_{runs.digest(inputs)}"
        if name in self._embedded:
            return self._embedded[name]
        self._embedded[name] = embed(
            backbone,
            self.dataset.splits[split],
            views,
            jax.random.fold_in(jax.random.fold_in(self.key, _VIEW_STREAM), draw),
            folder=self.features_folder / name,
            label=f"{split}, {backbone.name}: features",
            size=self.embedded_at_once,
        )
        return self._embedded[name]

    def embedded_at_once(self, backbone: Backbone) -> int | None:
        """Images in a backbone, which lies on all devices, at a time on each, without a gradient.

        As before on the same devices, or as many as fit by the compiler's account; `None` for all
        of a batch, on CPUs.
        """
        stage, now = f"embed/{backbone.fingerprint}", self.process_with(backbone)
        before = self.run.last_process(stage, now)
        if "microbatch" in before:
            return before["microbatch"]
        task, mesh = self.task, devices.make_mesh(devices=jax.local_devices())
        views = Views(task.crop, task.augmentation)
        batch, side = BATCH * mesh.size, task.parametrisation.resolution
        size = Embedding(backbone, batch, side, views, mesh, numbers=2).choose()
        if size is not None:
            self.run.begin(stage, 0, {**now, "microbatch": size})
        return size

    @functools.cached_property
    def _embedded(self) -> dict[str, Rows]:
        """Features that were read or computed, by name; large ones are maps of files."""
        return {}

    @functools.cached_property
    def centroids(self) -> np.ndarray:
        """Indices of the typical training images, nearest to their class's mean, class by class."""
        return baselines.centroids(
            self.features(self.backbone, "train"),
            self.dataset.splits["train"].labels,
            self.config.ipc,
            self.dataset.num_classes,
        )

    @functools.cached_property
    def neighbors(self) -> np.ndarray:
        """Indices of the training images that look most like the distilled ones, one of each."""
        assert self.distilled is not None
        return baselines.neighbors(
            self.features(self.backbone, "train"),
            self.dataset.splits["train"].labels,
            self.features_syn,
            self.distilled.labels,
        )

    @functools.cached_property
    def features_syn(self) -> np.ndarray:
        """Features of the centre crops of the distilled images, (s, d), by the first backbone."""
        assert self.distilled is not None
        return embed(
            self.backbone,
            self.distilled,
            Views(self.task.crop),
            self.key,
            label="distilled",
            size=self.embedded_at_once,
        ).whole()[0]

    def process_with(self, *backbones: Backbone) -> dict[str, Any]:
        """Returns the record of this process with its weights and kernels of attention."""
        weights = {self.name_of(each): each.provenance for each in backbones}
        attention = {self.name_of(each): each.attention for each in backbones}
        return {**self.process, "weights": weights, "attention": attention}

    def check_start(self) -> None:
        """Loads the images of a run that begins anew, before anything is written or thrown away."""
        replaces, named = self.run.holds == "another", settings.split_list(self.config.stages)
        if self.source is None and "distill" not in named and (replaces or "probe" in named):
            raise UserError(
                "no images are distilled with this config: add distill to config.stages"
            )
        streams = self.recipe.real.source == "stream" and not self.on_host
        if streams and (replaces or "distill" in named):
            _ = self.train
        if replaces:
            for name in (self.config.probe.split, *(() if streams else ("train",))):
                split = self.dataset.splits[name]
                for start in range(0, len(split.labels), 128):
                    split.load(np.arange(start, min(start + 128, len(split.labels))))
