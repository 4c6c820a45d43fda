"""The families of backbones: each says how a config is read, what is applied, and which weights.

One that is no Vision Transformer is a module beside these, with a shape, a module and a key map,
and a line in `FAMILIES`; docs/backbones.md has an example.
"""

from __future__ import annotations

from collections.abc import Mapping

from lgm_jax.backbones.families import hf_vits, timm_vits
from lgm_jax.backbones.families.family import Family, Reader
from lgm_jax.backbones.network import Network, Preprocessing
from lgm_jax.backbones.port import Format

__all__ = [
    "FAMILIES",
    "Family",
    "family_of",
    "formats",
    "model_types",
    "timm_classes",
]

FAMILIES: tuple[Family, ...] = (timm_vits.FAMILY, hf_vits.FAMILY)


def family_of(spec: Network) -> Family:
    """The family whose module a network is."""
    return next(family for family in FAMILIES if isinstance(spec, family.network))


def networks() -> Mapping[str, type[Network]]:
    """The class of a network by its checkpoint's format."""
    return {form: family.network for family in FAMILIES for form in family.formats}


def formats() -> Mapping[str, Format]:
    """Every checkpoint's format, by name."""
    return {name: form for family in FAMILIES for name, form in family.formats.items()}


def timm_classes() -> Mapping[str, Reader]:
    """What reads the arguments of a class of timm's."""
    return {name: reader for family in FAMILIES for name, reader in family.timm.items()}


def model_types() -> Mapping[str, tuple[Reader, Preprocessing]]:
    """What reads transformers' configurations, and the family's statistics, by `model_type`."""
    return {name: found for family in FAMILIES for name, found in family.transformers.items()}
