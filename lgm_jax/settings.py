"""Read a config into the dataclasses of the library: each key is read in one place, here.

A field of a dataclass has the key of its name in its section, but for `_KEYS`. The identity of a
distillation is derived from the same dataclasses, by the same keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import optax
from ml_collections import ConfigDict

from lgm_jax import checks, distill, identity, plugins, probe, real
from lgm_jax.augment import PRESETS, Augment, Augmentation
from lgm_jax.data.sampling import SAMPLINGS
from lgm_jax.errors import UserError
from lgm_jax.images import PARAMETRISATIONS, Pyramid, grow_interval
from lgm_jax.objectives import OBJECTIVES, Objective

SCHEDULES = ("constant", "cosine")

GROW_EVERY = "images.grow_every"

# Fields whose keys have other names, or are in another section.
_KEYS = {
    "crop": "images.crop",
    "center_crop_copies": "augment.center_crops",
    "sampling": "data.sampling",
    "augmented": "augment.real",
}

# The default classes, which are part of no identity.
_KIND, _OBJECTIVE, _AUGMENTATION = "pyramid", "lgm", Augmentation


@dataclasses.dataclass(frozen=True)
class Updates:
    """Adam's updates of images and of soft labels.

    Attributes:
        learning_rate: Learning rate of the images.
        schedule: `constant` as in the paper, or `cosine`: the rate falls to zero over `steps`.
        steps: Length of a `cosine` schedule in updates; unused otherwise.
        labels_learning_rate: Learning rate of soft labels.
    """

    learning_rate: float = 0.002
    schedule: str = "constant"
    steps: int = 0
    labels_learning_rate: float = 0.01

    def __post_init__(self) -> None:
        checks.positive("learning_rate", self.learning_rate)
        checks.positive("labels_learning_rate", self.labels_learning_rate)
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.in_range("steps", self.steps, int(self.schedule == "cosine"), whole=True)

    @property
    def idle(self) -> frozenset[str]:
        """Fields without an effect, as the others are set; see `identity`."""
        return frozenset({"steps"} if self.schedule == "constant" else ())

    def factor(self) -> optax.Schedule | None:
        """Returns the factor of updates by their number; `None` for a constant one."""
        if self.schedule == "constant":
            return None
        return optax.cosine_decay_schedule(1.0, self.steps)


@dataclasses.dataclass(frozen=True)
class RealViews:
    """The real features that a step sees.

    Attributes:
        source: One of `real.SOURCES`.
        views: Augmentations of each image, for `cached` and `exact`.
        sampling: The choice of a step's images, but for `exact`.
        augmented: Whether real images are augmented, rather than centre crops.
    """

    source: str = "stream"
    views: int = 1
    sampling: str = "shuffle"
    augmented: bool = True

    def __post_init__(self) -> None:
        checks.one_of("real", self.source, real.SOURCES)
        checks.counts(self, "views")
        checks.one_of("sampling", self.sampling, SAMPLINGS)
        checks.flags(self, "augmented")

    @property
    def idle(self) -> frozenset[str]:
        """Fields without an effect, as the others are set; see `identity`."""
        return frozenset(
            {"views"} if self.source == "stream" else {"sampling"} if self.source == "exact" else ()
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A distillation as a config describes it.

    Attributes:
        updates: The updates of its images.
    """

    task: distill.Distillation
    updates: Updates
    real: RealViews

    @property
    def real_augmentation(self) -> Augment | None:
        """The augmentation of real images; `None` for centre crops."""
        return self.task.augmentation if self.real.augmented else None

    @property
    def grow_every(self) -> int | None:
        """Steps between two levels of the images; `None` for images without levels."""
        return getattr(self.task.parametrisation, "grow_every", None)

    @property
    def prepares(self) -> bool:
        """Whether the objective prepares real features before the first step."""
        return self.real.source == "exact" and hasattr(self.task.objective, "prepare")


