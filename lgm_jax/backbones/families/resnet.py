"""ResNets as torchvision and timm have them: MoCo-v3's and DINO's ResNet-50 among them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgm_jax.backbones.activations import relu
from lgm_jax.backbones.families.family import Config, Family, choose
from lgm_jax.backbones.network import Network
from lgm_jax.backbones.port import Format, Row, convolution, layered, norm, vector
from lgm_jax.backbones.residuals import scan, stack
from lgm_jax.errors import UserError

_EPSILON = 1e-5


class Conv(NamedTuple):
    """The shape of a convolution without a bias; padded so that a stride of 1 keeps the side."""

    inputs: int
    outputs: int
    side: int
    stride: int = 1
    groups: int = 1


# The first convolution; a pooling of stride 2 follows.
_STEM = Conv(3, 64, 7, stride=2)


@dataclasses.dataclass(frozen=True)
class ResNetSpec(Network):
    """The shape of a residual network; its features are the mean of the last stage's pixels.

    Attributes:
        widths: Channels of each stage; a bottleneck returns four times as many.
        bottleneck: Whether a block has convolutions of 1, 3 and 1 px, or two of 3 px.
        groups: Of the channels in a bottleneck's second convolution.
        group_width: Channels of a group where the stage has 64, in proportion where it has more.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.depths) == len(self.widths) == 4:
            raise UserError(f"a ResNet has four stages, not {self.depths} of {self.widths}")
        if not self.bottleneck and (self.groups, self.group_width) != (1, 64):
            raise UserError("blocks of two convolutions have neither groups nor their width")
        if min(self.widths) * self.group_width < 64:
            raise UserError(f"groups of {self.group_width} have no channels in {self.widths}")

    def block(self, stage: int, *, first: bool) -> list[Conv]:
        """A block's convolutions; the first of a stage changes channels and resolution."""
        width, outputs = self.widths[stage], self.outputs[stage]
        inputs = ([64, *self.outputs])[stage] if first else outputs
        stride = 2 if first and stage else 1
        if not self.bottleneck:
            return [Conv(inputs, width, 3, stride), Conv(width, width, 3)]
        hidden = width * self.group_width // 64 * self.groups
        grouped = Conv(hidden, hidden, 3, stride, self.groups)
        return [Conv(inputs, hidden, 1), grouped, Conv(hidden, outputs, 1)]

    def shortcut(self, stage: int) -> Conv | None:
        """The projection of the shortcut of a stage's first block; `None` if shapes are equal."""
        first, *_, last = self.block(stage, first=True)
        if stage == 0 and first.inputs == last.outputs:
            return None
        return Conv(first.inputs, last.outputs, 1, stride=2 if stage else 1)

    @property
    def outputs(self) -> list[int]:
        """Channels after each stage."""
        return [(4 if self.bottleneck else 1) * width for width in self.widths]

    @property
    def feature_dim(self) -> int:
        return self.outputs[-1]

    @property
    def stride(self) -> int:
        """Any side is taken, since convolutions are padded."""
        return 1

    @property
    def summary(self) -> str:
        each = 3 if self.bottleneck else 2
        return f"a residual network, {2 + each * sum(self.depths)} layers"


