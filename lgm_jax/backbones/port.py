"""Key maps between published checkpoints and our parameters, total in both directions.

Each row of a map names a parameter of ours, the checkpoint's keys for it, and two einops patterns:
how the checkpoint lays the array out, and how we do. Read left to right a row imports; read right
to left it exports. A key that is left over or missing is an error that names it; what surrounds a
backbone where all of its keys are there (prefixes, heads, wrappers of frameworks) is taken off, and
it is said.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from lgm_jax.backbones.network import Network
from lgm_jax.errors import UserError, list_some

Params = dict[str, Any]

# Modules that frameworks put around others, anywhere in a key: torch.compile, FSDP, checkpointing.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# Prefixes of keys in training checkpoints that belong to no network.
_BESIDE = re.compile(
    r"(?:heads?|fc|classifier|linear|(?:\w+_)?(?:head|predictor|projector|queue|optimizer)"
    r"|predictor|projector|decoder|prototypes|optimizer|scheduler|queue|queue_ptr|epoch|step)"
    r"(?:\..*)?"
)

# Which of two networks that are trained together is evaluated, and the other: by DINO and its
# successors, and by MoCo-v3.
_EVALUATED = {"teacher": "student", "base_encoder": "momentum_encoder"}

_EXPECTED = (
    "published names are expected, as timm.models.save_for_hf and transformers' save_pretrained "
    "write them"
)


class Row(NamedTuple):
    """One parameter of ours and where a checkpoint keeps it.

    Attributes:
        keys: The checkpoint's, `{}` standing for the layer's number. Several arrays are joined
            along their first axis. A leading slash marks what lies beside the backbone, not in it.
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

    def full_keys(self, prefix: str) -> list[str]:
        """The keys under a prefix, layer by layer."""
        full = [key[1:] if key[0] == "/" else prefix + key for key in self.keys]
        return [key.format(layer) for layer in self.layers or range(1) for key in full]

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """An array of one layer in the checkpoint's layout, keys joined."""
        return rearrange(array, f"{self.ours} -> {self.theirs}", **dict(self.sizes))


@dataclasses.dataclass(frozen=True)
class Format:
    """How a family's checkpoints name things.

    Attributes:
        ignored: Patterns of keys that are no part of the backbone.
        prefixes: What may stand before every key of the backbone, as where it is a part of a
            larger model.
        aliases: Patterns of keys, and what some checkpoints have in their place.
        takes_offset: Whether the code of the model's authors has a `position_offset`.
    """

    rows: Callable[[Any], list[Row]]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    aliases: tuple[tuple[str, str], ...] = ()
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


def find(
    form: Format, spec: Network, tensors: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str]]:
    """Finds a backbone in a checkpoint.

    Returns:
        The keys of all rows of the format, layer by layer, and sentences for a person on what was
        taken off or left out.

    Raises:
        UserError: If keys are missing or left over (some are named), or there are two backbones.
    """
    rows = form.rows(spec)
    plain = {_WRAPPERS.sub("", key): key for key in tensors}
    if len(plain) < len(tensors):
        plain = {key: key for key in tensors}
    known = {key for own in form.prefixes for row in rows for key in row.full_keys(own)}
    outer = {
        key[: dot.end()]
        for key in plain
        for dot in re.finditer(r"^|\.", key)
        if key[dot.end() :] in known
    }
    ways: dict[frozenset[str], str] = {}
    present = {"": 0}
    for prefix in sorted(outer, key=len):
        below = _below(plain, prefix)
        keys = set(_look_up(form, rows, below))
        present[prefix] = len(keys & below.keys())
        # A format's own prefix may be counted to either side; without any, nothing is taken off.
        if present[prefix] == len(keys) and "" not in ways.values():
            ways.setdefault(frozenset(below[key] for key in keys), prefix)
    # Of what does not fit, the prefix under which most is there hides what is missing.
    prefix = _choose(list(ways.values()) or [max(present, key=lambda prefix: present[prefix])])
    below = _below(plain, prefix)
    wanted = _look_up(form, rows, below)
    others = [key for key in below.keys() - set(wanted) if not is_ignored(form, key)]
    # Heads, and what is of training.
    beside = [key for key in others if ways and _BESIDE.fullmatch(key)]
    missing = sorted(set(wanted) - below.keys())
    # Without registers, transformers stores an array of none.
    left_over = sorted(key for key in set(others) - set(beside) if tensors[below[key]].size)
    if missing or left_over:
        lists = (("missing keys", missing), ("left-over keys", left_over))
        parts = [f"{what}: {list_some(keys)}" for what, keys in lists if keys]
        advice = f"; {_EXPECTED}" if missing and left_over else ""
        raise UserError(f"the weights do not fit this architecture: {'; '.join(parts)}{advice}")
    notes = []
    wrappers = sorted({part for key in tensors for part in _WRAPPERS.findall(key)} - {prefix})
    if prefix or (wrappers and plain.keys() != tensors.keys()):
        off = " and ".join(repr(part) for part in [prefix, *wrappers] if part)
        notes.append(f"{off} is taken off the keys of the weights")
    left_out = sorted([key for key in plain if not key.startswith(prefix)] + beside)
    if left_out:
        some, count = list_some(left_out), len(left_out)
        notes.append(f"left out, as no part of the backbone: {count} keys: {some}")
    return [below[key] for key in wanted], notes


