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
STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25]}

_READS_THE_STREAM = (
    *("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value", "in_proj"),
    *("fc1", "up_proj", "gate_proj", "intermediate", "weights_in"),
)
_SCALES = ("norm", "layrnorm", "gamma", "lambda", "scale")


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    Attributes:
        make: Makes a model.
        save: Saves it to a folder as upstream does.
        features: `features(model, pixels)`: pixels (b, 3, r, r) normalised, at any resolution.
        resolution: Side of the images that it is made for, in pixels.
        other: Another side.
    """

    make: Callable[[], Model]
    save: Callable[[Model, Path], None]
    features: Callable[[Model, torch.Tensor], torch.Tensor]
    resolution: int
    other: int

    def build(self, folder: Path) -> Model:
        """A random model, saved to a folder."""
        model = randomize(self.make())
        self.save(model, folder)
        return model


def randomize(model: Model, seed: int = 0) -> Model:
    """Weights under which a wrong activation, epsilon, rotation or filter shows.

    What writes to the residual stream is small, so that an epsilon counts beside its variance;
    what reads from it is large, so that attention is peaked and the MLP works where activations
    differ. Positions are as large as what they are added to.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            parts = name.split(".")
            if name.endswith("position_embedding.weight"):
                value.copy_(0.03 * noise)
            elif value.ndim == 1:
                is_scale = any(word in name for word in _SCALES) and parts[-1] != "bias"
                value.copy_(1 + 0.3 * noise if is_scale else 0.03 * noise)
            elif value.ndim == 2 or value.ndim == 4:
                reads = any(word in part for part in parts[-3:] for word in _READS_THE_STREAM)
                value.copy_((2.0 if reads else 0.03) * noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.03 * noise)
    return model.eval()


