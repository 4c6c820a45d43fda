"""From a config to everything it names, loaded and checked: what the stages work with."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lgm_jax import backbones, baselines, data, distill, hosts, paths, probe, runs, sharding
from lgm_jax.augment import PRESETS, Augmentation
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit, Dataset
from lgm_jax.data.loader import Loader, Parts, default_workers
from lgm_jax.data.sampling import Crops, Order
from lgm_jax.distilled import ARRAYS, read_distilled
from lgm_jax.errors import UserError
from lgm_jax.features import Rows, Views, embed
from lgm_jax.foreign import read_source
from lgm_jax.identity import describe
from lgm_jax.images import grow_interval

# Training images are held in memory, decoded, up to this size.
_MEMORY_LIMIT = 8 * 2**30

# Images to stream lie on the device up to this size where `data.placement` leaves it open.
_ON_DEVICE_LIMIT = 2 * 2**30

# Features up to this size lie on the device, larger ones are mapped from their files.
FEATURES_ON_DEVICE = 2 * 2**30

# The random stream of the views whose features are kept.
_VIEW_STREAM = 103

# Images decoded at a time when nothing but their being readable matters.
_CHECK_BATCH = 128

_GROW_EVERY = "images.grow_every"

# The config key of each field of a recipe that has one of its own; `make_recipe` has the others.
_RECIPE_KEYS = {
    "ipc": "ipc",
    "copies": "copies",
    "learning_rate": "learning_rate",
    "head_std": "head_std",
    "kind": "images.kind",
    "init": "images.init",
    "decorrelate": "images.decorrelate",
    "start_resolution": "images.start_resolution",
    "real": "real.source",
    "real_views": "real.views",
    "schedule": "schedule",
    "sampling": "data.sampling",
    "grey": "images.grey",
    "objective": "objective",
    "ridge": "clp.ridge",
    "temperature": "clp.temperature",
    "label_kind": "labels",
    "labels_learning_rate": "labels_learning_rate",
    "grow_delay": "images.grow_delay",
    "head_per_copy": "clp.head_per_copy",
    "center_crop_copies": "augment.center_crops",
    "augment_real": "augment.real",
}

# What else is in an identity, by field.
_OTHER_NAMES = {
    "resolution": "images.resolution",
    "crop": "images.crop",
    "grow_every": _GROW_EVERY,
}


@dataclasses.dataclass(frozen=True)
class Session:
    """A checked config with everything it names loaded, and the folder it writes to.

    Attributes:
        backbones: What to distil against; the first chooses centroids and neighbours.
        weights: Of their losses, which add up to one.
        on_host: Whether the images of a step are read by the host, rather than all on the device.
        crop: Where images to stream are cropped before augmentation: `center` or `random`.
        settings: The config's values by dotted name, with the growth of the pyramid resolved.
    """

    config: ConfigDict
    dataset: Dataset
    backbones: Sequence[Backbone]
    weights: Sequence[float]
    eval_backbones: Sequence[Backbone]
    recipe: distill.Recipe
    identity: Mapping[str, Any]
    source: ArraySplit | None
    run: runs.Run
    process: Mapping[str, Any]
    on_host: bool
    crop: str
    settings: Mapping[str, Any]

    @property
    def backbone(self) -> Backbone:
        """The first to distil against."""
        return self.backbones[0]

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.config.seed)

    def name_of(self, backbone: Backbone) -> str:
        """What results call a backbone of the session: its name, and what tells it from others."""
        return self._names[backbone.fingerprint]

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        every = [*self.backbones, *self.eval_backbones]
        names = backbones.distinct_names(every)
        return {each.fingerprint: name for each, name in zip(every, names, strict=True)}

    @functools.cached_property
    def train(self) -> ArraySplit:
        """The training images, decoded."""
        return data.in_memory(
            self.dataset.splits["train"], limit_bytes=_MEMORY_LIMIT, progress="training images"
        )

    def loader(self) -> Loader:
        """Batches of training images that are read while the run goes on; to be closed.

        Each process reads its own part of them.
        """
        train, config = self.dataset.splits["train"], self.config
        order_key, crop_key = distill.image_keys(self.key)
        parts = Parts(
            train,
            Order(self.recipe.sampling, order_key, train.labels, self.recipe.num_classes),
            Crops(crop_key) if self.crop == "random" else None,
            self.recipe.batch,
            config.steps,
            hosts.index(),
            hosts.count(),
        )
        workers = config.data.workers
        return Loader(parts, default_workers() if workers is None else workers)

    @functools.cached_property
    def distilled(self) -> ArraySplit | None:
        """The images to evaluate: the run's own, or those of `images.source`."""
        if self.source is not None:
            return self.source
        if not (self.run.path / runs.DISTILLED / ARRAYS).exists():
            return None
        found = read_distilled(str(self.run.path))
        return ArraySplit(found.images, found.labels, probabilities=found.probabilities)

    def features(self, backbone: Backbone, split: str) -> np.ndarray:
        """Features of the centre crops of a split, (n, d), computed once."""
        return self.embed(backbone, split, Views(self.recipe.crop)).whole()[0]

    def real_features(self, backbone: Backbone) -> Rows:
        """Features of `real.views` augmentations of each training image, computed once."""
        recipe = self.recipe
        views = Views(recipe.crop, recipe.real_augmentation, recipe.real_views)
        return self.embed(backbone, "train", views)

    def embed(self, backbone: Backbone, split: str, views: Views, draw: int = 0) -> Rows:
        """Features of views of a whole split, from the store where it has them.

        Args:
            backbone: The frozen backbone.
            split: Name of the split.
            views: Which views of each image.
            draw: Number of the draw of augmentations; the same one gives the same views.
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
        shared = self.config.real.cache
        folder = paths.locate(shared) if shared else self.run.path / runs.FEATURES
        count = views.count * len(self.dataset.splits[split].labels)
        self._embedded[name] = embed(
            backbone,
            self.dataset.splits[split],
            views,
            jax.random.fold_in(jax.random.fold_in(self.key, _VIEW_STREAM), draw),
            folder=folder / name,
            # What lies in a bucket cannot be mapped.
            mapped=count * backbone.feature_dim * 4 > FEATURES_ON_DEVICE
            and not paths.is_bucket(folder),
            label=f"{split}, {backbone.name}: features",
            mesh=sharding.mesh_of_several(jax.local_devices()),
        )
        return self._embedded[name]

    @functools.cached_property
    def _embedded(self) -> dict[str, Rows]:
        """What was read from the store, or made for it: large ones are maps of files."""
        return {}

    @functools.cached_property
    def centroids(self) -> np.ndarray:
        """Indices of the training images nearest to their class's mean, for the backbone."""
        return baselines.centroids(
            self.features(self.backbone, "train"),
            self.dataset.splits["train"].labels,
            self.config.ipc,
            self.dataset.num_classes,
        )

    @functools.cached_property
    def features_syn(self) -> np.ndarray:
        """Features of the distilled images' centre crops, (s, d), by the first backbone.

        Raises:
            ValueError: If there are no distilled images.
        """
        if self.distilled is None:
            raise ValueError("there are no distilled images")
        return embed(
            self.backbone,
            self.distilled,
            Views(self.recipe.crop),
            self.key,
            label="distilled",
            mesh=sharding.mesh_of_several(jax.local_devices()),
        ).whole()[0]

    def process_with(self, *backbones: Backbone) -> dict[str, Any]:
        """What made a result: this process, and the weights it used."""
        weights = {self.name_of(each): each.provenance for each in backbones}
        return {**self.process, "weights": weights}

    def check_start(self) -> None:
        """Loads what a run that begins anew needs, before anything is written or thrown away.

        Raises:
            UserError: If the stages would find no images to work with, if one cannot be read, or if
                memory does not hold them.
        """
        replaces, named = self.run.holds == "another", split_list(self.config.stages)
        if self.source is None and "distill" not in named and (replaces or "probe" in named):
            raise UserError(
                "no images are distilled with this config: add distill to config.stages"
            )
        if "baselines" in named and full_augment(self.config) == "fresh":
            data.check_fits(self.dataset.splits["train"], limit_bytes=_MEMORY_LIMIT)
        streams = self.recipe.real == "stream" and not self.on_host
        if streams and (replaces or "distill" in named):
            _ = self.train
        if replaces:
            for name in (
                [self.config.probe.split] if streams else [self.config.probe.split, "train"]
            ):
                split = self.dataset.splits[name]
                for start in range(0, len(split.labels), _CHECK_BATCH):
                    split.load(np.arange(start, min(start + _CHECK_BATCH, len(split.labels))))


