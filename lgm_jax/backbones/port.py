"""Key maps between published checkpoints and our parameters, total in both directions.

Each row of a map names a parameter of ours, the checkpoint's keys for it, and two einops patterns:
how the checkpoint lays the array out, and how we do. Read left to right a row imports; read right
to left it exports. A key that is left over or missing on either side is an error that names it;
what a checkpoint holds beyond the backbone (a classifier, a text tower) is listed by its format.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from lgm_jax.backbones.network import Network
from lgm_jax.errors import UserError, list_some

Params = dict[str, Any]


class Row(NamedTuple):
    """One parameter of ours and where a checkpoint keeps it.

    Attributes:
        keys: The checkpoint's, `{}` standing for the layer's number. Several arrays are joined
            along their first axis.
        shares: How many of equal parts of the first axis each key holds; one each if empty.
        sizes: Of axes that our layout joins, by letter.
        layers: The numbers of the layers, which are stacked along a new first axis; none if there
            is one array alone.
    """

    path: str
    keys: tuple[str, ...]
    theirs: str
    ours: str
    shares: tuple[int, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    layers: range | None = None

    @property
    def ends(self) -> list[int]:
        """The ends of all keys but the last along the first axis, in parts of it."""
        return list(itertools.accumulate(self.shares or (1,) * len(self.keys)))


@dataclasses.dataclass(frozen=True)
class Format:
    """How a family's checkpoints name things.

    Attributes:
        ignored: Patterns of keys that are no part of the backbone.
        prefixes: What may stand before every key of the backbone, as where it is a part of a
            larger model.
        aliases: Patterns of keys, and what some checkpoints have in their place.
        advice: A pattern of keys that belong to another format, and what to do with such a file.
        anchor: Our path of the parameter that tells where a backbone is in a larger checkpoint.
        takes_offset: Whether the code of the model's authors has a `position_offset`.
    """

    rows: Callable[[Any], list[Row]]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    aliases: tuple[tuple[str, str], ...] = ()
    advice: tuple[str, str] | None = None
    anchor: str = "embed/project/kernel"
    takes_offset: bool = False


def linear(path: str, key: str) -> list[Row]:
    """A linear layer; PyTorch stores (out, in), we store (in, out)."""
    kernel = Row(f"{path}/kernel", (f"{key}.weight",), "o i", "i o")
    return [kernel, vector(f"{path}/bias", f"{key}.bias")]


def convolution(path: str, key: str, bias: bool = True) -> list[Row]:
    """A convolution; PyTorch stores (out, in, height, width), we store (height, width, in, out)."""
    kernel = Row(f"{path}/kernel", (f"{key}.weight",), "o i h w", "h w i o")
    return [kernel, vector(f"{path}/bias", f"{key}.bias")] if bias else [kernel]


def norm(path: str, key: str) -> list[Row]:
    """A norm with a scale and a bias."""
    return [vector(f"{path}/scale", f"{key}.weight"), vector(f"{path}/bias", f"{key}.bias")]


def vector(path: str, key: str) -> Row:
    """An array of one axis."""
    return Row(path, (key,), "d", "d")


def layered(rows: Sequence[Row], layers: range) -> list[Row]:
    """Rows whose keys have a `{}`, for the number of the layer, stand for some layers each."""
    return [row._replace(layers=layers) for row in rows]


def find_prefix(form: Format, spec: Network, keys: Collection[str]) -> str:
    """Returns the prefix of the backbone's keys in a checkpoint; the first choice if none fits."""
    wanted = {key for row in form.rows(spec) for key in _keys(row, "")[: len(row.keys)]}
    found = {prefix: sum(prefix + key in keys for key in wanted) for prefix in form.prefixes}
    return max(form.prefixes, key=lambda prefix: found[prefix])


def import_params(
    form: Format,
    spec: Network,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: DTypeLike = np.float32,
) -> Params:
    """Turns a checkpoint's tensors, by key, into nested parameters of a `dtype`.

    `shapes` has the shape that each of our paths must have.

    Raises:
        UserError: If keys are missing or left over (some are named), or a shape is wrong.
    """
    prefix = find_prefix(form, spec, tensors)
    wanted = _find_keys(form, spec, tensors, prefix)
    _check_keys({key for keys in wanted.values() for key in keys}, tensors, form, prefix)
    arrays = {}
    for row, keys in wanted.items():
        shape = shapes[row.path] if row.layers is None else shapes[row.path][1:]
        parts = len(row.keys)
        layers = [
            _convert(row, keys[i : i + parts], tensors, shape) for i in range(0, len(keys), parts)
        ]
        array = layers[0] if row.layers is None else np.stack(layers)
        arrays[row.path] = array.astype(dtype, copy=False)
    return unflatten_dict(arrays, sep="/")


