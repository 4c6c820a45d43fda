"""Key maps between published checkpoints and our parameters, total in both directions.

Each row of a map names a parameter of ours, the checkpoint's keys for it, and two einops patterns:
how the checkpoint lays the array out, and how we do. Read left to right a row imports; read right
to left it exports. A key that is left over or missing on either side is an error that names it;
what a checkpoint holds beyond the backbone (a classifier, a text tower) is listed by its format.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike

from lgm_jax.backbones.vit import ViTSpec
from lgm_jax.errors import UserError, list_some

Params = dict[str, Any]


class Row(NamedTuple):
    """One parameter of ours and where a checkpoint keeps it.

    Attributes:
        path: Ours, with slashes.
        keys: The checkpoint's, `{}` standing for the layer. Several arrays are joined along their
            first axis.
        theirs: The checkpoint's layout.
        ours: Our layout.
        shares: How many of equal parts of the first axis each key holds; one each if empty.
    """

    path: str
    keys: tuple[str, ...]
    theirs: str
    ours: str
    shares: tuple[int, ...] = ()

    @property
    def ends(self) -> list[int]:
        """Where each key but the last ends along the first axis, in parts of it."""
        return list(itertools.accumulate(self.shares or (1,) * len(self.keys)))


@dataclasses.dataclass(frozen=True)
class Format:
    """How a family's checkpoints name things.

    Attributes:
        rows: The key map of a spec.
        ignored: Patterns of keys that are no part of the backbone.
        prefixes: What may stand before every key of the backbone, as where it is a part of a
            larger model.
        aliases: Patterns of keys, and what some checkpoints have in their place.
        advice: A pattern of keys that belong to another format, and what to do with such a file.
    """

    rows: Callable[[ViTSpec], list[Row]]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    aliases: tuple[tuple[str, str], ...] = ()
    advice: tuple[str, str] | None = None


def _linear(path: str, *keys: str, bias: bool = True) -> list[Row]:
    # PyTorch stores (out, in), we store (in, out).
    rows = [Row(f"{path}/kernel", tuple(f"{key}.weight" for key in keys), "o i", "i o")]
    if bias:
        rows.append(Row(f"{path}/bias", tuple(f"{key}.bias" for key in keys), "o", "o"))
    return rows


def _norm(path: str, key: str) -> list[Row]:
    return [
        Row(f"{path}/scale", (f"{key}.weight",), "d", "d"),
        Row(f"{path}/bias", (f"{key}.bias",), "d", "d"),
    ]


def _vector(path: str, *keys: str) -> Row:
    return Row(path, keys, "d", "d")


def _tokens(path: str, key: str, theirs: str = "a n d") -> Row:
    """A token, or positions, that we store with a leading axis of one."""
    return Row(path, (key,), theirs, "a n d" if theirs == "a n d" else "1 n d")


def _patches(spec: ViTSpec, key: str) -> list[Row]:
    rows = [Row("embed/project/kernel", (f"{key}.weight",), "d c p q", "(p q c) d")]
    return rows + ([_vector("embed/project/bias", f"{key}.bias")] if spec.embed.bias else [])


def _attention(spec: ViTSpec, *keys: str, path: str = "blocks/attention") -> list[Row]:
    """Query, key and value: one fused key, or three."""
    rows = _linear(f"{path}/qkv", *keys, bias=spec.attention.biases == "qkv")
    if spec.attention.biases == "qv":
        query, _, value = keys
        rows.append(_vector(f"{path}/bias_qv", f"{query}.bias", f"{value}.bias"))
    return rows


def _timm_norm(spec: ViTSpec) -> list[Row]:
    # timm moves the last norm behind the mean where it stands behind the mean.
    return _norm("norm", "fc_norm" if spec.pool.kind == "mean_norm" else "norm")


def _timm_tokens(spec: ViTSpec) -> list[Row]:
    """What timm's two classes share: the tokens that enter the first block."""
    rows = _patches(spec, "patch_embed.proj")
    if spec.embed.class_token:
        rows.append(_tokens("cls", "cls_token"))
    if spec.embed.registers:
        rows.append(_tokens("registers", "reg_token"))
    if spec.embed.positions != "none":
        rows.append(_tokens("positions", "pos_embed"))
    if spec.embed.norm:
        rows += _norm("norm_embed", "norm_pre")
    return rows


