"""Weights as training left them: under a prefix, beside heads, in the wrappers of frameworks.

What surrounds a backbone in a checkpoint is taken off where all of its keys are then there, and it
is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lgm_jax.backbones import port
from lgm_jax.backbones.files import Tensors
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


def unwrap(form: port.Format, spec: Network, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Takes off what surrounds a backbone's keys in a checkpoint, and says what, for a person.

    Where no prefix makes all keys fit, some of the format's are missing.
    """
    plain = {_WRAPPERS.sub("", key): key for key in tensors}
    if len(plain) < len(tensors):
        plain = {key: key for key in tensors}
    anchors = tuple(f".{anchor}" for anchor in port.anchors(form, spec))
    candidates = {
        key.removesuffix(anchor[1:]) for key in plain for anchor in anchors if key.endswith(anchor)
    }
    ways: dict[frozenset[str], str] = {}
    for prefix in ("", *sorted(candidates, key=len)):
        used = port.fits(form, spec, _below(plain, prefix))
        # A format's own prefix may be counted to either side; without any, nothing is taken off.
        if used is not None and "" not in ways.values():
            ways.setdefault(frozenset(prefix + key for key in used), prefix)
    if not ways:
        # Of what does not fit, the one prefix that there may be hides what is missing.
        names = _below(plain, candidates.pop()) if len(candidates) == 1 else plain
        return tensors.renamed(names), []
    prefix = _choose(list(ways.values()))
    names = _below(plain, prefix)
    used = port.fits(form, spec, names) or set()
    # Heads and what is of training, but for what the format leaves out itself.
    others = [key for key in names if key not in used and not port.is_ignored(form, key)]
    beside = [key for key in others if _BESIDE.fullmatch(key)]
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
    return tensors.renamed(kept), notes


def _below(keys: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key[len(prefix) :]: name for key, name in keys.items() if key.startswith(prefix)}


def _choose(prefixes: Sequence[str]) -> str:
    """The prefix of the one backbone, or of that of two which is evaluated."""
    if len(prefixes) == 1:
        return prefixes[0]
    for evaluated, other in _EVALUATED.items():
        parts = {prefix: prefix.split(".") for prefix in prefixes}
        chosen = [prefix for prefix in prefixes if evaluated in parts[prefix]]
        if len(chosen) == 1 and all(other in parts[p] for p in set(prefixes) - {*chosen}):
            return chosen[0]
    raise UserError(
        f"the weights hold several backbones, under {list_some(sorted(prefixes))}: write one of "
        "them to a file of its own"
    )
