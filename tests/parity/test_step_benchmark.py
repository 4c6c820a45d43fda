"""`benchmarks/step.py` compares two programs that do the same."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ARGUMENTS = [
    *("--architecture=vit_tiny_patch16_224", "--classes=3", "--copies=2"),
    *("--resolution=36", "--crop=32", "--rounds=1", "--contenders=ours,authors"),
]


@pytest.fixture
def step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step

    yield step
    for name in ("step", "torch_step"):
        sys.modules.pop(name, None)


def test_contenders_have_the_same_work_and_are_compared(step, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step.py", *ARGUMENTS])
    options = step.parse()
    step.write_weights(options, tmp_path)
    ours = step.Ours(options, tmp_path, cached=False)
    theirs = step.Theirs(options, tmp_path, tuned=False)

    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    features = ours.backbone.apply(ours.backbone.params, jnp.asarray(images))
    with torch.no_grad():
        expected = theirs.step._embed(torch.from_numpy(np.moveaxis(images, -1, 1)))
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-4)
    # The same levels of the same images, and as many real ones.
    levels = ours.state.params["images"]
    assert [x.shape[1] for x in levels] == [x.shape[-1] for x in theirs.step.levels]
    assert len(theirs.step.real) == len(ours.split.labels) == 6

    contenders = {"ours": ours, "authors": theirs}
    before = [x.detach().clone() for x in theirs.step.levels]
    found = step.measure(
        {name: step.answering(contender) for name, contender in contenders.items()}, options
    )
    assert not torch.equal(before[-1], theirs.step.levels[-1])
    assert int(ours.state.step) == 3
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.all(jnp.isfinite(x))), ours.state))

    step.print_table(found, options)
    printed = capsys.readouterr().out
    for name in contenders:
        assert f"\n| {name} | " in printed
    ratio = found["ours"]["step"] / found["authors"]["step"]
    assert f"ours takes {ratio:.2f}x of authors" in printed
