"""What timm's names of Vision Transformers stand for: the arguments that its registry gives each.

A name is taken apart (`vit_base_patch16_clip_quickgelu_224` is a size, a patch, a variant and a
resolution) rather than looked up, so that it takes a line per size and per variant. Values are
those of timm 1.0.31, `vision_transformer.py`, `deit.py` and `eva.py`; the tests compare every name
of the installed timm with its own model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from lgm_jax.errors import UserError, unknown_name

Arguments = Mapping[str, Any]
Statistics = Literal["imagenet", "clip", "half"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A name's meaning.

    Attributes:
        form: Name of the checkpoint's format, a key of `port.FORMATS`.
        arguments: Of timm's `VisionTransformer` or `Eva`, where they differ from the class's
            defaults, and `norm_eps`.
        side: Side of the images that it is made for, in pixels.
        statistics: What all of timm's weights under this name were trained with; `None` where
            they differ.
    """

    form: str
    arguments: Arguments
    side: int
    statistics: Statistics | None


def _size(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0) -> Arguments:
    return {
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
    }


_SIZES: Mapping[str, Arguments] = {
    "tiny": _size(192, 12, 3),
    "xsmall": _size(256, 10, 4),
    "wee": _size(256, 14, 4, 5.0),
    "little": _size(320, 14, 5, 5.6),
    "small": _size(384, 12, 6),
    "small_plus": _size(384, 12, 6),
    "medium": _size(512, 12, 8),
    "mediumd": _size(512, 20, 8),
    "betwixt": _size(640, 12, 10),
    "base": _size(768, 12, 12),
    "so150m": _size(896, 18, 14, 2.572),
    "so150m2": _size(832, 21, 13, 34 / 13),
    "large": _size(1024, 24, 16),
    "so400m": _size(1152, 27, 16, 3.7362),
    "huge": _size(1280, 32, 16),
    "huge_plus": _size(1280, 32, 20),
    "giant": _size(1408, 40, 16, 48 / 11),
    "giantopt": _size(1536, 40, 16),
    "gigantic": _size(1664, 48, 16, 64 / 13),
    "7b": _size(4096, 40, 32, 2.0),
}

_SCALED = {"init_values": 1e-5}
_CLIP = {"pre_norm": True, "norm_eps": 1e-5}
_AVERAGE = {"class_token": False, "global_pool": "avg"}
_AVERAGE_OF_NORMED = {**_AVERAGE, "fc_norm": False}
_REGISTERS = {**_AVERAGE, **_SCALED, "no_embed_class": True}
_DINOV3 = {
    **_SCALED,
    "qkv_bias": False,
    "num_reg_tokens": 4,
    "use_abs_pos_emb": False,
    "use_rot_pos_emb": True,
    "use_fc_norm": False,
    "rope_type": "dinov3",
    "rope_temperature": 100.0,
    "rope_rotate_half": True,
    "norm_eps": 1e-5,
}
_ROTARY_REGISTERS = {
    **_SCALED,
    "class_token": False,
    "use_abs_pos_emb": False,
    "use_rot_pos_emb": True,
    "ref_feat_shape": 16,
}

_VARIANTS: Mapping[str, Arguments] = {
    "": {},
    "36x1": {**_SCALED, "depth": 36},
    "plus": {**_SCALED, "embed_dim": 896, "num_heads": 14},
    "plus_clip": {**_CLIP, "embed_dim": 896, "num_heads": 14},
    "clip": _CLIP,
    "clip_quickgelu": {**_CLIP, "act_layer": "quick_gelu"},
    "dinov2": _SCALED,
    "reg4_dinov2": {**_SCALED, "reg_tokens": 4, "no_embed_class": True},
    "reg1_tipsv2": {**_SCALED, "reg_tokens": 1, "no_embed_class": True},
    "gap": _AVERAGE_OF_NORMED,
    "reg1_gap": {**_REGISTERS, "reg_tokens": 1},
    "reg4_gap": {**_REGISTERS, "reg_tokens": 4},
    "reg4_map": {"class_token": False, "global_pool": "map", "reg_tokens": 4},
    "siglip": {"class_token": False, "global_pool": "map"},
    "siglip_gap": _AVERAGE_OF_NORMED,
    # timm's Eva from here on.
    "dinov3": _DINOV3,
    "dinov3_qkvb": {**_DINOV3, "qkv_bias": True},
    "lingbot": {**_DINOV3, "qkv_bias": True, "global_pool": "token"},
    "rope_reg1_gap": {**_ROTARY_REGISTERS, "num_reg_tokens": 1},
    "rope_reg4_gap": {**_ROTARY_REGISTERS, "num_reg_tokens": 4},
}
_EVA_VARIANTS = ("dinov3", "dinov3_qkvb", "lingbot", "rope_reg1_gap", "rope_reg4_gap")

