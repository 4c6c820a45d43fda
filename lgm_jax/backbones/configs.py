"""How a checkpoint's own `config.json` says what it is: timm's, transformers', and our exports'."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, get_args

from lgm_jax.backbones import rotary as rotary_module
from lgm_jax.backbones import timm_names, vit
from lgm_jax.backbones.activations import Activation
from lgm_jax.backbones.port import FORMATS
from lgm_jax.backbones.rotary import Rotary
from lgm_jax.backbones.vit import (
    AttentionSpec,
    EmbedSpec,
    MlpSpec,
    Pool,
    PoolSpec,
    Positions,
    ViTSpec,
)
from lgm_jax.errors import UserError, unknown_name

Triple = tuple[float, float, float]
Config = Mapping[str, Any]

OURS = "lgm_jax"
"""The `model_type` of what `tools/export_backbone.py` writes."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Per-channel statistics that a backbone subtracts from and divides images in [0, 1] by."""

    mean: Triple
    std: Triple


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = Preprocessing((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# More than any size of a Vision Transformer.
_LARGEST = 2**16


@dataclasses.dataclass(frozen=True)
class Published:
    """A backbone as it was published.

    Attributes:
        spec: Its shape; `spec.resolution` is the one its positions were stored for.
        form: Name of its checkpoint's format, a key of `port.FORMATS`.
        preprocessing: The statistics it was trained with.
        resolution: Side of the images it takes unless told otherwise; `spec.resolution` if zero.
    """

    spec: ViTSpec
    form: str
    preprocessing: Preprocessing
    resolution: int = 0


def read_config(config: Config, preprocessor: Config) -> Published:
    """Understands a `config.json`.

    Args:
        config: The file's content.
        preprocessor: That of `preprocessor_config.json`, empty if there is none.

    Raises:
        UserError: If it describes nothing that we support, or holds values that make no sense.
    """
    if config.get("model_type") == OURS:
        published = _from_ours(config)
    elif "architecture" in config:
        published = _from_timm(config, preprocessor)
    elif "model_type" in config:
        published = _from_transformers(config, preprocessor)
    else:
        raise UserError("it names neither an architecture (timm) nor a model_type (transformers)")
    check_spec(published.spec)
    if not _is_whole(published.resolution) or not 0 <= published.resolution <= _LARGEST:
        raise UserError(f"resolution must be a whole number, not {published.resolution!r}")
    if min(published.preprocessing.std) <= 0:
        raise UserError(f"std must be positive, not {list(published.preprocessing.std)}")
    return published


def check_spec(spec: ViTSpec) -> None:
    """Refuses shapes that no Vision Transformer can have.

    Raises:
        UserError: Naming what does not fit.
    """
    sizes = {
        "image size": spec.resolution,
        "patch size": spec.embed.patch,
        "width": spec.width,
        "depth": spec.depth,
        "number of heads": spec.attention.heads,
        "MLP width": spec.mlp.width,
    }
    for name, size in sizes.items():
        if not _is_whole(size) or not 1 <= size <= _LARGEST:
            raise UserError(f"{name} must be a positive whole number, not {size!r}")
    counts = {
        "number of registers": spec.embed.registers,
        "projection": spec.pool.projection,
        "number of pooled blocks": spec.pool.blocks,
    }
    for name, count in counts.items():
        if not _is_whole(count) or not 0 <= count <= _LARGEST:
            raise UserError(f"{name} must be a whole number, not {count!r}")
    flags = {
        "embed.bias": spec.embed.bias,
        "embed.class_token": spec.embed.class_token,
        "embed.antialias": spec.embed.antialias,
        "embed.norm": spec.embed.norm,
        "mlp.gated": spec.mlp.gated,
        "mlp.norm": spec.mlp.norm,
        "layer_scale": spec.layer_scale,
    }
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UserError(f"{name} must be true or false, not {flag!r}")
    if not 1 <= spec.pool.blocks <= spec.depth:
        raise UserError(f"{spec.pool.blocks} blocks cannot be pooled of {spec.depth}")
    rotary = spec.attention.rotary
    positive = {"norm_eps": spec.norm_eps} | (
        {} if rotary is None else {"rotary base": rotary.base}
    )
    for name, value in positive.items():
        if not _is_number(value) or not 0 < value < 1e12:
            raise UserError(f"{name} must be a positive number, not {value!r}")
    chosen: list[tuple[str, Any, Any]] = [
        ("positions", spec.embed.positions, vit.Positions),
        ("biases", spec.attention.biases, vit.Biases),
        ("activation", spec.mlp.activation, Activation),
        ("pooling", spec.pool.kind, vit.Pool),
    ]
    if rotary is not None:
        chosen += [
            ("rotary layout", rotary.layout, rotary_module.Layout),
            ("rotary grid", rotary.grid, rotary_module.Grid),
        ]
    for name, choice, known in chosen:
        if choice not in get_args(known):
            raise unknown_name(name, str(choice), [str(k) for k in get_args(known)], "supported")
    if spec.resolution < spec.embed.patch:
        raise UserError(
            f"a patch of {spec.embed.patch} px does not fit an image of {spec.resolution} px"
        )
    heads = spec.attention.heads
    if spec.width % heads:
        raise UserError(f"{heads} heads do not divide a width of {spec.width}")
    head_width = spec.width // heads
    if rotary is not None and head_width % 4:
        raise UserError(f"rotary positions need a head width divisible by 4, not {head_width}")
    if spec.pool.kind in ("cls", "cls+mean") and not spec.embed.class_token:
        raise UserError("there is no class token to pool")


# timm.

_TIMM_VIT_DEFAULTS: Config = {
    "img_size": 224,
    "patch_size": 16,
    "global_pool": "token",
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "init_values": None,
    "class_token": True,
    "no_embed_class": False,
    "reg_tokens": 0,
    "pre_norm": False,
    "fc_norm": None,
    "act_layer": "gelu",
}
_TIMM_EVA_DEFAULTS: Config = {
    "img_size": 224,
    "patch_size": 16,
    "global_pool": "avg",
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "qkv_fused": True,
    "swiglu_mlp": False,
    "swiglu_align_to": 0,
    "scale_mlp": False,
    "init_values": None,
    "class_token": True,
    "num_reg_tokens": 0,
    "no_embed_class": False,
    "use_abs_pos_emb": True,
    "use_rot_pos_emb": False,
    "rope_type": "cat",
    "rope_temperature": 10000.0,
    "rope_rotate_half": False,
    "ref_feat_shape": None,
    "use_fc_norm": None,
}
# Arguments that are supported at their default only.
_TIMM_FIXED: Config = {
    "in_chans": 3,
    "qk_norm": False,
    "scale_attn_norm": False,
    "scale_mlp_norm": False,
    "proj_bias": True,
    "pos_embed": "learn",
    "final_norm": True,
    "pool_include_prefix": False,
    "num_kv_heads": None,
    "scale_attn_inner": False,
    "attn_type": "eva",
    "attn_only_layer_scale": False,
    "rope_grid_offset": 0.0,
    "rope_grid_indexing": "ij",
    "use_post_norm": False,
    "use_pre_transformer_norm": False,
    "use_post_transformer_norm": None,
}
# Arguments of training, of sizes that we settle otherwise, and of what follows the backbone.
_TIMM_IDLE = frozenset(
    {
        *("dynamic_img_size", "dynamic_img_pad", "weight_init", "fix_init", "num_classes"),
        *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
        *("drop_path_rate", "head_init_scale"),
        *("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"),
    }
)
_TIMM_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "silu": "silu",
}
_STATISTICS: Mapping[timm_names.Statistics, Preprocessing] = {
    "imagenet": IMAGENET,
    "clip": CLIP,
    "half": HALF,
}


def _from_timm(config: Config, preprocessor: Config) -> Published:
    """timm's `architecture`, `model_args` and `pretrained_cfg`."""
    name = str(config["architecture"])
    found = timm_names.read_name(name)
    # timm's older files have no such section, but its content in its place.
    pretrained = _section(config, "pretrained_cfg") if "pretrained_cfg" in config else config
    defaults = _TIMM_VIT_DEFAULTS if found.form == "timm_vit" else _TIMM_EVA_DEFAULTS
    arguments = {**defaults, **found.arguments, "img_size": _timm_side(pretrained, found.side)}
    if config.get("global_pool"):
        arguments["global_pool"] = config["global_pool"]
    if _trained_with_quick_gelu(name, pretrained):
        arguments["act_layer"] = "quick_gelu"
    for key, value in _section(config, "model_args").items():
        if key in _TIMM_IDLE:
            continue
        if key in defaults:
            arguments[key] = _side(value, key) if key in ("img_size", "patch_size") else value
        elif key not in _TIMM_FIXED:
            raise unknown_name("timm model argument", key, list(defaults), "supported")
        elif value != _TIMM_FIXED[key]:
            raise UserError(f"timm's {key}={value} is not supported")
    _check_timm(arguments, defaults)
    build = _timm_vit if found.form == "timm_vit" else _timm_eva
    spec, form = build(arguments)
    return Published(spec, form, _timm_statistics(pretrained, preprocessor, found))


def _timm_side(pretrained: Config, default: int) -> Any:
    size = pretrained.get("input_size", (3, default, default))
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise UserError(f"pretrained_cfg.input_size must be three numbers, not {size!r}")
    return _side(list(size[1:]), "pretrained_cfg.input_size")


def _trained_with_quick_gelu(architecture: str, pretrained: Config) -> bool:
    """Whether weights need another GELU than the name they are published under stands for."""
    if "_clip_" not in architecture:
        return False
    said = "natively QuickGELU" in str(pretrained.get("notes"))
    return said or f"{architecture}.{pretrained.get('tag')}" in timm_names.QUICK_GELU


def _check_timm(arguments: Config, defaults: Config) -> None:
    """Refuses values of a type that timm's class does not take."""
    for name, default in defaults.items():
        value = arguments[name]
        if isinstance(default, bool) and not isinstance(value, bool):
            raise UserError(f"timm's {name} must be true or false, not {value!r}")
        if _is_whole(default) and (not _is_whole(value) or abs(value) > _LARGEST):
            raise UserError(
                f"timm's {name} must be a whole number up to {_LARGEST}, not {value!r:.50}"
            )
    ratio = arguments["mlp_ratio"]
    if not _is_number(ratio) or not 0 < ratio < 1e3:
        raise UserError(f"timm's mlp_ratio must be a positive number, not {ratio!r}")


def _timm_statistics(
    pretrained: Config, preprocessor: Config, found: timm_names.Architecture
) -> Preprocessing:
    parts = {}
    for name in ("mean", "std"):
        value = pretrained.get(name) or preprocessor.get(f"image_{name}")
        if value is None and found.statistics is not None:
            value = getattr(_STATISTICS[found.statistics], name)
        if value is None:
            raise UserError(
                f"pretrained_cfg has no {name}, and timm's weights of this architecture differ in "
                'it: add "mean" and "std", three numbers each, as the weights were trained with'
            )
        parts[name] = _triple(value, name)
    return Preprocessing(**parts)


def _timm_pool(pool: Any, fc_norm: Any) -> Pool:
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


def _timm_positions(arguments: Config, registers: int) -> Positions:
    if not arguments.get("use_abs_pos_emb", True):
        return "none"
    if arguments["no_embed_class"]:
        return "patches"
    return "tokens" if registers else "all"


def _timm_vit(arguments: Config) -> tuple[ViTSpec, str]:
    """The shape of timm's VisionTransformer, and its checkpoint's format."""
    activation = arguments["act_layer"]
    if not isinstance(activation, str) or activation not in _TIMM_ACTIVATIONS:
        raise unknown_name("timm activation", str(activation), list(_TIMM_ACTIVATIONS))
    hidden = int(arguments["embed_dim"] * arguments["mlp_ratio"])
    if arguments.get("mlp_layer") == "swiglu_packed":
        mlp = MlpSpec(hidden // 2, "silu", gated=True)
    else:
        mlp = MlpSpec(hidden, _TIMM_ACTIVATIONS[activation])
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
            positions=_timm_positions(arguments, arguments["reg_tokens"]),
            antialias=True,
            norm=normed,
        ),
        attention=AttentionSpec(arguments["num_heads"], "qkv" if arguments["qkv_bias"] else "none"),
        mlp=mlp,
        pool=PoolSpec(_timm_pool(arguments["global_pool"], arguments["fc_norm"])),
        layer_scale=bool(arguments["init_values"]),
        norm_eps=arguments.get("norm_eps", 1e-6),
    )
    return spec, "timm_vit"


