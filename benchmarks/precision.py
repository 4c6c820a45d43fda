"""Errors of a backbone in bfloat16 on this device, of features and of their gradient.

    python benchmarks/precision.py dinov2_vitb14 dino_vitb16 dinov2_vitl14

Weights are random. What all is compared with is float32, with products in full. Prints a row for
each kernel of attention that the device has, and for what is kept for the gradient; an error is the
norm of the difference over that of what is right. The fused kernel should be no worse than XLA.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lgm_jax import backbones
from lgm_jax.backbones import attention, residuals, specs
from lgm_jax.backbones.vit import ViT
from lgm_jax.backbones.vit_spec import ViTSpec
from lgm_jax.compilation import Program


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", help="of `python -m lgm_jax.backbones`")
    parser.add_argument("--views", type=int, default=16, help="images [%(default)s]")
    parser.add_argument("--depth", type=int, help="blocks, to try this out [all]")
    options = parser.parse_args()
    print("| backbone | attention | kept | features | gradient |\n|---|---|---|---|---|")
    for name in options.names:
        spec = specs.NAMES[name].spec
        if not isinstance(spec, ViTSpec):
            raise SystemExit(f"error: {name} has no attention")
        compare(name, dataclasses.replace(spec, depth=options.depth or spec.depth), options.views)


def compare(name: str, spec: ViTSpec, views: int) -> None:
    """Prints the rows of a backbone."""
    params = nnx.to_pure_dict(nnx.state(ViT(spec, rngs=nnx.Rngs(0))))
    image_key, weight_key = jax.random.split(jax.random.key(1))
    images = jax.random.uniform(image_key, (views, spec.resolution, spec.resolution, 3))
    weights = jax.random.normal(weight_key, (views, spec.feature_dim))

    def run(dtype: Any, kernel: Any, kept: Any) -> tuple[jax.Array, jax.Array]:
        statistics = specs.NAMES[name].published.preprocessing
        apply: Any = backbones.make_apply(spec, statistics, dtype, kernel)

        def total(images: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
            features = apply(params, images, residuals=kept)
            return jnp.sum(weights * features), features

        own = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        gradient, features = Program(jax.grad(total, has_aux=True))(images, own)
        return features, gradient

    right = run(jnp.float32, "xla", "all")
    chosen = attention.choose_kernel("auto", spec, "bfloat16")
    for kernel in dict.fromkeys(("xla", chosen)):
        for kept in residuals.RESIDUALS:
            found = run(jnp.bfloat16, kernel, kept)
            errors = [
                float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))
                for one, other in zip(found, right, strict=True)
            ]
            cells = " | ".join(f"{error:.2e}" for error in errors)
            print(f"| {name} | {kernel} | {kept} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
