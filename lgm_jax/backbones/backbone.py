"""A frozen backbone: pure functions of images, and what its features depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float

from lgm_jax.backbones.network import Network, Preprocessing, Published


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that features depend on; its hash (`identity.digest`) is the fingerprint.

    Pooling and resolution are part of the spec. Left out is what changes no more than rounding:
    which kernel computes attention, on which device. A field that is added later needs a default
    under which features stay as they were.

    Attributes:
        weights: Hash of the weights file; of the files' hashes where there are several.
        spec: The shape, with the pooling and resolution that the features are taken with.
        params_dtype: What its parameters are rounded to.
        side: Side of the images, in pixels, where these are resized to that of the spec; else 0.
    """

    weights: str
    spec: Network
    preprocessing: Preprocessing
    dtype: str = "float32"
    params_dtype: str = "float32"
    position_offset: float = 0.0
    side: int = 0


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen feature extractor.

    Attributes:
        name: Its registered name, or its folder's or repository's base name; `distinct_names` tells
            backbones of one name apart.
        apply: `apply(params, images) -> features`; images (n, r, r, 3) float32 in [0, 1], features
            (n, d) float32. Pure: the parameters are an argument, so that compiled code does not
            hold them as constants. Normalises the images with `mean` and `std` itself.
        resolution: Side `r` of the images it takes, in pixels.
        sha256: Hash of the weights file; of the files' hashes where there are several.
        fingerprint: The hash of `settings`: changes when the features do.
        provenance: Where it is from, for a run's record: `source`, `revision` (the hub's commit, or
            `None`), `sha256` by file; for an export, `exported_from` has the same of its origin.
        published: What the checkpoint says it is; `None` for a backbone made by hand.
        position_offset: What the side of the patch grid was taken to be larger by; 0 where that
            does not apply.
        settings: What the features depend on; `None` for a backbone made by hand.
        attention: The kernel that computes attention, one of `attention.AttentionKernel`.
    """

    name: str
    apply: Callable[[Any, Float[Array, "n h w 3"]], Float[Array, "n d"]]
    params: Any
    feature_dim: int
    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str
    fingerprint: str
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: Published | None = None
    position_offset: float = 0.0
    settings: Settings | None = None
    attention: str = "xla"

    @property
    def spec(self) -> Network | None:
        """The network that its features are taken of; `None` for a backbone made by hand."""
        return None if self.settings is None else self.settings.spec