def open_session(
    config: ConfigDict,
    flat: Mapping[str, Any],
    workdir: str,
    *,
    overwrite: bool,
    command: str | None = None,
    changed: Sequence[str] = (),
) -> Session:
    """Loads what a config names, checks that it fits together, and opens the run folder.

    Args:
        config: The config.
        flat: Its values by dotted name.
        workdir: The run folder.
        overwrite: Whether another distillation in it may be thrown away.
        command: What was typed, for the record.
        changed: Keys that have another value than by default, for the record.

    Raises:
        UserError: If anything is missing or does not fit; the folder is then as it was.
    """
    own, evaluated = (
        [os.path.expanduser(name) for name in split_list(names)]
        for names in (config.backbone.name, config.eval_backbones)
    )
    # The first says how large crops are, and the others take them.
    first = _load_backbone(config, own[0], config.images.crop)
    crop = first.resolution
    loaded = {own[0]: first}
    for name in (*own[1:], *evaluated):
        if name not in loaded:
            loaded[name] = _load_backbone(config, name, crop)
    _refuse_same("backbone.name", own, loaded)
    _refuse_same("eval_backbones", evaluated, loaded)
    distilled_against = [loaded[name] for name in own]

    resolution = image_side(config, crop)
    dataset = data.load_dataset(
        config.data.name,
        folder=config.data.folder,
        resolution=resolution,
        seed=config.data.split_seed,
        val_fraction=config.data.val_fraction,
        subset=config.data.subset,
        label=config.data.label,
        on_bad_image=config.data.on_bad_image,
    )
    summary = data.describe(dataset)
    for note in summary["notes"]:
        print(f"note: {note}")
    if config.probe.split not in dataset.splits:
        raise UserError(
            f"{dataset.name} has no {config.probe.split} images: to hold some training images out, "
            "set --config.data.val_fraction=0.1"
        )
    smallest = np.bincount(dataset.splits["train"].labels, minlength=dataset.num_classes).min()
    if config.ipc > smallest:
        raise UserError(
            f"config.ipc is {config.ipc}, but the smallest class has {smallest} training images"
        )
    recipe = make_recipe(config, dataset.num_classes, crop)
    cached = recipe.real != "stream"
    if cached and recipe.real_augmentation is None and recipe.real_views > 1:
        raise UserError(
            f"config.real.views is {recipe.real_views}, but all are the same without augmentation "
            "of real images"
        )
    if config.steps * recipe.batch >= 2**31:
        raise UserError(
            f"config.steps x {recipe.batch} images a step do not fit 32 bits; lower config.steps"
        )
    on_host = not cached and reads_on_host(config, len(dataset.splits["train"].labels), resolution)
    if recipe.real != "exact" and recipe.batch < hosts.count():
        raise UserError(
            f"a step has {recipe.batch} real images, fewer than the {hosts.count()} processes: "
            "start fewer, or raise config.copies"
        )
    crop_at = _crop_at(config, dataset, on_host=on_host)
    weights = backbone_weights(config)
    source = None
    if config.images.source:
        source = read_source(config.images.source, dataset, resolution, config.ipc)

    def identity_of(recipe: distill.Recipe) -> dict[str, Any]:
        return identify(
            recipe, config.seed, distilled_against, weights, dataset.fingerprint, crop_at, source
        )

    identity = identity_of(recipe)
    workdir = os.fspath(paths.locate(workdir))
    begun = runs.begun(epath.Path(workdir)) or {}
    # What else the identity has may follow from it, such as whether a first level is told.
    every = begun.get("identity", {}).get(_GROW_EVERY, distill.Recipe.grow_every)
    as_begun = dataclasses.replace(recipe, grow_every=every)
    if (
        config.images.grow_every is None
        and as_begun != recipe
        and identity_of(as_begun) == begun.get("identity")
    ):
        print(
            f"note: {workdir} goes on with {_GROW_EVERY}={every}, as it began; begun anew, "
            f"config.steps={config.steps} would make it {recipe.grow_every}"
        )
        command = command and f"{command} --config.{_GROW_EVERY}={every}"
        recipe, identity = as_begun, identity_of(as_begun)
    settings = {**flat, _GROW_EVERY: recipe.grow_every}
    if begun.get("identity") == identity:
        # A start for some stages leaves out of the record none that others were for.
        earlier = split_list(begun.get("config", {}).get("stages", ""))
        settings["stages"] = ",".join(dict.fromkeys([*earlier, *split_list(config.stages)]))
    run = runs.check_run(workdir, identity, overwrite=overwrite, settings=settings)
    session = Session(
        config,
        dataset,
        distilled_against,
        weights,
        [loaded[name] for name in evaluated or own],
        recipe,
        identity,
        source,
        run,
        {**runs.provenance(), "deterministic": config.deterministic},
        on_host,
        crop_at,
        settings,
    )
    if run.holds != "this":
        session.check_start()
    described = {"command": command, "config": settings, "changed": list(changed)}
    run.open(identity, {**described, "data": summary})
    return session


