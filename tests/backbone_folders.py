"""Changing the folder of a backbone, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lgm_jax.backbones import load
from lgm_jax.errors import UserError


def draw_images(n: int, resolution: int = 16) -> jax.Array:
    shape = (n, resolution, resolution, 3)
    return jnp.asarray(np.random.default_rng(0).uniform(size=shape), jnp.float32)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_model_args(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, model_args=config["model_args"] | changes)


def edit_tensors(folder: Path, remove=(), add=None) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    kept = {key: value for key, value in tensors.items() if key not in remove}
    safetensors.numpy.save_file(kept | (add or {}), path)


def assert_refused(folder: Path | str, *words: str) -> None:
    """One line that holds every word."""
    with pytest.raises(UserError) as info:
        load(folder)
    message = str(info.value)
    for word in words:
        assert word in message
    assert "\n" not in message
