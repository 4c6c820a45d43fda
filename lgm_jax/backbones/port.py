"""Key maps between published checkpoints and our parameters, total in both directions.

Each row of a map names a parameter of ours, the checkpoint's key for it, and two einops patterns:
how the checkpoint lays the array out, and how we do. Read left to right a row imports; read right
to left it exports. A key that is left over or missing on either side is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from lgm_jax.backbones.vit import ViTSpec
from lgm_jax.errors import UserError

Params = dict[str, Any]


class Row(NamedTuple):
    """One parameter: our path, the checkpoint's key (`{}` stands for the layer), both layouts."""

    path: str
    key: str
    theirs: str
    ours: str


def _linear(path: str, key: str) -> list[Row]:
    # PyTorch stores (out, in), we store (in, out).
    return [
        Row(f"{path}/kernel", f"{key}.weight", "o i", "i o"),
        Row(f"{path}/bias", f"{key}.bias", "o", "o"),
    ]


def _norm(path: str, key: str) -> list[Row]:
    return [
        Row(f"{path}/scale", f"{key}.weight", "d", "d"),
        Row(f"{path}/bias", f"{key}.bias", "d", "d"),
    ]


def timm_vit(spec: ViTSpec) -> list[Row]:
    """timm's VisionTransformer: plain ViTs, MoCo-v3, and our embedded backbones."""
    return [
        Row("cls", "cls_token", "a b d", "a b d"),
        Row("positions", "pos_embed", "a n d", "a n d"),
        Row("embed/kernel", "patch_embed.proj.weight", "d c p q", "(p q c) d"),
        Row("embed/bias", "patch_embed.proj.bias", "d", "d"),
        *_norm("blocks/norm_attention", "blocks.{}.norm1"),
        *_linear("blocks/attention/qkv", "blocks.{}.attn.qkv"),
        *_linear("blocks/attention/out", "blocks.{}.attn.proj"),
        *_norm("blocks/norm_mlp", "blocks.{}.norm2"),
        *_linear("blocks/mlp/up", "blocks.{}.mlp.fc1"),
        *_linear("blocks/mlp/down", "blocks.{}.mlp.fc2"),
        *_norm("norm", "norm" if spec.pool == "cls" else "fc_norm"),
    ]


def import_params(
    rows: Sequence[Row],
    tensors: Mapping[str, np.ndarray],
    depth: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> Params:
    """Turns a checkpoint's tensors into nested float32 parameters.

    Args:
        rows: The key map.
        tensors: The checkpoint, key to array.
        depth: Number of layers; rows whose key has a `{}` are stacked along a new first axis.
        shapes: The shape that each of our paths must have.

    Raises:
        UserError: If keys are missing or left over (all are named), or a shape is wrong.
    """
    wanted = {row: _keys(row, depth) for row in rows}
    flat_wanted = {key for keys in wanted.values() for key in keys}
    missing, left_over = sorted(flat_wanted - set(tensors)), sorted(set(tensors) - flat_wanted)
    if missing or left_over:
        parts = [
            f"{what} {', '.join(keys)}"
            for what, keys in (("missing keys:", missing), ("left-over keys:", left_over))
            if keys
        ]
        raise UserError(f"the weights do not fit this architecture: {'; '.join(parts)}")
    params: Params = {}
    for row, keys in wanted.items():
        for key in keys:
            if tensors[key].ndim != len(row.theirs.split()):
                raise UserError(f"the weights' {key} has shape {tensors[key].shape}")
        layers = [rearrange(tensors[key], f"{row.theirs} -> {row.ours}") for key in keys]
        stacked = "{}" in row.key
        shape = shapes[row.path][1:] if stacked else shapes[row.path]
        for key, layer in zip(keys, layers, strict=True):
            if layer.shape != shape:
                raise UserError(
                    f"the weights' {key} has shape {tensors[key].shape}, which gives "
                    f"{layer.shape} where {shape} is needed"
                )
        array = np.stack(layers) if stacked else layers[0]
        _assign(params, row.path, array.astype(np.float32))
    return params


def export_params(
    rows: Sequence[Row], params: Params, spec: ViTSpec, dtype: type = np.float32
) -> dict[str, np.ndarray]:
    """The inverse of `import_params`: our parameters under the checkpoint's keys and layouts."""
    tensors = {}
    for row in rows:
        array = np.asarray(_get(params, row.path))
        layers = list(array) if "{}" in row.key else [array]
        for key, layer in zip(_keys(row, spec.depth), layers, strict=True):
            sizes = {"p": spec.patch, "q": spec.patch} if "(" in row.ours else {}
            tensors[key] = np.ascontiguousarray(
                rearrange(layer, f"{row.ours} -> {row.theirs}", **sizes).astype(dtype)
            )
    return tensors


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters as one dict from slash-separated path to leaf."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def _keys(row: Row, depth: int) -> list[str]:
    return [row.key.format(i) for i in range(depth)] if "{}" in row.key else [row.key]


def _assign(params: Params, path: str, value: np.ndarray) -> None:
    *parents, leaf = path.split("/")
    for parent in parents:
        params = params.setdefault(parent, {})
    params[leaf] = value


def _get(params: Params, path: str) -> Any:
    for name in path.split("/"):
        params = params[name]
    return params
