"""A probe's training against the authors' protocol as a PyTorch user would write it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lgm_jax import probe

FEATURES, CLASSES, EPOCHS = 12, 5, 7


def protocol(**changes):
    values = {"epochs": EPOCHS, "batch": 100, "runs": 2, "crop": 4, "augment": "none"}
    values |= {"augmentation": None, "drop_last": True, "decay": "epoch"} | changes
    return probe.Protocol(**values)


def pytorchs(kernel, bias, features, labels, orders, base_rate):
    """One run: batches of at most 100, the last short one dropped, the rate per epoch."""
    weight = torch.tensor(np.array(kernel).T, requires_grad=True)
    bias = torch.tensor(np.array(bias), requires_grad=True)
    batch = min(100, len(features))
    adam = torch.optim.Adam([weight, bias], lr=base_rate * batch / 256)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS)
    features, labels = torch.tensor(features), torch.tensor(labels, dtype=torch.int64)
    losses = []
    for order in orders:
        parts = []
        for start in range(0, len(order) - batch + 1, batch):
            chosen = torch.tensor(np.array(order[start : start + batch]), dtype=torch.int64)
            adam.zero_grad()
            loss = F.cross_entropy(F.linear(features[chosen], weight, bias), labels[chosen])
            loss.backward()
            adam.step()
            parts.append(loss.item())
        cosine.step()
        losses.append(np.mean(parts))
    return weight.detach().numpy().T, bias.detach().numpy(), losses


@pytest.mark.parametrize("count", [4, 10, 100, 230])
def test_a_probe_is_trained_as_the_authors_code_does(count):
    rng = np.random.default_rng(count)
    features = rng.normal(size=(count, FEATURES)).astype(np.float32)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    both = jnp.asarray(np.broadcast_to(labels, (2, count)))
    key, table = jax.random.key(3), features[None, None]

    def train(rate):
        settings = protocol(learning_rate=rate)
        return probe.fit(key, table, both, CLASSES, settings)

    # Rates of nothing leave the heads as they were drawn.
    start, found = train(1e-12).heads, train(0.3)
    orders = jax.random.split(key)[1]
    for run in range(2):
        drawn = [
            jax.random.permutation(
                jax.random.split(jax.random.fold_in(orders, epoch), 2)[run], count
            )
            for epoch in range(EPOCHS)
        ]
        kernel, bias, losses = pytorchs(
            start["kernel"][run], start["bias"][run], features, labels, drawn, 0.3
        )
        # Measured: 2e-6 of kernels of order 1.
        np.testing.assert_allclose(found.heads["kernel"][run], kernel, atol=2e-5)
        np.testing.assert_allclose(found.heads["bias"][run], bias, atol=2e-5)
        np.testing.assert_allclose(found.losses[run], losses, rtol=1e-4, atol=1e-6)