def _refuse_same(key: str, names: Sequence[str], loaded: Mapping[str, Backbone]) -> None:
    """Refuses two names of one backbone, which would count, or stand in results, twice."""
    owners: dict[str, str] = {}
    for name in names:
        other = owners.setdefault(loaded[name].fingerprint, name)
        if other != name:
            raise UserError(f"config.{key}: {other} and {name} are the same backbone; name one")


def full_augment(config: ConfigDict) -> str:
    """How the probe on the full training set augments."""
    return config.probe.full_augment or config.probe.augment


def image_side(config: ConfigDict, crop: int) -> int:
    """Side of the images that crops are taken from.

    Raises:
        UserError: If it is smaller than the crop.
    """
    # The paper's 256 px for crops of 224.
    resolution = config.images.resolution or round(crop * 8 / 7)
    if resolution < crop:
        raise UserError(
            f"config.images.resolution ({resolution}) is smaller than the crop ({crop})"
        )
    return resolution


def backbone_weights(config: ConfigDict) -> list[float]:
    """Weights of the losses against each backbone to distil against, which add up to one."""
    weights = [float(weight) for weight in split_list(config.backbone.weights)]
    weights = weights or [1.0] * len(split_list(config.backbone.name))
    return [weight / sum(weights) for weight in weights]


