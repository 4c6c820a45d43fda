"""transformers' Vision Transformers: ViT, ViTMAE, I-JEPA, DINOv2, DINOv3, CLIP, SigLIP, AIMv2."""

from __future__ import annotations

from typing import Any

from lgm_jax.backbones.families.family import Config, Family, read_activation
from lgm_jax.backbones.families.vits import Keys, key_map
from lgm_jax.backbones.network import CLIP, HALF, IMAGENET
from lgm_jax.backbones.port import Format
from lgm_jax.backbones.rotary import Rotary
from lgm_jax.backbones.vit import ViT
from lgm_jax.backbones.vit_spec import AttentionSpec, Biases, EmbedSpec, MlpSpec, PoolSpec, ViTSpec
from lgm_jax.errors import UserError


def _shape(config: Config, embed: EmbedSpec, **parts: Any) -> ViTSpec:
    """Returns the fields that all classes share."""
    if config["num_channels"] != 3:
        raise UserError("a backbone that does not take three channels is not supported")
    if "attention" not in parts:
        biases: Biases = "qkv" if config.get("qkv_bias", True) else "none"
        parts["attention"] = AttentionSpec(config["num_attention_heads"], biases)
    if "mlp" not in parts:
        parts["mlp"] = MlpSpec(
            config["intermediate_size"],
            read_activation(config["hidden_act"]),
            gated=config.get("use_gated_mlp", False),
            bias=config.get("mlp_bias", True),
        )
    return ViTSpec(
        resolution=config["image_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        embed=embed,
        **{"norm_eps": config.get("layer_norm_eps"), **parts},
    )


def _read_vit(config: Config) -> tuple[ViTSpec, str]:
    if config["model_type"] == "ijepa":
        embed = EmbedSpec(config["patch_size"], class_token=False, positions="patches")
        # As its authors evaluate it, and transformers' classifier.
        return _shape(config, embed, pool=PoolSpec("mean")), "hf_vit"
    return _shape(config, EmbedSpec(config["patch_size"])), "hf_vit"


def _read_dinov2(config: Config) -> tuple[ViTSpec, str]:
    hidden = int(config["hidden_size"] * config["mlp_ratio"])
    if config["use_swiglu_ffn"]:
        # Two thirds, rounded up to a multiple of 8.
        mlp = MlpSpec((int(hidden * 2 / 3) + 7) // 8 * 8, "silu", gated=True)
    else:
        mlp = MlpSpec(hidden, read_activation(config["hidden_act"]))
    embed = EmbedSpec(
        config["patch_size"],
        registers=config.get("num_register_tokens", 0),
        # The two classes of transformers resize positions differently.
        antialias=config["model_type"] == "dinov2_with_registers",
    )
    return _shape(config, embed, mlp=mlp, layer_scale=True), "hf_dinov2"


def _read_dinov3(config: Config) -> tuple[ViTSpec, str]:
    biases = tuple(config[f"{part}_bias"] for part in ("query", "key", "value", "proj", "mlp"))
    if biases != (True, False, True, True, True):
        raise UserError("a DINOv3 with other biases than query, value, projection and MLP's")
    rotary = Rotary("half", "centered", base=config["rope_theta"])
    embed = EmbedSpec(
        config["patch_size"], registers=config["num_register_tokens"], positions="none"
    )
    attention = AttentionSpec(config["num_attention_heads"], "qv", rotary)
    return _shape(config, embed, attention=attention, layer_scale=True), "hf_dinov3"


def _read_clip(config: Config) -> tuple[ViTSpec, str]:
    vision = config.get("vision_config", config)
    # These classes save the tower alone, without its projection.
    towers = ("CLIPVisionModel", "CLIPForImageClassification")
    bare = any(name in towers for name in config["architectures"])
    if config["projection_dim"] < 1:
        raise UserError(f"projection_dim must be positive, not {config['projection_dim']!r}")
    pool = PoolSpec("cls", projection=0 if bare else config["projection_dim"])
    embed = EmbedSpec(vision["patch_size"], bias=False, norm=True)
    return _shape(vision, embed, pool=pool), "hf_clip"


def _read_siglip(config: Config) -> tuple[ViTSpec, str]:
    vision = config.get("vision_config", config)
    embed = EmbedSpec(vision["patch_size"], class_token=False, positions="patches")
    # Without its head, transformers' classifier takes the mean of the tokens.
    pool = PoolSpec("map" if vision["vision_use_head"] else "mean")
    return _shape(vision, embed, pool=pool), "hf_siglip"


def _read_aimv2(config: Config) -> tuple[ViTSpec, str]:
    vision = config.get("vision_config", config)
    biases: Biases = "qkv" if vision["qkv_bias"] else "none"
    embed = EmbedSpec(
        vision["patch_size"],
        class_token=False,
        positions="sines" if vision["is_native"] else "all",
        # transformers resizes no positions, timm those of the same weights so.
        antialias=True,
        patch_norm=True,
    )
    pool = PoolSpec(
        "query" if vision["use_head"] else "mean", projection=config.get("projection_dim", 0)
    )
    spec = _shape(
        {**vision, "use_gated_mlp": True},
        embed,
        attention=AttentionSpec(vision["num_attention_heads"], biases, out_bias=vision["qkv_bias"]),
        pool=pool,
        norm="rms",
        norm_eps=vision["rms_norm_eps"],
    )
    return spec, "hf_aimv2"


def _each(name: str, parts: str) -> str:
    """Names that differ in one part."""
    return " ".join(name.format(part) for part in parts.split())


# ViT (DINO among them), I-JEPA, and the encoder of ViTMAE.
_VIT: Keys = {
    "embed/project": "embeddings.patch_embeddings.projection",
    "cls": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    "positions": "embeddings.position_embeddings",
    "blocks": "encoder.layer.{}.",
    "blocks/norm_attention": "layernorm_before",
    "blocks/attention/qkv": _each("attention.attention.{}", "query key value"),
    "blocks/attention/out": "attention.output.dense",
    "blocks/norm_mlp": "layernorm_after",
    "blocks/mlp/up": "intermediate.dense",
    "blocks/mlp/down": "output.dense",
    "norm": "layernorm",
}
# With registers or without.
_DINOV2: Keys = _VIT | {
    "blocks/norm_attention": "norm1",
    "blocks/scale_attention": "layer_scale1.lambda1",
    "blocks/norm_mlp": "norm2",
    "blocks/mlp/up": "mlp.fc1",
    "blocks/mlp/up/gated": "mlp.weights_in",
    "blocks/mlp/down": "mlp.fc2",
    "blocks/mlp/down/gated": "mlp.weights_out",
    "blocks/scale_mlp": "layer_scale2.lambda1",
}
_DINOV3: Keys = _DINOV2 | {
    "embed/project": "embeddings.patch_embeddings",
    "blocks": "layer.{}.",
    "blocks/attention/qkv": _each("attention.{}_proj", "q k v"),
    "blocks/attention/bias_qv": _each("attention.{}_proj.bias", "q v"),
    "blocks/attention/out": "attention.o_proj",
    "blocks/mlp/up": "mlp.up_proj",
    "blocks/mlp/up/gated": _each("mlp.{}_proj", "gate up"),
    "blocks/mlp/down": "mlp.down_proj",
    "blocks/mlp/down/gated": "mlp.down_proj",
    "norm": "norm",
}
# The visual towers of CLIP, with its projection, and SigLIP, with its head.
_CLIP: Keys = {
    "embed/project": "embeddings.patch_embedding",
    "cls": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding.weight",
    # Spelt so in every checkpoint.
    "norm_embed": "pre_layrnorm",
    "blocks": "encoder.layers.{}.",
    "blocks/norm_attention": "layer_norm1",
    "blocks/attention/qkv": _each("self_attn.{}_proj", "q k v"),
    "blocks/attention/out": "self_attn.out_proj",
    "blocks/norm_mlp": "layer_norm2",
    "blocks/mlp/up": "mlp.fc1",
    "blocks/mlp/down": "mlp.fc2",
    "norm": "post_layernorm",
    "project": "/visual_projection",
    "pool/query": "head.probe",
    "pool/qkv": "head.attention.in_proj_",
    "pool/out": "head.attention.out_proj",
    "pool/norm": "head.layernorm",
    "pool/mlp/up": "head.mlp.fc1",
    "pool/mlp/down": "head.mlp.fc2",
}
_AIMV2: Keys = {
    "embed/project": "embeddings.patch_embed",
    "embed/norm": "embeddings.rms_norm",
    "positions": "embeddings.position_embedding.weight",
    "blocks": "encoder.layers.{}.",
    "blocks/norm_attention": "rms_norm1",
    "blocks/attention/qkv": _each("attention.{}_proj", "q k v"),
    "blocks/attention/out": "attention.out_proj",
    "blocks/norm_mlp": "rms_norm2",
    "blocks/mlp/up": _each("ffn.{}_proj", "gate up"),
    "blocks/mlp/down": "ffn.down_proj",
    "norm": "rms_norm",
    "project": "/visual_projection",
    "pool/query": "head.cls_token",
    "pool/kv": _each("head.{}_proj", "k v"),
    "pool/out": "head.output_proj",
}

# Poolers, classifiers, the decoders of masked image modelling and of ViTMAE.
_BESIDE = (r"(pooler|classifier|decoder|rope_embeddings)\..*", r"embeddings\.mask_token")
# What stands beside a visual tower.
_TEXT = (
    *(r"text_model\..*", r"text_projection\..*", r"classifier\..*", r"logit_(scale|bias)"),
    r"(vision_model\.)?embeddings\.position_ids",
)
_CLIP_FORMAT = Format(key_map(_CLIP), _TEXT, ("vision_model.", ""))

FAMILY = Family(
    ViTSpec,
    ViT,
    {
        "hf_vit": Format(key_map(_VIT), _BESIDE, ("", "vit.", "ijepa.")),
        "hf_dinov2": Format(
            key_map(_DINOV2), _BESIDE, ("", "dinov2.", "dinov2_with_registers."), takes_offset=True
        ),
        "hf_dinov3": Format(
            key_map(_DINOV3),
            _BESIDE,
            # As the class holds it in memory, which it leaves off when it saves.
            aliases=((r"layer\.(.*)", r"model.layer.\1"),),
        ),
        "hf_clip": _CLIP_FORMAT,
        "hf_siglip": _CLIP_FORMAT,
        "hf_aimv2": Format(key_map(_AIMV2), _TEXT, ("vision_model.", "")),
    },
    transformers={
        **dict.fromkeys(("aimv2", "aimv2_vision_model"), (_read_aimv2, CLIP)),
        **dict.fromkeys(("clip", "clip_vision_model"), (_read_clip, CLIP)),
        **dict.fromkeys(("dinov2", "dinov2_with_registers"), (_read_dinov2, IMAGENET)),
        "dinov3_vit": (_read_dinov3, IMAGENET),
        **dict.fromkeys(("siglip", "siglip_vision_model"), (_read_siglip, HALF)),
        **dict.fromkeys(("ijepa", "vit", "vit_mae"), (_read_vit, IMAGENET)),
    },
)
