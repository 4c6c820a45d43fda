"""The description of a family of backbones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flax import nnx

from lgm_jax.backbones.activations import Activation
from lgm_jax.backbones.network import Network, Preprocessing
from lgm_jax.backbones.port import Format
from lgm_jax.errors import UserError, unknown_name

T = TypeVar("T")
Config = Mapping[str, Any]
Reader = Callable[[Config], tuple[Network, str]]
"""Turns upstream's arguments, defaults filled in, into a shape and the name of a format.

Raises `UserError` for what the network cannot be. An argument of timm's that it does not look at
has to be at its default.
"""


_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    **dict.fromkeys(("gelu_tanh", "gelu_pytorch_tanh", "gelu_new"), "gelu_tanh"),
    **dict.fromkeys(("quick_gelu", "quickgelu"), "quick_gelu"),
    **dict.fromkeys(("silu", "SiLU"), "silu"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that is asked of a family.

    Attributes:
        network: The class of its shapes: number of features and of operations, resolutions.
        module: `module(spec, dtype=..., rngs=...)` makes what is applied, with a `kernel=...` where
            the network has attention heads. It is called with normalised pixels (b, h, w, 3) and
            returns features (b, f); where it also takes `residuals`, there is a choice of what its
            gradient keeps (`residuals.RESIDUALS`).
        formats: The key maps of its checkpoints, by name.
        timm: What reads a config of timm's, by the class that an architecture is of.
        transformers: What reads a config of transformers', by `model_type`, and the statistics of
            weights that come without any.
    """

    network: type[Network]
    module: type[nnx.Module]
    formats: Mapping[str, Format]
    timm: Mapping[str, Reader] = dataclasses.field(default_factory=dict)
    transformers: Mapping[str, tuple[Reader, Preprocessing]] = dataclasses.field(
        default_factory=dict
    )


def read_activation(name: Any) -> Activation:
    """Returns our name of an activation of timm or transformers."""
    if str(name) not in _ACTIVATIONS:
        raise unknown_name("activation", str(name), list(_ACTIVATIONS), "supported")
    return _ACTIVATIONS[name]


def choose(arguments: Config, name: str, known: Mapping[str, T]) -> T:
    """Returns what the value of an argument of timm's stands for, by its text; refuses others."""
    value = str(arguments[name])
    if value not in known:
        raise UserError(f"timm's {name}={value} is not supported")
    return known[value]


def side(value: Any, name: str) -> Any:
    """A square's side, which may be written as (height, width)."""
    if isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            raise UserError(f"{name} must be square, not {' x '.join(map(str, value))}")
        return value[0]
    return value
