"""Open a session: load the backbones and data of a config, check them, and take the run folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from lgm_jax import backbones, data, hosts, paths, runs, settings
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit, Dataset
from lgm_jax.errors import UserError
from lgm_jax.foreign import read_source
from lgm_jax.images import Pyramid
from lgm_jax.objectives import OBJECTIVES, try_objective
from lgm_jax.session import MEMORY_LIMIT, Session

# Images to stream lie on the device up to this size where `data.placement` leaves it open.
ON_DEVICE_LIMIT = 2 * 2**30


def open_session(
    config: ConfigDict,
    workdir: str,
    *,
    overwrite: bool,
    command: str | None = None,
    changed: Sequence[str] = (),
) -> Session:
    """Loads the backbones and data of a config, checks that they fit, and opens the run folder.

    Args:
        overwrite: Whether another distillation in it may be thrown away.
        changed: Keys whose values are not the default ones, for the record.

    Raises:
        UserError: If anything is missing or does not fit; the folder is then as it was.
    """
    against, evaluated = _load_backbones(config)
    side = settings.image_side(config, against[0].resolution)
    dataset = _load_data(config, side)
    recipe = settings.make_recipe(config, dataset.num_classes, against[0].resolution)
    on_host = _check_fit(config, recipe, dataset, against)
    crop_at = _crop_at(config, dataset, on_host=on_host)
    folder = config.images.source
    source = read_source(folder, dataset, side, config.ipc) if folder else None
    identity_of = functools.partial(
        settings.identity_of,
        seed=config.seed,
        backbones=[backbone.fingerprint for backbone in against],
        weights=settings.backbone_weights(config),
        data=dataset.fingerprint,
        crop_at=crop_at,
        source=None if source is None else source.fingerprint,
    )
    path = paths.locate(workdir)
    begun = runs.begun(path)
    # Unless the config sets it, a run keeps its growth, from which other keys of the identity may
    # follow, such as that of the first level.
    every = begun.get("identity", {}).get(settings.GROW_EVERY, Pyramid.grow_every)
    as_begun = settings.with_growth(recipe, every)
    keeps = config.images.grow_every is None and as_begun != recipe
    if keeps and identity_of(as_begun) == begun.get("identity"):
        print(
            f"note: {path} continues with {settings.GROW_EVERY}={every}, as it began; a new run of "
            f"config.steps={config.steps} would make it {recipe.grow_every}"
        )
        recipe = as_begun
        command = command and f"{command} --config.{settings.GROW_EVERY}={every}"
    identity = identity_of(recipe)
    recorded = settings.flatten(config)
    if recipe.grow_every is not None:
        recorded[settings.GROW_EVERY] = recipe.grow_every
    if begun.get("identity") == identity:
        # Those of earlier starts of the run too.
        stages = f"{begun.get('config', {}).get('stages', '')},{config.stages}"
        recorded["stages"] = ",".join(dict.fromkeys(settings.split_list(stages)))
    session = Session(
        config,
        dataset,
        against,
        evaluated,
        recipe,
        identity,
        source,
        runs.check_run(os.fspath(path), identity, overwrite=overwrite, settings=recorded),
        {**runs.provenance(), "deterministic": config.deterministic},
        on_host,
        crop_at,
        recorded,
    )
    if session.run.holds != "this":
        session.check_start()
    described = {"changed": list(changed), "data": data.describe(dataset)}
    session.run.open(identity, {"command": command, "config": recorded, **described})
    return session


def _load_backbones(config: ConfigDict) -> tuple[list[Backbone], list[Backbone]]:
    """Loads the backbones to distil against, and those to evaluate on."""
    own, evaluated = (
        [os.path.expanduser(name) for name in settings.split_list(names)]
        for names in (config.backbone.name, config.eval_backbones)
    )
    # The first decides the size of crops, and the others take them.
    first = load_backbone(config, own[0], config.images.crop)
    loaded = {own[0]: first}
    for name in (*own[1:], *evaluated):
        if name not in loaded:
            loaded[name] = load_backbone(config, name, first.resolution)
    for key, names in (("backbone.name", own), ("eval_backbones", evaluated)):
        owners: dict[str, str] = {}
        for name in names:
            # It would count twice.
            other = owners.setdefault(loaded[name].fingerprint, name)
            if other != name:
                raise UserError(f"config.{key}: {other} and {name} are the same backbone; name one")
    taught = config.probe.teacher and {"probe", "baselines"} & {*settings.split_list(config.stages)}
    known = {loaded[name].fingerprint for name in evaluated or own}
    if taught and first.fingerprint not in known:
        raise UserError(
            f"config.probe.teacher={config.probe.teacher} needs the probe on all real images of "
            f"{own[0]}: add it to config.eval_backbones"
        )
    check_kernels([backbone.attention for backbone in loaded.values()])
    return [loaded[name] for name in own], [loaded[name] for name in evaluated or own]


def check_kernels(kernels: list[str]) -> None:
    """Refuses programs that differ between processes: their devices would wait for each other."""
    first = hosts.first_says(kernels)
    if kernels != first:
        raise UserError(
            f"attention is computed by {', '.join(kernels)} in process {hosts.index()}, and by "
            f"{', '.join(first)} in process 0: set --config.backbone.attention=xla"
        )


def _load_data(config: ConfigDict, resolution: int) -> Dataset:
    """Loads the data set, prints its notes, and checks that it has the images that are needed."""
    dataset = find_data(config, resolution, config.data.on_bad_image)
    for note in data.describe(dataset)["notes"]:
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
    return dataset


def find_data(config: ConfigDict, resolution: int, on_bad_image: str) -> Dataset:
    """Returns the data set of a config, of whose images none is decoded yet."""
    return data.load_dataset(
        config.data.name,
        folder=config.data.folder,
        resolution=resolution,
        seed=config.data.split_seed,
        val_fraction=config.data.val_fraction,
        subset=config.data.subset,
        label=config.data.label,
        on_bad_image=on_bad_image,
    )


def _check_fit(
    config: ConfigDict, recipe: settings.Recipe, dataset: Dataset, against: Sequence[Backbone]
) -> bool:
    """Refuses contradictions; returns whether the host reads the images of a step."""
    if config.objective not in OBJECTIVES:
        for backbone in against:
            try_objective(recipe.task.objective, dataset.num_classes, backbone.feature_dim)
    real, views = recipe.real, recipe.task.num_views
    if real.source != "stream" and recipe.real_augmentation is None and real.views > 1:
        raise UserError(
            f"config.real.views is {real.views}, but all are the same without augmentation of real "
            "images"
        )
    if config.steps * views >= 2**31:
        raise UserError(
            f"config.steps x {views} images a step do not fit 32 bits; lower config.steps"
        )
    if real.source != "exact" and views < hosts.count():
        raise UserError(
            f"a step has {views} real images, fewer than the {hosts.count()} processes: "
            "start fewer, or raise config.copies"
        )
    return reads_on_host(config, recipe, len(dataset.splits["train"].labels))


def reads_on_host(config: ConfigDict, recipe: settings.Recipe, num_images: int) -> bool:
    """Returns whether the host reads streamed images, of so many, as they are needed."""
    size = num_images * recipe.task.parametrisation.resolution**2 * 3
    placement = config.data.placement
    if recipe.real.source != "stream":
        return False
    if placement == "device" and size > MEMORY_LIMIT:
        raise UserError(
            f"the training images take {size / 1e9:.3g} GB, more than the "
            f"{MEMORY_LIMIT / 1e9:.3g} GB of config.data.placement=device: set "
            "--config.data.placement=host"
        )
    return placement == "host" or (placement == "auto" and size > ON_DEVICE_LIMIT)


def _crop_at(config: ConfigDict, dataset: Dataset, *, on_host: bool) -> str:
    """Returns where images are cropped before augmentation; those of an array are square."""
    unaugmented = config.augment.distill and not config.augment.real
    if config.data.crop == "random" and unaugmented:
        raise UserError("config.data.crop=random contradicts config.augment.real=False")
    if config.data.crop == "random" and not on_host:
        raise UserError(
            "config.data.crop=random needs --config.real.source=stream and "
            "--config.data.placement=host: the device holds one crop of each image"
        )
    square = isinstance(dataset.splits["train"], ArraySplit)
    center = not on_host or unaugmented or square or config.data.crop == "center"
    return "center" if center else "random"


def load_backbone(config: ConfigDict, name: str, crop: int | None) -> Backbone:
    options = config.backbone
    # A revision belongs to one repository: that of the only backbone to distil against.
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
            resize=options.resize,
            revision=revision or None,
        )
    except backbones.IndivisibleError as error:
        raise UserError(f"config.images.crop={crop}, and {name}: {error}") from error
