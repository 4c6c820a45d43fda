"""Upstream's own PyTorch classes with random weights, saved the way upstream publishes them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timm
import torch
import transformers
from safetensors.torch import save_file

from lgm_jax import backbones

Model = torch.nn.Module
Features = Callable[[Model, torch.Tensor], torch.Tensor]
STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25]}

_READS_THE_STREAM = (
    *("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value", "in_proj"),
    *("fc1", "up_proj", "gate_proj", "intermediate", "weights_in", "pointwise_conv1"),
    "attn_pool",
)
_EMBEDDINGS = ("patch_embeddings", "position_embeddings", "cls_token")
_SCALES = ("norm", "layrnorm", "gamma", "lambda", "scale", "bn", "downsample")


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    Attributes:
        make: Makes a model.
        save: Saves it to a folder as upstream does.
        features: `features(model, pixels)`: pixels (b, 3, r, r) normalised, at any resolution.
        resolution: Side of the images that it is made for, in pixels.
        other: Another side.
        quiet: As for `randomize`.
    """

    make: Callable[[], Model]
    save: Callable[[Model, Path], None]
    features: Callable[[Model, torch.Tensor], torch.Tensor]
    resolution: int
    other: int
    quiet: float = 1.0

    def build(self, folder: Path) -> Model:
        """A random model, saved to a folder."""
        model = randomize(self.make(), quiet=self.quiet)
        self.save(model, folder)
        return model