def _below(keys: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key[len(prefix) :]: name for key, name in keys.items() if key.startswith(prefix)}


def _look_up(form: Format, rows: Sequence[Row], keys: Mapping[str, str]) -> list[str]:
    """The keys of all rows, under that of the format's prefixes under which most are there."""

    def known_as(key: str) -> str:
        others = (re.sub(f"^{pattern}$", other, key) for pattern, other in form.aliases)
        return next((name for name in itertools.chain([key], others) if name in keys), key)

    ways = (
        [known_as(key) for row in rows for key in row.full_keys(prefix)] for prefix in form.prefixes
    )
    return max(ways, key=lambda way: len(keys.keys() & set(way)))


def is_ignored(form: Format, key: str) -> bool:
    """Whether a key is known to be no part of the backbone, under any prefix of the format."""
    names = {key, *(key.removeprefix(prefix) for prefix in form.prefixes)}
    return any(re.fullmatch(pattern, name) for pattern in form.ignored for name in names)


def _choose(prefixes: Sequence[str]) -> str:
    """The prefix of the one backbone, or of that of two which is evaluated."""
    if len(prefixes) == 1:
        return prefixes[0]
    for evaluated, other in _EVALUATED.items():
        chosen = [prefix for prefix in prefixes if evaluated in prefix.split(".")]
        others = [prefix for prefix in prefixes if other in prefix.split(".")]
        if len(chosen) == 1 and len(others) == len(prefixes) - 1:
            return chosen[0]
    raise UserError(
        f"the weights hold several backbones, under {list_some(sorted(prefixes))}: write one of "
        "them to a file of its own"
    )


def import_params(
    rows: Sequence[Row],
    keys: Sequence[str],
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: DTypeLike = np.float32,
) -> Params:
    """Turns a checkpoint's tensors, by key, into nested parameters of a `dtype`.

    `keys` are those of all rows (`find`), layer by layer, and `shapes` has the shape that
    each of our paths must have.

    Raises:
        UserError: If a shape is wrong.
    """
    arrays, names = {}, iter(keys)
    for row in rows:
        shape = shapes[row.path] if row.layers is None else shapes[row.path][1:]
        layers = [
            _convert(row, [next(names) for _ in row.keys], tensors, shape)
            for _ in row.layers or range(1)
        ]
        array = layers[0] if row.layers is None else np.stack(layers)
        arrays[row.path] = array.astype(dtype, copy=False)
    return unflatten_dict(arrays, sep="/")


def _convert(
    row: Row, keys: Sequence[str], tensors: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    """One layer of one parameter, in our layout."""
    parts = [tensors[key] for key in keys]
    # Of an array of no memory of its own.
    whole = row.to_theirs(np.broadcast_to(np.int8(0), shape)).shape
    for key, part, share in zip(keys, parts, np.diff([0, *row.ends]), strict=True):
        expected = (whole[0] * int(share) // row.ends[-1], *whole[1:])
        if part.shape != expected:
            raise UserError(f"the weights' {key} has shape {part.shape}, not {expected}")
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return rearrange(joined, f"{row.theirs} -> {row.ours}")


def export_params(
    form: Format, spec: Network, params: Params, dtype: DTypeLike | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `import_params`: our parameters under the checkpoint's keys and layouts.

    They become arrays of a `dtype`, by default their own.
    """
    tensors, arrays = {}, flatten_dict(params, sep="/")
    for row in form.rows(spec):
        array = np.asarray(arrays[row.path])
        parts = []
        for layer in [array] if row.layers is None else array:
            theirs = row.to_theirs(layer)
            ends = np.asarray(row.ends) * (len(theirs) // row.ends[-1])
            parts += np.split(theirs, ends[:-1], axis=0)
        for key, part in zip(row.full_keys(form.prefixes[0]), parts, strict=True):
            tensors[key] = np.ascontiguousarray(part.astype(dtype or part.dtype))
    return tensors