def export_params(
    form: Format, spec: Network, params: Params, dtype: DTypeLike | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `import_params`: our parameters under the checkpoint's keys and layouts.

    They become arrays of a `dtype`, by default their own.
    """
    tensors, arrays = {}, flatten_dict(params, sep="/")
    for row in form.rows(spec):
        array = np.asarray(arrays[row.path])
        stacked = [(0, array)] if row.layers is None else zip(row.layers, array, strict=True)
        for i, layer in stacked:
            theirs = rearrange(layer, f"{row.ours} -> {row.theirs}", **dict(row.sizes))
            ends = np.asarray(row.ends) * (len(theirs) // row.ends[-1])
            parts = np.split(theirs, ends[:-1], axis=0)
            for key, part in zip(row.keys, parts, strict=True):
                name = _full(key.format(i), form.prefixes[0])
                tensors[name] = np.ascontiguousarray(part.astype(dtype or part.dtype))
    return tensors


def _find_keys(
    form: Format, spec: Network, keys: Collection[str], prefix: str
) -> dict[Row, list[str]]:
    """Each row's keys in a checkpoint, layer by layer, under the names that it has for them."""

    def known_as(key: str) -> str:
        others = (re.sub(f"^{pattern}$", other, key) for pattern, other in form.aliases)
        return next((name for name in itertools.chain([key], others) if name in keys), key)

    return {row: list(map(known_as, _keys(row, prefix))) for row in form.rows(spec)}


def fits(form: Format, spec: Network, keys: Collection[str]) -> set[str] | None:
    """The keys of a checkpoint that make the backbone; `None` if it lacks one."""
    found = _find_keys(form, spec, keys, find_prefix(form, spec, keys))
    wanted = {key for of_row in found.values() for key in of_row}
    return wanted if wanted <= set(keys) else None


def is_ignored(form: Format, key: str) -> bool:
    """Whether a key is known to be no part of the backbone."""
    return any(re.fullmatch(pattern, key) for pattern in form.ignored)


def anchors(form: Format, spec: Network) -> list[str]:
    """The keys that a checkpoint of the format may have its anchor under."""
    (row,) = (row for row in form.rows(spec) if row.path == form.anchor)
    return [_full(row.keys[0], prefix) for prefix in form.prefixes]


def _check_keys(
    wanted: set[str], tensors: Mapping[str, np.ndarray], form: Format, prefix: str
) -> None:
    missing = sorted(wanted - set(tensors))
    left_over = sorted(
        key
        for key in set(tensors) - wanted
        if not is_ignored(form, key)
        and not is_ignored(form, key.removeprefix(prefix))
        # Without registers, transformers stores an array of none.
        and tensors[key].size
    )
    if missing or left_over:
        parts = [
            f"{what} {list_some(keys)}"
            for what, keys in (("missing keys:", missing), ("left-over keys:", left_over))
            if keys
        ]
        if form.advice and any(re.fullmatch(form.advice[0], key) for key in left_over):
            parts.append(form.advice[1])
        raise UserError(f"the weights do not fit this architecture: {'; '.join(parts)}")


def _convert(
    row: Row, keys: Sequence[str], tensors: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    """One layer of one parameter, in our layout."""
    parts = [tensors[key] for key in keys]
    # An array of no memory of its own.
    empty = np.broadcast_to(np.int8(0), shape)
    whole = rearrange(empty, f"{row.ours} -> {row.theirs}", **dict(row.sizes))
    for key, part, share in zip(keys, parts, np.diff([0, *row.ends]), strict=True):
        # Whole numbers are quantised weights, whose scale lies elsewhere.
        if not jnp.issubdtype(part.dtype, jnp.floating):
            raise UserError(f"the weights' {key} is {part.dtype}, not a float")
        expected = (whole.shape[0] * int(share) // row.ends[-1], *whole.shape[1:])
        if part.shape != expected:
            raise UserError(f"the weights' {key} has shape {part.shape}, not {expected}")
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return rearrange(joined, f"{row.theirs} -> {row.ours}")


def _keys(row: Row, prefix: str) -> list[str]:
    """A row's keys in a checkpoint, layer by layer."""
    layers = range(1) if row.layers is None else row.layers
    return [_full(key.format(i), prefix) for i in layers for key in row.keys]


def _full(key: str, prefix: str) -> str:
    # A leading slash marks what lies beside the backbone, not in it.
    return key[1:] if key[0] == "/" else prefix + key
