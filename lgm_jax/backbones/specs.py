"""The backbones that can be loaded by name: what their checkpoints are, and where they lie.

An entry holds the `config.json` that is published with the weights, as far as it differs from
upstream's defaults, and goes through the reader of every other.
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
from lgm_jax.backbones.network import IMAGENET, Network, Published

_WEIGHTS = Path(__file__).parent / "weights"


@dataclasses.dataclass(frozen=True)
class Source:
    """A repository of the Hugging Face hub that has the weights.

    Attributes:
        repo: `owner/name`.
        form: The checkpoint's format, where it is another than the entry's config says.
    """

    repo: str
    form: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A backbone that can be loaded by name.

    Attributes:
        summary: What it is, in a few words.
        licence: Of the weights.
        sources: Where its weights lie; the first with safetensors is taken. Empty if embedded.
        config: Content of its `config.json`; that of an embedded one is in its folder.
        preprocessor: Content of its `preprocessor_config.json`.
        folder: Where the files of an embedded backbone lie, or of one's own.
        pickle: Where its authors publish a pickle, if nobody is known to publish safetensors.
        family: What reads it and makes it, if it is none of ours.
    """

    summary: str
    licence: str
    sources: tuple[Source, ...] = ()
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
        found = self.published
        return found if form is None else dataclasses.replace(found, form=form)

    @property
    def origin(self) -> str:
        """The origin of its weights, in a word."""
        if self.sources:
            return self.sources[0].repo
        return self.pickle or "in the package"

    @property
    def spec(self) -> Network:
        """Its shape, at the resolution that its positions were stored for."""
        return self.published.spec

    @property
    def resolution(self) -> int:
        """Side of the images it takes unless told otherwise, in pixels."""
        return self.published.resolution or self.spec.resolution


# Names of sizes, and of each the width, depth and heads.
_LONG = {"t": "tiny", "s": "small", "b": "base", "l": "large", "g": "giant"}
_SIZES = {
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
    "g": (1536, 40, 24),
}

# Trained at 518 px at last, but used at 224.
_CROP_224 = {"crop_size": {"height": 224, "width": 224}}


def _sizes(size: str, **others: Any) -> dict[str, Any]:
    """transformers' names of a Vision Transformer's sizes."""
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    return {**dict(zip(keys, _SIZES[size], strict=True)), **others}


def _dinov2(size: str, registers: int = 0) -> Entry:
    variant, summary, config = "dinov2", "DINOv2", _sizes(size, image_size=518, patch_size=14)
    config |= {"model_type": "dinov2", "use_swiglu_ffn": size == "g"}
    if registers:
        variant, summary = "dinov2-with-registers", "DINOv2, four registers"
        config |= {"model_type": "dinov2_with_registers", "num_register_tokens": registers}
    sources = (Source(f"facebook/{variant}-{_LONG[size]}"),)
    return Entry(summary, "Apache-2.0", sources, config, _CROP_224)


def _clip(size: str, patch: int, projection: int, resolution: int = 224) -> Entry:
    name, width = _LONG[size], _SIZES[size][0]
    vision = _sizes(size, intermediate_size=4 * width, image_size=resolution, patch_size=patch)
    config = {"model_type": "clip", "projection_dim": projection, "vision_config": vision}
    suffix = "" if resolution == 224 else f"-{resolution}"
    sources = (
        Source(f"openai/clip-vit-{name}-patch{patch}{suffix}"),
        # The same weights; their config there asks for another GELU than they were trained with.
        Source(f"timm/vit_{name}_patch{patch}_clip_{resolution}.openai", "timm_vit"),
    )
    return Entry("CLIP, visual tower with projection", "MIT", sources, config)


def _timm(architecture: str, repo: str, licence: str, summary: str, **model_args: Any) -> Entry:
    """An architecture of timm's; where its weights differ in statistics, with ImageNet's."""
    pretrained = dataclasses.asdict(IMAGENET)
    config = {"architecture": architecture, "model_args": model_args}
    if architecture.startswith("vit_"):
        config["pretrained_cfg"] = pretrained
    return Entry(summary, licence, (Source(repo),), config)


def _eva02(size: str) -> Entry:
    name = f"eva02_{_LONG[size]}_patch14_224"
    return _timm(name, f"timm/{name}.mim_in22k", "MIT", "EVA-02, masked pre-training")


def _mocov3(size: str) -> Entry:
    # Its small one has twice as many heads as others of that width.
    heads = {"num_heads": 12} if size == "s" else {}
    name, repo = f"vit_{_LONG[size]}_patch16_224", f"nyu-visionx/moco-v3-vit-{size}"
    return _timm(name, repo, "CC-BY-NC-4.0", "MoCo-v3", **heads)


def _dino(size: str, patch: int) -> Entry:
    name = f"vit_{_LONG[size]}_patch{patch}_224"
    return _timm(name, f"timm/{name}.dino", "Apache-2.0", "DINO")


def _mae(size: str) -> Entry:
    name = f"vit_{_LONG[size]}_patch16_224"
    return _timm(name, f"timm/{name}.mae", "CC-BY-NC-4.0", "masked autoencoder")


def _dinov3(size: str) -> Entry:
    width = _SIZES[size][0]
    config = _sizes(size, intermediate_size=4 * width, num_register_tokens=4)
    source = Source(f"facebook/dinov3-vit{size}16-pretrain-lvd1689m")
    licence = "DINOv3 License (gated)"
    return Entry("DINOv3", licence, (source,), {"model_type": "dinov3_vit", **config})