_GATED_GIANT = {**_size(1536, 40, 24, 5.33334), "mlp_layer": "swiglu_packed"}
_GATED_DINOV3 = {"swiglu_mlp": True, "swiglu_align_to": 8}
_SMALLER_GAP = {"qkv_bias": False, "init_values": 1e-6}
_TANH = {"act_layer": "gelu_tanh"}
# What a size changes in a variant, by size, patch, variant and resolution as they stand in a name.
_EXCEPTIONS: tuple[tuple[str, Arguments], ...] = (
    (r"giant_patch14_(dinov2|reg4_dinov2|reg1_tipsv2)", _GATED_GIANT),
    (r"so400m_patch14_reg1_tipsv2", {"mlp_ratio": 4304 / 1152}),
    (r"(medium|betwixt)_patch16_gap_\d+", _SMALLER_GAP),
    (r"base_patch16_gap_\d+", {"num_heads": 16}),
    (r"base_patch16_reg4_gap_\d+", {"init_values": None}),
    (
        r"so150m_patch16_reg4_gap_\d+",
        {"init_values": None, "no_embed_class": False, "fc_norm": False},
    ),
    (r"so150m2_patch16_reg1_gap_\d+", {"no_embed_class": False, "qkv_bias": False}),
    (r"(base_patch32|so400m_patch16|giantopt_patch16)_siglip(_gap)?_\d+", _TANH),
    (r"large_patch16_siglip(_gap)?_512", _TANH),
    (r"(small|huge)_plus_patch16_dinov3(_qkvb)?", _GATED_DINOV3),
    (r"7b_patch16_dinov3", {"swiglu_mlp": True, "swiglu_align_to": 64}),
    (
        r"giant_patch16_lingbot",
        {**_size(1536, 40, 24, 8 / 3), **_GATED_DINOV3, "qkv_bias": False},
    ),
    (r"mediumd_patch16_rope_reg1_gap_256", {"qkv_bias": False}),
)

_SIDES = {"dinov2": 518, "reg4_dinov2": 518, "reg1_tipsv2": 448, "lingbot": 512}
_SIDES |= dict.fromkeys(("dinov3", "dinov3_qkvb"), 256)

_sizes = "|".join(_SIZES)
_VIT = re.compile(
    rf"vit_(?P<size>{_sizes})_patch(?P<patch>\d{{1,4}})"
    rf"(_(?P<variant>{'|'.join(filter(None, _VARIANTS))}))?(_(?P<side>\d{{1,5}}))?"
)
_OTHER = re.compile(
    rf"(?P<family>deit|deit3|eva|eva02)_(?P<size>{_sizes})_patch(?P<patch>\d{{1,4}})"
    r"(?P<clip>_clip)?_(?P<side>\d{1,5})"
)

# Names of their own: arguments and side.
_SINGLE: Mapping[str, tuple[Arguments, int]] = {
    "vit_base_patch16_224_miil": ({**_SIZES["base"], "qkv_bias": False}, 224),
    "flexivit_small": ({**_SIZES["small"], "no_embed_class": True}, 240),
    "flexivit_base": ({**_SIZES["base"], "no_embed_class": True}, 240),
    "flexivit_large": ({**_SIZES["large"], "no_embed_class": True}, 240),
    "test_vit": (_size(64, 6, 2, 3.0), 160),
    "test_vit2": ({**_size(64, 8, 2, 3.0), **_AVERAGE, **_SCALED, "reg_tokens": 1}, 160),
}

# Families that are known and not supported, and why.
_REFUSED: tuple[tuple[str, str], ...] = (
    (r"aimv2_.*|vit_.*_sapiens2|test_vit4", "its norms are RMS norms"),
    (r"beit3_.*|eva02_(base|large)_patch\d+_clip_.*", "it normalises inside its attention"),
    (r"eva02_enormous_.*|vit_.*_rpn_.*", "its blocks normalise what they add, not what they read"),
    (r"deit_.*_distilled_.*", "it has two class tokens"),
    (r"vit_.*_radio_.*|vit_intern300m_.*|vit_pe_(lang|spatial)_.*", "it has no last norm"),
    (r"vit_pe_core_.*|vit_.*_rope_(mixed_)?(ape_)?\d+", "it has rotary positions of another kind"),
    (r"vit_.*_xp_.*|vit_pwee_.*|vit_.*_18x2_.*", "the parts of its blocks run side by side"),
    (r"vit_(dlittle|dpwee|dwee)_.*", "its attention is differential"),
    (r"(test_)?vit_s?relpos.*|beit(v2)?_.*|samvit_.*", "its positions are relative"),
    (r"vit_(tiny|small|base|large)_(r|mci).*|vitamin_.*", "it is part convolutional"),
    (r"naflexvit_.*", "its images are of any shape"),
    (r"test_vit3", "it pools its registers too"),
)