class NormedConv(nnx.Module):
    """A convolution, and batch normalisation by running statistics, which is linear too.

    So the second goes into the first: its scale into the kernel, in float32.
    """

    def __init__(self, conv: Conv, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv, self.dtype = conv, dtype
        shape = (conv.side, conv.side, conv.inputs // conv.groups, conv.outputs)
        init = nnx.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.scale = nnx.Param(jnp.ones((conv.outputs,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((conv.outputs,), jnp.float32))
        self.mean = nnx.Param(jnp.zeros((conv.outputs,), jnp.float32))
        self.variance = nnx.Param(jnp.ones((conv.outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        conv = self.conv
        kernel, scale, bias, mean, variance = (
            part[...].astype(jnp.float32)
            for part in (self.kernel, self.scale, self.bias, self.mean, self.variance)
        )
        scale = scale * jax.lax.rsqrt(variance + _EPSILON)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            (kernel * scale[None, None, None, :]).astype(self.dtype),
            (conv.stride, conv.stride),
            [(conv.side // 2, conv.side // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=conv.groups,
        )
        return x + (bias - mean * scale).astype(self.dtype)[None, None, None, :]


class Block(nnx.Module):
    """Convolutions beside a shortcut."""

    def __init__(
        self, convs: list[Conv], shortcut: Conv | None, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.count = len(convs)
        for number, conv in enumerate(convs, 1):
            setattr(self, f"conv{number}", NormedConv(conv, dtype=dtype, rngs=rngs))
        if shortcut is not None:
            self.shortcut = NormedConv(shortcut, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        shortcut = self.shortcut(x) if hasattr(self, "shortcut") else x
        for number in range(1, self.count):
            x = relu(getattr(self, f"conv{number}")(x))
        return relu(getattr(self, f"conv{self.count}")(x) + shortcut)


class Stage(nnx.Module):
    """The first block of a stage, and the others, which are equal."""

    def __init__(self, spec: ResNetSpec, stage: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        first, rest = (spec.block(stage, first=which) for which in (True, False))
        self.first = Block(first, spec.shortcut(stage), dtype=dtype, rngs=rngs)
        if spec.depths[stage] > 1:
            self.rest = stack(
                lambda rngs: Block(rest, None, dtype=dtype, rngs=rngs), spec.depths[stage] - 1, rngs
            )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        x = self.first(x)
        return scan(self.rest, x)[-1] if hasattr(self, "rest") else x


class ResNet(nnx.Module):
    """Normalised pixels to one feature vector per image."""

    def __init__(self, spec: ResNetSpec, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.stem = NormedConv(_STEM, dtype=dtype, rngs=rngs)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            Stage(spec, stage, dtype=dtype, rngs=rngs) for stage in range(4)
        )

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        x = relu(self.stem(images))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
        return jnp.mean(x, axis=(1, 2))


def _normed(path: str, conv: str, bn: str) -> list[Row]:
    return [
        *convolution(path, conv, bias=False),
        *norm(path, bn),
        vector(f"{path}/mean", f"{bn}.running_mean"),
        vector(f"{path}/variance", f"{bn}.running_var"),
    ]


def _rows(spec: ResNetSpec) -> list[Row]:
    rows = _normed("stem", "conv1", "bn1")
    for stage, depth in enumerate(spec.depths):
        path, key = f"stage{stage + 1}", f"layer{stage + 1}"
        for n in range(1, 4 if spec.bottleneck else 3):
            rows += _normed(f"{path}/first/conv{n}", f"{key}.0.conv{n}", f"{key}.0.bn{n}")
            if depth > 1:
                rest = _normed(f"{path}/rest/conv{n}", f"{key}.{{}}.conv{n}", f"{key}.{{}}.bn{n}")
                rows += layered(rest, range(1, depth))
        if spec.shortcut(stage) is not None:
            shortcut = f"{key}.0.downsample"
            rows += _normed(f"{path}/first/shortcut", f"{shortcut}.0", f"{shortcut}.1")
    return rows


def _read(arguments: Config) -> tuple[ResNetSpec, str]:
    """The shape of timm's ResNet, and its checkpoint's format."""
    choose(arguments, "act_layer", {"ReLU": "relu", "relu": "relu"})
    choose(arguments, "norm_layer", dict.fromkeys(("BatchNorm2d", "batchnorm2d", "batchnorm")))
    choose(arguments, "global_pool", {"avg": "mean"})
    shape = {
        "resolution": 224,
        "depths": arguments["layers"],
        "widths": arguments["channels"],
        "bottleneck": choose(arguments, "block", {"Bottleneck": True, "BasicBlock": False}),
        "groups": arguments["cardinality"],
        "group_width": arguments["base_width"],
    }
    return ResNetSpec.from_dict(shape), "timm_resnet"


FAMILY = Family(
    ResNetSpec,
    ResNet,
    {
        "timm_resnet": Format(
            _rows,
            # A classifier, or what takes its place in training, and counts of batches.
            (r"fc\..*", r".*\.num_batches_tracked"),
        )
    },
    timm={"ResNet": _read},
)
