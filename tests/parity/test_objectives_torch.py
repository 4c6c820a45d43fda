"""The gradient-matching loss and its image gradient against double backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lgm_jax import objectives

CLASSES, SYNTHETIC, REAL, PIXELS, HIDDEN, FEATURES = 4, 6, 9, 27, 16, 10


def torch_loss(kernel, features_syn, labels_syn, features_real, labels_real):
    """One minus the cosine between the two heads' gradients, differentiable."""

    def head_gradient(features, labels):
        weight = kernel.T.clone().requires_grad_()
        bias = torch.zeros(len(weight), requires_grad=True)
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        parts = torch.autograd.grad(loss, (weight, bias), create_graph=True)
        return torch.cat([part.flatten() for part in parts])

    synthetic = head_gradient(features_syn, labels_syn)
    real = head_gradient(features_real, labels_real).detach()
    return 1 - F.cosine_similarity(synthetic, real, dim=0)


def draw_labels(rng, count, soft):
    if soft:
        return rng.dirichlet(np.ones(CLASSES), size=count).astype(np.float32)
    return rng.integers(CLASSES, size=count).astype(np.int32)


@pytest.mark.parametrize("soft", [False, True], ids=["int", "soft"])
@pytest.mark.parametrize("std", [0.01, 1.0])
def test_loss_and_image_gradient_are_double_backwards(soft, std):
    rng = np.random.default_rng(0)
    images_syn, images_real, first, second = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((SYNTHETIC, PIXELS), (REAL, PIXELS), (PIXELS, HIDDEN), (HIDDEN, FEATURES))
    )
    first /= PIXELS**0.5
    labels_syn, labels_real = (draw_labels(rng, count, soft) for count in (SYNTHETIC, REAL))
    head = objectives.init_head(jax.random.key(0), FEATURES, CLASSES, std)

    @jax.jit
    @jax.value_and_grad
    def ours(images):
        features_syn, features_real = (
            jnp.dot(jnp.tanh(jnp.dot(x, first, precision="highest")), second, precision="highest")
            for x in (images, jnp.asarray(images_real))
        )
        return objectives.gradient_matching_loss(
            head, features_syn, jnp.asarray(labels_syn), features_real, jnp.asarray(labels_real)
        )

    loss, gradient = ours(jnp.asarray(images_syn))

    leaf = torch.from_numpy(images_syn).requires_grad_()
    features_syn, features_real = (
        torch.tanh(x @ torch.from_numpy(first)) @ torch.from_numpy(second)
        for x in (leaf, torch.from_numpy(images_real))
    )
    labels = [
        torch.from_numpy(x if soft else x.astype(np.int64)) for x in (labels_syn, labels_real)
    ]
    kernel = torch.tensor(np.asarray(head["kernel"]))
    theirs = torch_loss(kernel, features_syn, labels[0], features_real, labels[1])
    (expected,) = torch.autograd.grad(theirs, leaf)

    assert 0.05 < theirs.item() < 1.95
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)  # measured: 2.4e-7
    error = np.abs(gradient - expected.numpy()).max() / expected.abs().max().item()
    assert error <= 1e-4  # measured: 9.2e-7
