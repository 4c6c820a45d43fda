"""Rendering, and Adam across the growth of a pyramid, against PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

from lgm_jax import distill, images


def render(levels: list[torch.Tensor], resolution: int) -> torch.Tensor:
    """The authors' rendering of channels-first levels."""
    total = sum(
        F.interpolate(level, size=(resolution, resolution), mode="bilinear", align_corners=False)
        for level in levels
    )
    color = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    color = color / color.norm(dim=0).max()
    pixels = total.permute(0, 2, 3, 1).reshape(-1, 3) @ color.T
    pixels = pixels.reshape(len(total), resolution, resolution, 3)
    return torch.sigmoid(2 * pixels)


@pytest.mark.parametrize("resolution", [8, 12])
@pytest.mark.parametrize("active", [1, 3, None])
def test_decode_is_the_authors_rendering(resolution, active):
    rng = np.random.default_rng(resolution)
    sizes = images.level_sizes(resolution)
    # Inactive levels are not zero: they must not count.
    levels = [rng.normal(size=(2, size, size, 3)).astype(np.float32) for size in sizes]
    ours = images.decode(tuple(map(jnp.asarray, levels)), active)
    theirs = render(
        [torch.from_numpy(level).permute(0, 3, 1, 2) for level in levels[:active]], resolution
    )
    assert ours.dtype == jnp.float32
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # measured: 1.2e-7


def test_adam_across_growth_is_torchs_created_anew():
    grow_every, steps = 4, 11
    recipe = distill.Recipe(2, resolution=8, crop=8, learning_rate=0.01, grow_every=grow_every)
    key = jax.random.key(0)
    rng = np.random.default_rng(0)

    def draw(step: int) -> list[np.ndarray]:
        """A gradient of every level, from below Adam's epsilon to far above; zero if inactive."""
        shapes = [(2, size, size, 3) for size in recipe.sizes]
        active = recipe.num_active(step)
        return [
            (rng.normal(size=shape) * 10 ** rng.uniform(-9, 0, shape) * (i < active)).astype("f4")
            for i, shape in enumerate(shapes)
        ]

    gradients = [draw(step) for step in range(steps)]

    @jax.jit
    def step(state, params, gradient):
        optimizer = optax.adam(recipe.learning_rate)
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        levels = optax.apply_updates(state.levels, updates)
        return distill.State(state.step + 1, levels, opt_state), jnp.zeros(())

    grown = []

    def grow(state):
        grown.append(make(state))
        return grown[-1]

    make = jax.jit(distill.make_grow(recipe, key))
    start = distill.init_state(key, recipe)
    states = distill.run(
        step, grow, recipe, start, None, lambda i: tuple(map(jnp.asarray, gradients[i])), steps
    )

    def parameter(value) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.tensor(np.asarray(value)))

    theirs = [parameter(start.levels[0])]
    optimizer = torch.optim.Adam(theirs, lr=recipe.learning_rate)
    for number, (state, _) in enumerate(states):
        if number in (grow_every, 2 * grow_every):
            count = len(theirs)
            theirs = [parameter(level.detach() * count / (count + 1)) for level in theirs]
            theirs.append(parameter(grown[-1].levels[count]))
            assert theirs[-1].std() > 0.5 / (count + 1)  # The new level is drawn.
            optimizer = torch.optim.Adam(theirs, lr=recipe.learning_rate)
        for level, gradient in zip(theirs, gradients[number], strict=False):
            level.grad = torch.from_numpy(gradient)
        optimizer.step()
        for ours, level in zip(state.levels, theirs, strict=False):
            np.testing.assert_allclose(ours, level.detach(), rtol=0, atol=1e-6)  # 3.6e-7
        assert all(not np.any(level) for level in state.levels[len(theirs) :])
    assert len(grown) == 2
    assert len(theirs) == 3
