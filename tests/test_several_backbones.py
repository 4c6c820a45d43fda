"""The step of several backbones: the weighted sum of what each has."""

import jax
import numpy as np
import pytest
from distilling import KEY, TASK

from lgm_jax import distill, real
from lgm_jax.backbones import load


@pytest.mark.slow
def test_several_backbones_have_the_weighted_sum_of_gradients(vit, write_vit, tmp_path, colours):
    smaller = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    other = load(write_vit(tmp_path / "vit", seed=1, **smaller))
    both = (vit, other)
    features = real.streamed(both, colours, TASK, KEY)(0)
    assert [each.values.shape for each in features] == [(4, 16), (4, 8)]
    state = distill.init(TASK, KEY)
    given = state.params, state.step, [one.params for one in both], features

    def make_loss(*backbones, **arguments):
        applies = [one.apply for one in backbones]
        return distill.make_loss(TASK, applies, KEY, microbatch=3, **arguments)

    loss = make_loss(*both, weights=(0.75, 0.25))
    found = jax.jit(jax.value_and_grad(loss))(*given)
    parts = [
        jax.jit(jax.value_and_grad(make_loss(one)))(*given[:2], [one.params], [each])
        for one, each in zip(both, features, strict=True)
    ]
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, *parts)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for ours, theirs in zip(*(one[1]["images"] for one in (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    assert float(parts[0][0]) != float(parts[1][0])
    # All count alike where nothing is said.
    mean = jax.jit(make_loss(*both))(*given)
    np.testing.assert_allclose(mean, (parts[0][0] + parts[1][0]) / 2, rtol=1e-5)
