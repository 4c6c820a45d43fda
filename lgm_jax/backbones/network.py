"""The seam between what is done with backbones and what a backbone is.

`load`, `outline`, plans, lists and reports know no more of a network than its shape, a frozen
dataclass, which is checked, since it is read from files of others; what makes a module of it is its
family (`families.Family`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from lgm_jax import checks
from lgm_jax.errors import UserError, unknown_name

LARGEST = 2**16
"""More than any size of a network."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """A dataclass that refuses values which its annotations do not allow.

    Whole numbers are at least 1, or 0 where that is the default; other numbers are above zero.

    Raises:
        UserError: Naming the field.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), hints[field.name], field.default)

    @classmethod
    def from_dict(cls, values: Any) -> Any:
        """The inverse of `dataclasses.asdict`, also through JSON."""
        if not isinstance(values, Mapping):
            raise UserError(f"{cls.__name__} must be an object, not {values!r:.50}")
        hints, parts = typing.get_type_hints(cls), {}
        for name, value in values.items():
            if name not in hints:
                raise unknown_name(cls.__name__, str(name), list(hints))
            kind = _kinds(hints[name])[0]
            if isinstance(kind, type) and issubclass(kind, Checked) and value is not None:
                value = kind.from_dict(value)
            parts[name] = tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(cls):
            if field.name in parts:
                _check(field.name, parts[field.name], hints[field.name], field.default)
            elif field.default is dataclasses.MISSING:
                raise UserError(f"{cls.__name__} has no {field.name}")
        return cls(**parts)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _check(name: str, value: Any, hint: Any, default: Any) -> None:
    kind, *others = _kinds(hint)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if value is None and type(None) in others:
        return
    if origin is Literal:
        checks.one_of(name, value, arguments)
    elif origin is tuple:
        if not isinstance(value, tuple) or not value:
            raise UserError(f"{name} must be a list of numbers, not {value!r:.50}")
        for each in value:
            _check(name, each, arguments[0], dataclasses.MISSING)
    elif kind is int:
        checks.in_range(name, value, 0 if default == 0 else 1, LARGEST, whole=True)
    elif kind is float:
        checks.in_range(name, value, 0, 1e12)
        checks.positive(name, value)
    elif not isinstance(value, kind):
        what = "true or false" if kind is bool else f"a {kind.__name__}"
        raise UserError(f"{name} must be {what}, not {value!r:.50}")


class IndivisibleError(UserError):
    """The patch, or the stride, does not divide the resolution that was asked for."""


@dataclasses.dataclass(frozen=True)
class Network(Checked):
    """The shape of a network, as it was published with its weights; abstract.

    Subclasses add fields, and say what is not said here. A field that is added later needs a
    default under which the network is the same.

    Attributes:
        resolution: Side of the square input, in pixels.
    """

    resolution: int

    @property
    def feature_dim(self) -> int:
        """Number of features."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Pixels whose multiples a resolution has to be."""
        raise NotImplementedError

    @property
    def summary(self) -> str:
        """A description in a few words."""
        raise NotImplementedError

    @property
    def pooling(self) -> str:
        """The pooling, as a value of `backbone.pooling`."""
        return "native"

    @property
    def blocks(self) -> int:
        """Number of equal blocks, of which one at a time is computed anew; see `residuals`."""
        return 1

    @property
    def heads(self) -> int:
        """Attention heads; where it is not 0, there are `head_width` and `tokens` of an image."""
        return 0

    def pooled(self, kind: str, blocks: int) -> Network:
        """The network with other features, as `backbone.pooling` names them, if it has any."""
        raise UserError(f"backbone.pooling: this network has native features alone, not {kind}")

    def at(self, resolution: int) -> Network:
        """The network for images of another side, in pixels."""
        checks.in_range("backbone resolution", resolution, 1, whole=True)
        if resolution % self.stride and resolution != self.resolution:
            raise IndivisibleError(
                f"a {'patch' if self.heads else 'stride'} of {self.stride} px does not divide an "
                f"image of {resolution} px"
            )
        return dataclasses.replace(self, resolution=resolution)

    def fit(self, params: dict[str, Any], published: Any, offset: float) -> dict[str, Any]:
        """The parameters of this network, of those (arrays of NumPy) that it was published with.

        `published` is their shape, of which this is a variant; the side of a grid of positions
        counts larger by `offset` where it is resized.
        """
        return params


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Per-channel statistics that a backbone subtracts from and divides images in [0, 1] by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = Preprocessing((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Published:
    """A backbone as it was published.

    Attributes:
        spec: Its shape; `spec.resolution` is the one its positions were stored for.
        form: Name of its checkpoint's format, see `families.formats`.
        resolution: Side of the images it takes unless told otherwise; `spec.resolution` if zero.
    """

    spec: Network
    form: str
    preprocessing: Preprocessing
    resolution: int = 0
