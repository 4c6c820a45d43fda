"""How many real images a forward pass takes at a time: from the compiler, once, and remembered."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from launching import QUICK, opened

from lgm_jax import backbones, devices, features, memory
from lgm_jax.augment import Augmentation
from lgm_jax.compilation import Program
from lgm_jax.data.dataset import ArraySplit
from lgm_jax.features import Views
from lgm_jax.programs import Embedding, Outline
from tests.marks import slow

KEY = jax.random.key(0)


def embedding_of(vit, images=10, **changes):
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    views = Views(8, Augmentation(), 2)
    return Embedding(vit, images, 10, views, mesh, **({"numbers": 2} | changes))


@pytest.mark.parametrize("size", [slow(None), 4])
def test_what_is_accounted_for_is_what_runs(vit, size, monkeypatch):
    """To the letter."""
    ran, call = [], Program.__call__

    def spy(program, *values, **named):
        ran.append(program.lower(*values, **named).as_text())
        return call(program, *values, **named)

    monkeypatch.setattr(Program, "__call__", spy)
    split = ArraySplit(np.zeros((5, 10, 10, 3), np.uint8), np.zeros(5, np.int32))
    embedding = embedding_of(vit)
    features.embed(vit, split, embedding.views, KEY, mesh=embedding.mesh, size=lambda _: size)
    assert ran == [embedding.lower(size).as_text()]


@pytest.mark.slow
def test_arguments_and_results_are_those_of_the_program(vit):
    embedding = embedding_of(vit)
    account = memory.account(embedding.lower(None).compile())
    # The key, and two numbers for each image.
    rest = 8 + 10 * 2 * 4
    assert account.arguments + account.results == embedding.fixed() + rest
    # Half as many at a time take less, and the estimate is of the right size.
    halved = memory.account(embedding.lower(5).compile())
    assert halved.temporary < account.temporary
    each = (account.temporary - halved.temporary) / 5
    assert 0.5 < each / memory.forward_view_bytes(vit, 8) < 3


def test_of_many_blocks_one_is_counted():
    outline = Outline(*backbones.outline("digits_contrastive"))
    views = outline.spec.resolution
    blocks = outline.spec.depth
    assert blocks > 1

    def apply(params, images):
        return outline.apply(params, images)

    # One made by hand may have no blocks: all that it keeps for a gradient is counted.
    whole = memory.forward_view_bytes(dataclasses.replace(outline, apply=apply), views)
    assert memory.forward_view_bytes(outline, views) == whole // blocks


@pytest.mark.parametrize(
    ("limit", "expected", "compiled"),
    [(10**9, 10, [10]), (600, 5, [10, 5]), (120, 1, [10, 1]), (0, 1, [10])],
)
def test_the_most_that_fit_are_taken(vit, monkeypatch, limit, expected, compiled):
    monkeypatch.setattr(Embedding, "fixed", lambda _: 10)
    tried = []

    def needed(size):
        tried.append(size)
        return 10 + 100 * size

    assert embedding_of(vit).fit(limit, needed) == expected
    assert tried == compiled


def test_cpus_compile_nothing_for_it(vit, monkeypatch):
    monkeypatch.setattr(Embedding, "fit", None)
    assert embedding_of(vit).choose() is None


def test_what_a_device_has_of_the_backbone_is_not_counted_twice(vit, monkeypatch):
    asked = []
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(vit.params))

    class Accelerator:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 10**6, "bytes_in_use": weights + 5}

    monkeypatch.setattr(Embedding, "device", Accelerator())
    monkeypatch.setattr(Embedding, "fit", lambda _, limit: asked.append(limit) or 3)
    assert embedding_of(vit).choose() == 3
    assert asked == [900_000 - 5]


def test_a_run_chooses_once_and_remembers(run_copy, monkeypatch):
    """Of features that are computed again, after a second start, with as many at a time."""
    asked, sizes, embed = [], [], features.embed_views

    def spy(*arguments, size, **options):
        sizes.append(size)
        return embed(*arguments, size=size, **options)

    monkeypatch.setattr(features, "embed_views", spy)
    monkeypatch.setattr(Embedding, "choose", lambda _: asked.append(1) or 7)

    def embed_anew():
        shutil.rmtree(run_copy / "features")
        session = opened(run_copy, QUICK)
        session.features(session.backbone, "val")
        session.features(session.backbone, "test")
        session.run.close()
        return session.backbone.fingerprint

    stage = f"embed/{embed_anew()}"
    record = json.loads((run_copy / "stages.json").read_text())
    assert record[stage]["going_on"][0]["microbatch"] == 7
    embed_anew()
    assert asked == [1]
    assert set(sizes) == {7}
    # Other devices have other memory.
    record[stage]["going_on"][0]["devices"] = ["others"]
    (run_copy / "stages.json").write_text(json.dumps(record))
    embed_anew()
    assert asked == [1, 1]