def make_recipe(config: ConfigDict, num_classes: int, crop: int) -> distill.Recipe:
    """What a config says of the images, given classes and the side of the backbone's crops.

    Raises:
        UserError: If it contradicts itself.
    """
    fields = {field: _value(config, key) for field, key in _RECIPE_KEYS.items()}
    recipe = distill.Recipe(
        num_classes=num_classes,
        resolution=image_side(config, crop),
        crop=crop,
        augmentation=make_augmentation(config.augment) if config.augment.distill else None,
        # A schedule is of at least one step, also where none is made.
        steps=max(1, config.steps) if config.schedule == "cosine" else 0,
        **fields,
    )
    every = config.images.grow_every
    if every is None:
        every = grow_interval(
            config.steps,
            recipe.sizes,
            recipe.start_resolution,
            config.images.grow_until,
            recipe.grow_delay,
        )
    return dataclasses.replace(recipe, grow_every=every)


def identify(
    recipe: distill.Recipe,
    seed: int,
    backbones: Sequence[Backbone],
    weights: Sequence[float],
    data: str,
    crop_at: str,
    source: ArraySplit | None,
) -> dict[str, Any]:
    """What makes a distillation this one and no other, as JSON, by config key.

    Of the recipe, all that decides the images and is not at its default: a field or a key that is
    added later changes no identity.

    Args:
        recipe: The recipe.
        seed: The root of all randomness.
        backbones: What is distilled against.
        weights: Of their losses.
        data: The fingerprint of the data set.
        crop_at: Where streamed images are cropped.
        source: Finished images in place of a distillation.
    """
    fields = describe(recipe)
    augmentation = fields.pop("augmentation", {})
    if augmentation is None:
        augmentation = {"preset": "none"}
    names = {**_RECIPE_KEYS, **_OTHER_NAMES}
    named = {names.get(field, field): value for field, value in fields.items()}
    named |= {f"augment.{field}": value for field, value in augmentation.items()}
    named = {key: value for key, value in named.items() if key.rpartition(".")[2] != "type"}
    equal = len(set(weights)) == 1
    return {
        "seed": seed,
        **named,
        "backbone.fingerprint": ",".join(backbone.fingerprint for backbone in backbones),
        **({} if equal else {"backbone.weights": list(weights)}),
        "data.fingerprint": data,
        **({} if crop_at == "center" else {"data.crop": crop_at}),
        **({} if source is None else {"images.source": content_hash(source)}),
    }


def _value(config: ConfigDict, key: str) -> Any:
    return functools.reduce(lambda section, name: section[name], key.split("."), config)