_EXAMPLES = ["vit_base_patch16_224", "vit_base_patch14_dinov2", "eva02_base_patch14_224"]

QUICK_GELU = frozenset(
    {
        *(f"vit_base_patch32_clip_224.{tag}" for tag in ("laion400m_e32", "openai")),
        *(f"vit_base_patch32_clip_224.metaclip_{tag}" for tag in ("2pt5b", "400m")),
        "vit_base_patch16_clip_224.openai",
        *(f"vit_base_patch16_clip_224.metaclip_{tag}" for tag in ("2pt5b", "400m")),
        *(f"vit_large_patch14_clip_224.{tag}" for tag in ("dfn2b", "openai")),
        *(f"vit_large_patch14_clip_224.metaclip_{tag}" for tag in ("2pt5b", "400m")),
        "vit_large_patch14_clip_336.openai",
        *(f"vit_huge_patch14_clip_224.{tag}" for tag in ("dfn5b", "metaclip2_worldwide")),
        "vit_huge_patch14_clip_224.metaclip_2pt5b",
        "vit_huge_patch14_clip_378.dfn5b",
        "vit_gigantic_patch14_clip_224.metaclip_2pt5b",
    }
)
"""Weights that were trained with quick GELU, but are published under a name that means the exact
one. timm says so in the `notes` of its `default_cfgs`."""


def read_name(name: str) -> Architecture:
    """What a timm architecture is.

    Raises:
        UserError: If it is unknown, or of a kind that is not supported.
    """
    for pattern, reason in _REFUSED:
        if re.fullmatch(pattern, name):
            raise UserError(f"timm's {name} is not supported: {reason}")
    if match := _VIT.fullmatch(name):
        return _vit(name, match)
    if match := _OTHER.fullmatch(name):
        return _other(match)
    if name in _SINGLE:
        return Architecture("timm_vit", *_SINGLE[name], None)
    raise unknown_name("timm architecture", name, _EXAMPLES, "for example")


def _vit(name: str, match: re.Match[str]) -> Architecture:
    size, variant = match["size"], match["variant"] or ""
    arguments = {
        **_SIZES[size],
        "patch_size": int(match["patch"]),
        **_VARIANTS[variant],
    }
    for pattern, changes in _EXCEPTIONS:
        if re.fullmatch(f"vit_{pattern}", name):
            arguments |= changes
    form = "timm_vit"
    if variant in _EVA_VARIANTS:
        form = "timm_dinov3" if arguments.get("rope_type") == "dinov3" else "timm_eva"
    side = int(match["side"] or _SIDES.get(variant, 224))
    return Architecture(form, arguments, side, _statistics(size, variant))


def _statistics(size: str, variant: str) -> Statistics | None:
    if variant in ("dinov2", "reg4_dinov2"):
        return "imagenet"
    # The largest two have weights for satellites' images too.
    if variant in ("dinov3", "dinov3_qkvb") and size not in ("large", "7b"):
        return "imagenet"
    if variant in ("siglip", "siglip_gap"):
        return "half"
    # LAION's large one was trained with halves.
    if variant in ("clip", "clip_quickgelu", "plus_clip") and size != "large":
        return "clip"
    return None


def _other(match: re.Match[str]) -> Architecture:
    family, size = match["family"], match["size"]
    arguments: dict[str, Any] = {**_SIZES[size], "patch_size": int(match["patch"])}
    side = int(match["side"])
    if match["clip"] and (family, size) != ("eva", "giant"):
        raise UserError(f"timm has no {match[0]}: give the architecture's name as timm has it")
    if family in ("deit", "deit3"):
        if family == "deit3":
            arguments |= {"no_embed_class": True, "init_values": 1e-6}
        return Architecture("timm_vit", arguments, side, "imagenet")
    if family == "eva02":
        arguments |= {
            "mlp_ratio": 4 * 2 / 3,
            "swiglu_mlp": True,
            "use_rot_pos_emb": True,
            "ref_feat_shape": 16,
        }
        if size in ("base", "large"):
            arguments |= {"qkv_fused": False, "scale_mlp": True}
        return Architecture("timm_eva", arguments, side, "clip")
    # The large ones of the first EVA are plain.
    if size == "large":
        return Architecture("timm_vit", arguments | {"global_pool": "avg"}, side, "clip")
    if match["clip"]:
        arguments["global_pool"] = "token"
    return Architecture("timm_eva", arguments, side, None)
