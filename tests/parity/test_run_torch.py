"""A whole distillation against the paper's section 3 as a PyTorch user would write it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F

from lgm_jax import distill, objectives
from lgm_jax.images import Pyramid

CLASSES, SIDE, HIDDEN, FEATURES = 3, 12, 16, 6
TASK = distill.Distillation(
    num_classes=CLASSES,
    parametrisation=Pyramid(SIDE, start_resolution=2, grow_every=3),
    crop=SIDE,
    ipc=2,
    copies=1,
    augmentation=None,
    optimizer=optax.adam(0.05),
)
STEPS, GROWTHS = 11, (3, 6, 9)


def render(levels: list[torch.Tensor]) -> torch.Tensor:
    """Channels-first levels to channels-last images."""
    total = sum(
        F.interpolate(level, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        for level in levels
    )
    color = [[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]
    color = torch.tensor(color, dtype=torch.float64)
    color = color / color.norm(dim=0).max()
    return torch.sigmoid(2 * total.movedim(1, -1) @ color.T)


def head_gradient(kernel: np.ndarray, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    weight = torch.tensor(kernel.T, requires_grad=True)
    bias = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(F.linear(features, weight, bias), labels)
    parts = torch.autograd.grad(loss, (weight, bias), create_graph=True)
    return torch.cat([part.flatten() for part in parts])


def make_parameter(level: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(np.moveaxis(np.asarray(level), -1, 1)))


def test_a_whole_run_is_pytorchs(x64, monkeypatch):
    """Rendering, objective, Adam and its new start at every growth, step by step.

    In float64, since Adam turns the rounding of a vanishing gradient into a step of full length.
    What is random is taken away or handed over: augmentation, heads, and the new levels.
    """
    rng = np.random.default_rng(0)
    # Black or white: quotients by 255 are float32, and rounded in more ways than one.
    pixels = 255 * rng.integers(0, 2, (9, SIDE, SIDE, 3)).astype(np.uint8)
    labels = np.arange(9, dtype=np.int32) % CLASSES
    inputs = SIDE**2 * 3
    first = 3 * rng.normal(size=(inputs, HIDDEN)) / inputs**0.5
    second = rng.normal(size=(HIDDEN, FEATURES))
    kernel = rng.normal(size=(FEATURES, CLASSES))
    head = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(CLASSES)}
    monkeypatch.setattr(objectives, "init_head", lambda *arguments: head)

    def apply(params, images):
        return jnp.tanh(images.reshape(len(images), -1) @ params[0]) @ params[1]

    def torch_apply(images):
        return torch.tanh(images.flatten(1) @ torch.tensor(first)) @ torch.tensor(second)

    key = jax.random.key(0)
    numbers = jnp.arange(9, dtype=jnp.int32)

    def widen(leaf):
        return leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf

    params = jnp.asarray(first), jnp.asarray(second)
    everything = objectives.Features(
        apply(params, jnp.asarray(pixels / 255)),
        jnp.asarray(labels),
        jnp.ones(9),
        numbers,
        jnp.zeros_like(numbers),
        CLASSES,
    )
    step = jax.jit(distill.make_step(TASK, [apply], key).function)
    start = state = jax.tree.map(widen, distill.init_state(TASK, key))

    real = torch_apply(torch.from_numpy(pixels / 255))
    labels_real = torch.from_numpy(labels).long()
    labels_syn = torch.arange(CLASSES).repeat_interleave(2)
    theirs = [make_parameter(level) for level in start.params["images"][:2]]
    adam = torch.optim.Adam(theirs, lr=0.05)
    for number in range(STEPS):
        if number in GROWTHS:
            count = len(theirs)
            theirs = [torch.nn.Parameter(x.detach() * (count / (count + 1))) for x in theirs]
            drawn = jax.random.fold_in(jax.random.fold_in(key, distill.GROW), number)
            grown = TASK.parametrisation.grow(drawn, state.params["images"], number)
            theirs.append(make_parameter(grown[count]))
            adam = torch.optim.Adam(theirs, lr=0.05)
        adam.zero_grad()
        synthetic = head_gradient(kernel, torch_apply(render(theirs)), labels_syn)
        target = head_gradient(kernel, real, labels_real).detach()
        expected = 1 - F.cosine_similarity(synthetic, target, dim=0)
        expected.backward()
        adam.step()
        state, metrics = step(state, [params], [everything])
        # Measured: 4e-14, of losses and of parameters of size 1.
        np.testing.assert_allclose(metrics["loss"], expected.item(), rtol=0, atol=1e-11)
        for ours, level in zip(state.params["images"], theirs, strict=False):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(
                ours, np.moveaxis(level.detach().numpy(), 1, -1), rtol=0, atol=1e-11
            )
    assert len(theirs) == len(state.params["images"]) == 5
