"""timm's `VisionTransformer` and `Eva`.

Plain ViTs, DINO, DINOv2, DINOv3, CLIP, SigLIP, AIMv2, EVA, PE-Core.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lgm_jax import checks
from lgm_jax.backbones.families.family import Config, Family, choose, read_activation, side
from lgm_jax.backbones.families.vits import Keys, key_map
from lgm_jax.backbones.network import LARGEST
from lgm_jax.backbones.port import Format
from lgm_jax.backbones.rotary import Layout, Rotary
from lgm_jax.backbones.vit import ViT
from lgm_jax.backbones.vit_spec import (
    AttentionSpec,
    Biases,
    EmbedSpec,
    MlpSpec,
    Norm,
    Pool,
    PoolSpec,
    Positions,
    ViTSpec,
)
from lgm_jax.errors import UserError


def _read_pool(arguments: Config, fc_norm: str) -> Pool:
    kinds: Mapping[str, Pool] = {"token": "cls", "avg": "mean_norm", "map": "map"}
    kind = choose(arguments, "global_pool", kinds)
    norms: dict[str, Pool] = {"None": kind, "False": kind}
    if kind == "mean_norm":
        norms |= {"True": kind, "False": "mean"}
    return choose(arguments, fc_norm, norms)


def _read_norm(arguments: Config, which: str = "norm_layer") -> tuple[Norm, float]:
    """Kind and epsilon of norms, which timm names by a class."""
    kinds: Mapping[str, Norm] = {"None": "layer", "LayerNorm": "layer", "RmsNorm": "rms"}
    return choose(arguments, which, kinds), arguments.get(f"{which}_eps", 1e-6)


def _shape(arguments: Config, registers: int, norm_pre: bool, **parts: Any) -> ViTSpec:
    """Returns the fields that all classes share."""
    norm, epsilon = _read_norm(arguments)
    patch_norm = arguments.get("embed_norm_layer") is not None
    positions: Positions = "tokens" if registers else "all"
    if not arguments.get("use_abs_pos_emb", True):
        positions = "none"
    elif arguments["no_embed_class"]:
        positions = "patches"
    if patch_norm and _read_norm(arguments, "embed_norm_layer") != (norm, epsilon):
        raise UserError("timm's embed_norm_layer other than its norm_layer is not supported")
    embed = EmbedSpec(
        patch=arguments["patch_size"],
        bias=not norm_pre,
        class_token=arguments["class_token"],
        registers=registers,
        positions=positions,
        antialias=True,
        norm=norm_pre,
        patch_norm=patch_norm,
    )
    return ViTSpec(
        resolution=arguments["img_size"],
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        embed=embed,
        norm_eps=epsilon,
        norm=norm,
        **parts,
    )


def _read_vit(arguments: Config) -> tuple[ViTSpec, str]:
    """The shape of timm's VisionTransformer, and its checkpoint's format."""
    activation = read_activation(arguments["act_layer"] or "gelu")
    hidden = int(arguments["embed_dim"] * arguments["mlp_ratio"])
    layer, bias = arguments["mlp_layer"], arguments["proj_bias"]
    gated = choose(arguments, "mlp_layer", {"Mlp": False, "SwiGLU": True, "SwiGLUPacked": True})
    pool = PoolSpec(_read_pool(arguments, "fc_norm"))
    if pool.kind == "map" and (gated or not bias):
        # The pooling head's is plain, whatever the blocks have.
        pool = PoolSpec("map", mlp=MlpSpec(hidden, activation))
    width = hidden // 2 if layer == "SwiGLUPacked" else hidden
    spec = _shape(
        arguments,
        arguments["reg_tokens"],
        arguments["pre_norm"],
        attention=AttentionSpec(
            arguments["num_heads"], "qkv" if arguments["qkv_bias"] else "none", out_bias=bias
        ),
        mlp=MlpSpec(width, activation, gated=gated, bias=bias),
        pool=pool,
        layer_scale=bool(arguments["init_values"]),
    )
    return spec, "timm_swiglu" if layer == "SwiGLU" else "timm_vit"


def _read_eva(arguments: Config) -> tuple[ViTSpec, str]:
    """The shape of timm's Eva, and its checkpoint's format."""
    gated, normed, align = (arguments[x] for x in ("swiglu_mlp", "scale_mlp", "swiglu_align_to"))
    if normed == arguments["qkv_fused"] or (normed and not gated):
        raise UserError(
            "timm's scale_mlp, qkv_fused and swiglu_mlp are not supported in this combination"
        )
    hidden = int(arguments["embed_dim"] * arguments["mlp_ratio"])
    if gated and align > 0:
        hidden += -hidden % align
    # Two classes of attention: the first has no bias of keys.
    kinds: Mapping[str, Biases] = {"eva": "qv", "rope": "qkv"}
    biases = choose(arguments, "attn_type", kinds)
    spec = _shape(
        arguments,
        arguments["num_reg_tokens"],
        arguments["use_pre_transformer_norm"],
        attention=AttentionSpec(
            arguments["num_heads"],
            biases if arguments["qkv_bias"] else "none",
            _read_rotary(arguments) if arguments["use_rot_pos_emb"] else None,
        ),
        mlp=MlpSpec(hidden, "silu" if gated else "gelu", gated=gated, norm=normed),
        pool=_read_eva_pool(arguments),
        layer_scale=arguments["init_values"] is not None,
    )
    return spec, "timm_dinov3" if gated and align else "timm_eva"


def _read_eva_pool(arguments: Config) -> PoolSpec:
    pool = PoolSpec(_read_pool(arguments, "use_fc_norm"), projection=arguments.get("projection", 0))
    if pool.kind != "map":
        return pool
    ratio = arguments["attn_pool_mlp_ratio"] or arguments["mlp_ratio"]
    checks.in_range("timm's attn_pool_mlp_ratio", ratio, 0, LARGEST)
    mlp = MlpSpec(int(arguments["embed_dim"] * ratio))
    heads = arguments["attn_pool_num_heads"] or 0
    return dataclasses.replace(pool, heads=heads, mlp=mlp, prefix=True)


def _read_rotary(arguments: Config) -> Rotary:
    layout: Layout = "half" if arguments["rope_rotate_half"] else "interleaved"
    base = float(arguments["rope_temperature"])
    if choose(arguments, "rope_type", {"cat": False, "dinov3": True}):
        return Rotary(layout, "centered", base)
    return Rotary(
        layout,
        "index",
        base,
        side(arguments["ref_feat_shape"], "ref_feat_shape") or 0,
        choose(arguments, "rope_grid_offset", {"0": 0, "0.0": 0, "1": 1, "1.0": 1}),
        choose(arguments, "rope_grid_indexing", {"ij": False, "xy": True}),
    )


_VIT: Keys = {
    "embed/project": "patch_embed.proj",
    "embed/norm": "patch_embed.norm",
    "cls": "cls_token",
    "registers": "reg_token",
    "positions": "pos_embed",
    "norm_embed": "norm_pre",
    "blocks": "blocks.{}.",
    "blocks/norm_attention": "norm1",
    "blocks/attention/qkv": "attn.qkv",
    "blocks/attention/out": "attn.proj",
    "blocks/scale_attention": "ls1.gamma",
    "blocks/norm_mlp": "norm2",
    "blocks/mlp/up": "mlp.fc1",
    "blocks/mlp/down": "mlp.fc2",
    "blocks/scale_mlp": "ls2.gamma",
    "norm": "norm",
    "pool/query": "attn_pool.latent",
    "pool/qkv": "attn_pool.q attn_pool.kv",
    "pool/out": "attn_pool.proj",
    "pool/norm": "attn_pool.norm",
    "pool/mlp/up": "attn_pool.mlp.fc1",
    "pool/mlp/down": "attn_pool.mlp.fc2",
    # CLIP's; it has no bias, but timm adds one of zeros, which is left out below.
    "project": "head",
}
_SPLIT_GATE: Keys = {"blocks/mlp/up": "mlp.fc1_g mlp.fc1_x"}


def _vit(spec: ViTSpec) -> Keys:
    # timm moves the last norm behind the mean where it stands behind the mean.
    return _VIT | ({"norm": "fc_norm"} if spec.pool.kind == "mean_norm" else {})


def _eva(spec: ViTSpec) -> Keys:
    """EVA, EVA-02, PE-Core.

    The two forms of EVA-02 go together in what is published: fused have one query-key-value matrix
    and one gate-value matrix, split have three and two, and a norm in the MLP.
    """
    fused = {
        "blocks/attention/bias_qv": "attn.q_bias attn.v_bias",
        "blocks/scale_attention": "gamma_1",
        "blocks/scale_mlp": "gamma_2",
    }
    split = {
        "blocks/attention/qkv": "attn.q_proj attn.k_proj attn.v_proj",
        "blocks/attention/bias_qv": "attn.q_proj.bias attn.v_proj.bias",
        "blocks/mlp/norm": "mlp.norm",
        **_SPLIT_GATE,
    }
    return _vit(spec) | fused | (split if spec.mlp.norm else {})


_IGNORED = (r"(lm_)?head\..*", r"mask_token", r".*rope.*")

FAMILY = Family(
    ViTSpec,
    ViT,
    {
        "timm_vit": Format(key_map(_vit), _IGNORED),
        "timm_swiglu": Format(key_map(lambda spec: _vit(spec) | _SPLIT_GATE), _IGNORED),
        "timm_eva": Format(
            key_map(_eva),
            _IGNORED,
            aliases=(
                # Weights as they left masked pre-training; timm renames them too.
                (r"fc_norm\.(.*)", r"norm.\1"),
                # The authors' names.
                (r"(.*\.mlp\.)fc1_g(\..*)", r"\1w1\2"),
                (r"(.*\.mlp\.)fc1_x(\..*)", r"\1w2\2"),
                (r"(.*\.mlp\.)fc2(\..*)", r"\1w3\2"),
                (r"(.*\.mlp\.)norm(\..*)", r"\1ffn_ln\2"),
                (r"(.*\.attn\.[qv])_proj\.bias", r"\1_bias"),
            ),
        ),
        "timm_dinov3": Format(
            # The gate apart from the value; query, key and value in one.
            key_map(lambda spec: _eva(spec) | (_SPLIT_GATE if spec.mlp.gated else {})),
            _IGNORED,
        ),
    },
    timm={"VisionTransformer": _read_vit, "Eva": _read_eva},
)
