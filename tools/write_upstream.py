"""Writes what timm and transformers fill in where a `config.json` says nothing.

    python tools/write_upstream.py

writes `lgm_jax/backbones/upstream.json`: of each class of timm's that is read, and of each of its
architectures, the arguments; of each `model_type` of transformers that is read, the defaults. Needs
timm and transformers with PyTorch; downloads nothing. A test compares the file with what this
would write.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from lgm_jax.backbones import families

OUT = Path(__file__).parents[1] / "lgm_jax" / "backbones" / "upstream.json"

# Of configurations of transformers: nothing about a network.
_GENERAL = frozenset(
    {
        *("architectures", "dtype", "transformers_version", "model_type"),
        *("stage_names", "out_features", "out_indices"),
    }
)

# Architectures whose weights are all of one training, so that others' will be like it.
_OF_ONE_TRAINING = re.compile(
    r".*(dinov[23]|siglip|_clip_|pe_core).*|(deit3?|eva02|eva_large)_.*|resnet50"
)

# Architectures whose published head is the projection of features to a text's.
_PROJECTED = re.compile(r".*pe_core.*")


class _Registered(Exception):
    """Carries the class and the arguments that timm's registry makes a model of."""


def timm_table() -> dict[str, Any]:
    """Arguments by class and by architecture, and the weights that need another activation."""
    import timm

    classes: dict[str, Any] = {}
    names: dict[str, Any] = {}
    others: dict[str, list[str]] = {}
    for name in timm.list_models():
        made_of = _registered(name)
        if made_of is None:
            continue
        kind, arguments = made_of
        if kind.__name__ not in families.timm_classes():
            others.setdefault(kind.__name__, []).append(name)
            continue
        defaults = {
            key: _plain(parameter.default)
            for key, parameter in inspect.signature(kind).parameters.items()
            if key not in ("device", "dtype")
        }
        classes[kind.__name__] = defaults
        flat = {key: value for part in arguments.items() for key, value in _named(*part)}
        changed = {
            key: value
            for key, value in flat.items()
            if (key in defaults or key.endswith("_eps")) and value != defaults.get(key)
        }
        names[name] = {
            "class": kind.__name__,
            "side": _pretrained(name).input_size[1],
            **_statistics(name),
            **_projection(name),
            "arguments": changed,
        }
    return {
        "timm_classes": classes,
        "timm": names,
        "timm_others": others,
        "timm_quick_gelu": _quick_gelu(),
    }


def _registered(name: str) -> tuple[type, dict[str, Any]] | None:
    """What timm's registry makes of a name, without making the model; `None` if it says nothing."""
    import timm

    def record(kind: type, variant: str, pretrained: bool = False, **arguments: Any) -> None:
        raise _Registered(kind, arguments)

    entry: Callable[[], Any] = timm.models.model_entrypoint(name)
    module = sys.modules[inspect.unwrap(entry).__module__]
    if not hasattr(module, "build_model_with_cfg"):
        return None
    with mock.patch.object(module, "build_model_with_cfg", record):
        try:
            entry()
        except _Registered as found:
            return found.args[0], found.args[1]
    return None


def _named(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """An argument as JSON, and the epsilon that a norm is given along."""
    import timm

    layers = [name for name, layer in vars(timm.layers).items() if layer is value]
    if callable(value) and layers:
        yield key, layers[0]
    elif isinstance(value, functools.partial):
        yield key, value.func.__name__
        if "eps" in value.keywords:
            yield f"{key}_eps", value.keywords["eps"]
    else:
        yield key, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return _plain(value.func)
    if callable(value):
        return value.__name__
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _statistics(name: str) -> dict[str, list[float]]:
    """What all of timm's weights of an architecture were trained with; empty if they may differ."""
    import timm

    tags = [tag for tag in timm.list_pretrained() if tag.partition(".")[0] == name]
    known = [_pretrained(tag) for tag in [name, *tags]]
    seen = {(tuple(each.mean), tuple(each.std)) for each in known}
    if len(seen) > 1 or not tags or not _OF_ONE_TRAINING.fullmatch(name):
        return {}
    ((mean, std),) = seen
    return {"mean": list(mean), "std": list(std)}


def _projection(name: str) -> dict[str, int]:
    """Outputs of the head that is published with an architecture, if it is a projection."""
    return {"projection": _pretrained(name).num_classes} if _PROJECTED.fullmatch(name) else {}


def _pretrained(tag: str) -> Any:
    """What timm says of the training of an architecture, or of weights of it."""
    import timm

    return timm.get_pretrained_cfg(tag)


def _quick_gelu() -> list[str]:
    """Weights trained with quick GELU that are published under a name that means the exact one.

    timm has them a second time, under a name that means the quick one.
    """
    import timm

    tags = set(timm.list_pretrained())
    return sorted(
        tag
        for tag in tags
        if "_clip_" in tag and tag.replace("_clip_", "_clip_quickgelu_", 1) in tags
    )


def transformers_table() -> dict[str, Mapping[str, Any]]:
    """Defaults by `model_type`, without those of parts of it, which have a type of their own."""
    import transformers

    general = set(transformers.PreTrainedConfig().to_dict()) | _GENERAL
    table: dict[str, Mapping[str, Any]] = {}
    for kind in families.model_types():
        defaults = transformers.CONFIG_MAPPING[kind]().to_dict()
        table[kind] = {
            # A ratio may be any number, though some classes have a whole one.
            key: float(value) if key.endswith("_ratio") else value
            for key, value in sorted(defaults.items())
            if key not in general and not isinstance(value, dict)
        }
    return table


def render() -> str:
    """The file's content, a line for each name."""
    sections = {**timm_table(), "transformers": transformers_table()}
    texts = [f"{json.dumps(name)}: {_lines(content)}" for name, content in sections.items()]
    return "{\n" + ",\n".join(texts) + "\n}\n"


def _lines(content: Any) -> str:
    """A list or an object as JSON, an item a line."""
    if isinstance(content, list):
        return "[\n" + ",\n".join(f" {json.dumps(item)}" for item in content) + "\n]"
    rows = [f" {json.dumps(key)}: {json.dumps(content[key])}" for key in sorted(content)]
    return "{\n" + ",\n".join(rows) + "\n}"


if __name__ == "__main__":
    OUT.write_text(render())
    print(f"wrote {OUT}")