def _dinov3_convnext(size: str, widths: list[int], deep: int) -> Entry:
    config = {"hidden_sizes": widths, "depths": [3, 3, deep, 3]}
    source = Source(f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m")
    licence = "DINOv3 License (gated)"
    return Entry("DINOv3", licence, (source,), {"model_type": "dinov3_convnext", **config})


def _resnet50(summary: str, licence: str, file: str) -> Entry:
    pickle = f"https://dl.fbaipublicfiles.com/{file}"
    return Entry(summary, licence, config={"architecture": "resnet50"}, pickle=pickle)


def _siglip(version: str, summary: str) -> Entry:
    source = Source(f"google/{version}-base-patch16-224")
    return Entry(summary, "Apache-2.0", (source,), {"model_type": "siglip"})


def _ijepa(name: str, patch: int, resolution: int = 224) -> Entry:
    config = _sizes("h", image_size=resolution, patch_size=patch, intermediate_size=5120)
    if "vitg" in name:
        config |= {"hidden_size": 1408, "num_hidden_layers": 40, "intermediate_size": 6144}
    config |= {"model_type": "ijepa", "layer_norm_eps": 1e-6}
    return Entry("I-JEPA", "CC-BY-NC-4.0", (Source(f"facebook/{name}"),), config)


def _aimv2(source: str, timm: str = "", **vision: Any) -> Entry:
    config = {"model_type": "aimv2_vision_model", "use_head": False, **vision}
    sources = [Source(f"apple/aimv2-{source}")]
    if timm:
        sources.append(Source(f"timm/aimv2_{timm}.apple_pt", "timm_swiglu"))
    return Entry("AIMv2", "Apple ASCL", tuple(sources), config)


def _pe_core(size: str, patch: int, resolution: int, projection: int = 1024) -> Entry:
    name = f"vit_pe_core_{_LONG[size]}_patch{patch}_{resolution}"
    config = {"architecture": name, "num_classes": projection}
    summary = "Perception Encoder, with projection"
    return Entry(summary, "Apache-2.0", (Source(f"timm/{name}.fb"),), config)


def _digits(name: str, like: str) -> Entry:
    summary = f"in this package, trained like {like} on the training digits, without labels"
    return Entry(summary, "Apache-2.0", folder=_WEIGHTS / name)


NAMES: Mapping[str, Entry] = {
    "digits_contrastive": _digits("digits_contrastive", "MoCo-v3"),
    "digits_distilled": _digits("digits_distilled", "DINO"),
    "digits_masked": _digits("digits_masked", "MAE"),
    **{f"dinov2_vit{size}14": _dinov2(size) for size in "sblg"},
    **{f"dinov2_vit{size}14_reg": _dinov2(size, registers=4) for size in "sblg"},
    "clip_vitb32": _clip("b", 32, 512),
    "clip_vitb16": _clip("b", 16, 512),
    "clip_vitl14": _clip("l", 14, 768),
    "clip_vitl14_336": _clip("l", 14, 768, 336),
    **{f"eva02_vit{size}14": _eva02(size) for size in "tsbl"},
    **{f"mocov3_vit{size}16": _mocov3(size) for size in "sbl"},
    "dino_vits16": _dino("s", 16),
    "dino_vits8": _dino("s", 8),
    "dino_vitb16": _dino("b", 16),
    "dino_vitb8": _dino("b", 8),
    **{f"dinov3_vit{size}16": _dinov3(size) for size in "sbl"},
    "dinov3_convnext_tiny": _dinov3_convnext("tiny", [96, 192, 384, 768], 9),
    "dinov3_convnext_small": _dinov3_convnext("small", [96, 192, 384, 768], 27),
    "mocov3_resnet50": _resnet50(
        "MoCo-v3", "CC-BY-NC-4.0", "moco-v3/r-50-1000ep/r-50-1000ep.pth.tar"
    ),
    "dino_resnet50": _resnet50(
        "DINO", "Apache-2.0", "dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"
    ),
    "mae_vitb16": _mae("b"),
    "mae_vitl16": _mae("l"),
    "aimv2_vitl14": _aimv2("large-patch14-224", "large_patch14_224"),
    "aimv2_vitl14_336": _aimv2("large-patch14-336", "large_patch14_336", image_size=336),
    "aimv2_vitl14_native": _aimv2("large-patch14-native", is_native=True),
    "ijepa_vith14": _ijepa("ijepa_vith14_1k", 14),
    "ijepa_vith14_22k": _ijepa("ijepa_vith14_22k", 14),
    "ijepa_vith16_448": _ijepa("ijepa_vith16_1k", 16, 448),
    "ijepa_vitg16_22k": _ijepa("ijepa_vitg16_22k", 16),
    "pe_core_vitt16": _pe_core("t", 16, 384, 512),
    "pe_core_vits16": _pe_core("s", 16, 384, 512),
    "pe_core_vitb16": _pe_core("b", 16, 224),
    "pe_core_vitl14": _pe_core("l", 14, 336),
    "siglip_vitb16": _siglip("siglip", "SigLIP"),
    "siglip2_vitb16": _siglip("siglip2", "SigLIP 2"),
}
