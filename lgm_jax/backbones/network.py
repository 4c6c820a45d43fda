"""The seam between what is done with backbones and what a backbone is.

`load`, `outline`, plans, lists and reports know no more of a network than its shape, a frozen
dataclass; what makes a module of it is its family (`families.Family`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lgm_jax import checks
from lgm_jax.backbones.checked import Checked
from lgm_jax.errors import UserError


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
    def flops(self) -> tuple[int, int]:
        """Floating-point operations of one image's forward pass, of products alone.

        Two numbers: matrix products and convolutions with weights, and products of attention, which
        has no weights and so twice the work backward where weights are frozen.
        """
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
        """Attention heads; 0 where there is no attention."""
        return 0

    @property
    def head_width(self) -> int:
        """Dimensions of one attention head."""
        return 0

    @property
    def tokens(self) -> int:
        """Tokens of an image in every block."""
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

    def takes_offset(self, published: Any) -> bool:
        """Whether positions are resized so that upstream's `position_offset` counts."""
        return False

    def fit(self, params: dict[str, Any], published: Any, offset: float) -> dict[str, Any]:
        """The parameters of this network, of those (arrays of NumPy) that it was published with.

        `published` is their shape, of which this is a variant; the side of a grid of positions
        counts larger by `offset` where it is resized.
        """
        return params


Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Per-channel statistics that a backbone subtracts from and divides images in [0, 1] by."""

    mean: Triple
    std: Triple


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
