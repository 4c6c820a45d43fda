"""transformers' Vision Transformers: ViT, ViTMAE, I-JEPA, DINOv2, DINOv3, CLIP, SigLIP."""

from __future__ import annotations

from typing import Any

from lgm_jax.backbones.families.family import Config, Family, hf_activation
from lgm_jax.backbones.families.vits import block, stacked, stem, tokens
from lgm_jax.backbones.network import CLIP, HALF, IMAGENET
from lgm_jax.backbones.port import Format, Row, linear, norm
from lgm_jax.backbones.rotary import Rotary
from lgm_jax.backbones.vit import ViT
from lgm_jax.backbones.vit_spec import AttentionSpec, EmbedSpec, MlpSpec, PoolSpec, ViTSpec
from lgm_jax.errors import UserError

# Configs.


def _shape(config: Config, embed: EmbedSpec, **parts: Any) -> ViTSpec:
    """What the classes have in common."""
    if config["num_channels"] != 3:
        raise UserError("a backbone that does not take three channels is not supported")
    if not config.get("qkv_bias", True):
        raise UserError("qkv_bias=false is not supported")
    parts.setdefault("attention", AttentionSpec(config["num_attention_heads"]))
    if "mlp" not in parts:
        parts["mlp"] = MlpSpec(config["intermediate_size"], hf_activation(config["hidden_act"]))
    return ViTSpec(
        resolution=config["image_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        embed=embed,
        norm_eps=config["layer_norm_eps"],
        **parts,
    )


def _read_vit(config: Config) -> tuple[ViTSpec, str]:
    return _shape(config, EmbedSpec(config["patch_size"])), "hf_vit"


def _read_ijepa(config: Config) -> tuple[ViTSpec, str]:
    embed = EmbedSpec(config["patch_size"], class_token=False, positions="patches")
    # As its authors evaluate it, and transformers' classifier.
    return _shape(config, embed, pool=PoolSpec("mean")), "hf_vit"


def _read_dinov2(config: Config) -> tuple[ViTSpec, str]:
    hidden = int(config["hidden_size"] * config["mlp_ratio"])
    if config["use_swiglu_ffn"]:
        # Two thirds, rounded up to a multiple of 8.
        mlp = MlpSpec((int(hidden * 2 / 3) + 7) // 8 * 8, "silu", gated=True)
    else:
        mlp = MlpSpec(hidden, hf_activation(config["hidden_act"]))
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
    activation, gated = hf_activation(config["hidden_act"]), config["use_gated_mlp"]
    spec = _shape(
        config,
        EmbedSpec(config["patch_size"], registers=config["num_register_tokens"], positions="none"),
        attention=AttentionSpec(config["num_attention_heads"], "qv", rotary),
        mlp=MlpSpec(config["intermediate_size"], activation, gated=gated),
        layer_scale=True,
    )
    return spec, "hf_dinov3"


def _read_clip(config: Config) -> tuple[ViTSpec, str]:
    vision = config.get("vision_config", config)
    # These classes save the tower alone, without its projection.
    bare = {"CLIPVisionModel", "CLIPForImageClassification"} & set(config["architectures"])
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


# Weights.


@stacked
def _vit_rows(spec: ViTSpec) -> list[Row]:
    """transformers' ViT (DINO among them), I-JEPA, and the encoder of its ViTMAE."""
    return [
        *_dinov2_stem(spec),
        *block(
            spec,
            "encoder.layer.{}.",
            norms=("layernorm_before", "layernorm_after"),
            qkv=[f"attention.attention.{part}" for part in ("query", "key", "value")],
            out="attention.output.dense",
            up=["intermediate.dense"],
            down="output.dense",
        ),
        *norm("norm", "layernorm"),
    ]


def _dinov2_stem(spec: ViTSpec) -> list[Row]:
    return stem(
        spec,
        "embeddings.patch_embeddings.projection",
        cls="embeddings.cls_token",
        registers="embeddings.register_tokens",
        positions="embeddings.position_embeddings",
    )


@stacked
def _dinov2_rows(spec: ViTSpec) -> list[Row]:
    """transformers' Dinov2, with registers or without; the largest has a gated MLP."""
    gated = spec.mlp.gated
    return [
        *_dinov2_stem(spec),
        *block(
            spec,
            "encoder.layer.{}.",
            norms=("norm1", "norm2"),
            qkv=[f"attention.attention.{part}" for part in ("query", "key", "value")],
            out="attention.output.dense",
            up=["mlp.weights_in" if gated else "mlp.fc1"],
            down="mlp.weights_out" if gated else "mlp.fc2",
            scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        ),
        *norm("norm", "layernorm"),
    ]


@stacked
def _dinov3_rows(spec: ViTSpec) -> list[Row]:
    """transformers' DINOv3ViT."""
    return [
        *stem(
            spec,
            "embeddings.patch_embeddings",
            cls="embeddings.cls_token",
            registers="embeddings.register_tokens",
        ),
        *block(
            spec,
            "layer.{}.",
            norms=("norm1", "norm2"),
            qkv=[f"attention.{part}_proj" for part in "qkv"],
            out="attention.o_proj",
            up=["mlp.gate_proj", "mlp.up_proj"] if spec.mlp.gated else ["mlp.up_proj"],
            down="mlp.down_proj",
            scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        ),
        *norm("norm", "norm"),
    ]


@stacked
def _clip_rows(spec: ViTSpec) -> list[Row]:
    """The visual towers of transformers' CLIP, with its projection, and SigLIP, with its head."""
    rows = [
        *stem(
            spec,
            "embeddings.patch_embedding",
            cls="embeddings.class_embedding",
            positions="embeddings.position_embedding.weight",
            # Spelt so in every checkpoint.
            normed="pre_layrnorm",
        ),
        *block(
            spec,
            "encoder.layers.{}.",
            norms=("layer_norm1", "layer_norm2"),
            qkv=[f"self_attn.{part}_proj" for part in "qkv"],
            out="self_attn.out_proj",
            up=["mlp.fc1"],
            down="mlp.fc2",
        ),
        *norm("norm", "post_layernorm"),
    ]
    if spec.pool.projection:
        rows += linear("project", "/visual_projection", bias=False)
    if spec.pool.kind == "map":
        rows += [
            tokens("pool/query", "head.probe"),
            Row("pool/qkv/kernel", ("head.attention.in_proj_weight",), "o i", "i o"),
            Row("pool/qkv/bias", ("head.attention.in_proj_bias",), "o", "o"),
            *linear("pool/out", "head.attention.out_proj"),
            *norm("pool/norm", "head.layernorm"),
            *linear("pool/mlp/up", "head.mlp.fc1"),
            *linear("pool/mlp/down", "head.mlp.fc2"),
        ]
    return rows


_IN_MEMORY = (
    r"(.*\.)?layers?\.\d+\.attention\.[qkv]_proj\..*",
    "published names are expected, not those that transformers has in memory: write the model with "
    "save_pretrained",
)

FAMILY = Family(
    ViTSpec,
    ViT,
    {
        "hf_vit": Format(
            _vit_rows,
            # A pooler, a classifier, the decoders of masked image modelling and of ViTMAE.
            (r"pooler\..*", r"classifier\..*", r"decoder\..*", r"embeddings\.mask_token"),
            ("", "vit.", "ijepa."),
            advice=_IN_MEMORY,
        ),
        "hf_dinov2": Format(
            _dinov2_rows,
            (r"embeddings\.mask_token", r"classifier\..*"),
            ("", "dinov2.", "dinov2_with_registers."),
            advice=_IN_MEMORY,
            takes_offset=True,
        ),
        "hf_dinov3": Format(
            _dinov3_rows,
            (r"embeddings\.mask_token", r"rope_embeddings\..*", r"classifier\..*"),
            # As the class holds it in memory, which it leaves off when it saves.
            aliases=((r"layer\.(.*)", r"model.layer.\1"),),
            advice=(
                r"storage_tokens|blocks\..*",
                "transformers' names are expected, as layer.0.norm1.weight, not those of the "
                "authors",
            ),
        ),
        "hf_clip": Format(
            _clip_rows,
            (
                r"text_model\..*",
                r"text_projection\..*",
                r"classifier\..*",
                r"logit_scale",
                r"(vision_model\.)?embeddings\.position_ids",
            ),
            ("vision_model.", ""),
        ),
        "hf_siglip": Format(
            _clip_rows,
            (
                r"text_model\..*",
                r"classifier\..*",
                r"logit_scale",
                r"logit_bias",
                r"(vision_model\.)?embeddings\.position_ids",
            ),
            ("vision_model.", ""),
        ),
    },
    transformers={
        "clip": (_read_clip, CLIP),
        "clip_vision_model": (_read_clip, CLIP),
        "dinov2": (_read_dinov2, IMAGENET),
        "dinov2_with_registers": (_read_dinov2, IMAGENET),
        "dinov3_vit": (_read_dinov3, IMAGENET),
        "ijepa": (_read_ijepa, IMAGENET),
        "siglip": (_read_siglip, HALF),
        "siglip_vision_model": (_read_siglip, HALF),
        "vit": (_read_vit, IMAGENET),
        "vit_mae": (_read_vit, IMAGENET),
    },
)