def _timm_eva(arguments: Config) -> tuple[ViTSpec, str]:
    """The shape of timm's Eva, and its checkpoint's format."""
    gated, normed, align = (arguments[x] for x in ("swiglu_mlp", "scale_mlp", "swiglu_align_to"))
    if normed == arguments["qkv_fused"] or (normed and not gated):
        raise UserError("timm's scale_mlp, qkv_fused and swiglu_mlp in this combination")
    hidden = int(arguments["embed_dim"] * arguments["mlp_ratio"])
    if gated and align > 0:
        hidden += -hidden % align
    registers = arguments["num_reg_tokens"]
    pool = _timm_pool(arguments["global_pool"], arguments["use_fc_norm"])
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
            positions=_timm_positions(arguments, registers),
            antialias=True,
        ),
        attention=AttentionSpec(
            arguments["num_heads"],
            "qv" if arguments["qkv_bias"] else "none",
            _timm_rotary(arguments) if arguments["use_rot_pos_emb"] else None,
        ),
        mlp=MlpSpec(hidden, "silu" if gated else "gelu", gated=gated, norm=normed),
        pool=PoolSpec(pool),
        layer_scale=arguments["init_values"] is not None,
        norm_eps=arguments.get("norm_eps", 1e-6),
    )
    return spec, "timm_dinov3" if gated and align else "timm_eva"


