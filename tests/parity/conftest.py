"""Equality with PyTorch. Collected where PyTorch and timm are installed; see LGM_REQUIRE_PARITY."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from unittest import mock

import jax
import pytest

_MISSING = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]

if _MISSING and os.environ.get("LGM_REQUIRE_PARITY") == "1":
    raise ModuleNotFoundError(f"LGM_REQUIRE_PARITY=1, but these are missing: {_MISSING}")

collect_ignore_glob = ["test_*.py"] if _MISSING else []

# What timm imports from torchvision, and no Vision Transformer uses.
_TORCHVISION = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.utils",
)


def _import_timm() -> None:
    """Imports timm with torchvision as it is, without its compiled part, or without any.

    PyPI's torchvision is linked to CUDA: beside a CPU build of PyTorch its library does not load,
    and its Python part then stumbles over operators that the library would have declared.
    """
    if importlib.util.find_spec("torchvision") is None:
        stubs = {name: mock.MagicMock(name=name) for name in _TORCHVISION}
        stubs["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})
        sys.modules.update(stubs)
    else:
        _import_torchvision()
    import timm  # noqa: F401


def _import_torchvision() -> None:
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        # Kept on the function: the operators go when their library object does.
        _import_torchvision.library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _import_torchvision.library.define(
                f"{name}(Tensor dets, Tensor scores, float iou) -> Tensor"
            )
        import torchvision  # noqa: F401


if not _MISSING:
    _import_timm()


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX's 64-bit mode."""
    with jax.enable_x64(True):
        yield
