"""timm's `VisionTransformer` and `Eva`: plain ViTs, DINO, DINOv2, DINOv3, CLIP, SigLIP, EVA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lgm_jax.backbones.activations import Activation
from lgm_jax.backbones.families.family import Config, Family, side
from lgm_jax.backbones.families.vits import block, stacked, stem, tokens
from lgm_jax.backbones.port import Format, Row, linear, norm
from lgm_jax.backbones.rotary import Layout, Rotary
from lgm_jax.backbones.vit import ViT
from lgm_jax.backbones.vit_spec import (
    AttentionSpec,
    EmbedSpec,
    MlpSpec,
    Pool,
    PoolSpec,
    Positions,
    ViTSpec,
)
from lgm_jax.errors import UserError, unknown_name

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "silu": "silu",
    "SiLU": "silu",
}


# Configs.


def _read_pool(pool: Any, fc_norm: Any) -> Pool:
    known: Mapping[tuple[Any, Any], Pool] = {
        ("token", None): "cls",
        ("token", False): "cls",
        ("avg", None): "mean_norm",
        ("avg", True): "mean_norm",
        ("avg", False): "mean",
        ("map", None): "map",
        ("map", False): "map",
    }
    if not isinstance(pool, str) or pool not in {name for name, _ in known}:
        raise unknown_name("timm pooling", str(pool), ["token", "avg", "map"], "supported")
    if not isinstance(fc_norm, bool | None) or (pool, fc_norm) not in known:
        raise UserError(f"timm's global_pool={pool} with fc_norm={fc_norm} is not supported")
    return known[pool, fc_norm]


def _read_epsilon(arguments: Config) -> float:
    """Of the norms, which timm names by a class."""
    name = arguments["norm_layer"]
    if name not in (None, "LayerNorm"):
        raise UserError(f"timm's norm_layer={name} is not supported")
    return arguments.get("norm_layer_eps", 1e-6)


def _read_positions(arguments: Config, registers: int) -> Positions:
    if not arguments.get("use_abs_pos_emb", True):
        return "none"
    if arguments["no_embed_class"]:
        return "patches"
    return "tokens" if registers else "all"


def _read_vit(arguments: Config) -> tuple[ViTSpec, str]:
    """The shape of timm's VisionTransformer, and its checkpoint's format."""
    activation = arguments["act_layer"] or "gelu"
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise unknown_name("timm activation", str(activation), list(_ACTIVATIONS))
    hidden = int(arguments["embed_dim"] * arguments["mlp_ratio"])
    if arguments["mlp_layer"] == "SwiGLUPacked":
        mlp = MlpSpec(hidden // 2, "silu", gated=True)
    elif arguments["mlp_layer"] == "Mlp":
        mlp = MlpSpec(hidden, _ACTIVATIONS[activation])
    else:
        raise UserError(f"timm's mlp_layer={arguments['mlp_layer']} is not supported")
    normed = arguments["pre_norm"]
    spec = ViTSpec(
        resolution=arguments["img_size"],
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        embed=EmbedSpec(
            patch=arguments["patch_size"],
            bias=not normed,
            class_token=arguments["class_token"],
            registers=arguments["reg_tokens"],
            positions=_read_positions(arguments, arguments["reg_tokens"]),
            antialias=True,
            norm=normed,
        ),
        attention=AttentionSpec(arguments["num_heads"], "qkv" if arguments["qkv_bias"] else "none"),
        mlp=mlp,
        pool=PoolSpec(_read_pool(arguments["global_pool"], arguments["fc_norm"])),
        layer_scale=bool(arguments["init_values"]),
        norm_eps=_read_epsilon(arguments),
    )
    return spec, "timm_vit"


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
    registers = arguments["num_reg_tokens"]
    pool = _read_pool(arguments["global_pool"], arguments["use_fc_norm"])
    if pool == "map":
        raise UserError("timm's global_pool=map is not supported for this architecture")
    spec = ViTSpec(
        resolution=arguments["img_size"],
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        embed=EmbedSpec(
            patch=arguments["patch_size"],
            class_token=arguments["class_token"],
            registers=registers,
            positions=_read_positions(arguments, registers),
            antialias=True,
        ),
        attention=AttentionSpec(
            arguments["num_heads"],
            "qv" if arguments["qkv_bias"] else "none",
            _read_rotary(arguments) if arguments["use_rot_pos_emb"] else None,
        ),
        mlp=MlpSpec(hidden, "silu" if gated else "gelu", gated=gated, norm=normed),
        pool=PoolSpec(pool),
        layer_scale=arguments["init_values"] is not None,
        norm_eps=_read_epsilon(arguments),
    )
    return spec, "timm_dinov3" if gated and align else "timm_eva"


def _read_rotary(arguments: Config) -> Rotary:
    layout: Layout = "half" if arguments["rope_rotate_half"] else "interleaved"
    base, kind = float(arguments["rope_temperature"]), arguments["rope_type"]
    if kind == "dinov3":
        return Rotary(layout, "centered", base)
    reference = side(arguments["ref_feat_shape"], "ref_feat_shape")
    if kind != "cat" or reference is None:
        raise UserError(
            f"timm's rope_type={kind} with ref_feat_shape={reference!r} is not supported"
        )
    return Rotary(layout, "index", base, reference)


# Weights.


def _ends(spec: ViTSpec) -> list[Row]:
    """What timm's two classes share: the tokens that enter the first block, and the last norm."""
    rows = stem(
        spec,
        "patch_embed.proj",
        cls="cls_token",
        registers="reg_token",
        positions="pos_embed",
        normed="norm_pre",
    )
    # timm moves the last norm behind the mean where it stands behind the mean.
    return rows + norm("norm", "fc_norm" if spec.pool.kind == "mean_norm" else "norm")


