"""Key maps of Vision Transformers, each a literal table."""

from __future__ import annotations

import functools
from collections.abc import Callable

from flax import nnx
from flax.traverse_util import flatten_dict

from lgm_jax.backbones.port import Row
from lgm_jax.backbones.vit import ViT
from lgm_jax.backbones.vit_spec import ViTSpec

Keys = dict[str, str]
"""The checkpoint's names by ours.

A layer or norm has one name, to which `.weight` and `.bias` are added (`weight` and `bias` to one
that ends in an underscore), or several, where the checkpoint divides it along its outputs. Names in
blocks follow what stands under `blocks`, with `{}` for the layer's number.
"""

_ENDINGS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def key_map(table: Keys | Callable[[ViTSpec], Keys]) -> Callable[[ViTSpec], list[Row]]:
    """The key map that a table stands for: the rows of all parameters that the network has."""

    def rows(spec: ViTSpec) -> list[Row]:
        keys = table(spec) if callable(table) else table
        return [_row(spec, path, keys) for path in _paths(spec)]

    return rows


@functools.lru_cache
def _paths(spec: ViTSpec) -> tuple[str, ...]:
    module = nnx.eval_shape(lambda: ViT(spec, rngs=nnx.Rngs(0)))
    return tuple(flatten_dict(nnx.to_pure_dict(nnx.split(module)[1]), sep="/"))


def _row(spec: ViTSpec, path: str, keys: Keys) -> Row:
    owner, _, leaf = path.rpartition("/")
    ending, in_blocks = _ENDINGS.get(leaf, ""), path.startswith("blocks/")
    names = keys[owner if ending else path].split()
    found = [name if not ending or name.endswith("_") else f"{name}." for name in names]
    found = [name + ending for name in found]
    if in_blocks:
        found = [keys["blocks"] + name for name in found]
    layers = range(spec.depth) if in_blocks else None
    # Of timm's pooling, keys and values are in one.
    shares = tuple(2 if name.endswith(".kv") else 1 for name in names)
    sizes = (("p", spec.embed.patch), ("q", spec.embed.patch))
    theirs, ours = _layouts(path, found[0], in_blocks)
    return Row(path, tuple(found), theirs, ours, shares, sizes if "p" in theirs else (), layers)


def _layouts(path: str, name: str, in_blocks: bool) -> tuple[str, str]:
    """The checkpoint's layout of an array, and ours."""
    if path == "embed/project/kernel":
        # A convolution in PyTorch.
        return "d c p q", "(p q c) d"
    if path.endswith("/kernel"):
        return "o i", "i o"
    if in_blocks or path.endswith(("/scale", "/bias")):
        return "d", "d"
    # Tokens and positions: CLIP's class token, PyTorch's table of embeddings, and others'.
    if name.endswith("class_embedding"):
        return "d", "1 1 d"
    return ("n d", "1 n d") if name.endswith(".weight") else ("a n d", "a n d")
