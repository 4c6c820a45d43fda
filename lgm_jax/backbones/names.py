"""Names of several backbones, for people: plain where that is enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lgm_jax.backbones.backbone import Backbone, Settings
from lgm_jax.backbones.network import CLIP, HALF, IMAGENET, Preprocessing

# Digits of a hash where nothing else tells two backbones apart.
_DIGITS = 8

_STATISTICS: Mapping[Preprocessing, str] = {IMAGENET: "imagenet", CLIP: "clip", HALF: "half"}


def distinct_names(backbones: Sequence[Backbone]) -> list[str]:
    """Returns a name for each backbone, in their order; equal only where the features are.

    A backbone whose name no other has keeps it. Others are followed by what differs: `vit
    (pooling=cls)` and `vit (pooling=mean)`, `vit (weights=62beafa4)` where only the weights do.
    Such names are for people and tables of one run; records refer to a backbone by its
    `fingerprint`.
    """
    groups: dict[str, dict[str, Backbone]] = {}
    for backbone in backbones:
        groups.setdefault(backbone.name, {}).setdefault(backbone.fingerprint, backbone)
    named = {
        (name, fingerprint): distinct
        for name, group in groups.items()
        for fingerprint, distinct in zip(group, _apart(name, list(group.values())), strict=True)
    }
    if len(set(named.values())) < len(named):
        # Somebody's folder has the name that another was to get.
        named = {key: f"{name} ({key[1][:_DIGITS]})" for key, name in named.items()}
    return [named[backbone.name, backbone.fingerprint] for backbone in backbones]


def _apart(name: str, group: Sequence[Backbone]) -> list[str]:
    """Names of backbones of one name, each with the fewest settings that tell it apart."""
    if len(group) == 1:
        return [name]
    described = [_described(backbone) for backbone in group]
    keys = [key for key in described[0] if all(key in each for each in described)]

    def kinds(*chosen: str) -> int:
        return len({tuple(each[key] for key in chosen) for each in described})

    # One setting where one is enough; the last key is a hash, which always is.
    chosen = [key for key in keys[:-1] if kinds(key) == len(group)][:1]
    for key in () if chosen else keys:
        if kinds(*chosen, key) > kinds(*chosen):
            chosen.append(key)
    return [f"{name} ({', '.join(f'{key}={each[key]}' for key in chosen)})" for each in described]


def _described(backbone: Backbone) -> dict[str, str]:
    """A backbone's settings as text, those that people choose first, hashes last."""
    last = {"fingerprint": backbone.fingerprint[:_DIGITS]}
    settings = backbone.settings
    if settings is None:
        return last
    owner, _, _ = str(backbone.provenance.get("source", "")).rpartition("/")
    hashes = {"source": owner or "folder", "weights": settings.weights[:_DIGITS]}
    return _chosen(settings) | dict(_flat(dataclasses.asdict(settings.spec))) | hashes | last


def _chosen(settings: Settings) -> dict[str, str]:
    """Returns the settings that a config has keys for, by key."""
    spec, statistics = settings.spec, settings.preprocessing
    return {
        "pooling": spec.pooling,
        "resolution": str(settings.side or spec.resolution),
        "resize": "images" if settings.side else "positions",
        "normalization": _STATISTICS.get(statistics, f"{statistics.mean}/{statistics.std}"),
        "dtype": settings.dtype,
        "params_dtype": settings.params_dtype,
        "position_offset": f"{settings.position_offset:g}",
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)