def make_protocol(config: ConfigDict, recipe: distill.Recipe, *, full: bool) -> probe.Protocol:
    """What a config says of probes.

    Args:
        config: A checked config.
        recipe: What it says of the images.
        full: Whether a probe trains on the full training set, rather than on a few images.
    """
    # Of the config: a recipe may be without augmentation for the sake of an ablation.
    options, augmentation = config.probe, make_augmentation(config.augment)
    if augmentation is not None and not options.noise:
        augmentation = dataclasses.replace(augmentation, noise=0.0)
    return probe.Protocol(
        epochs=options.full_epochs if full else options.epochs,
        batch=(options.full_batch or options.batch) if full else options.batch,
        runs=options.runs,
        crop=recipe.crop,
        augment=full_augment(config) if full else options.augment,
        augmentation=augmentation,
        views=options.views,
        solver=options.solver,
        share_views=options.share_views,
        learning_rate=options.learning_rate,
        ridge=options.ridge,
        drop_last=options.drop_last,
        decay=options.decay,
    )


def reads_on_host(config: ConfigDict, num_images: int, resolution: int) -> bool:
    """Whether the images to stream are read by the host as they are needed.

    Raises:
        UserError: If the device is to hold more than it may.
    """
    size = num_images * resolution**2 * 3
    placement = config.data.placement
    if placement == "device" and size > _MEMORY_LIMIT:
        raise UserError(
            f"the training images take {size / 1e9:.3g} GB, more than the "
            f"{_MEMORY_LIMIT / 1e9:.3g} GB of config.data.placement=device: set "
            "--config.data.placement=host"
        )
    return placement == "host" or (placement == "auto" and size > _ON_DEVICE_LIMIT)


def source_bytes(
    recipe: distill.Recipe,
    num_images: int,
    feature_dims: Sequence[int],
    devices: int,
    *,
    on_host: bool,
) -> int:
    """Memory that real images or their features take on a device, at most.

    Args:
        recipe: The recipe.
        num_images: Real images.
        feature_dims: Features of each backbone to distil against.
        devices: How many there are.
        on_host: Whether streamed images come from the host.
    """
    image = 3 * recipe.resolution**2
    if on_host:
        # One batch in use, and the next.
        return 2 * image * -(-recipe.batch // devices)
    if recipe.real == "stream":
        return image * num_images
    rows = recipe.num_classes if recipe.needs_means_alone else recipe.real_views * num_images
    features = sum(min(4 * rows * dim, FEATURES_ON_DEVICE) for dim in feature_dims)
    return -(-features // devices) if recipe.real == "exact" else features


def _crop_at(config: ConfigDict, dataset: Dataset, *, on_host: bool) -> str:
    """Where images are cropped before augmentation; those of an array are square already."""
    kept = config.augment.distill and not config.augment.real
    if config.data.crop == "random" and kept:
        raise UserError("config.data.crop=random contradicts config.augment.real=False")
    if config.data.crop == "random" and not on_host:
        raise UserError(
            "config.data.crop=random needs --config.real.source=stream and "
            "--config.data.placement=host: the device holds one crop of each image"
        )
    if not on_host or kept or isinstance(dataset.splits["train"], ArraySplit):
        return "center"
    return "center" if config.data.crop == "center" else "random"


def content_hash(split: ArraySplit) -> str:
    """Changes when images or labels do."""
    soft = b"" if split.probabilities is None else split.probabilities.tobytes()
    return hashlib.sha256(split.images.tobytes() + split.labels.tobytes() + soft).hexdigest()


def _load_backbone(config: ConfigDict, name: str, crop: int | None) -> Backbone:
    options = config.backbone
    # A revision belongs to one repository, that of the only backbone to distil against.
    revision = options.revision if name == os.path.expanduser(options.name) else ""
    try:
        return backbones.load(
            name,
            normalization=options.normalization,
            dtype=options.dtype,
            params_dtype=options.params_dtype,
            attention=options.attention,
            pooling=options.pooling,
            position_offset=options.position_offset,
            resolution=crop,
            revision=revision or None,
        )
    except backbones.IndivisibleError as error:
        raise UserError(f"config.images.crop={crop}, and {name}: {error}") from error


def make_augmentation(config: ConfigDict) -> Augmentation | None:
    """The augmentation that the section `augment` of a config says, of probes too.

    Raises:
        UserError: If it contradicts itself.
    """
    preset = PRESETS[config.preset]
    changes = {
        name: config[name]
        for name in ("flip", "noise", "noise_mean", "noise_std", "crops")
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


def split_list(names: str) -> list[str]:
    """The items of a comma-separated string."""
    return [name.strip() for name in names.split(",") if name.strip()]