def _timm_rotary(arguments: Config) -> Rotary:
    layout: rotary_module.Layout = "half" if arguments["rope_rotate_half"] else "interleaved"
    base, kind = arguments["rope_temperature"], arguments["rope_type"]
    if kind == "dinov3":
        return Rotary(layout, "centered", base)
    reference = _side(arguments["ref_feat_shape"], "ref_feat_shape")
    if kind != "cat" or not _is_whole(reference) or not 0 < reference <= _LARGEST:
        raise UserError(f"timm's rope_type={kind} with ref_feat_shape={reference!r}")
    return Rotary(layout, "index", base, reference)


# transformers.


def _from_transformers(config: Config, preprocessor: Config) -> Published:
    """A transformers configuration: its own class fills in what the file leaves out."""
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in _TRANSFORMERS:
        raise unknown_name("transformers model_type", str(kind), list(_TRANSFORMERS), "supported")
    classes = _transformers_classes()
    read, family = _TRANSFORMERS[kind]
    try:
        published = read(classes[kind](**_bounded(config)))
    except UserError:
        raise
    except Exception as error:
        # transformers validates with exceptions of several kinds, or, in older versions, not at
        # all: then it is our own reading that fails.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"transformers refuses it: {reason}") from error
    statistics = Preprocessing(
        _triple(preprocessor.get("image_mean", family.mean), "image_mean"),
        _triple(preprocessor.get("image_std", family.std), "image_std"),
    )
    # Before the patch divides anything.
    check_spec(published.spec)
    crop = preprocessor.get("crop_size") or preprocessor.get("size") or 0
    if isinstance(crop, Mapping):
        crop = crop.get("height", crop.get("shortest_edge", 0))
    fits = _is_whole(crop) and crop > 0 and crop % published.spec.embed.patch == 0
    return dataclasses.replace(published, preprocessing=statistics, resolution=crop if fits else 0)