def _timm_vit(spec: ViTSpec) -> list[Row]:
    """timm's VisionTransformer: plain ViTs, DeiT, DINO, MoCo-v3, MAE, DINOv2, CLIP, SigLIP."""
    rows = [
        *_timm_tokens(spec),
        *_norm("blocks/norm_attention", "blocks.{}.norm1"),
        *_attention(spec, "blocks.{}.attn.qkv"),
        *_linear("blocks/attention/out", "blocks.{}.attn.proj"),
        *_norm("blocks/norm_mlp", "blocks.{}.norm2"),
        *_linear("blocks/mlp/up", "blocks.{}.mlp.fc1"),
        *_linear("blocks/mlp/down", "blocks.{}.mlp.fc2"),
        *_timm_norm(spec),
    ]
    if spec.layer_scale:
        rows.append(_vector("blocks/scale_attention", "blocks.{}.ls1.gamma"))
        rows.append(_vector("blocks/scale_mlp", "blocks.{}.ls2.gamma"))
    if spec.pool.kind == "map":
        rows += _timm_pool("attn_pool")
    if spec.pool.projection:
        # CLIP's; it has no bias, but timm adds one of zeros, which is left out below.
        rows += _linear("project", "head", bias=False)
    return rows


def _timm_pool(key: str) -> list[Row]:
    """timm's AttentionPoolLatent: the query's projection is apart from key's and value's."""
    parts = [f"{key}.q", f"{key}.kv"]
    weights, biases = (tuple(f"{part}.{leaf}" for part in parts) for leaf in ("weight", "bias"))
    return [
        _tokens("pool/query", f"{key}.latent"),
        Row("pool/qkv/kernel", weights, "o i", "i o", (1, 2)),
        Row("pool/qkv/bias", biases, "o", "o", (1, 2)),
        *_linear("pool/out", f"{key}.proj"),
        *_norm("pool/norm", f"{key}.norm"),
        *_linear("pool/mlp/up", f"{key}.mlp.fc1"),
        *_linear("pool/mlp/down", f"{key}.mlp.fc2"),
    ]


def _timm_eva(spec: ViTSpec, *, split_gate: bool = False) -> list[Row]:
    """timm's Eva: the first EVA, and EVA-02 fused (tiny, small) and split (base, large).

    The two forms of EVA-02 go together in what is published: fused have one query-key-value matrix
    and one gate-value matrix, split have three and two, and a norm in the MLP.
    """
    attention, mlp = "blocks.{}.attn", "blocks.{}.mlp"
    if spec.mlp.norm:
        rows = _attention(spec, *(f"{attention}.{part}_proj" for part in "qkv"))
        rows += _norm("blocks/mlp/norm", f"{mlp}.norm")
    else:
        rows = _linear("blocks/attention/qkv", f"{attention}.qkv", bias=False)
        if spec.attention.biases == "qv":
            biases = (f"{attention}.q_bias", f"{attention}.v_bias")
            rows.append(_vector("blocks/attention/bias_qv", *biases))
    up = ("fc1_g", "fc1_x") if spec.mlp.norm or (split_gate and spec.mlp.gated) else ("fc1",)
    if spec.layer_scale:
        rows.append(_vector("blocks/scale_attention", "blocks.{}.gamma_1"))
        rows.append(_vector("blocks/scale_mlp", "blocks.{}.gamma_2"))
    return [
        *rows,
        *_timm_tokens(spec),
        *_norm("blocks/norm_attention", "blocks.{}.norm1"),
        *_linear("blocks/attention/out", f"{attention}.proj"),
        *_norm("blocks/norm_mlp", "blocks.{}.norm2"),
        *_linear("blocks/mlp/up", *(f"{mlp}.{part}" for part in up)),
        *_linear("blocks/mlp/down", f"{mlp}.fc2"),
        *_timm_norm(spec),
    ]


