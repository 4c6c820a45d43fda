"""Weights as training left them: under a prefix, beside heads, in the wrappers of frameworks.

What surrounds a backbone in a checkpoint is taken off where all of its keys are then there, and it
is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lgm_jax.backbones import port
from lgm_jax.backbones.network import Network
from lgm_jax.errors import UserError, list_some

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


class _Renamed(Mapping[str, np.ndarray]):
    """Tensors under other keys; each is read when it is asked for."""

    def __init__(self, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]):
        self._tensors, self._names = tensors, names

    def __getitem__(self, key: str) -> np.ndarray:
        return self._tensors[self._names[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def unwrap(
    form: port.Format, spec: Network, tensors: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """Takes off what surrounds a backbone's keys.

    Args:
        form: The checkpoint's format.
        spec: The backbone's shape.
        tensors: The checkpoint, key to array.

    Returns:
        The tensors under the format's keys, and what was done, for a person. Where no prefix makes
        all keys fit, some are missing.

    Raises:
        UserError: If they hold several backbones.
    """
    plain = {_WRAPPERS.sub("", key): key for key in tensors}
    if len(plain) < len(tensors):
        plain = {key: key for key in tensors}
    prefix = _prefix(form, spec, plain)
    if prefix is None:
        # Of what does not fit, the one prefix that there may be hides what is missing.
        candidates = _candidates(form, spec, plain)
        names = _below(plain, candidates.pop()) if len(candidates) == 1 else plain
        return _Renamed(tensors, names), []
    names = _below(plain, prefix)
    used = port.fits(form, spec, names) or set()
    beside = [key for key in names if key not in used and _is_beside(form, key)]
    kept = {key: name for key, name in names.items() if key not in beside}
    notes = []
    wrappers = sorted({part for key in tensors for part in _WRAPPERS.findall(key)} - {prefix})
    if prefix or (wrappers and plain.keys() != tensors.keys()):
        off = " and ".join(repr(part) for part in [prefix, *wrappers] if part)
        notes.append(f"{off} is taken off the keys of the weights")
    left_out = sorted([key for key in plain if not key.startswith(prefix)] + beside)
    if left_out:
        some, count = list_some(left_out), len(left_out)
        notes.append(f"left out, as no part of the backbone: {count} keys: {some}")
    return _Renamed(tensors, kept), notes


def _is_beside(form: port.Format, key: str) -> bool:
    """Whether a key is a head's or of training, and the format does not leave it out itself."""
    return bool(_BESIDE.fullmatch(key)) and not port.is_ignored(form, key)


def _prefix(form: port.Format, spec: Network, keys: Mapping[str, str]) -> str | None:
    """Returns the prefix of all keys of the backbone; `None` if some are missing.

    Raises:
        UserError: If the keys of several backbones are there.
    """
    if port.fits(form, spec, keys):
        return ""
    found: dict[frozenset[str], str] = {}
    for prefix in sorted(_candidates(form, spec, keys), key=len):
        used = port.fits(form, spec, _below(keys, prefix))
        if used is not None:
            # A format's own prefix may be counted to either side.
            found.setdefault(frozenset(prefix + key for key in used), prefix)
    return _choose(list(found.values()))


def _candidates(form: port.Format, spec: Network, keys: Mapping[str, str]) -> set[str]:
    """Returns the prefixes of the anchor's key."""
    return {
        key.removesuffix(anchor)
        for anchor in port.anchors(form, spec)
        for key in keys
        if key.endswith(f".{anchor}")
    }


def _below(keys: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key[len(prefix) :]: name for key, name in keys.items() if key.startswith(prefix)}


def _choose(prefixes: Sequence[str]) -> str | None:
    if len(prefixes) <= 1:
        return prefixes[0] if prefixes else None
    for evaluated, other in _EVALUATED.items():
        parts = {prefix: prefix.split(".") for prefix in prefixes}
        chosen = [prefix for prefix in prefixes if evaluated in parts[prefix]]
        if len(chosen) == 1 and all(other in parts[p] for p in set(prefixes) - {*chosen}):
            return chosen[0]
    raise UserError(
        f"the weights hold several backbones, under {list_some(sorted(prefixes))}: write one of "
        "them to a file of its own"
    )
