"""The backbones that can be loaded by name: what their checkpoints are, and where they lie.

An entry of `names.json` holds the `config.json` that is published with the weights, as far as it
differs from upstream's defaults (where timm's weights differ in statistics, with ImageNet's), and
goes through the reader of every other.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgm_jax.backbones import configs, families
from lgm_jax.backbones.families.family import Family
from lgm_jax.backbones.network import Network, Published

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Entry:
    """A backbone that can be loaded by name.

    Attributes:
        sources: Repositories of the hub with its weights, and the format of a checkpoint that is of
            another than its config says; the first with safetensors is taken.
        config: Content of its `config.json`; that of an embedded one is in its folder.
        preprocessor: Content of its `preprocessor_config.json`.
        folder: Where the files of an embedded backbone lie, or of one's own.
        pickle: Where its authors publish a pickle, if nobody is known to publish safetensors.
        family: What reads it and makes it, if it is none of ours.
    """

    summary: str
    licence: str
    sources: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path | None = None
    pickle: str = ""
    family: Family | None = None

    def __post_init__(self) -> None:
        if self.family is not None:
            families.add(self.family)

    @functools.cached_property
    def published(self) -> Published:
        """Its description, without a download."""
        config = self.config
        if self.folder is not None:
            config = json.loads((self.folder / "config.json").read_text())
        return configs.read_config(config, self.preprocessor)

    def published_as(self, form: str | None) -> Published:
        """Returns its description as a checkpoint of a format, by default of the first."""
        return dataclasses.replace(self.published, form=form or self.published.form)

    @property
    def spec(self) -> Network:
        """Its shape, at the resolution that its positions were stored for."""
        return self.published.spec

    @property
    def resolution(self) -> int:
        """Side of the images it takes unless told otherwise, in pixels."""
        return self.published.resolution or self.spec.resolution


NAMES: Mapping[str, Entry] = {
    name: Entry(folder=_HERE / "weights" / name if "config" not in row else None, **row)
    for name, row in json.loads((_HERE / "names.json").read_text()).items()
}
"""The entries of `names.json`; those without a config are in the package.

The MoCo-v3 of a small Vision Transformer has twice as many heads as others of that width. DINOv2
was trained at 518 px at last, but is used at 224. timm's CLIP has the weights of OpenAI's under a
config that asks for another GELU than they were trained with.
"""
