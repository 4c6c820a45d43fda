"""What the key maps of Vision Transformers share."""

from __future__ import annotations

import functools
from collections.abc import Callable

from lgm_jax.backbones.port import Row, layered, linear, vector
from lgm_jax.backbones.vit_spec import ViTSpec


def stacked(rows: Callable[[ViTSpec], list[Row]]) -> Callable[[ViTSpec], list[Row]]:
    """A key map of which the rows of blocks stand for all blocks."""

    @functools.wraps(rows)
    def of_all_blocks(spec: ViTSpec) -> list[Row]:
        return layered(rows(spec), range(spec.depth))

    return of_all_blocks


def tokens(path: str, key: str, theirs: str = "a n d") -> Row:
    """A token, or positions, that we store with a leading axis of one."""
    return Row(path, (key,), theirs, "a n d" if theirs == "a n d" else "1 n d")


def patches(spec: ViTSpec, key: str) -> list[Row]:
    """The patch projection, which is a convolution in PyTorch."""
    sizes = (("p", spec.embed.patch), ("q", spec.embed.patch))
    rows = [Row("embed/project/kernel", (f"{key}.weight",), "d c p q", "(p q c) d", sizes=sizes)]
    return rows + ([vector("embed/project/bias", f"{key}.bias")] if spec.embed.bias else [])


def attention(spec: ViTSpec, *keys: str, path: str = "blocks/attention") -> list[Row]:
    """Query, key and value: one fused key, or three."""
    rows = linear(f"{path}/qkv", *keys, bias=spec.attention.biases == "qkv")
    if spec.attention.biases == "qv":
        query, _, value = keys
        rows.append(vector(f"{path}/bias_qv", f"{query}.bias", f"{value}.bias"))
    return rows
