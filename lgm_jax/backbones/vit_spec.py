"""The shape of a Vision Transformer, put together from parts.

How an image becomes tokens, what a block's attention and MLP look like, and how tokens become a
feature: every family of Vision Transformers is a choice of parts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import numpy as np

from lgm_jax.backbones.activations import Activation
from lgm_jax.backbones.network import Checked, Network
from lgm_jax.backbones.rotary import Rotary
from lgm_jax.errors import UserError
from lgm_jax.resample import bicubic_matrix

Biases = Literal["qkv", "qv", "none"]
Norm = Literal["layer", "rms"]
Pool = Literal["cls", "mean", "cls+mean", "mean_norm", "map", "query"]
Positions = Literal["all", "tokens", "patches", "sines", "none"]

# Parameters of what makes features of the last block's tokens.
_POOLING = ("pool", "project")


@dataclasses.dataclass(frozen=True)
class EmbedSpec(Checked):
    """How an image becomes tokens.

    Attributes:
        patch: Side of a square patch, in pixels.
        positions: Learned (or fixed, but stored) positions: of class token and patches (`all`), of
            every token, registers too (`tokens`), of patches only, or none. `sines` are those of
            patches that AIMv2 computes for any grid.
        antialias: Whether positions are shrunk to another grid with an antialiased filter, as timm
            does; `transformers` does not.
        norm: Whether tokens are normalised before the first block, as in CLIP.
        patch_norm: Whether patches are, before positions are added, as in AIMv2.
    """

    patch: int
    bias: bool = True
    class_token: bool = True
    registers: int = 0
    positions: Positions = "all"
    antialias: bool = False
    norm: bool = False
    patch_norm: bool = False

    @property
    def num_prefix(self) -> int:
        """Tokens before the first patch."""
        return int(self.class_token) + self.registers


@dataclasses.dataclass(frozen=True)
class AttentionSpec(Checked):
    """A block's self-attention.

    Attributes:
        heads: Attention heads; divides the width.
        biases: Which of query, key and value have a bias: all, all but the key, or none.
        rotary: Rotary positions of the patch tokens.
    """

    heads: int
    biases: Biases = "qkv"
    rotary: Rotary | None = None
    out_bias: bool = True


@dataclasses.dataclass(frozen=True)
class MlpSpec(Checked):
    """A block's MLP.

    Attributes:
        width: Hidden dimension.
        gated: Whether a second projection is multiplied by the activated first (SwiGLU).
    """

    width: int
    activation: Activation = "gelu"
    gated: bool = False
    norm: bool = False
    bias: bool = True


@dataclasses.dataclass(frozen=True)
class PoolSpec(Checked):
    """How tokens become one feature vector.

    Attributes:
        kind: After the last norm: the class token (`cls`), the mean of the patch tokens (`mean`),
            both (`cls+mean`), or attention by a learned query, with an MLP behind it (`map`,
            SigLIP's) or without (`query`, AIMv2's). `mean_norm` takes the mean first and normalises
            it.
        blocks: For `cls` and `mean`: outputs of the last `blocks` blocks, each normalised, the
            last block's at the end. For `cls+mean`: their class tokens and the last one's mean, as
            in DINOv2's linear evaluation (`dinov2/eval/linear.py`).
        projection: Features after a last linear layer without a bias; 0 for none.
        heads: Of `map` and `query`; 0 for as many as the blocks have.
        mlp: That of `map`; the blocks' by default.
        prefix: Whether `map` and `query` see the class token and registers, too.
    """

    kind: Pool = "cls"
    blocks: int = 1
    projection: int = 0
    heads: int = 0
    mlp: MlpSpec | None = None
    prefix: bool = False


@dataclasses.dataclass(frozen=True)
class ViTSpec(Network):
    """The shape of a Vision Transformer, as published with its weights.

    What is left of an image where the patch does not divide its side, at the lower and right edge,
    is not read.

    Attributes:
        width: Token dimension `d`.
        layer_scale: Whether a block's two outputs are scaled by learned vectors.
        norm_eps: Epsilon of norms. PyTorch's default is 1e-5, most families have another.
        norm: LayerNorm, or RMSNorm, which has no mean and no bias.
    """

    width: int
    depth: int
    embed: EmbedSpec
    attention: AttentionSpec
    mlp: MlpSpec
    pool: PoolSpec = PoolSpec()
    layer_scale: bool = False
    norm_eps: float = 1e-6
    norm: Norm = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        patch, heads, pool = self.embed.patch, self.attention.heads, self.pool
        if self.resolution < patch:
            raise UserError(f"a patch of {patch} px does not fit an image of {self.resolution} px")
        for count in (heads, pool.heads or heads):
            if self.width % count:
                raise UserError(f"{count} heads do not divide a width of {self.width}")
        if self.attention.rotary is not None and self.head_width % 4:
            raise UserError(
                f"rotary positions need a head width divisible by 4, not {self.head_width}"
            )
        if pool.blocks > self.depth:
            raise UserError(f"{pool.blocks} blocks cannot be pooled of {self.depth}")
        if pool.kind in ("cls", "cls+mean") and not self.embed.class_token:
            raise UserError("there is no class token to pool")
        if self.embed.positions == "sines" and (self.width % 4 or self.embed.num_prefix):
            raise UserError("sines need a width divisible by 4, and patches alone")

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.resolution // self.embed.patch

    @property
    def stride(self) -> int:
        return self.embed.patch

    @property
    def summary(self) -> str:
        return f"a vision transformer, {self.depth} layers, {self.embed.patch} px patches"

    @property
    def pooling(self) -> str:
        pool = self.pool
        kind = pool.kind if pool.blocks == 1 else f"{pool.kind}:{pool.blocks}"
        return f"{kind}+projection" if pool.projection else kind

    @property
    def blocks(self) -> int:
        return self.depth

    @property
    def heads(self) -> int:
        return self.attention.heads

    @property
    def head_width(self) -> int:
        """Dimensions of one attention head."""
        return self.width // self.heads

    @property
    def tokens(self) -> int:
        """Tokens of an image in every block."""
        return self.embed.num_prefix + self.grid**2

    @property
    def num_positions(self) -> int:
        """Stored positions."""
        if self.embed.positions in ("sines", "none"):
            return 0
        before = {"all": int(self.embed.class_token), "tokens": self.embed.num_prefix}
        return before.get(self.embed.positions, 0) + self.grid**2

    @property
    def feature_dim(self) -> int:
        parts = self.pool.blocks + (self.pool.kind == "cls+mean")
        return self.pool.projection or parts * self.width

    def pooled(self, kind: str, blocks: int) -> ViTSpec:
        name = kind if blocks == 1 else f"{kind}:{blocks}"
        if "cls" in kind and not self.embed.class_token:
            raise UserError(f"backbone.pooling={name}: the backbone has no class token, try mean")
        if blocks > self.depth:
            raise UserError(f"backbone.pooling={name}: the backbone has {self.depth} blocks")
        return dataclasses.replace(self, pool=PoolSpec(cast("Pool", kind), blocks))

    def fit(self, params: dict[str, Any], published: ViTSpec, offset: float) -> dict[str, Any]:
        """As for `Network`: without what pools, positions resized as upstream does."""
        if self.pool != published.pool:
            params = {name: leaf for name, leaf in params.items() if name not in _POOLING}
        if self.grid == published.grid or not self.num_positions:
            return params
        matrix = bicubic_matrix(
            published.grid, self.grid, antialias=self.embed.antialias, offset=offset
        )
        positions = np.asarray(params["positions"])
        prefix = positions.shape[1] - published.grid**2
        old = positions[0, prefix:].reshape(published.grid, published.grid, -1).astype(np.float64)
        new = np.einsum("yh,xw,hwd->yxd", matrix, matrix, old, optimize=True)
        new = new.reshape(1, self.grid**2, -1).astype(positions.dtype)
        return params | {"positions": np.concatenate([positions[:, :prefix], new], axis=1)}