def make_recipe(config: ConfigDict, num_classes: int, crop: int) -> Recipe:
    """Reads the recipe of a config; `crop` is the side of the backbone's crops, in pixels."""
    flat = flatten(config)
    updates = Updates(
        **_read(Updates, "", flat)
        # A schedule has at least one step, also for a run of none.
        | {"steps": max(1, config.steps) if config.schedule == "cosine" else 0}
    )
    task = distill.Distillation(
        **_read(distill.Distillation, "", flat)
        | {
            "num_classes": num_classes,
            "parametrisation": _make_parametrisation(config, flat, crop),
            "crop": crop,
            "objective": make_objective(config),
            "augmentation": make_augmentation(config.augment) if config.augment.distill else None,
            "optimizer": optax.adam(updates.learning_rate),
            "labels_optimizer": optax.adam(updates.labels_learning_rate),
            "schedule": updates.factor(),
        }
    )
    return Recipe(task, updates, RealViews(**_read(RealViews, "real.", flat)))


def identity_of(
    recipe: Recipe,
    seed: int,
    backbones: Sequence[str],
    weights: Sequence[float],
    data: str,
    crop_at: str,
    source: str | None,
) -> dict[str, Any]:
    """Returns the identity of a run's distillation, as JSON by config key.

    It has all values that decide the images and are not at their default: a field or a key that is
    added later changes no identity.

    Args:
        crop_at: The place where streamed images are cropped, `center` or `random`.
        source: The hash of finished images in place of a distillation.

    Raises:
        UserError: If something from outside is no dataclass, or has a field without a description.
    """
    try:
        task = identity.describe(recipe.task)
    except TypeError as error:
        raise UserError(
            f"{error}, which a run is known by: make it a frozen dataclass of numbers and names, "
            "see docs/extending.md"
        ) from error
    nouns = {name: task.pop(name, {}) for name in ("parametrisation", "objective", "augmentation")}
    named = _named("", task) | _named("", identity.describe(recipe.updates))
    named |= _named("real.", identity.describe(recipe.real))
    named |= _noun("images.kind", "images.", nouns["parametrisation"], PARAMETRISATIONS, _KIND)
    named |= _noun("objective", "", nouns["objective"], OBJECTIVES, _OBJECTIVE)
    augmentation = {"type": "none"} if nouns["augmentation"] is None else nouns["augmentation"]
    named |= _noun("augment.preset", "augment.", augmentation, {"": _AUGMENTATION}, "")
    idle = {
        "labels_learning_rate": recipe.task.labels == "hard",
        "augment.real": recipe.task.augmentation is None,
    }
    equal = len(set(weights)) == 1
    return {
        "seed": seed,
        **{key: value for key, value in named.items() if not idle.get(key)},
        "backbone.fingerprint": ",".join(backbones),
        **({} if equal else {"backbone.weights": list(weights)}),
        "data.fingerprint": data,
        **({} if crop_at == "center" else {"data.crop": crop_at}),
        **({} if source is None else {"images.source": source}),
    }


def make_objective(config: ConfigDict) -> Objective:
    """Reads the objective of a config."""
    name, options = config.objective, config.objective_options.to_dict()
    if name in OBJECTIVES:
        options = _read(OBJECTIVES[name], _section(name), flatten(config)) | options
    return plugins.make("objective", name, OBJECTIVES, options)


def make_augmentation(config: ConfigDict) -> Augment | None:
    """Reads the augmentation, of probes too, from the section `augment` of a config."""
    changes = {
        name: config[name]
        for name in ("flip", "noise", "noise_mean", "noise_std", "crops")
        if config[name] is not None
    }
    low, high = config.scale_min, config.scale_max
    changed = bool(changes) or low is not None or high is not None
    preset: Any = plugins.resolve("augmentation", config.preset, PRESETS)
    if isinstance(preset, type) or config.options:
        preset = plugins.make("augmentation", config.preset, PRESETS, config.options.to_dict())
    if not isinstance(preset, Augmentation):
        if changed:
            raise UserError(
                f"config.augment.preset={config.preset} leaves nothing to change by other keys"
            )
        return preset
    low = preset.scale[0] if low is None else low
    high = preset.scale[1] if high is None else high
    if low > high:
        raise UserError(f"config.augment.scale_min ({low}) exceeds scale_max ({high})")
    return dataclasses.replace(preset, scale=(low, high), **changes)