def _timm_dinov3(spec: ViTSpec) -> list[Row]:
    """timm's Eva, as DINOv3 uses it: the gate apart from the value, query, key, value in one."""
    return _timm_eva(spec, split_gate=True)


def _hf_vit(spec: ViTSpec) -> list[Row]:
    """transformers' ViT (DINO among them), and the encoder of its ViTMAE."""
    layer = "encoder.layer.{}"
    return [
        _tokens("cls", "embeddings.cls_token"),
        _tokens("positions", "embeddings.position_embeddings"),
        *_patches(spec, "embeddings.patch_embeddings.projection"),
        *_norm("blocks/norm_attention", f"{layer}.layernorm_before"),
        *_attention(
            spec, *(f"{layer}.attention.attention.{part}" for part in ("query", "key", "value"))
        ),
        *_linear("blocks/attention/out", f"{layer}.attention.output.dense"),
        *_norm("blocks/norm_mlp", f"{layer}.layernorm_after"),
        *_linear("blocks/mlp/up", f"{layer}.intermediate.dense"),
        *_linear("blocks/mlp/down", f"{layer}.output.dense"),
        *_norm("norm", "layernorm"),
    ]


def _hf_dinov2(spec: ViTSpec) -> list[Row]:
    """transformers' Dinov2, with registers or without; the largest has a gated MLP."""
    layer = "encoder.layer.{}"
    up, down = ("weights_in", "weights_out") if spec.mlp.gated else ("fc1", "fc2")
    rows = [
        _tokens("cls", "embeddings.cls_token"),
        _tokens("positions", "embeddings.position_embeddings"),
        *_patches(spec, "embeddings.patch_embeddings.projection"),
        *_norm("blocks/norm_attention", f"{layer}.norm1"),
        *_attention(
            spec, *(f"{layer}.attention.attention.{part}" for part in ("query", "key", "value"))
        ),
        *_linear("blocks/attention/out", f"{layer}.attention.output.dense"),
        _vector("blocks/scale_attention", f"{layer}.layer_scale1.lambda1"),
        *_norm("blocks/norm_mlp", f"{layer}.norm2"),
        *_linear("blocks/mlp/up", f"{layer}.mlp.{up}"),
        *_linear("blocks/mlp/down", f"{layer}.mlp.{down}"),
        _vector("blocks/scale_mlp", f"{layer}.layer_scale2.lambda1"),
        *_norm("norm", "layernorm"),
    ]
    if spec.embed.registers:
        rows.append(_tokens("registers", "embeddings.register_tokens"))
    return rows


def _hf_dinov3(spec: ViTSpec) -> list[Row]:
    """transformers' DINOv3ViT."""
    layer = "layer.{}"
    up = ("gate_proj", "up_proj") if spec.mlp.gated else ("up_proj",)
    rows = [
        _tokens("cls", "embeddings.cls_token"),
        *_patches(spec, "embeddings.patch_embeddings"),
        *_norm("blocks/norm_attention", f"{layer}.norm1"),
        *_attention(spec, *(f"{layer}.attention.{part}_proj" for part in "qkv")),
        *_linear("blocks/attention/out", f"{layer}.attention.o_proj"),
        _vector("blocks/scale_attention", f"{layer}.layer_scale1.lambda1"),
        *_norm("blocks/norm_mlp", f"{layer}.norm2"),
        *_linear("blocks/mlp/up", *(f"{layer}.mlp.{part}" for part in up)),
        *_linear("blocks/mlp/down", f"{layer}.mlp.down_proj"),
        _vector("blocks/scale_mlp", f"{layer}.layer_scale2.lambda1"),
        *_norm("norm", "norm"),
    ]
    if spec.embed.registers:
        rows.append(_tokens("registers", "embeddings.register_tokens"))
    return rows


