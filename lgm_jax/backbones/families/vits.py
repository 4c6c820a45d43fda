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
blocks follow what stands under `blocks`, with `{}` for the layer's number. One that ends in
`/gated` is another's in networks with gates.
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
    named = owner if ending else path
    gated = f"{named}/gated"
    names = keys[gated if spec.mlp.gated and gated in keys else named].split()
    found = [name + ("" if not ending or name.endswith("_") else ".") + ending for name in names]
    if in_blocks:
        found = [keys["blocks"] + name for name in found]
    # Of timm's pooling, keys and values are in one.
    shares = tuple(2 if name.endswith(".kv") else 1 for name in names)
    theirs, ours = _layouts(path, found[0], in_blocks)
    sizes = (("p", spec.embed.patch), ("q", spec.embed.patch)) if "p" in theirs else ()
    layers = range(spec.depth) if in_blocks else None
    return Row(path, tuple(found), theirs, ours, shares, sizes, layers)


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