def _bounded(config: Config) -> dict[str, Any]:
    """A configuration without what says nothing about the backbone, and without huge numbers.

    transformers allocates lists of some lengths that it is given.
    """
    left_out = ("model_type", "auto_map", "num_labels", "id2label", "label2id", "text_config")
    kept = {}
    for name, value in config.items():
        if name in left_out:
            continue
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise UserError(f"{name} is larger than any Vision Transformer's")
        kept[name] = (
            _bounded(value) if name == "vision_config" and isinstance(value, dict) else value
        )
    return kept


def _transformers_classes() -> Mapping[str, Callable[..., Any]]:
    """transformers' configuration classes by `model_type`."""
    # It advises everyone without PyTorch to install it; configurations work without.
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        from transformers import CONFIG_MAPPING
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return CONFIG_MAPPING


def _side(value: Any, name: str) -> Any:
    """A square's side, which may be written as (height, width)."""
    if isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            raise UserError(f"{name} must be square, not {' x '.join(map(str, value))}")
        return value[0]
    return value


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


def _hf_spec(config: Any, mlp: MlpSpec, embed: EmbedSpec, **parts: Any) -> ViTSpec:
    if config.num_channels != 3:
        raise UserError("a backbone that does not take three channels is not supported")
    parts.setdefault("attention", AttentionSpec(config.num_attention_heads))
    return ViTSpec(
        resolution=_side(config.image_size, "image_size"),
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        embed=embed,
        mlp=mlp,
        norm_eps=config.layer_norm_eps,
        **parts,
    )