def _openai_layers(spec: ViTSpec) -> list[Row]:
    """What CLIP and SigLIP share in transformers."""
    layer = "encoder.layers.{}"
    return [
        *_patches(spec, "embeddings.patch_embedding"),
        _tokens("positions", "embeddings.position_embedding.weight", "n d"),
        *_norm("blocks/norm_attention", f"{layer}.layer_norm1"),
        *_attention(spec, *(f"{layer}.self_attn.{part}_proj" for part in "qkv")),
        *_linear("blocks/attention/out", f"{layer}.self_attn.out_proj"),
        *_norm("blocks/norm_mlp", f"{layer}.layer_norm2"),
        *_linear("blocks/mlp/up", f"{layer}.mlp.fc1"),
        *_linear("blocks/mlp/down", f"{layer}.mlp.fc2"),
        *_norm("norm", "post_layernorm"),
    ]


def _hf_clip(spec: ViTSpec) -> list[Row]:
    """transformers' CLIP: the visual tower and its projection."""
    return [
        *_openai_layers(spec),
        Row("cls", ("embeddings.class_embedding",), "d", "1 1 d"),
        # Spelt so in every checkpoint.
        *_norm("norm_embed", "pre_layrnorm"),
        *(_linear("project", "/visual_projection", bias=False) if spec.pool.projection else []),
    ]


def _hf_siglip(spec: ViTSpec) -> list[Row]:
    """transformers' SigLIP: the visual tower and its attention pooling."""
    head = "head.attention"
    return [
        *_openai_layers(spec),
        _tokens("pool/query", "head.probe"),
        Row("pool/qkv/kernel", (f"{head}.in_proj_weight",), "o i", "i o"),
        Row("pool/qkv/bias", (f"{head}.in_proj_bias",), "o", "o"),
        *_linear("pool/out", f"{head}.out_proj"),
        *_norm("pool/norm", "head.layernorm"),
        *_linear("pool/mlp/up", "head.mlp.fc1"),
        *_linear("pool/mlp/down", "head.mlp.fc2"),
    ]


_TIMM_EXPECTED = (
    "timm's names are expected, not those of the model's authors: load the weights with timm and "
    "write them with timm.models.save_for_hf"
)
_IN_MEMORY = (
    r"(.*\.)?layers?\.\d+\.attention\.[qkv]_proj\..*",
    "published names are expected, not those that transformers has in memory: write the model with "
    "save_pretrained",
)
_TIMM_EVA_IGNORED = (r"head\..*", r"mask_token", r"lm_head\..*", r".*rope.*")

FORMATS: Mapping[str, Format] = {
    "timm_vit": Format(
        _timm_vit,
        (r"head\..*",),
        advice=(
            r"blocks\.\d+\.(gamma_1|mlp\.w12\.weight)|(.*\.)?visual\..*|register_tokens",
            _TIMM_EXPECTED,
        ),
    ),
    "timm_eva": Format(
        _timm_eva,
        _TIMM_EVA_IGNORED,
        aliases=(
            # Weights as they left masked pre-training; timm renames them too when it loads them.
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
            _TIMM_EXPECTED,
        ),
    ),
    "timm_dinov3": Format(
        _timm_dinov3,
        _TIMM_EVA_IGNORED,
        advice=(r"storage_tokens|blocks\.\d+\.ls1\.gamma", _TIMM_EXPECTED),
    ),
    "hf_vit": Format(
        _hf_vit,
        # A pooler, a classifier, the decoders of masked image modelling and of ViTMAE.
        (r"pooler\..*", r"classifier\..*", r"decoder\..*", r"embeddings\.mask_token"),
        ("", "vit."),
        advice=_IN_MEMORY,
    ),
    "hf_dinov2": Format(
        _hf_dinov2,
        (r"embeddings\.mask_token", r"classifier\..*"),
        ("", "dinov2.", "dinov2_with_registers."),
        advice=_IN_MEMORY,
    ),
    "hf_dinov3": Format(
        _hf_dinov3,
        (r"embeddings\.mask_token", r"rope_embeddings\..*", r"classifier\..*"),
        # As the class holds it in memory, which it leaves off when it saves.
        aliases=((r"layer\.(.*)", r"model.layer.\1"),),
        advice=(
            r"storage_tokens|blocks\..*",
            "transformers' names are expected, as layer.0.norm1.weight, not those of the authors",
        ),
    ),
    "hf_clip": Format(
        _hf_clip,
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
        _hf_siglip,
        (
            r"text_model\..*",
            r"classifier\..*",
            r"logit_scale",
            r"logit_bias",
            r"(vision_model\.)?embeddings\.position_ids",
        ),
        ("vision_model.", ""),
    ),
}


