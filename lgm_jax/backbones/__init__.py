"""Frozen, pre-trained backbones: `load(name or folder)` gives pure functions of images.

Weights are safetensors files beside the `config.json` they were published with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lgm_jax.backbones import port, specs
from lgm_jax.backbones.vit import ViT, ViTSpec
from lgm_jax.errors import UserError, unknown_name

__all__ = ["Backbone", "load"]

_NORMALIZATIONS = ("native", "imagenet")
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen feature extractor.

    Attributes:
        name: Its registered name, or its folder's base name plus 8 digits of the weights' hash.
        apply: `apply(params, images) -> features`; images (n, r, r, 3) float32 in [0, 1], features
            (n, d) float32. Pure: the parameters are an argument, so that compiled code does not
            hold them as constants. Normalises the images with `mean` and `std` itself.
        params: Nested dict of float32 arrays.
        feature_dim: Number of features `d`.
        resolution: Side of the images it takes, in pixels.
        mean: Per-channel mean that `apply` subtracts.
        std: Per-channel standard deviation that `apply` divides by.
        sha256: Hash of the weights file.
        fingerprint: Changes when the weights, the architecture or the normalisation do.
    """

    name: str
    apply: Callable[[Any, Float[Array, "n h w 3"]], Float[Array, "n d"]]
    params: Any
    feature_dim: int
    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str
    fingerprint: str


def load(
    name_or_folder: str | Path, *, normalization: str = "native", dtype: str = "float32"
) -> Backbone:
    """Loads a backbone by registered name, or from a local folder in timm's format.

    Args:
        name_or_folder: A name (see `specs.NAMES`), or a folder that holds timm's `config.json`
            and `model.safetensors`.
        normalization: `native` normalises images with the statistics the weights were trained
            with, `imagenet` with ImageNet's, as the authors' code does for every backbone.
        dtype: What the backbone computes in, `float32` or `bfloat16`; features are float32.

    Raises:
        UserError: If the name is unknown, a file is missing or broken, or the weights do not fit.
    """
    name = str(name_or_folder)
    if normalization not in _NORMALIZATIONS:
        raise unknown_name("backbone.normalization", normalization, list(_NORMALIZATIONS))
    if dtype not in _DTYPES:
        raise unknown_name("backbone.dtype", dtype, list(_DTYPES))
    if name in specs.NAMES:
        folder = specs.NAMES[name].folder
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        raise unknown_name("backbone", name, list(specs.NAMES), "no such folder; known names")
    config = _read_config(folder)
    tensors, sha256 = _read_tensors(folder / "model.safetensors")
    spec, preprocessing = specs.from_timm(config)
    if normalization == "imagenet":
        preprocessing = specs.Preprocessing(specs.IMAGENET_MEAN, specs.IMAGENET_STD)
    definition, shapes = abstract_vit(spec, _DTYPES[dtype])
    params = port.import_params(port.timm_vit(spec), tensors, spec.depth, shapes)
    return Backbone(
        name=name if name in specs.NAMES else f"{folder.resolve().name}_{sha256[:8]}",
        apply=make_apply(definition, spec, preprocessing),
        params=jax.tree.map(jnp.asarray, params),
        feature_dim=spec.width,
        resolution=spec.resolution,
        mean=preprocessing.mean,
        std=preprocessing.std,
        sha256=sha256,
        fingerprint=hashlib.sha256(f"{sha256} {spec} {preprocessing} {dtype}".encode()).hexdigest(),
    )


def abstract_vit(
    spec: ViTSpec, dtype: Any = jnp.float32
) -> tuple[nnx.GraphDef, dict[str, tuple[int, ...]]]:
    """The module's definition and its parameters' shapes by path, without allocating any."""
    module = nnx.eval_shape(lambda: ViT(spec, dtype=dtype, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(module)
    shapes = {path: leaf.shape for path, leaf in port.flatten(nnx.to_pure_dict(state)).items()}
    return definition, shapes


def make_apply(
    definition: nnx.GraphDef, spec: ViTSpec, preprocessing: specs.Preprocessing
) -> Callable[[Any, Float[Array, "n h w 3"]], Float[Array, "n d"]]:
    """Binds a module's definition into a pure `apply(params, images)`."""

    def apply(params: Any, images: Float[Array, "n h w 3"]) -> Float[Array, "n d"]:
        if images.shape[1:] != (spec.resolution, spec.resolution, 3):
            raise UserError(
                f"the backbone takes images of {spec.resolution} x {spec.resolution} x 3, "
                f"not {' x '.join(map(str, images.shape[1:]))}: set images.crop"
            )
        mean = jnp.asarray(preprocessing.mean, images.dtype).reshape(1, 1, 1, 3)
        std = jnp.asarray(preprocessing.std, images.dtype).reshape(1, 1, 1, 3)
        features = nnx.merge(definition, nnx.State(params))((images - mean) / std)
        return features.astype(jnp.float32)

    return apply


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: a backbone folder needs timm's")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise UserError(f"{path} names no architecture: only timm's format is supported")
    return config


def _read_tensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    import safetensors
    import safetensors.numpy

    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}: weights are read from safetensors only")
    data = path.read_bytes()
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file: {error}") from error
    return tensors, hashlib.sha256(data).hexdigest()
