"""The backbones that can be loaded by name: what they are and where their weights lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lgm_jax.backbones.configs import CLIP, HALF, IMAGENET, Preprocessing, Published
from lgm_jax.backbones.rotary import Rotary
from lgm_jax.backbones.vit import AttentionSpec, EmbedSpec, MlpSpec, Pool, PoolSpec, ViTSpec

_WEIGHTS = Path(__file__).parent / "weights"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights lie: a repository of the Hugging Face hub, and its checkpoint's format."""

    repo: str
    form: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A backbone that can be loaded by name.

    Attributes:
        spec: Its shape, at the resolution its positions were stored for.
        preprocessing: The statistics it was trained with.
        sources: Where its weights lie; the first with safetensors is taken. Empty if embedded.
        licence: Of the weights.
        summary: What it is, in a few words.
        resolution: Side of the images it takes unless told otherwise.
        folder: Where the weights of an embedded backbone lie.
    """

    spec: ViTSpec
    preprocessing: Preprocessing
    sources: tuple[Source, ...]
    licence: str
    summary: str
    resolution: int
    folder: Path | None = None

    def published(self, form: str) -> Published:
        """The entry as a checkpoint of the given format."""
        return Published(self.spec, form, self.preprocessing, self.resolution)


# Width, depth, heads.
_SIZES: Mapping[str, tuple[int, int, int]] = {
    "t": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "g": (1536, 40, 24),
}


def _plain(size: str, patch: int) -> ViTSpec:
    """A Vision Transformer for 224 px as timm has it, which other families change parts of."""
    width, depth, heads = _SIZES[size]
    return ViTSpec(
        resolution=224,
        width=width,
        depth=depth,
        embed=EmbedSpec(patch, antialias=True),
        attention=AttentionSpec(heads),
        mlp=MlpSpec(4 * width),
    )


def _dinov2(size: str, registers: int = 0) -> Entry:
    names = {"s": "small", "b": "base", "l": "large", "g": "giant"}
    variant = "dinov2-with-registers" if registers else "dinov2"
    gated = MlpSpec(4096, "silu", gated=True)
    spec = dataclasses.replace(
        _plain(size, 14),
        # Trained at 518 px at last, but used at 224.
        resolution=518,
        embed=EmbedSpec(14, registers=registers, antialias=registers > 0),
        mlp=gated if size == "g" else MlpSpec(4 * _SIZES[size][0]),
        layer_scale=True,
    )
    return Entry(
        spec,
        IMAGENET,
        (Source(f"facebook/{variant}-{names[size]}", "hf_dinov2"),),
        "Apache-2.0",
        "DINOv2, four registers" if registers else "DINOv2",
        224,
    )


def _clip(size: str, patch: int, projection: int, resolution: int = 224) -> Entry:
    name = {"b": "base", "l": "large"}[size]
    suffix = "" if resolution == 224 else f"-{resolution}"
    width = _SIZES[size][0]
    spec = dataclasses.replace(
        _plain(size, patch),
        resolution=resolution,
        embed=EmbedSpec(patch, bias=False, norm=True),
        mlp=MlpSpec(4 * width, "quick_gelu"),
        pool=PoolSpec("cls", projection=projection),
        norm_eps=1e-5,
    )
    sources = (
        Source(f"openai/clip-vit-{name}-patch{patch}{suffix}", "hf_clip"),
        # The same weights; their config there asks for another GELU than they were trained with.
        Source(f"timm/vit_{name}_patch{patch}_clip_{resolution}.openai", "timm_vit"),
    )
    return Entry(spec, CLIP, sources, "MIT", "CLIP, visual tower with projection", resolution)


def _eva02(size: str, pretraining: str = "mim_in22k") -> Entry:
    name = {"t": "tiny", "s": "small", "b": "base", "l": "large"}[size]
    width, _, heads = _SIZES[size]
    spec = dataclasses.replace(
        _plain(size, 14),
        attention=AttentionSpec(
            heads, biases="qv", rotary=Rotary("interleaved", "index", 10000.0, reference=16)
        ),
        mlp=MlpSpec(int(width * 4 * 2 / 3), "silu", gated=True, norm=size in "bl"),
        pool=PoolSpec("mean_norm"),
    )
    repo = f"timm/eva02_{name}_patch14_224.{pretraining}"
    return Entry(spec, CLIP, (Source(repo, "timm_eva"),), "MIT", "EVA-02, masked pre-training", 224)


def _mocov3(size: str) -> Entry:
    # Its small one has twice as many heads as others of that width.
    heads = 12 if size == "s" else _SIZES[size][2]
    spec = dataclasses.replace(_plain(size, 16), attention=AttentionSpec(heads))
    source = Source(f"nyu-visionx/moco-v3-vit-{size}", "timm_vit")
    return Entry(spec, IMAGENET, (source,), "CC-BY-NC-4.0", "MoCo-v3", 224)


def _timm(size: str, patch: int, name: str, licence: str, summary: str) -> Entry:
    long = {"s": "small", "b": "base", "l": "large"}[size]
    source = Source(f"timm/vit_{long}_patch{patch}_224.{name}", "timm_vit")
    return Entry(_plain(size, patch), IMAGENET, (source,), licence, summary, 224)


def _dinov3(size: str) -> Entry:
    _, _, heads = _SIZES[size]
    spec = dataclasses.replace(
        _plain(size, 16),
        embed=EmbedSpec(16, registers=4, positions="none"),
        attention=AttentionSpec(heads, biases="qv", rotary=Rotary("half", "centered", 100.0)),
        layer_scale=True,
        norm_eps=1e-5,
    )
    source = Source(f"facebook/dinov3-vit{size}16-pretrain-lvd1689m", "hf_dinov3")
    return Entry(spec, IMAGENET, (source,), "DINOv3 License (gated)", "DINOv3", 224)


def _siglip(version: str, summary: str) -> Entry:
    spec = dataclasses.replace(
        _plain("b", 16),
        embed=EmbedSpec(16, class_token=False, positions="patches"),
        mlp=MlpSpec(3072, "gelu_tanh"),
        pool=PoolSpec("map"),
    )
    source = Source(f"google/{version}-base-patch16-224", "hf_siglip")
    return Entry(spec, HALF, (source,), "Apache-2.0", summary, 224)


def _digits(name: str, summary: str, patch: int = 8, pool: Pool = "cls") -> Entry:
    spec = ViTSpec(
        resolution=32,
        width=128,
        depth=4,
        embed=EmbedSpec(patch, antialias=True),
        attention=AttentionSpec(4),
        mlp=MlpSpec(512),
        pool=PoolSpec(pool),
    )
    return Entry(spec, HALF, (), "Apache-2.0", summary, 32, _WEIGHTS / name)


NAMES: Mapping[str, Entry] = {
    "digits_contrastive": _digits(
        "digits_contrastive",
        "in this package, trained like MoCo-v3 on the training digits, without labels",
    ),
    "digits_distilled": _digits(
        "digits_distilled",
        "in this package, trained like DINO on the training digits, without labels",
    ),
    "digits_masked": _digits(
        "digits_masked",
        "in this package, trained like MAE on the training digits, without labels",
        4,
        "mean",
    ),
    "dinov2_vits14": _dinov2("s"),
    "dinov2_vitb14": _dinov2("b"),
    "dinov2_vitl14": _dinov2("l"),
    "dinov2_vitg14": _dinov2("g"),
    "dinov2_vits14_reg": _dinov2("s", registers=4),
    "dinov2_vitb14_reg": _dinov2("b", registers=4),
    "dinov2_vitl14_reg": _dinov2("l", registers=4),
    "dinov2_vitg14_reg": _dinov2("g", registers=4),
    "clip_vitb32": _clip("b", 32, 512),
    "clip_vitb16": _clip("b", 16, 512),
    "clip_vitl14": _clip("l", 14, 768),
    "clip_vitl14_336": _clip("l", 14, 768, 336),
    "eva02_vitt14": _eva02("t"),
    "eva02_vits14": _eva02("s"),
    "eva02_vitb14": _eva02("b"),
    "eva02_vitl14": _eva02("l"),
    "mocov3_vits16": _mocov3("s"),
    "mocov3_vitb16": _mocov3("b"),
    "mocov3_vitl16": _mocov3("l"),
    "dino_vits16": _timm("s", 16, "dino", "Apache-2.0", "DINO"),
    "dino_vits8": _timm("s", 8, "dino", "Apache-2.0", "DINO"),
    "dino_vitb16": _timm("b", 16, "dino", "Apache-2.0", "DINO"),
    "dino_vitb8": _timm("b", 8, "dino", "Apache-2.0", "DINO"),
    "dinov3_vits16": _dinov3("s"),
    "dinov3_vitb16": _dinov3("b"),
    "dinov3_vitl16": _dinov3("l"),
    "mae_vitb16": _timm("b", 16, "mae", "CC-BY-NC-4.0", "masked autoencoder"),
    "mae_vitl16": _timm("l", 16, "mae", "CC-BY-NC-4.0", "masked autoencoder"),
    "siglip_vitb16": _siglip("siglip", "SigLIP"),
    "siglip2_vitb16": _siglip("siglip2", "SigLIP 2"),
}
