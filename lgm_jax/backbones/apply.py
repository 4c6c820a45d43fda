"""Pure functions of a network's shape: its parameters' shapes, and `apply(params, images)`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from lgm_jax.backbones import families
from lgm_jax.backbones.attention import AttentionKernel
from lgm_jax.backbones.network import Network, Preprocessing
from lgm_jax.backbones.residuals import Residuals
from lgm_jax.errors import UserError

DTYPES: Mapping[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def abstract_module(
    spec: Network, dtype: Any = jnp.float32, kernel: AttentionKernel = "xla"
) -> tuple[nnx.GraphDef, dict[str, tuple[int, ...]]]:
    """The module's definition and its parameters' shapes by path, without allocating any."""
    make: Any = families.family_of(spec).module
    options = {"kernel": kernel} if spec.heads else {}
    module = nnx.eval_shape(lambda: make(spec, dtype=dtype, rngs=nnx.Rngs(0), **options))
    definition, state = nnx.split(module)
    leaves = flatten_dict(nnx.to_pure_dict(state), sep="/")
    return definition, {path: leaf.shape for path, leaf in leaves.items()}


def abstract_params(spec: Network, dtype: Any = jnp.float32) -> Any:
    """Parameters as shapes and types, nested as `apply` takes them."""
    shapes = abstract_module(spec)[1]
    leaves = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}
    return unflatten_dict(leaves, sep="/")


def make_apply(
    definition: nnx.GraphDef,
    spec: Network,
    statistics: Preprocessing,
    dtype: Any = jnp.float32,
    side: int = 0,
) -> Callable[..., Float[Array, "n d"]]:
    """Binds a module's definition into a pure `apply(params, images)`.

    Where the module knows several ways to keep what its gradient needs, `apply` takes `residuals`.
    Images of `side` pixels, if it is not 0, are resized to the side of the spec by a bilinear
    filter, antialiased where it shrinks them.
    """
    # Accelerators round the operands of float32 products unless told not to: who asks for float32
    # gets it, who wants speed asks for bfloat16.
    precision = "highest" if dtype == jnp.float32 else "default"
    taken = side or spec.resolution

    def plain(params: Any, images: Float[Array, "n h w 3"], *options: Any) -> Float[Array, "n d"]:
        if images.shape[1:] != (taken, taken, 3):
            raise UserError(
                f"the backbone takes images of {taken} x {taken} x 3, "
                f"not {' x '.join(map(str, images.shape[1:]))}: set images.crop"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"the backbone takes floats in [0, 1], not {images.dtype}")
        images = images.astype(jnp.float32)
        mean = jnp.asarray(statistics.mean, jnp.float32).reshape(1, 1, 1, 3)
        std = jnp.asarray(statistics.std, jnp.float32).reshape(1, 1, 1, 3)
        with jax.default_matmul_precision(precision):
            if taken != spec.resolution:
                shape = (len(images), spec.resolution, spec.resolution, 3)
                images = jax.image.resize(images, shape, "linear")
            module = nnx.merge(definition, nnx.State(params))
            features = module((images - mean) / std, *options)
        return features.astype(jnp.float32)

    def choosing(
        params: Any, images: Float[Array, "n h w 3"], residuals: Residuals = "all"
    ) -> Float[Array, "n d"]:
        return plain(params, images, residuals)

    module = families.family_of(spec).module
    chooses = "residuals" in inspect.signature(module.__call__).parameters
    return choosing if chooses else plain


@functools.cache
def shared_apply(
    spec: Network, statistics: Preprocessing, dtype: str, kernel: AttentionKernel, side: int = 0
) -> Callable[..., Any]:
    """Returns one `make_apply` for all runs of a process, so that programs are compiled once."""
    definition, _ = abstract_module(spec, DTYPES[dtype], kernel)
    return make_apply(definition, spec, statistics, DTYPES[dtype], side)
