"""How a checkpoint's own `config.json` says what it is: timm's, transformers', and our exports'."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from lgm_jax.backbones import rotary as rotary_module
from lgm_jax.backbones import vit
from lgm_jax.backbones.port import FORMATS
from lgm_jax.backbones.rotary import Rotary
from lgm_jax.backbones.vit import (
    Activation,
    AttentionSpec,
    EmbedSpec,
    MlpSpec,
    Pool,
    PoolSpec,
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
        published = _from_timm(config)
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
        ("activation", spec.mlp.activation, vit.Activation),
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
    if spec.resolution % spec.embed.patch:
        raise UserError(
            f"a patch of {spec.embed.patch} px does not divide an image of {spec.resolution} px"
        )
    heads = spec.attention.heads
    if spec.width % heads:
        raise UserError(f"{heads} heads do not divide a width of {spec.width}")
    if spec.attention.rotary is not None and spec.width // heads % 4:
        raise UserError(f"rotary positions need a head width divisible by 4, not {spec.width}")


# timm.


def _sizes(embed_dim: int, depth: int, num_heads: int, **other: Any) -> Config:
    return {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, **other}


# Keyword arguments of timm's registered models; values as in its registry.
_TIMM_SIZES: Mapping[str, Config] = {
    "tiny": _sizes(192, 12, 3),
    "small": _sizes(384, 12, 6),
    "base": _sizes(768, 12, 12),
    "large": _sizes(1024, 24, 16),
    "huge": _sizes(1280, 32, 16),
}
_TIMM_CLIP = {"pre_norm": True, "norm_eps": 1e-5}
_TIMM_EVA02 = {"mlp_ratio": 4 * 2 / 3, "global_pool": "avg"}
_TIMM_VARIANTS: Mapping[str, Config] = {
    "": {},
    "_clip": _TIMM_CLIP,
    "_clip_quickgelu": {**_TIMM_CLIP, "act_layer": "quick_gelu"},
    "_dinov2": {"init_values": 1e-5},
    "_reg4_dinov2": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
}
# vit_base_patch16_224, vit_base_patch16_clip_quickgelu_224, vit_small_patch14_reg4_dinov2, ...
_TIMM_VIT = re.compile(
    rf"vit_(?P<size>{'|'.join(_TIMM_SIZES)})_patch(?P<patch>\d{{1,4}})"
    rf"(?P<variant>{'|'.join(_TIMM_VARIANTS)})(_(?P<resolution>\d{{1,5}}))?"
)
_TIMM_EVA = re.compile(
    r"eva02_(?P<size>tiny|small|base|large)_patch(?P<patch>\d{1,4})_(?P<resolution>\d{1,5})"
)
# More than any size of a Vision Transformer.
_LARGEST = 2**16
_TIMM_EXAMPLES = ["vit_base_patch16_224", "vit_base_patch14_dinov2", "eva02_base_patch14_224"]
_TIMM_POOLS: Mapping[str, Pool] = {"token": "cls", "avg": "mean_norm"}
# Arguments that change nothing here, and what they must be to do so.
_TIMM_FIXED: Config = {"in_chans": 3, "qkv_bias": True, "class_token": True, "fc_norm": None}
# Arguments of training, or of sizes that we settle otherwise.
_TIMM_IDLE = frozenset(
    {
        *("dynamic_img_size", "dynamic_img_pad", "weight_init", "drop_rate", "drop_path_rate"),
        *("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    }
)
_TIMM_COMMON = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
_TIMM_VIT_ARGUMENTS = (
    *_TIMM_COMMON,
    *("pre_norm", "init_values", "reg_tokens", "no_embed_class", "act_layer"),
)
_TIMM_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}


def _from_timm(config: Config) -> Published:
    """timm's `architecture`, `model_args` and `pretrained_cfg`; ImageNet's statistics if unsaid."""
    architecture = config["architecture"]
    plain = _TIMM_VIT.fullmatch(str(architecture))
    eva = _TIMM_EVA.fullmatch(str(architecture))
    match = plain or eva
    if match is None:
        raise unknown_name("timm architecture", str(architecture), _TIMM_EXAMPLES, "for example")
    # timm's older files have no such section, but its content in its place.
    pretrained = _section(config, "pretrained_cfg") if "pretrained_cfg" in config else config
    # DINOv2's names carry no resolution.
    side = int(match["resolution"] or 518)
    input_size = pretrained.get("input_size", (3, side, side))
    if not isinstance(input_size, list | tuple) or len(input_size) != 3:
        raise UserError(f"pretrained_cfg.input_size must be three numbers, not {input_size!r}")
    arguments: dict[str, Any] = {
        "img_size": _side(list(input_size[1:]), "pretrained_cfg.input_size"),
        "patch_size": int(match["patch"]),
        "mlp_ratio": 4,
        **_TIMM_SIZES[match["size"]],
        **(_TIMM_EVA02 if plain is None else _TIMM_VARIANTS[plain["variant"] or ""]),
    }
    pool = arguments.pop("global_pool", "token")
    # OpenAI's weights are published under a name that means plain GELU.
    if pretrained.get("tag") == "openai":
        arguments["act_layer"] = "quick_gelu"
    given = dict(_section(config, "model_args"))
    pool = given.pop("global_pool", config.get("global_pool") or pool)
    # Classifiers, and CLIP's projection, which timm keeps in the same place, are left out.
    given.pop("num_classes", None)
    known = _TIMM_VIT_ARGUMENTS if plain else _TIMM_COMMON
    for name, value in given.items():
        if name in _TIMM_IDLE:
            continue
        if name in _TIMM_FIXED:
            if value != _TIMM_FIXED[name]:
                raise UserError(f"timm's {name}={value} is not supported")
        elif name not in known:
            raise unknown_name("timm model argument", name, list(known), "supported")
        else:
            arguments[name] = _side(value, name) if name in ("img_size", "patch_size") else value
    if not isinstance(pool, str) or pool not in _TIMM_POOLS:
        raise unknown_name("timm pooling", str(pool), list(_TIMM_POOLS), "supported")
    for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads"):
        if not isinstance(arguments[name], int):
            raise UserError(f"timm's {name} must be a whole number, not {arguments[name]!r}")
    ratio = arguments["mlp_ratio"]
    if not _is_number(ratio) or not 0 < ratio < 1e3:
        raise UserError(f"timm's mlp_ratio must be a positive number, not {ratio!r}")
    build = _timm_vit_spec if plain else _timm_eva_spec
    spec = build(arguments, _TIMM_POOLS[pool], match["size"])
    family = IMAGENET if plain and not plain["variant"].startswith("_clip") else CLIP
    statistics = Preprocessing(
        _triple(pretrained.get("mean", family.mean), "mean"),
        _triple(pretrained.get("std", family.std), "std"),
    )
    return Published(spec, "timm_vit" if plain else "timm_eva", statistics)


def _timm_vit_spec(arguments: Config, pool: Pool, size: str) -> ViTSpec:
    activation = arguments.get("act_layer", "gelu")
    if not isinstance(activation, str) or activation not in _TIMM_ACTIVATIONS:
        raise unknown_name("timm activation", str(activation), list(_TIMM_ACTIVATIONS))
    registers = arguments.get("reg_tokens", 0)
    if not isinstance(registers, int):
        raise UserError(f"timm's reg_tokens must be a whole number, not {registers!r}")
    if registers and not arguments.get("no_embed_class"):
        raise UserError("timm's reg_tokens without no_embed_class is not supported")
    normed = bool(arguments.get("pre_norm"))
    return ViTSpec(
        resolution=arguments["img_size"],
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        embed=EmbedSpec(
            patch=arguments["patch_size"],
            bias=not normed,
            registers=registers,
            positions="patches" if arguments.get("no_embed_class") else "all",
            antialias=True,
            norm=normed,
        ),
        attention=AttentionSpec(heads=arguments["num_heads"]),
        mlp=MlpSpec(
            int(arguments["embed_dim"] * arguments["mlp_ratio"]), _TIMM_ACTIVATIONS[activation]
        ),
        pool=PoolSpec(pool),
        layer_scale=bool(arguments.get("init_values")),
        norm_eps=arguments.get("norm_eps", 1e-6),
    )


def _timm_eva_spec(arguments: Config, pool: Pool, size: str) -> ViTSpec:
    return ViTSpec(
        resolution=arguments["img_size"],
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        embed=EmbedSpec(patch=arguments["patch_size"], antialias=True),
        attention=AttentionSpec(
            heads=arguments["num_heads"],
            biases="qv",
            rotary=Rotary("interleaved", "index", base=10000.0, reference=16),
        ),
        mlp=MlpSpec(
            int(arguments["embed_dim"] * arguments["mlp_ratio"]),
            "silu",
            gated=True,
            # The larger two normalise the hidden layer.
            norm=size in ("base", "large"),
        ),
        pool=PoolSpec(pool),
    )


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
    crop = preprocessor.get("crop_size") or preprocessor.get("size") or 0
    if isinstance(crop, Mapping):
        crop = crop.get("height", crop.get("shortest_edge", 0))
    fits = isinstance(crop, int) and crop > 0 and crop % published.spec.embed.patch == 0
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
    embed = EmbedSpec(_patch(config), registers=registers, antialias=registers > 0)
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


def to_ours(published: Published) -> dict[str, Any]:
    """The `config.json` of an exported backbone; `read_config` is its inverse."""
    return {"model_type": OURS, **dataclasses.asdict(published)}


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