def make_protocol(
    config: ConfigDict, crop: int, *, full: bool, targets: str = "labels"
) -> probe.Protocol:
    """Reads the protocol of probes.

    Args:
        crop: Side of the crops that backbones see.
        full: Whether a probe trains on the full training set, rather than on a few images.
    """
    # Not the recipe's: an ablation may distil without augmentation.
    options, augmentation = config.probe, make_augmentation(config.augment)
    if isinstance(augmentation, Augmentation) and not options.noise:
        augmentation = dataclasses.replace(augmentation, noise=0.0)
    changes: dict[str, Any] = {"crop": crop, "augmentation": augmentation, "targets": targets}
    if targets == "ci":
        # 0.01, for 0.001 of other probes, in the public code of SFM.
        changes["learning_rate"] = 10 * options.learning_rate
    if full:
        changes["epochs"] = options.full_epochs
        changes["batch"] = options.full_batch or options.batch
        changes["augment"] = options.full_augment or options.augment
    return probe.Protocol(**_read(probe.Protocol, "probe.", flatten(config)) | changes)


def image_side(config: ConfigDict, crop: int) -> int:
    """Returns the side of the images that crops are taken from, in pixels."""
    # The paper's 256 px for crops of 224.
    resolution = config.images.resolution or round(crop * 8 / 7)
    if resolution < crop:
        raise UserError(
            f"config.images.resolution ({resolution}) is smaller than the crop ({crop})"
        )
    return resolution


def backbone_weights(config: ConfigDict) -> list[float]:
    """Returns the weight of the loss by each backbone; they add up to one."""
    weights = [float(weight) for weight in split_list(config.backbone.weights)]
    weights = weights or [1.0] * len(split_list(config.backbone.name))
    return [weight / sum(weights) for weight in weights]


def split_list(names: str) -> list[str]:
    """Splits a comma-separated string."""
    return [name.strip() for name in names.split(",") if name.strip()]


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns all values of a config by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _make_parametrisation(config: ConfigDict, flat: Mapping[str, Any], crop: int) -> Any:
    kind, resolution = config.images.kind, image_side(config, crop)
    options = {**config.images.options.to_dict(), "resolution": resolution}
    if kind in PARAMETRISATIONS:
        options |= _read(PARAMETRISATIONS[kind], "images.", flat) | {"resolution": resolution}
    images = plugins.make("parametrisation", kind, PARAMETRISATIONS, options)
    if not isinstance(images, Pyramid) or config.images.grow_every is not None:
        return images
    every = grow_interval(
        config.steps,
        images.sizes,
        images.start_resolution,
        config.images.grow_until,
        images.grow_delay,
    )
    return dataclasses.replace(images, grow_every=every)


def _section(name: str) -> str:
    """Returns the section of a built-in objective's options."""
    return "" if name == _OBJECTIVE else f"{name}."


def _read(cls: Any, section: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the set values of a config that are fields of a dataclass."""
    fields = [field.name for field in dataclasses.fields(cls)]
    keys = {name: _KEYS.get(name, section + name) for name in fields}
    return {name: flat[key] for name, key in keys.items() if flat.get(key) is not None}


def _named(section: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a description by config key."""
    fields = {name: value for name, value in description.items() if name != "type"}
    return {_KEYS.get(name, section + name): value for name, value in fields.items()}


def _noun(
    key: str, section: str, description: Mapping[str, Any], known: Mapping[str, type], default: str
) -> dict[str, Any]:
    """Returns the name of a described class, unless it is the default, and its fields."""
    if not description:
        return {}
    names = {cls.__name__: name for name, cls in known.items()}
    kind = description["type"]
    name = names.get(kind, kind)
    if key == "objective" and name in known:
        section = _section(name)
    elif name not in known:
        section = f"{key}_options." if key == "objective" else f"{section}options."
    fields = {name: value for name, value in description.items() if name != "type"}
    # Every parametrisation has a resolution, whose key is not among its options.
    side = {"images.resolution": fields.pop("resolution")} if key == "images.kind" else {}
    named = side | {section + field: value for field, value in fields.items()}
    return named if name == default else {key: name, **named}


def with_growth(recipe: Recipe, every: int) -> Recipe:
    """Returns the recipe with another interval between the levels of its pyramid, if it has one."""
    pyramid = recipe.task.parametrisation
    if not isinstance(pyramid, Pyramid):
        return recipe
    pyramid = dataclasses.replace(pyramid, grow_every=every)
    return dataclasses.replace(
        recipe, task=dataclasses.replace(recipe.task, parametrisation=pyramid)
    )
