"""How a checkpoint's own `config.json` says what it is: timm's, transformers', and our exports'."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import UserDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgm_jax import checks
from lgm_jax.backbones import families
from lgm_jax.backbones.families.family import Config, side
from lgm_jax.backbones.network import LARGEST, Preprocessing, Published
from lgm_jax.errors import UserError, unknown_name

OURS = "lgm_jax"
"""The `model_type` of what `tools/export_backbone.py` writes."""

# Arguments of training, of sizes that are settled otherwise, and of what follows the backbone.
_IDLE = frozenset(
    {
        *("dynamic_img_size", "dynamic_img_pad", "weight_init", "fix_init", "num_classes"),
        *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
        *("drop_path_rate", "drop_block_rate", "head_init_scale", "zero_init_last"),
        *("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"),
    }
)


@functools.cache
def upstream() -> Mapping[str, Any]:
    """Returns the defaults of timm and transformers, from `tools/write_upstream.py`."""
    return json.loads(Path(__file__).with_name("upstream.json").read_text())


def read_config(config: Config, preprocessor: Config) -> Published:
    """Understands the contents of `config.json` and of `preprocessor_config.json`, if any."""
    if config.get("model_type") == OURS:
        return _from_ours(config)
    if "architecture" in config:
        return _from_timm(config, preprocessor)
    if "model_type" in config:
        return _from_transformers(config, preprocessor)
    raise UserError("it names neither an architecture (timm) nor a model_type (transformers)")


class _Arguments(UserDict[str, Any]):
    """Arguments of a class, and which of them have been looked at."""

    def __init__(self, values: Config):
        self.seen: set[str] = set()
        super().__init__(values)

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)


def _from_timm(config: Config, preprocessor: Config) -> Published:
    """timm's `architecture`, `model_args` and `pretrained_cfg`."""
    name = str(config["architecture"])
    found = _timm_architecture(name)
    # timm's older files have no such section, but its content in its place.
    pretrained = _section(config, "pretrained_cfg") if "pretrained_cfg" in config else config
    defaults = upstream()["timm_classes"][found["class"]]
    values = {**defaults, **found["arguments"]}
    if "img_size" in defaults:
        values["img_size"] = _timm_side(pretrained, found["side"])
    given = dict(_section(config, "model_args"))
    if config.get("global_pool"):
        given.setdefault("global_pool", config["global_pool"])
    if _trained_with_quick_gelu(name, pretrained):
        given.setdefault("act_layer", "quick_gelu")
    for key in given:
        if key not in defaults:
            raise unknown_name("timm model argument", key, list(defaults), "supported")
    classes = given.get("num_classes", config.get("num_classes"))
    if "projection" in found and classes == found["projection"]:
        # The head is no classifier.
        values["projection"] = found["projection"]
    arguments = _Arguments(values | _checked(defaults, given, "timm's "))
    spec, form = families.timm_classes()[found["class"]](arguments)
    for key in sorted(set(arguments) - arguments.seen - _IDLE):
        if arguments[key] != defaults.get(key):
            raise UserError(f"timm's {name} is not supported: its {key} is {arguments[key]}")
    resolution = 0 if "img_size" in defaults else _timm_side(pretrained, found["side"])
    return Published(spec, form, _timm_statistics(pretrained, preprocessor, found), resolution)


def _timm_architecture(name: str) -> Mapping[str, Any]:
    architectures = upstream()["timm"]
    if name in architectures:
        return architectures[name]
    for kind, names in upstream()["timm_others"].items():
        if name in names:
            raise UserError(f"timm's {name} is not supported: its class is {kind}")
    raise unknown_name("timm architecture", name, list(architectures))


def _timm_side(pretrained: Config, default: int) -> Any:
    size = pretrained.get("input_size", (3, default, default))
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise UserError(f"pretrained_cfg.input_size must be three numbers, not {size!r}")
    return side(list(size[1:]), "pretrained_cfg.input_size")


def _trained_with_quick_gelu(architecture: str, pretrained: Config) -> bool:
    """Whether weights need another GELU than the name they are published under stands for."""
    if "_clip_" not in architecture:
        return False
    said = "natively QuickGELU" in str(pretrained.get("notes"))
    return said or f"{architecture}.{pretrained.get('tag')}" in upstream()["timm_quick_gelu"]


def _timm_statistics(pretrained: Config, preprocessor: Config, found: Config) -> Preprocessing:
    parts = {}
    for name in ("mean", "std"):
        parts[name] = pretrained.get(name) or preprocessor.get(f"image_{name}") or found.get(name)
        if parts[name] is None:
            raise UserError(
                f"pretrained_cfg has no {name}, and timm's weights of this architecture differ in "
                'it: add "mean" and "std", three numbers each, as the weights were trained with'
            )
    return _statistics(**parts)