def find_prefix(form: Format, spec: ViTSpec, keys: Collection[str]) -> str:
    """What stands before the backbone's keys in a checkpoint; the first choice if none fits."""
    wanted = {key for row in form.rows(spec) for key in _keys(row, 1, "")}
    found = {prefix: sum(prefix + key in keys for key in wanted) for prefix in form.prefixes}
    return max(form.prefixes, key=lambda prefix: found[prefix])


def import_params(
    form: Format,
    spec: ViTSpec,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: DTypeLike = np.float32,
) -> Params:
    """Turns a checkpoint's tensors into nested parameters.

    Args:
        form: The checkpoint's format.
        spec: The backbone's shape. Rows whose keys have a `{}` are stacked along a new first axis.
        tensors: The checkpoint, key to array.
        shapes: The shape that each of our paths must have.
        dtype: Of the parameters.

    Raises:
        UserError: If keys are missing or left over (some are named), or a shape is wrong.
    """
    prefix = find_prefix(form, spec, tensors)
    wanted = _find_keys(form, spec, tensors, prefix)
    _check_keys({key for keys in wanted.values() for key in keys}, tensors, form, prefix)
    sizes = {"p": spec.embed.patch, "q": spec.embed.patch}
    params: Params = {}
    for row, keys in wanted.items():
        shape = shapes[row.path][1:] if _stacked(row) else shapes[row.path]
        parts = len(row.keys)
        layers = [
            _convert(row, keys[i : i + parts], tensors, shape, sizes)
            for i in range(0, len(keys), parts)
        ]
        array = np.stack(layers) if _stacked(row) else layers[0]
        _assign(params, row.path, array.astype(dtype, copy=False))
    return params