def _patch(config: Any) -> int:
    return _side(config.patch_size, "patch_size")


def _read_vit(config: Any) -> Published:
    if not config.qkv_bias:
        raise UserError("qkv_bias=false is not supported")
    mlp = MlpSpec(config.intermediate_size, _activation(config.hidden_act))
    spec = _hf_spec(config, mlp, EmbedSpec(_patch(config)))
    return Published(spec, "hf_vit", IMAGENET)


def _read_dinov2(config: Any) -> Published:
    if not config.qkv_bias:
        raise UserError("qkv_bias=false is not supported")
    hidden = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:
        # Two thirds, rounded up to a multiple of 8.
        mlp = MlpSpec((int(hidden * 2 / 3) + 7) // 8 * 8, "silu", gated=True)
    else:
        mlp = MlpSpec(hidden, _activation(config.hidden_act))
    registers = getattr(config, "num_register_tokens", 0)
    # The two classes of transformers resize positions differently.
    antialias = config.model_type == "dinov2_with_registers"
    embed = EmbedSpec(_patch(config), registers=registers, antialias=antialias)
    return Published(_hf_spec(config, mlp, embed, layer_scale=True), "hf_dinov2", IMAGENET)


def _read_dinov3(config: Any) -> Published:
    biases = (config.query_bias, config.key_bias, config.value_bias)
    if biases != (True, False, True) or not config.proj_bias or not config.mlp_bias:
        raise UserError("a DINOv3 with other biases than query, value, projection and MLP's")
    attention = AttentionSpec(
        config.num_attention_heads,
        biases="qv",
        rotary=Rotary("half", "centered", base=config.rope_theta),
    )
    gated = config.use_gated_mlp
    mlp = MlpSpec(config.intermediate_size, _activation(config.hidden_act), gated=gated)
    embed = EmbedSpec(_patch(config), registers=config.num_register_tokens, positions="none")
    spec = _hf_spec(config, mlp, embed, attention=attention, layer_scale=True)
    return Published(spec, "hf_dinov3", IMAGENET)


def _read_clip(config: Any) -> Published:
    vision = getattr(config, "vision_config", config)
    mlp = MlpSpec(vision.intermediate_size, _activation(vision.hidden_act))
    embed = EmbedSpec(_patch(vision), bias=False, norm=True)
    if not _is_whole(config.projection_dim) or config.projection_dim < 1:
        raise UserError(
            f"projection_dim must be a positive whole number, not {config.projection_dim!r}"
        )
    # These classes save the tower alone, without its projection.
    bare = {"CLIPVisionModel", "CLIPForImageClassification"} & set(config.architectures or ())
    pool = PoolSpec("cls", projection=0 if bare else config.projection_dim)
    return Published(_hf_spec(vision, mlp, embed, pool=pool), "hf_clip", CLIP)


def _read_siglip(config: Any) -> Published:
    vision = getattr(config, "vision_config", config)
    if not getattr(vision, "vision_use_head", True):
        raise UserError("a SigLIP without its pooling head is not supported")
    mlp = MlpSpec(vision.intermediate_size, _activation(vision.hidden_act))
    embed = EmbedSpec(_patch(vision), class_token=False, positions="patches")
    return Published(_hf_spec(vision, mlp, embed, pool=PoolSpec("map")), "hf_siglip", HALF)


_TRANSFORMERS: Mapping[str, tuple[Callable[[Any], Published], Preprocessing]] = {
    "dinov2": (_read_dinov2, IMAGENET),
    "dinov2_with_registers": (_read_dinov2, IMAGENET),
    "dinov3_vit": (_read_dinov3, IMAGENET),
    "clip": (_read_clip, CLIP),
    "clip_vision_model": (_read_clip, CLIP),
    "siglip": (_read_siglip, HALF),
    "siglip_vision_model": (_read_siglip, HALF),
    "vit": (_read_vit, IMAGENET),
    "vit_mae": (_read_vit, IMAGENET),
}


# Ours.


def to_ours(published: Published, origin: Config | None = None) -> dict[str, Any]:
    """The `config.json` of an exported backbone; `read_config` and `origin` are its inverse."""
    return {"model_type": OURS, **dataclasses.asdict(published), "origin": dict(origin or {})}


def origin(config: Config) -> dict[str, Any]:
    """Where an exported backbone was from; empty for others."""
    return dict(_section(config, "origin")) if config.get("model_type") == OURS else {}


def _from_ours(config: Config) -> Published:
    try:
        spec = dict(_section(config, "spec"))
        attention = dict(_section(spec, "attention"))
        rotary = attention.pop("rotary", None)
        attention["rotary"] = None if rotary is None else Rotary(**rotary)
        statistics = _section(config, "preprocessing")
        if not isinstance(config["form"], str) or config["form"] not in FORMATS:
            raise unknown_name("checkpoint format", str(config["form"]), list(FORMATS))
        return Published(
            ViTSpec(
                **spec
                | {
                    "embed": EmbedSpec(**_section(spec, "embed")),
                    "attention": AttentionSpec(**attention),
                    "mlp": MlpSpec(**_section(spec, "mlp")),
                    "pool": PoolSpec(**_section(spec, "pool")),
                }
            ),
            config["form"],
            Preprocessing(
                _triple(statistics.get("mean"), "mean"), _triple(statistics.get("std"), "std")
            ),
            config.get("resolution", 0),
        )
    except (KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"it is no export of this version: {reason}") from error


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 10**15
    return isinstance(value, float) and math.isfinite(value)


def _section(config: Config, name: str) -> Config:
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be an object, not {value!r}")
    return value


def _triple(value: Any, name: str) -> Triple:
    fits = isinstance(value, list | tuple) and len(value) == 3
    if not fits or not all(_is_number(x) and abs(x) < 1e3 for x in value):
        raise UserError(f"{name} must be three numbers, not {value!r}")
    red, green, blue = map(float, value)
    return red, green, blue
