"""transformers' Vision Transformers: ViT, ViTMAE, DINOv2, DINOv3, CLIP, SigLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lgm_jax.backbones.activations import Activation
from lgm_jax.backbones.families.family import Config, Family
from lgm_jax.backbones.families.vits import attention, patches, stacked, tokens
from lgm_jax.backbones.network import CLIP, HALF, IMAGENET
from lgm_jax.backbones.port import Format, Row, linear, norm, vector
from lgm_jax.backbones.rotary import Rotary
from lgm_jax.backbones.vit import ViT
from lgm_jax.backbones.vit_spec import AttentionSpec, EmbedSpec, MlpSpec, PoolSpec, ViTSpec
from lgm_jax.errors import UserError, unknown_name

# Configs.


def _activation(name: str) -> Activation:
    known: Mapping[str, Activation] = {
        "gelu": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "quick_gelu": "quick_gelu",
        "silu": "silu",
    }
    if not isinstance(name, str) or name not in known:
        raise unknown_name("activation", str(name), list(known), "supported")
    return known[name]


def _shape(config: Config, embed: EmbedSpec, **parts: Any) -> ViTSpec:
    """What the classes have in common."""
    if config["num_channels"] != 3:
        raise UserError("a backbone that does not take three channels is not supported")
    if not config.get("qkv_bias", True):
        raise UserError("qkv_bias=false is not supported")
    parts.setdefault("attention", AttentionSpec(config["num_attention_heads"]))
    if "mlp" not in parts:
        parts["mlp"] = MlpSpec(config["intermediate_size"], _activation(config["hidden_act"]))
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


def _read_dinov2(config: Config) -> tuple[ViTSpec, str]:
    hidden = int(config["hidden_size"] * config["mlp_ratio"])
    if config["use_swiglu_ffn"]:
        # Two thirds, rounded up to a multiple of 8.
        mlp = MlpSpec((int(hidden * 2 / 3) + 7) // 8 * 8, "silu", gated=True)
    else:
        mlp = MlpSpec(hidden, _activation(config["hidden_act"]))
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
    activation, gated = _activation(config["hidden_act"]), config["use_gated_mlp"]
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
    if not vision.get("vision_use_head", True):
        raise UserError("a SigLIP without its pooling head is not supported")
    embed = EmbedSpec(vision["patch_size"], class_token=False, positions="patches")
    return _shape(vision, embed, pool=PoolSpec("map")), "hf_siglip"


# Weights.


@stacked
def _vit_rows(spec: ViTSpec) -> list[Row]:
    """transformers' ViT (DINO among them), and the encoder of its ViTMAE."""
    layer = "encoder.layer.{}"
    return [
        tokens("cls", "embeddings.cls_token"),
        tokens("positions", "embeddings.position_embeddings"),
        *patches(spec, "embeddings.patch_embeddings.projection"),
        *norm("blocks/norm_attention", f"{layer}.layernorm_before"),
        *attention(
            spec, *(f"{layer}.attention.attention.{part}" for part in ("query", "key", "value"))
        ),
        *linear("blocks/attention/out", f"{layer}.attention.output.dense"),
        *norm("blocks/norm_mlp", f"{layer}.layernorm_after"),
        *linear("blocks/mlp/up", f"{layer}.intermediate.dense"),
        *linear("blocks/mlp/down", f"{layer}.output.dense"),
        *norm("norm", "layernorm"),
    ]


@stacked
def _dinov2_rows(spec: ViTSpec) -> list[Row]:
    """transformers' Dinov2, with registers or without; the largest has a gated MLP."""
    layer = "encoder.layer.{}"
    up, down = ("weights_in", "weights_out") if spec.mlp.gated else ("fc1", "fc2")
    rows = [
        tokens("cls", "embeddings.cls_token"),
        tokens("positions", "embeddings.position_embeddings"),
        *patches(spec, "embeddings.patch_embeddings.projection"),
        *norm("blocks/norm_attention", f"{layer}.norm1"),
        *attention(
            spec, *(f"{layer}.attention.attention.{part}" for part in ("query", "key", "value"))
        ),
        *linear("blocks/attention/out", f"{layer}.attention.output.dense"),
        vector("blocks/scale_attention", f"{layer}.layer_scale1.lambda1"),
        *norm("blocks/norm_mlp", f"{layer}.norm2"),
        *linear("blocks/mlp/up", f"{layer}.mlp.{up}"),
        *linear("blocks/mlp/down", f"{layer}.mlp.{down}"),
        vector("blocks/scale_mlp", f"{layer}.layer_scale2.lambda1"),
        *norm("norm", "layernorm"),
    ]
    if spec.embed.registers:
        rows.append(tokens("registers", "embeddings.register_tokens"))
    return rows


