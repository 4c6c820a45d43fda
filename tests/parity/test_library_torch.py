"""The PyTorch example of the page on the library, executed."""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lgm_jax import backbones
from lgm_jax.distilled import save_distilled

ROOT = Path(__file__).parents[2]


def test_torch_example_learns_the_images(tmp_path, monkeypatch):
    (code,) = (
        code
        for code in re.findall(
            r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), flags=re.DOTALL
        )
        if "import timm" in code
    )
    images = np.random.default_rng(0).uniform(size=(10, 32, 32, 3)).astype(np.float32)
    labels = np.arange(10, dtype=np.int32)
    (tmp_path / "lgm_jax").symlink_to(ROOT / "lgm_jax")
    save_distilled(tmp_path / "runs/quickstart/distilled", images, labels, list("abcdefghij"))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)

    predicted = names["head"](names["features"]).argmax(dim=1).numpy()
    assert np.mean(predicted == labels) == 1.0
    backbone = backbones.load("digits_contrastive")
    ours = backbone.apply(backbone.params, jnp.asarray(images))
    theirs = names["features"].numpy()
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()  # measured: 1.8e-7