def _from_transformers(config: Config, preprocessor: Config) -> Published:
    """A transformers configuration: what the file leaves out is at its class's default."""
    kind = config["model_type"]
    readers, defaults = families.model_types(), upstream()["transformers"]
    if not isinstance(kind, str) or kind not in readers:
        raise unknown_name("transformers model_type", str(kind), list(readers), "supported")
    values = defaults[kind] | _checked(defaults[kind], config)
    classes = config.get("architectures") or ()
    if not isinstance(classes, list | tuple):
        raise UserError(f"architectures must be a list of names, not {classes!r:.50}")
    values |= {"model_type": kind, "architectures": classes}
    tower = defaults.get(f"{kind}_vision_model")
    if tower is not None:
        # CLIP's older files have both, and the second counts.
        vision = _section(config, "vision_config_dict") or _section(config, "vision_config")
        values["vision_config"] = {**tower, **_checked(tower, vision)}
    reader, family = readers[kind]
    spec, form = reader(values)
    crop = preprocessor.get("crop_size") or preprocessor.get("size") or 0
    if isinstance(crop, Mapping):
        crop = crop.get("height", crop.get("shortest_edge", 0))
    fits = isinstance(crop, int) and crop > 0 and crop % spec.stride == 0
    statistics = _transformers_statistics(preprocessor, family)
    return Published(spec, form, statistics, crop if fits else 0)


def _transformers_statistics(preprocessor: Config, family: Preprocessing) -> Preprocessing:
    """Statistics of images in [0, 1], which a processor makes of bytes unless it says otherwise."""
    factor = preprocessor.get("rescale_factor") or 1 / 255
    checks.in_range("rescale_factor", factor, 0, LARGEST)
    if preprocessor.get("do_rescale") is False or abs(255 * factor - 1) > 1e-3:
        raise UserError("a backbone that does not take images in [0, 1] is not supported")
    if preprocessor.get("do_normalize") is False:
        return Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return _statistics(
        preprocessor.get("image_mean", family.mean), preprocessor.get("image_std", family.std)
    )


def to_ours(published: Published, origin: Config | None = None) -> dict[str, Any]:
    """The `config.json` of an exported backbone; `read_config` and `origin` are its inverse."""
    return {"model_type": OURS, **dataclasses.asdict(published), "origin": dict(origin or {})}


def origin(config: Config) -> dict[str, Any]:
    """Returns the origin of an exported backbone; empty for others."""
    return dict(_section(config, "origin")) if config.get("model_type") == OURS else {}


def _from_ours(config: Config) -> Published:
    form = config.get("form")
    networks = {name: family.network for family in families.FAMILIES for name in family.formats}
    if not isinstance(form, str) or form not in networks:
        raise unknown_name("checkpoint format", str(form), list(networks))
    try:
        spec = networks[form].from_dict(config.get("spec"))
    except UserError as error:
        raise UserError(f"it is no export of this version: {error}") from error
    given, resolution = _section(config, "preprocessing"), config.get("resolution", 0)
    checks.in_range("resolution", resolution, 0, LARGEST, whole=True)
    return Published(spec, form, _statistics(given.get("mean"), given.get("std")), resolution)


def _checked(defaults: Config, given: Config, whose: str = "") -> dict[str, Any]:
    """Returns the given values that have a default; refuses values of another type.

    Sides of squares may be written as (height, width).
    """
    values = {key: value for key, value in given.items() if key in defaults}
    for key, value in values.items():
        kind, name = type(defaults[key]), f"{whose}{key}"
        if kind is bool and not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, not {value!r:.50}")
        if kind is int:
            values[key] = side(value, key)
            checks.in_range(name, values[key], -LARGEST, LARGEST, whole=True)
        if kind is float:
            checks.in_range(name, value, -1e12, 1e12)
    return values


def _section(config: Config, name: str) -> Config:
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be an object, not {value!r}")
    return value


def _statistics(mean: Any, std: Any) -> Preprocessing:
    for name, value in (("mean", mean), ("std", std)):
        fits = isinstance(value, Sequence) and len(value) == 3
        if not fits or not all(type(x) in (int, float) and abs(x) < 1e3 for x in value):
            raise UserError(f"{name} must be three numbers, not {value!r}")
    if min(std) <= 0:
        raise UserError(f"std must be positive, not {list(std)}")
    return Preprocessing(tuple(map(float, mean)), tuple(map(float, std)))