@stacked
def _dinov3_rows(spec: ViTSpec) -> list[Row]:
    """transformers' DINOv3ViT."""
    layer = "layer.{}"
    up = ("gate_proj", "up_proj") if spec.mlp.gated else ("up_proj",)
    rows = [
        tokens("cls", "embeddings.cls_token"),
        *patches(spec, "embeddings.patch_embeddings"),
        *norm("blocks/norm_attention", f"{layer}.norm1"),
        *attention(spec, *(f"{layer}.attention.{part}_proj" for part in "qkv")),
        *linear("blocks/attention/out", f"{layer}.attention.o_proj"),
        vector("blocks/scale_attention", f"{layer}.layer_scale1.lambda1"),
        *norm("blocks/norm_mlp", f"{layer}.norm2"),
        *linear("blocks/mlp/up", *(f"{layer}.mlp.{part}" for part in up)),
        *linear("blocks/mlp/down", f"{layer}.mlp.down_proj"),
        vector("blocks/scale_mlp", f"{layer}.layer_scale2.lambda1"),
        *norm("norm", "norm"),
    ]
    if spec.embed.registers:
        rows.append(tokens("registers", "embeddings.register_tokens"))
    return rows


def _openai_rows(spec: ViTSpec) -> list[Row]:
    """What CLIP and SigLIP share in transformers."""
    layer = "encoder.layers.{}"
    return [
        *patches(spec, "embeddings.patch_embedding"),
        tokens("positions", "embeddings.position_embedding.weight", "n d"),
        *norm("blocks/norm_attention", f"{layer}.layer_norm1"),
        *attention(spec, *(f"{layer}.self_attn.{part}_proj" for part in "qkv")),
        *linear("blocks/attention/out", f"{layer}.self_attn.out_proj"),
        *norm("blocks/norm_mlp", f"{layer}.layer_norm2"),
        *linear("blocks/mlp/up", f"{layer}.mlp.fc1"),
        *linear("blocks/mlp/down", f"{layer}.mlp.fc2"),
        *norm("norm", "post_layernorm"),
    ]


@stacked
def _clip_rows(spec: ViTSpec) -> list[Row]:
    """transformers' CLIP: the visual tower and its projection."""
    return [
        *_openai_rows(spec),
        Row("cls", ("embeddings.class_embedding",), "d", "1 1 d"),
        # Spelt so in every checkpoint.
        *norm("norm_embed", "pre_layrnorm"),
        *(linear("project", "/visual_projection", bias=False) if spec.pool.projection else []),
    ]


@stacked
def _siglip_rows(spec: ViTSpec) -> list[Row]:
    """transformers' SigLIP: the visual tower and its attention pooling."""
    head = "head.attention"
    return [
        *_openai_rows(spec),
        tokens("pool/query", "head.probe"),
        Row("pool/qkv/kernel", (f"{head}.in_proj_weight",), "o i", "i o"),
        Row("pool/qkv/bias", (f"{head}.in_proj_bias",), "o", "o"),
        *linear("pool/out", f"{head}.out_proj"),
        *norm("pool/norm", "head.layernorm"),
        *linear("pool/mlp/up", "head.mlp.fc1"),
        *linear("pool/mlp/down", "head.mlp.fc2"),
    ]


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
            ("", "vit."),
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
            _siglip_rows,
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
        "siglip": (_read_siglip, HALF),
        "siglip_vision_model": (_read_siglip, HALF),
        "vit": (_read_vit, IMAGENET),
        "vit_mae": (_read_vit, IMAGENET),
    },
)
