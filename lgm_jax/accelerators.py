"""Accelerators by name: published figures, and devices that a compiler takes for present ones."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from lgm_jax.errors import UserError, unknown_name


class Accelerator(NamedTuple):
    """One device, with published figures: peaks of dense matrix products in 10^12 FLOP/s.

    Attributes:
        platform: JAX's name of its kind, `tpu` or `gpu`.
        rounded: Peak with float32 operands that are rounded, as they are by default: to bfloat16 on
            TPUs, to TF32 on GPUs.
        float32: Peak with float32 operands that are not; TPUs make six bfloat16 products of one.
        memory: Bytes that programs may take: of TPUs what XLA's compiler says; of GPUs three
            quarters of what there is, which JAX takes hold of by default.
        bandwidth: Of the memory, in 10^9 bytes a second.
    """

    platform: str
    bfloat16: float
    rounded: float
    float32: float
    memory: int
    bandwidth: float

    def peak(self, dtype: str, exact: bool) -> float:
        """Peak of products of one type, in FLOP/s."""
        if dtype != "float32":
            return 1e12 * self.bfloat16
        return 1e12 * (self.float32 if exact else self.rounded)


ACCELERATORS: Mapping[str, Accelerator] = {
    # cloud.google.com/tpu/docs/v4 and so on: peak compute per chip, HBM bandwidth per chip.
    "v4": Accelerator("tpu", 275.0, 275.0, 275.0 / 6, int(30.75 * 2**30), 1200.0),
    "v5e": Accelerator("tpu", 197.0, 197.0, 197.0 / 6, int(15.75 * 2**30), 819.0),
    "v5p": Accelerator("tpu", 459.0, 459.0, 459.0 / 6, int(95.74 * 2**30), 2765.0),
    "v6e": Accelerator("tpu", 918.0, 918.0, 918.0 / 6, int(31.25 * 2**30), 1638.0),
    # NVIDIA's data sheets of A100 80 GB SXM, H100 SXM and H200 SXM, without sparsity; memory as in
    # the descriptions in `gpus/`.
    "a100": Accelerator("gpu", 312.0, 156.0, 19.5, int(0.75 * 85_100_068_864), 2039.0),
    "h100": Accelerator("gpu", 989.0, 495.0, 67.0, int(0.75 * 84_929_347_584), 3352.0),
    "h200": Accelerator("gpu", 989.0, 495.0, 67.0, int(0.75 * 151_397_597_184), 4800.0),
}

# Environment variables that libtpu needs on a machine without TPUs, or without a right to them.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# Without a GPU, no kernel can be tried.
_GPU_OPTIONS = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": "False"}


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """Devices to compile for, which this process does not have, and options of their compiler."""

    accelerator: Accelerator
    devices: Sequence[jax.Device]
    options: Mapping[str, str]


def find(name: str) -> Topology:
    """Devices by name: `v5e:2x4` and `v5p:2x2x2` as Google calls them, `h100:8`, `h100:2x8` hosts.

    JAX may not have begun to work in the process yet, whose own devices become CPUs.
    """
    kind, _, shape = name.lower().partition(":")
    if kind not in ACCELERATORS:
        raise unknown_name("accelerator", kind, list(ACCELERATORS))
    is_tpu = ACCELERATORS[kind].platform == "tpu"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        example = "2x4" if is_tpu else "8"
        raise UserError(f"--plan_topology={name} has no shape; for example {kind}:{example}")
    sides = [int(side) for side in shape.split("x")]
    if not is_tpu and len(sides) > 2:
        raise UserError(f"--plan_topology={name}: GPUs are {kind}:COUNT or {kind}:HOSTSxCOUNT")
    try:
        devices = _tpus(kind, sides) if is_tpu else _gpus(kind, sides)
    except jax.errors.JaxRuntimeError as error:
        said = str(error).split("\n")[0]
        raise UserError(f"there is no topology {name}: {said}") from error
    except (RuntimeError, NotImplementedError, ImportError) as error:
        extra = "tpu" if is_tpu else "cuda12"
        raise UserError(
            f"no compiler for {name} is installed: pip install 'lgm_jax[{extra}]'"
        ) from error
    return Topology(ACCELERATORS[kind], devices, {} if is_tpu else _GPU_OPTIONS)


def on_cpu() -> None:
    """Makes CPUs of this process's devices, and says to libtpu what it would ask for."""
    config: Any = jax.config
    config.update("jax_platforms", "cpu")
    # Programs for devices that are not here could be kept, and not be read back.
    config.update("jax_enable_compilation_cache", False)
    for name, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _tpus(kind: str, sides: Sequence[int]) -> Sequence[jax.Device]:
    # Hosts have four chips, or as many as there are.
    bounds = tuple(min(side, most) for side, most in zip([*sides, 1, 1], (2, 2, 1), strict=False))
    # A v4 chip has two cores and is one device.
    named = {"chip_config_name": "megacore"} if kind == "v4" else {}
    shape = "x".join(map(str, sides))
    return topologies.get_topology_desc(
        f"{kind}:{shape}", platform="tpu", chips_per_host_bounds=bounds, **named
    ).devices


def _gpus(kind: str, sides: Sequence[int]) -> Sequence[jax.Device]:
    # The GPU as XLA's compiler knows it.
    description = (resources.files("lgm_jax") / "gpus" / f"{kind}.txtpb").read_text()
    hosts, each = (1, *sides)[-2:]
    return topologies.get_topology_desc(
        platform="cuda", target_config=description, topology=f"1x{hosts}x{each}"
    ).devices