def randomize(model: Model, seed: int = 0, quiet: float = 1.0) -> Model:
    """Weights under which a wrong activation, epsilon, rotation or filter shows.

    What writes to the residual stream is small, so that an epsilon counts beside its variance;
    what reads from it is large, so that attention is peaked and the MLP works where activations
    differ. Positions are as large as what they are added to.

    Args:
        model: The model, changed in place.
        seed: Of the weights.
        quiet: Makes the tokens that enter the first block as much smaller.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            parts = name.split(".")
            if name.endswith("position_embedding.weight"):
                value.copy_(0.03 * noise)
            elif name.endswith(("head.cls_token", "attn_pool.latent")):
                # Queries of AIMv2's pooling and of timm's.
                value.copy_(noise)
            elif name == "head.bias":
                # timm's, beside projections that have none.
                value.zero_()
            elif value.ndim == 1:
                is_scale = any(word in name for word in _SCALES) and parts[-1] != "bias"
                value.copy_(1 + 0.3 * noise if is_scale else 0.03 * noise)
            elif value.ndim == 2 or value.ndim == 4:
                reads = any(word in part for part in parts[-3:] for word in _READS_THE_STREAM)
                value.copy_((2.0 if reads else 0.03) * noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.03 * noise)
            if any(word in name for word in _EMBEDDINGS):
                value.mul_(quiet)
        for name, value in model.named_buffers():
            # Of about what a convolution of such weights returns, so that an epsilon counts.
            if name.endswith("running_mean"):
                value.copy_(0.01 * torch.randn(value.shape, generator=generator))
            elif name.endswith("running_var"):
                value.copy_(1e-3 * (0.5 + torch.rand(value.shape, generator=generator)))
    return model.eval()


def save_timm(
    model: Model, folder: Path, architecture: str, arguments: Mapping[str, Any], side: int = 0
) -> None:
    """What timm's users publish, without the parts that depend on a hub."""
    folder.mkdir(parents=True)
    config = {
        "architecture": architecture,
        "model_args": dict(arguments),
        "pretrained_cfg": STATISTICS | ({"input_size": [3, side, side]} if side else {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")


def timm_family(architecture: str, *, other: int, side: int = 0, **arguments: Any) -> Family:
    """A class of timm's; a convolutional one, which has no `img_size`, is used at `side`."""
    arguments = {"num_classes": 0} | arguments
    # At another size the same weights are to be used as timm itself resizes them.
    dynamic = {} if side else {"dynamic_img_size": True}

    def make() -> Model:
        return timm.create_model(architecture, **arguments, **dynamic)

    def save(model: Model, folder: Path) -> None:
        save_timm(model, folder, architecture, arguments, side)

    resolution = side or arguments["img_size"]
    return Family(make, save, lambda model, pixels: model(pixels), resolution, other)


def hf_family(
    model_class: type[Model],
    config: transformers.PreTrainedConfig,
    features: Callable[[Model, torch.Tensor], torch.Tensor],
    *,
    resolution: int,
    other: int,
    quiet: float = 1.0,
) -> Family:
    def save(model: Model, folder: Path) -> None:
        model.save_pretrained(folder)
        names = {"image_mean": STATISTICS["mean"], "image_std": STATISTICS["std"]}
        (folder / "preprocessor_config.json").write_text(json.dumps(names))

    return Family(lambda: model_class(config), save, features, resolution, other, quiet)


def cls(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels).last_hidden_state[:, 0]


def cls_resized(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    # ViTMAE shuffles its patches, but masks none here: the class token does not see it.
    return model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]


def base(features: Features) -> Features:
    """Features of what a model for a task is built around."""
    return lambda model, pixels: features(getattr(model, model.base_model_prefix), pixels)


def pooled(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels).pooler_output


def clip(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    pooled = model.vision_model(pixels, interpolate_pos_encoding=True).pooler_output
    return model.visual_projection(pooled)


def tower(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    """What CLIP and SigLIP pool without a projection, whatever the model is for."""
    vision = getattr(model, "vision_model", model)
    return vision(pixels, interpolate_pos_encoding=True).pooler_output


def mean(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    """Of the tokens, as the classifiers take it that transformers makes of these models."""
    return model(pixels, interpolate_pos_encoding=True).last_hidden_state.mean(dim=1)


def aimv2(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    """AIMv2's features; transformers resizes no positions, so timm does it here."""
    vision = getattr(model, "vision_model", model)
    embeddings, grid = vision.embeddings, pixels.shape[-1] // vision.config.patch_size
    changed = {}
    if not vision.config.is_native:
        positions = timm.layers.resample_abs_pos_embed(
            embeddings.position_embedding.weight[None], (grid, grid), num_prefix_tokens=0
        )
        changed = {
            "embeddings.position_embedding.weight": positions[0],
            "embeddings.position_ids": torch.arange(grid**2)[None],
        }
    found = torch.func.functional_call(vision, changed, (pixels,))
    if not vision.config.use_head:
        return found.last_hidden_state.mean(dim=1)
    pooled = found.pooler_output
    return model.visual_projection(pooled) if vision is not model else pooled


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_MLP = {"intermediate_size": 64}
RESNET = {"layers": [2, 1, 3, 2], "channels": [16, 32, 48, 64]}
CONVNEXT = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 3, 1]}
TINY_TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 4}
TINY_TEXT = {
    **TINY,
    **TINY_MLP,
    "vocab_size": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


VISION16 = {**TINY, **TINY_MLP, "image_size": 32, "patch_size": 8}
SIZES16 = {"resolution": 32, "other": 48}
DINOV2 = {**TINY, "image_size": 56, "patch_size": 14, "mlp_ratio": 2}
SIZES14 = {"resolution": 56, "other": 42}
REGISTERS = {"num_register_tokens": 2}
CLIP = transformers.CLIPConfig(vision_config=VISION16, text_config=TINY_TEXT, projection_dim=24)
SIGLIP = transformers.SiglipConfig(vision_config=VISION16, text_config=TINY_TEXT)


# Pre-trained on another grid, with fewer heads and a narrower MLP behind the blocks.
PE_CORE = {"ref_feat_shape": (3, 3), "attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 3.0}
AIMV2 = {**VISION16, "hidden_act": "silu"}


def tiny_families() -> dict[str, Family]:
    """The smallest of each kind that has more than one of everything."""
    t = transformers
    timm16 = {**TINY_TIMM, "img_size": 32, "patch_size": 8}
    timm14 = {**TINY_TIMM, "img_size": 56}
    return {
        "timm_cls": timm_family("vit_tiny_patch16_224", other=24, **timm16),
        "timm_mean": timm_family("vit_tiny_patch16_224", other=48, global_pool="avg", **timm16),
        "timm_dinov2": timm_family("vit_small_patch14_dinov2", other=42, **timm14),
        "timm_registers": timm_family("vit_small_patch14_reg4_dinov2", other=42, **timm14),
        "timm_clip": timm_family("vit_base_patch16_clip_quickgelu_224", other=24, **timm16),
        "timm_siglip": timm_family("vit_base_patch16_siglip_224", other=48, **timm16),
        "timm_dinov2_gated": timm_family("vit_giant_patch14_dinov2", other=42, **timm14),
        "timm_aimv2": timm_family("aimv2_large_patch14_224", other=42, **timm14),
        "pe_core": timm_family("vit_pe_core_base_patch16_224", other=24, **PE_CORE, **timm16),
        "pe_core_projected": timm_family(
            "vit_pe_core_large_patch14_336", other=42, **PE_CORE, **timm14, num_classes=1024
        ),
        "timm_dinov3": timm_family("vit_small_patch16_dinov3_qkvb", other=48, **timm16),
        "timm_dinov3_gated": timm_family("vit_small_plus_patch16_dinov3", other=48, **timm16),
        "eva": timm_family("eva_giant_patch14_224", other=42, **timm14),
        "eva02_fused": timm_family("eva02_tiny_patch14_224", other=42, **timm14),
        "eva02_split": timm_family("eva02_base_patch14_224", other=84, **timm14),
        "resnet": timm_family("resnet50", other=50, side=64, **RESNET),
        "resnet_basic": timm_family("resnet18", other=96, side=64, **RESNET),
        "resnet_grouped": timm_family("resnext50_32x4d", other=33, side=64, **RESNET),
        "dinov2": hf_family(t.Dinov2Model, t.Dinov2Config(**DINOV2), cls, **SIZES14),
        "dinov2_gated": hf_family(
            t.Dinov2Model, t.Dinov2Config(**DINOV2, use_swiglu_ffn=True), cls, **SIZES14
        ),
        "dinov2_registers": hf_family(
            t.Dinov2WithRegistersModel,
            t.Dinov2WithRegistersConfig(**DINOV2 | REGISTERS),
            cls,
            **SIZES14,
        ),
        # The class decides how positions are resized, not the number of registers.
        "dinov2_no_registers": hf_family(
            t.Dinov2WithRegistersModel,
            t.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=0),
            cls,
            **SIZES14,
        ),
        "dinov3": hf_family(
            t.DINOv3ViTModel, t.DINOv3ViTConfig(**VISION16, **REGISTERS), cls, **SIZES16
        ),
        "dinov3_gated": hf_family(
            t.DINOv3ViTModel,
            t.DINOv3ViTConfig(**VISION16, use_gated_mlp=True, hidden_act="silu"),
            cls,
            **SIZES16,
        ),
        "dinov3_convnext": hf_family(
            t.DINOv3ConvNextModel,
            t.DINOv3ConvNextConfig(**CONVNEXT, image_size=64),
            pooled,
            resolution=64,
            other=96,
        ),
        "clip": hf_family(t.CLIPModel, CLIP, clip, **SIZES16),
        "clip_vision": hf_family(
            t.CLIPVisionModelWithProjection,
            t.CLIPVisionConfig(**VISION16, projection_dim=24),
            clip,
            **SIZES16,
        ),
        "clip_tower": hf_family(
            t.CLIPVisionModel,
            t.CLIPVisionConfig(**VISION16),
            tower,
            **SIZES16,
        ),
        "siglip": hf_family(t.SiglipModel, SIGLIP, tower, **SIZES16),
        "siglip_vision": hf_family(
            t.SiglipVisionModel, t.SiglipVisionConfig(**VISION16), tower, **SIZES16
        ),
        # Two pixels of each side are left over, as in SigLIP's patches of 14 px in 384.
        "siglip_uneven": hf_family(
            t.SiglipVisionModel,
            t.SiglipVisionConfig(**VISION16 | {"image_size": 34}),
            tower,
            resolution=34,
            other=48,
        ),
        "aimv2": hf_family(
            t.Aimv2Model,
            t.Aimv2Config(vision_config=AIMV2, text_config=TINY_TEXT, projection_dim=24),
            aimv2,
            **SIZES16,
        ),
        "aimv2_biases": hf_family(
            t.Aimv2VisionModel,
            t.Aimv2VisionConfig(**AIMV2 | {"hidden_act": "gelu"}, qkv_bias=True, mlp_bias=True),
            aimv2,
            **SIZES16,
        ),
        "aimv2_headless": hf_family(
            t.Aimv2VisionModel, t.Aimv2VisionConfig(**AIMV2, use_head=False), aimv2, **SIZES16
        ),
        "aimv2_native": hf_family(
            t.Aimv2VisionModel,
            t.Aimv2VisionConfig(**AIMV2, use_head=False, is_native=True),
            aimv2,
            **SIZES16,
        ),
        "siglip_headless": hf_family(
            t.SiglipVisionModel,
            t.SiglipVisionConfig(**VISION16, vision_use_head=False),
            mean,
            **SIZES16,
        ),
        # Their epsilon is 1e-12, which counts beside small variances only.
        "vit": hf_family(t.ViTModel, t.ViTConfig(**VISION16), cls_resized, **SIZES16, quiet=1e-4),
        "ijepa": hf_family(t.IJepaModel, t.IJepaConfig(**VISION16), mean, **SIZES16, quiet=1e-4),
        "vit_unbiased": hf_family(
            t.ViTModel, t.ViTConfig(**VISION16, qkv_bias=False), cls_resized, **SIZES16
        ),
        "vit_mae": hf_family(
            t.ViTMAEForPreTraining,
            t.ViTMAEConfig(
                **VISION16,
                mask_ratio=0.0,
                decoder_hidden_size=16,
                decoder_num_hidden_layers=1,
                decoder_num_attention_heads=2,
                decoder_intermediate_size=16,
            ),
            base(cls_resized),
            **SIZES16,
            quiet=1e-4,
        ),
    }


def task_families() -> dict[str, Family]:
    """Upstream's models for a task: the same backbones, with heads that are left out."""
    t = transformers
    return {
        "dinov2_classifier": hf_family(
            t.Dinov2ForImageClassification, t.Dinov2Config(**DINOV2), base(cls), **SIZES14
        ),
        "dinov2_registers_classifier": hf_family(
            t.Dinov2WithRegistersForImageClassification,
            t.Dinov2WithRegistersConfig(**DINOV2 | REGISTERS),
            base(cls),
            **SIZES14,
        ),
        "clip_classifier": hf_family(t.CLIPForImageClassification, CLIP, tower, **SIZES16),
        "siglip_classifier": hf_family(t.SiglipForImageClassification, SIGLIP, tower, **SIZES16),
        "ijepa_classifier": hf_family(
            t.IJepaForImageClassification, t.IJepaConfig(**VISION16), base(mean), **SIZES16
        ),
        "vit_classifier": hf_family(
            t.ViTForImageClassification, t.ViTConfig(**VISION16), base(cls_resized), **SIZES16
        ),
        "vit_masked": hf_family(
            t.ViTForMaskedImageModeling, t.ViTConfig(**VISION16), base(cls_resized), **SIZES16
        ),
        "vit_mae_encoder": hf_family(
            t.ViTMAEModel, t.ViTMAEConfig(**VISION16, mask_ratio=0.0), cls_resized, **SIZES16
        ),
    }


def draw(count: int, side: int, patch: int = 1) -> np.ndarray:
    """Images of noise, in squares of `patch` pixels: the mean of many small ones is always grey."""
    cells = -(-side // patch)
    noise = np.random.default_rng(count).uniform(size=(count, cells, cells, 3)).astype(np.float32)
    return noise.repeat(patch, axis=1).repeat(patch, axis=2)[:, :side, :side].copy()


def relative_error(ours: Any, theirs: torch.Tensor) -> float:
    theirs = theirs.detach().numpy()
    assert np.asarray(ours).shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def compare(
    backbone: backbones.Backbone,
    run: Callable[[torch.Tensor], torch.Tensor],
    count: int,
    patch: int = 1,
) -> tuple[float, float]:
    """Relative errors of the features, and of the image gradient under random cotangents.

    Args:
        backbone: Ours.
        run: Upstream's, from normalised channels-first pixels.
        count: Number of images.
        patch: Of the images; see `draw`.
    """
    images = draw(count, backbone.resolution, patch)
    weights = np.random.default_rng(9).normal(size=(count, backbone.feature_dim)).astype("f4")

    @jax.jit
    def ours(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def weighted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            features = backbone.apply(params, x)
            return jnp.sum(features * weights), features

        return jax.grad(weighted, has_aux=True)(x)

    gradient, features = ours(backbone.params, jnp.asarray(images))
    leaf = torch.from_numpy(images).requires_grad_()
    mean, std = map(torch.tensor, dataclasses.astuple(backbone.settings.preprocessing))
    expected = run(((leaf - mean) / std).permute(0, 3, 1, 2))
    (expected_gradient,) = torch.autograd.grad((expected * torch.from_numpy(weights)).sum(), leaf)
    # Images are told apart.
    assert count == 1 or expected.std(dim=0).mean() > 1e-3 * expected.abs().max()
    return relative_error(features, expected), relative_error(gradient, expected_gradient)
