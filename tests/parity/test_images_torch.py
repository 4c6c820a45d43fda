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


def test_adam_across_growth_is_torchs_created_anew(monkeypatch):
    """The gradients are given; what the step makes of them is what is compared."""
    grow_every, steps, rate = 4, 11, 0.01
    made = images.Pyramid(8, grow_every=grow_every)
    task = distill.Distillation(2, made, 8, optimizer=optax.adam(rate))
    key = jax.random.key(0)
    rng = np.random.default_rng(0)

    def draw(step: int) -> list[np.ndarray]:
        """A gradient of every level, from below Adam's epsilon to far above; zero if inactive."""
        shapes = [(2, size, size, 3) for size in made.sizes]
        active = made.num_active(step)
        return [
            (rng.normal(size=shape) * 10 ** rng.uniform(-9, 0, shape) * (i < active)).astype("f4")
            for i, shape in enumerate(shapes)
        ]

    gradients = [draw(step) for step in range(steps)]

    def make_linear_loss(*arguments, **named):
        def loss(params, step, backbone_params, real):
            return sum(jnp.sum(a * b) for a, b in zip(params["images"], real, strict=True))

        return loss

    monkeypatch.setattr(distill, "make_loss", make_linear_loss)
    step = jax.jit(distill.make_step(task, [], key).function)
    state = distill.init_state(task, key)

    def parameter(value) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.tensor(np.asarray(value)))

    theirs = [parameter(state.params["images"][0])]
    optimizer = torch.optim.Adam(theirs, lr=rate)
    for number in range(steps):
        if number in (grow_every, 2 * grow_every):
            count = len(theirs)
            theirs = [parameter(level.detach() * count / (count + 1)) for level in theirs]
            drawn = jax.random.fold_in(jax.random.fold_in(key, distill.GROW), number)
            grown = made.grow(drawn, state.params["images"], number)
            theirs.append(parameter(grown[count]))
            assert theirs[-1].std() > 0.5 / (count + 1)  # The new level is drawn.
            optimizer = torch.optim.Adam(theirs, lr=rate)
        for level, gradient in zip(theirs, gradients[number], strict=False):
            level.grad = torch.from_numpy(gradient)
        optimizer.step()
        state, _ = step(state, [], tuple(map(jnp.asarray, gradients[number])))
        levels = state.params["images"]
        for ours, level in zip(levels, theirs, strict=False):
            np.testing.assert_allclose(ours, level.detach(), rtol=0, atol=1e-6)  # 3.6e-7
        assert all(not np.any(level) for level in levels[len(theirs) :])
    assert len(theirs) == 3