def save_timm(model: Model, folder: Path, architecture: str, arguments: Mapping[str, Any]) -> None:
    """What timm's users publish, without the parts that depend on a hub."""
    folder.mkdir(parents=True)
    config = {
        "architecture": architecture,
        "model_args": dict(arguments),
        "pretrained_cfg": STATISTICS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")


def timm_family(architecture: str, *, other: int, **arguments: Any) -> Family:
    arguments = {"num_classes": 0} | arguments

    def make() -> Model:
        # At another size the same weights are to be used as timm itself resizes them.
        return timm.create_model(architecture, **arguments, dynamic_img_size=True)

    def save(model: Model, folder: Path) -> None:
        save_timm(model, folder, architecture, arguments)

    return Family(make, save, lambda model, pixels: model(pixels), arguments["img_size"], other)


def hf_family(
    model_class: type[Model],
    config: transformers.PreTrainedConfig,
    features: Callable[[Model, torch.Tensor], torch.Tensor],
    *,
    resolution: int,
    other: int,
) -> Family:
    def save(model: Model, folder: Path) -> None:
        model.save_pretrained(folder)
        names = {"image_mean": STATISTICS["mean"], "image_std": STATISTICS["std"]}
        (folder / "preprocessor_config.json").write_text(json.dumps(names))

    return Family(lambda: model_class(config), save, features, resolution, other)


def cls(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels).last_hidden_state[:, 0]


def cls_resized(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]


def mae(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    # Nothing is masked, so the shuffle of the patches does not reach the class token.
    return cls_resized(model.vit, pixels)


def clip(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    pooled = model.vision_model(pixels, interpolate_pos_encoding=True).pooler_output
    return model.visual_projection(pooled)


def siglip(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    tower = getattr(model, "vision_model", model)
    return tower(pixels, interpolate_pos_encoding=True).pooler_output


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_MLP = {"intermediate_size": 64}
TINY_TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 4}
TINY_TEXT = {
    **TINY,
    **TINY_MLP,
    "vocab_size": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def tiny_families() -> dict[str, Family]:
    """The smallest of each kind that has more than one of everything."""
    t = transformers
    vision16 = {**TINY, **TINY_MLP, "image_size": 32, "patch_size": 8}
    sizes16 = {"resolution": 32, "other": 48}
    timm16 = {**TINY_TIMM, "img_size": 32, "patch_size": 8}
    timm14 = {**TINY_TIMM, "img_size": 56}
    dinov2 = {**TINY, "image_size": 56, "patch_size": 14, "mlp_ratio": 2}
    registers = {"num_register_tokens": 2}
    sizes14 = {"resolution": 56, "other": 42}
    whole_clip = t.CLIPConfig(vision_config=vision16, text_config=TINY_TEXT, projection_dim=24)
    return {
        "timm_cls": timm_family("vit_tiny_patch16_224", other=24, **timm16),
        "timm_mean": timm_family("vit_tiny_patch16_224", other=48, global_pool="avg", **timm16),
        "timm_dinov2": timm_family("vit_small_patch14_dinov2", other=42, **timm14),
        "timm_registers": timm_family("vit_small_patch14_reg4_dinov2", other=42, **timm14),
        "timm_clip": timm_family("vit_base_patch16_clip_quickgelu_224", other=24, **timm16),
        "eva02_fused": timm_family("eva02_tiny_patch14_224", other=42, **timm14),
        "eva02_split": timm_family("eva02_base_patch14_224", other=84, **timm14),
        "dinov2": hf_family(t.Dinov2Model, t.Dinov2Config(**dinov2), cls, **sizes14),
        "dinov2_gated": hf_family(
            t.Dinov2Model, t.Dinov2Config(**dinov2, use_swiglu_ffn=True), cls, **sizes14
        ),
        "dinov2_registers": hf_family(
            t.Dinov2WithRegistersModel,
            t.Dinov2WithRegistersConfig(**dinov2 | registers),
            cls,
            **sizes14,
        ),
        "dinov3": hf_family(
            t.DINOv3ViTModel, t.DINOv3ViTConfig(**vision16, **registers), cls, **sizes16
        ),
        "dinov3_gated": hf_family(
            t.DINOv3ViTModel,
            t.DINOv3ViTConfig(**vision16, use_gated_mlp=True, hidden_act="silu"),
            cls,
            **sizes16,
        ),
        "clip": hf_family(t.CLIPModel, whole_clip, clip, **sizes16),
        "clip_vision": hf_family(
            t.CLIPVisionModelWithProjection,
            t.CLIPVisionConfig(**vision16, projection_dim=24),
            clip,
            **sizes16,
        ),
        "clip_tower": hf_family(
            t.CLIPVisionModel,
            t.CLIPVisionConfig(**vision16),
            lambda model, pixels: model(pixels, interpolate_pos_encoding=True).pooler_output,
            **sizes16,
        ),
        "siglip": hf_family(
            t.SiglipModel,
            t.SiglipConfig(vision_config=vision16, text_config=TINY_TEXT),
            siglip,
            **sizes16,
        ),
        "siglip_vision": hf_family(
            t.SiglipVisionModel, t.SiglipVisionConfig(**vision16), siglip, **sizes16
        ),
        "vit": hf_family(t.ViTModel, t.ViTConfig(**vision16), cls_resized, **sizes16),
        "vit_mae": hf_family(
            t.ViTMAEForPreTraining,
            t.ViTMAEConfig(
                **vision16,
                mask_ratio=0.0,
                decoder_hidden_size=16,
                decoder_num_hidden_layers=1,
                decoder_num_attention_heads=2,
                decoder_intermediate_size=16,
            ),
            mae,
            **sizes16,
        ),
    }


def draw(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(count).uniform(size=(count, side, side, 3)).astype(np.float32)


def relative_error(ours: Any, theirs: torch.Tensor) -> float:
    theirs = theirs.detach().numpy()
    assert np.asarray(ours).shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def compare(
    backbone: backbones.Backbone,
    run: Callable[[torch.Tensor], torch.Tensor],
    count: int,
) -> tuple[float, float]:
    """Relative errors of the features, and of the image gradient under random cotangents.

    Args:
        backbone: Ours.
        run: Upstream's, from normalised channels-first pixels.
        count: Number of images.
    """
    images = draw(count, backbone.resolution)
    weights = np.random.default_rng(9).normal(size=(count, backbone.feature_dim)).astype("f4")

    @jax.jit
    def ours(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def weighted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            features = backbone.apply(params, x)
            return jnp.sum(features * weights), features

        return jax.grad(weighted, has_aux=True)(x)

    gradient, features = ours(backbone.params, jnp.asarray(images))
    leaf = torch.from_numpy(images).requires_grad_()
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    expected = run(((leaf - mean) / std).permute(0, 3, 1, 2))
    (expected_gradient,) = torch.autograd.grad((expected * torch.from_numpy(weights)).sum(), leaf)
    # Images are told apart.
    assert count == 1 or expected.std(dim=0).mean() > 1e-3 * expected.abs().max()
    return relative_error(features, expected), relative_error(gradient, expected_gradient)
