"""What the key maps of Vision Transformers share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from lgm_jax.backbones.port import Row, layered, linear, norm, vector
from lgm_jax.backbones.vit_spec import ViTSpec


def stacked(rows: Callable[[ViTSpec], list[Row]]) -> Callable[[ViTSpec], list[Row]]:
    """A key map of which the rows of blocks stand for all blocks."""

    @functools.wraps(rows)
    def of_all_blocks(spec: ViTSpec) -> list[Row]:
        return layered(rows(spec), range(spec.depth))

    return of_all_blocks


def stem(
    spec: ViTSpec,
    project: str,
    *,
    cls: str = "",
    registers: str = "",
    positions: str = "",
    normed: str = "",
) -> list[Row]:
    """From pixels to the first block, as far as the network has each part.

    Args:
        spec: The network.
        project: The patch projection's key.
        cls: The class token's.
        registers: The registers'.
        positions: The positions'.
        normed: That of the norm before the first block.
    """
    embed = spec.embed
    sizes = (("p", embed.patch), ("q", embed.patch))
    # A convolution in PyTorch.
    kernel = (f"{project}.weight",)
    rows = [Row("embed/project/kernel", kernel, "d c p q", "(p q c) d", sizes=sizes)]
    if embed.bias:
        rows.append(vector("embed/project/bias", f"{project}.bias"))
    if embed.class_token:
        rows.append(tokens("cls", cls))
    if embed.registers:
        rows.append(tokens("registers", registers))
    if embed.positions != "none":
        rows.append(tokens("positions", positions))
    return rows + (norm("norm_embed", normed) if embed.norm else [])


def tokens(path: str, key: str) -> Row:
    """A token, or positions, that we store with a leading axis of one."""
    if key.endswith("class_embedding"):
        return Row(path, (key,), "d", "1 1 d")
    # PyTorch's table of embeddings.
    plain = key.endswith(".weight")
    return Row(path, (key,), "n d" if plain else "a n d", "1 n d" if plain else "a n d")


def block(
    spec: ViTSpec,
    layer: str,
    *,
    norms: tuple[str, str],
    qkv: Sequence[str],
    out: str,
    up: Sequence[str],
    down: str,
    scales: tuple[str, str] = ("", ""),
    biases: Sequence[str] = (),
) -> list[Row]:
    """The parts of every block.

    Args:
        spec: The network.
        layer: What stands before each key.
        norms: Keys of the norms before attention and before the MLP.
        qkv: Query, key and value: one fused key, or three.
        out: The projection of what was attended to.
        up: The MLP's first layer: one key, or gate and value.
        down: Its second.
        scales: What a block's two outputs are scaled by.
        biases: Query's and value's, where they are apart from the layer.
    """
    attention, kind = "blocks/attention", spec.attention.biases
    names = ("blocks/norm_attention", "blocks/norm_mlp")
    rows = [
        *(row for name, key in zip(names, norms, strict=True) for row in norm(name, layer + key)),
        *linear(f"{attention}/qkv", *(layer + key for key in qkv), bias=kind == "qkv"),
        *linear(f"{attention}/out", layer + out),
        *linear("blocks/mlp/up", *(layer + key for key in up)),
        *linear("blocks/mlp/down", layer + down),
    ]
    if kind == "qv":
        biases = biases or (f"{qkv[0]}.bias", f"{qkv[-1]}.bias")
        rows.append(vector(f"{attention}/bias_qv", *(layer + key for key in biases)))
    if spec.layer_scale:
        rows.append(vector("blocks/scale_attention", layer + scales[0]))
        rows.append(vector("blocks/scale_mlp", layer + scales[1]))
    return rows
