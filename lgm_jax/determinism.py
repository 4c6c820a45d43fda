"""XLA's flags for results that are bit for bit the same on GPUs."""

from __future__ import annotations

from collections.abc import Mapping

from lgm_jax.errors import UserError

# No sums in the order in which threads finish, and no kernels chosen by how fast they just were:
# see the XLA documentation's page on determinism, and its flag definitions.
FLAGS: Mapping[str, str] = {"xla_gpu_deterministic_ops": "true", "xla_gpu_autotune_level": "0"}


def add_flags(flags: str) -> str:
    """Returns the content of `XLA_FLAGS` with the flags of determinism added.

    JAX reads that variable when it first asks for devices, and never again.
    """
    if flags.strip() and not flags.lstrip().startswith("-"):
        raise UserError(
            "config.deterministic cannot add to the file that XLA_FLAGS names: write its flags "
            "into XLA_FLAGS"
        )
    values = dict(flag.lstrip("-").partition("=")[::2] for flag in flags.split())
    for name, value in FLAGS.items():
        if values.get(name, value) != value:
            raise UserError(
                f"config.deterministic needs {name}={value}, but XLA_FLAGS has "
                f"{name}={values[name]}: take it out"
            )
    return " ".join([*flags.split(), *(f"--{name}={value}" for name, value in FLAGS.items())])
