"""The families of backbones: each says how a config is read, what is applied, and which weights.

One that is no Vision Transformer is a module beside these, with a shape, a module and a key map,
and a place in `FAMILIES`; docs/backbones.md has an example.
"""

from __future__ import annotations

from collections.abc import Mapping

from lgm_jax.backbones.families import convnext, hf_vits, resnet, timm_vits
from lgm_jax.backbones.families.family import Family, Reader
from lgm_jax.backbones.network import Network, Preprocessing
from lgm_jax.backbones.port import Format

__all__ = ["FAMILIES", "Family", "add", "family_of", "formats", "model_types", "timm_classes"]

FAMILIES: list[Family] = [timm_vits.FAMILY, hf_vits.FAMILY, resnet.FAMILY, convnext.FAMILY]


def add(family: Family) -> None:
    """Makes a family of somebody else's known, as `specs.Entry` does for the backbones it is of."""
    if family not in FAMILIES:
        FAMILIES.append(family)


def family_of(spec: Network) -> Family:
    """The family whose module a network is."""
    return next(family for family in FAMILIES if isinstance(spec, family.network))


def formats() -> Mapping[str, Format]:
    """Every checkpoint's format, by name."""
    return {name: form for family in FAMILIES for name, form in family.formats.items()}


def timm_classes() -> Mapping[str, Reader]:
    """Readers of timm's arguments, by class."""
    return {name: reader for family in FAMILIES for name, reader in family.timm.items()}


def model_types() -> Mapping[str, tuple[Reader, Preprocessing]]:
    """Readers of transformers' configurations, and statistics, by `model_type`."""
    return {name: found for family in FAMILIES for name, found in family.transformers.items()}