def export_params(
    form: Format, spec: ViTSpec, params: Params, dtype: DTypeLike | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `import_params`: our parameters under the checkpoint's keys and layouts.

    Args:
        form: The format.
        spec: The backbone's shape.
        params: Its parameters.
        dtype: Of the result; the parameters' own by default.
    """
    tensors = {}
    for row in form.rows(spec):
        array = np.asarray(_get(params, row.path))
        sizes = {"p": spec.embed.patch, "q": spec.embed.patch} if "(" in row.ours else {}
        for i, layer in enumerate(array if _stacked(row) else [array]):
            theirs = rearrange(layer, f"{row.ours} -> {row.theirs}", **sizes)
            ends = np.asarray(row.ends) * (len(theirs) // row.ends[-1])
            parts = np.split(theirs, ends[:-1], axis=0)
            for key, part in zip(row.keys, parts, strict=True):
                name = _full(key.format(i), form.prefixes[0])
                tensors[name] = np.ascontiguousarray(part.astype(dtype or part.dtype))
    return tensors


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters as one dict from slash-separated path to leaf."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def _find_keys(
    form: Format, spec: ViTSpec, keys: Collection[str], prefix: str
) -> dict[Row, list[str]]:
    """Each row's keys in a checkpoint, layer by layer, under the names that it has for them."""
    return {
        row: [_known_as(key, keys, form) for key in _keys(row, spec.depth, prefix)]
        for row in form.rows(spec)
    }


def _known_as(key: str, keys: Collection[str], form: Format) -> str:
    if key in keys:
        return key
    others = (re.sub(f"^{pattern}$", other, key) for pattern, other in form.aliases)
    return next((other for other in others if other in keys), key)


def fits(form: Format, spec: ViTSpec, keys: Collection[str]) -> set[str] | None:
    """The keys of a checkpoint that make the backbone; `None` if it lacks one."""
    found = _find_keys(form, spec, keys, find_prefix(form, spec, keys))
    wanted = {key for of_row in found.values() for key in of_row}
    return wanted if wanted <= set(keys) else None


def is_ignored(form: Format, key: str) -> bool:
    """Whether a key is known to be no part of the backbone."""
    return any(re.fullmatch(pattern, key) for pattern in form.ignored)


def anchors(form: Format, spec: ViTSpec) -> list[str]:
    """The keys that a checkpoint of the format may have the patch projection under."""
    (row,) = (row for row in form.rows(spec) if row.path == "embed/project/kernel")
    return [_full(row.keys[0], prefix) for prefix in form.prefixes]


def _check_keys(
    wanted: set[str], tensors: Mapping[str, np.ndarray], form: Format, prefix: str
) -> None:
    missing = sorted(wanted - set(tensors))
    left_over = sorted(
        key
        for key in set(tensors) - wanted
        if not is_ignored(form, key)
        and not is_ignored(form, key.removeprefix(prefix))
        # Without registers, transformers stores an array of none.
        and tensors[key].size
    )
    if missing or left_over:
        parts = [
            f"{what} {list_some(keys)}"
            for what, keys in (("missing keys:", missing), ("left-over keys:", left_over))
            if keys
        ]
        if form.advice and any(re.fullmatch(form.advice[0], key) for key in left_over):
            parts.append(form.advice[1])
        raise UserError(f"the weights do not fit this architecture: {'; '.join(parts)}")


def _convert(
    row: Row,
    keys: Sequence[str],
    tensors: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
) -> np.ndarray:
    """One layer of one parameter, in our layout."""
    parts = [tensors[key] for key in keys]
    known = {name: size for name, size in sizes.items() if name in row.ours.replace("(", " ")}
    # An array of no memory of its own.
    whole = rearrange(np.broadcast_to(np.int8(0), shape), f"{row.ours} -> {row.theirs}", **known)
    for key, part, share in zip(keys, parts, np.diff([0, *row.ends]), strict=True):
        # Whole numbers are quantised weights, whose scale lies elsewhere.
        if not jnp.issubdtype(part.dtype, jnp.floating):
            raise UserError(f"the weights' {key} is {part.dtype}, not a float")
        expected = (whole.shape[0] * int(share) // row.ends[-1], *whole.shape[1:])
        if part.shape != expected:
            raise UserError(f"the weights' {key} has shape {part.shape}, not {expected}")
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return rearrange(joined, f"{row.theirs} -> {row.ours}")


def _stacked(row: Row) -> bool:
    return "{}" in row.keys[0]


def _keys(row: Row, depth: int, prefix: str) -> list[str]:
    """A row's keys in a checkpoint, layer by layer."""
    layers = range(depth) if _stacked(row) else range(1)
    return [_full(key.format(i), prefix) for i in layers for key in row.keys]


def _full(key: str, prefix: str) -> str:
    # A leading slash marks what lies beside the backbone, not in it.
    return key[1:] if key[0] == "/" else prefix + key


def _assign(params: Params, path: str, value: np.ndarray) -> None:
    *parents, leaf = path.split("/")
    for parent in parents:
        params = params.setdefault(parent, {})
    params[leaf] = value


def _get(params: Params, path: str) -> Any:
    for name in path.split("/"):
        params = params[name]
    return params
