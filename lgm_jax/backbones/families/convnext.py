"""transformers' DINOv3 ConvNeXt."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgm_jax.backbones.activations import ACTIVATIONS, Activation
from lgm_jax.backbones.families.family import Config, Family, read_activation
from lgm_jax.backbones.network import IMAGENET, Network
from lgm_jax.backbones.port import Format, Row, convolution, layered, linear, norm, vector
from lgm_jax.backbones.residuals import scan, stack
from lgm_jax.errors import UserError

# Sides of a block's convolution, and of what the stages begin with, in pixels of their input.
_KERNEL, _STEM, _DOWN = 7, 4, 2


@dataclasses.dataclass(frozen=True)
class ConvNeXtSpec(Network):
    """The shape of a ConvNeXt; its features are the mean of the last stage's pixels, normalised."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    activation: Activation = "gelu"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != len(self.widths):
            raise UserError(f"depths {self.depths} and widths {self.widths} are of other stages")

    @property
    def feature_dim(self) -> int:
        return self.widths[-1]

    @property
    def stride(self) -> int:
        return _STEM * _DOWN ** (len(self.depths) - 1)

    @property
    def summary(self) -> str:
        return f"a ConvNeXt, {sum(self.depths)} blocks in {len(self.depths)} stages"


class Block(nnx.Module):
    """A convolution of each channel by itself, and an MLP of each pixel, beside a shortcut."""

    def __init__(self, spec: ConvNeXtSpec, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            width, width, (_KERNEL, _KERNEL), feature_group_count=width, dtype=dtype, rngs=rngs
        )
        self.norm = _norm(spec, width, dtype, rngs)
        self.up = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.activation = spec.activation

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        hidden = ACTIVATIONS[self.activation](self.up(self.norm(self.conv(x))))
        return x + self.down(hidden) * self.scale[...].astype(x.dtype)[None, None, None, :]


class Stage(nnx.Module):
    """Patches of pixels, or of what the stage before returns, and blocks."""

    def __init__(self, spec: ConvNeXtSpec, stage: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = spec.widths[stage]
        inputs, step = (spec.widths[stage - 1], _DOWN) if stage else (3, _STEM)
        self.first = stage == 0
        self.norm = _norm(spec, width if self.first else inputs, dtype, rngs)
        self.conv = nnx.Conv(
            inputs, width, (step, step), (step, step), padding="VALID", dtype=dtype, rngs=rngs
        )
        self.blocks = stack(
            lambda rngs: Block(spec, width, dtype=dtype, rngs=rngs), spec.depths[stage], rngs
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        x = self.norm(self.conv(x)) if self.first else self.conv(self.norm(x))
        return scan(self.blocks, x)[-1]


class ConvNeXt(nnx.Module):
    """Normalised pixels to one feature vector per image."""

    def __init__(self, spec: ConvNeXtSpec, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.count = len(spec.depths)
        for stage in range(self.count):
            setattr(self, f"stage{stage}", Stage(spec, stage, dtype=dtype, rngs=rngs))
        self.norm = _norm(spec, spec.feature_dim, dtype, rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        x = images
        for stage in range(self.count):
            x = getattr(self, f"stage{stage}")(x)
        return self.norm(jnp.mean(x, axis=(1, 2)))


def _norm(spec: ConvNeXtSpec, width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        width, epsilon=spec.norm_eps, dtype=dtype, use_fast_variance=False, rngs=rngs
    )


def _rows(spec: ConvNeXtSpec) -> list[Row]:
    rows = norm("norm", "layer_norm")
    for stage, depth in enumerate(spec.depths):
        path, key = f"stage{stage}", f"stages.{stage}"
        before, layer = f"{key}.downsample_layers", f"{key}.layers.{{}}"
        rows += convolution(f"{path}/conv", f"{before}.{min(stage, 1)}")
        rows += norm(f"{path}/norm", f"{before}.{int(stage == 0)}")
        block = [
            *convolution(f"{path}/blocks/conv", f"{layer}.depthwise_conv"),
            *norm(f"{path}/blocks/norm", f"{layer}.layer_norm"),
            *linear(f"{path}/blocks/up", f"{layer}.pointwise_conv1"),
            *linear(f"{path}/blocks/down", f"{layer}.pointwise_conv2"),
            vector(f"{path}/blocks/scale", f"{layer}.gamma"),
        ]
        rows += layered(block, range(depth))
    return rows


def _read(config: Config) -> tuple[ConvNeXtSpec, str]:
    """The shape of transformers' DINOv3ConvNextModel, and its checkpoint's format."""
    if config["num_channels"] != 3:
        raise UserError("a backbone that does not take three channels is not supported")
    shape = {
        "resolution": config["image_size"],
        "depths": config["depths"],
        "widths": config["hidden_sizes"],
        "activation": read_activation(config["hidden_act"]),
        "norm_eps": config["layer_norm_eps"],
    }
    return ConvNeXtSpec.from_dict(shape), "hf_dinov3_convnext"


FAMILY = Family(
    ConvNeXtSpec,
    ConvNeXt,
    {
        "hf_dinov3_convnext": Format(
            _rows,
            # As the class holds it in memory, which it leaves off when it saves.
            aliases=((r"stages\.(.*)", r"model.stages.\1"),),
        )
    },
    transformers={"dinov3_convnext": (_read, IMAGENET)},
)