@stacked
def _vit_rows(spec: ViTSpec) -> list[Row]:
    """timm's VisionTransformer: plain ViTs, DeiT, DINO, MoCo-v3, MAE, DINOv2, CLIP, SigLIP."""
    rows = _ends(spec) + block(
        spec,
        "blocks.{}.",
        norms=("norm1", "norm2"),
        qkv=["attn.qkv"],
        out="attn.proj",
        up=["mlp.fc1"],
        down="mlp.fc2",
        scales=("ls1.gamma", "ls2.gamma"),
    )
    if spec.pool.kind == "map":
        rows += _pool_rows("attn_pool")
    if spec.pool.projection:
        # CLIP's; it has no bias, but timm adds one of zeros, which is left out below.
        rows += linear("project", "head", bias=False)
    return rows


def _pool_rows(key: str) -> list[Row]:
    """timm's AttentionPoolLatent: the query's projection is apart from key's and value's."""
    parts = [f"{key}.q", f"{key}.kv"]
    weights, biases = (tuple(f"{part}.{leaf}" for part in parts) for leaf in ("weight", "bias"))
    return [
        tokens("pool/query", f"{key}.latent"),
        Row("pool/qkv/kernel", weights, "o i", "i o", (1, 2)),
        Row("pool/qkv/bias", biases, "o", "o", (1, 2)),
        *linear("pool/out", f"{key}.proj"),
        *norm("pool/norm", f"{key}.norm"),
        *linear("pool/mlp/up", f"{key}.mlp.fc1"),
        *linear("pool/mlp/down", f"{key}.mlp.fc2"),
    ]


def _eva_parts(spec: ViTSpec, *, split_gate: bool) -> list[Row]:
    """timm's Eva, where the gate of an MLP may be apart from its value.

    The two forms of EVA-02 go together in what is published: fused have one query-key-value matrix
    and one gate-value matrix, split have three and two, and a norm in the MLP.
    """
    split = spec.mlp.norm
    rows = _ends(spec) + block(
        spec,
        "blocks.{}.",
        norms=("norm1", "norm2"),
        qkv=[f"attn.{part}_proj" for part in "qkv"] if split else ["attn.qkv"],
        out="attn.proj",
        up=["mlp.fc1_g", "mlp.fc1_x"] if split or (split_gate and spec.mlp.gated) else ["mlp.fc1"],
        down="mlp.fc2",
        scales=("gamma_1", "gamma_2"),
        biases=() if split else ("attn.q_bias", "attn.v_bias"),
    )
    return rows + (norm("blocks/mlp/norm", "blocks.{}.mlp.norm") if split else [])


@stacked
def _eva_rows(spec: ViTSpec) -> list[Row]:
    """The first EVA, and EVA-02 fused (tiny, small) and split (base, large)."""
    return _eva_parts(spec, split_gate=False)


@stacked
def _dinov3_rows(spec: ViTSpec) -> list[Row]:
    """DINOv3: the gate apart from the value; query, key and value in one."""
    return _eva_parts(spec, split_gate=True)


_EXPECTED = (
    "timm's names are expected, not those of the model's authors: load the weights with timm and "
    "write them with timm.models.save_for_hf"
)
_EVA_IGNORED = (r"head\..*", r"mask_token", r"lm_head\..*", r".*rope.*")


FAMILY = Family(
    ViTSpec,
    ViT,
    {
        "timm_vit": Format(
            _vit_rows,
            (r"head\..*",),
            advice=(
                r"blocks\.\d+\.(gamma_1|mlp\.w12\.weight)|(.*\.)?visual\..*|register_tokens",
                _EXPECTED,
            ),
        ),
        "timm_eva": Format(
            _eva_rows,
            _EVA_IGNORED,
            aliases=(
                # Weights as they left masked pre-training; timm renames them too.
                (r"fc_norm\.(.*)", r"norm.\1"),
                # The authors' names.
                (r"(.*\.)mlp\.fc1_g\.(.*)", r"\1mlp.w1.\2"),
                (r"(.*\.)mlp\.fc1_x\.(.*)", r"\1mlp.w2.\2"),
                (r"(.*\.)mlp\.fc2\.(.*)", r"\1mlp.w3.\2"),
                (r"(.*\.)mlp\.norm\.(.*)", r"\1mlp.ffn_ln.\2"),
                (r"(.*\.attn\.[qv])_proj\.bias", r"\1_bias"),
            ),
            advice=(
                # What timm joins, or has another architecture for.
                r"(.*\.)?blocks\.\d+\.(mlp\.w1|attn\.inner_attn_ln)\..*|visual\..*|storage_tokens",
                _EXPECTED,
            ),
        ),
        "timm_dinov3": Format(
            _dinov3_rows,
            _EVA_IGNORED,
            advice=(r"storage_tokens|blocks\.\d+\.ls1\.gamma", _EXPECTED),
        ),
    },
    timm={"VisionTransformer": _read_vit, "Eva": _read_eva},
)
