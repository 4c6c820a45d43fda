"""Features that are computed once: what is kept, what is found again, what damage does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from lgm_jax import devices, features
from lgm_jax.augment import Augmentation, augment, center_crop, to_float
from lgm_jax.backbones import Backbone, load
from lgm_jax.data.dataset import ArraySplit, Split
from lgm_jax.errors import UserError
from lgm_jax.features import Rows, Views, embed, embed_views
from tests.marks import slow

KEY = jax.random.key(3)
FLIPS = Views(16, Augmentation(), 3)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def backbone(vit_folder) -> Backbone:
    return load(vit_folder)


class Counted(Split):
    """A split that counts the images it gives."""

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        self.inner = ArraySplit(
            rng.integers(0, 256, (count, 20, 20, 3)).astype(np.uint8), np.zeros(count, np.int32)
        )
        self.given = 0

    @property
    def labels(self) -> np.ndarray:
        return self.inner.labels

    @property
    def groups(self) -> np.ndarray | None:
        return self.inner.groups

    def load(self, indices: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        self.given += len(indices)
        return self.inner.load(indices, places)

    def take(self, rows: np.ndarray) -> Split:
        return self.inner.take(rows)


@pytest.fixture
def split(monkeypatch) -> Counted:
    """Eleven images; shards of eight rows, batches of three."""
    monkeypatch.setattr(features, "SHARD", 8)
    monkeypatch.setattr(features, "BATCH", 3)
    return Counted(11)


def test_centre_crops_are_embedded_in_order(backbone, split):
    images = to_float(jnp.asarray(split.inner.images))
    expected = backbone.apply(backbone.params, center_crop(images, 16))
    rows = embed(backbone, split, Views(16), KEY)
    assert rows.shape == (1, 11, 32)
    assert rows.nbytes == 11 * 32 * 4
    np.testing.assert_allclose(rows.whole()[0], expected, rtol=1e-4, atol=1e-5)


def test_each_view_has_its_own_augmentation(backbone, split):
    whole = embed(backbone, split, FLIPS, KEY).whole()
    assert whole.shape == (3, 11, 32)
    assert whole.dtype == np.float32
    key = jax.random.fold_in(jax.random.fold_in(KEY, 2), 10)
    image = to_float(jnp.asarray(split.inner.images[10:]))
    view = augment(key[None], image, 16, FLIPS.augmentation)
    expected = backbone.apply(backbone.params, view)[0]
    np.testing.assert_allclose(whole[2, 10], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max(axis=-1).min() > 1e-3


def test_splits_of_nearly_whole_batches_share_a_compiled_shape(backbone, monkeypatch):
    shapes = []
    program = features.embed_views

    def embed_views(params, images, *given, **named):
        shapes.append(len(images))
        return program(params, images, *given, **named)

    monkeypatch.setattr(features, "embed_views", embed_views)
    monkeypatch.setattr(features, "BATCH", 20)
    whole = embed(backbone, Counted(38).inner, Views(16), KEY).whole()
    assert shapes == [20, 20]
    shapes.clear()
    some = embed(backbone, Counted(22).inner, Views(16), KEY).whole()
    # Eighteen more would be too many.
    assert shapes == [11, 11]
    np.testing.assert_allclose(some[0, 20:], whole[0, 20:22], rtol=1e-4, atol=1e-5)


def test_rows_are_taken_from_any_shard(backbone, split):
    rows = embed(backbone, split, FLIPS, KEY)
    wanted = np.asarray([32, 0, 8, 7, 32, 20])
    np.testing.assert_array_equal(rows.take(wanted), rows.whole().reshape(33, 32)[wanted])


def test_what_is_kept_is_not_computed_again(backbone, split, tmp_path):
    folder = epath.Path(tmp_path / "kept")
    first = embed(backbone, split, FLIPS, KEY, folder=folder)
    assert len(shards(tmp_path)) == len(first.shards) == 5
    assert all(isinstance(shard, np.memmap) for shard in first.shards)
    split.given = 0
    second = embed(backbone, split, FLIPS, KEY, folder=folder)
    assert split.given == 0
    np.testing.assert_array_equal(first.whole(), second.whole())
    assert all(isinstance(shard, np.memmap) for shard in second.shards)


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "unfinished"])
def test_a_damaged_shard_alone_is_computed_again(backbone, split, tmp_path, damage):
    folder = epath.Path(tmp_path / "kept")
    first = embed(backbone, split, FLIPS, KEY, folder=folder).whole()
    names = sorted(shards(tmp_path))
    path = epath.Path(next(Path(folder).rglob(names[1])))
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-3])
    elif damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "unfinished":
        path.with_name(path.name + ".tmp").write_bytes(content[:100])
    split.given = 0
    second = embed(backbone, split, FLIPS, KEY, folder=folder).whole()
    # One shard's rows, in batches filled up to three.
    assert split.given == 9
    np.testing.assert_array_equal(first, second)
    assert sorted(shards(tmp_path)) == names


def test_shard_without_space_leaves_nothing(backbone, split, tmp_path, monkeypatch):
    """Writing to this device fails as writing to a full disk does."""
    embed(backbone, split, FLIPS, KEY, folder=epath.Path(tmp_path / "whole"))
    first = min(shards(tmp_path))
    monkeypatch.setattr("secrets.token_hex", lambda _: "x")
    folder = tmp_path / "full" / "shards_of_8"
    folder.mkdir(parents=True)
    (folder / f"{first}.x.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        embed(backbone, split, FLIPS, KEY, folder=epath.Path(tmp_path / "full"))
    assert list(folder.iterdir()) == []


SCRIPT = """
import sys, jax, numpy as np
from etils import epath
from lgm_jax import backbones, features
from lgm_jax.augment import Augmentation
from lgm_jax.data.dataset import ArraySplit, Split

features.SHARD = 16
images = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3)).astype(np.uint8)
split = ArraySplit(images, np.zeros(400, np.int32))
rows = features.embed(
    backbones.load("digits_contrastive"), split, features.Views(32, Augmentation(), 2),
    jax.random.key(0), folder=epath.Path(sys.argv[1]),
)
np.save(sys.argv[2], rows.whole())
"""


# Put before `SCRIPT`: stops at the tenth shard, until it is killed, however late that is.
HELD = """
import time
from lgm_jax import features

write = features._write_shard

def write_some(folder, number, shard):
    if number == 10:
        time.sleep(900)
    return write(folder, number, shard)

features._write_shard = write_some
"""


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.npy")}


@pytest.mark.slow
def test_a_kill_costs_one_shard(tmp_path):
    """Killed while it computes, and started again: the features of an uninterrupted run."""

    def command(name: str, before: str = "") -> list[str]:
        folder, result = tmp_path / name, tmp_path / f"{name}.npy"
        return [sys.executable, "-c", before + SCRIPT, str(folder), str(result)]

    subprocess.run(command("whole"), check=True, cwd=ROOT)
    process = subprocess.Popen(command("killed", HELD), cwd=ROOT)
    while process.poll() is None and len(shards(tmp_path / "killed")) < 3:
        time.sleep(0.001)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = shards(tmp_path / "killed")
    assert len(kept) >= 3
    subprocess.run(command("killed"), check=True, cwd=ROOT)
    assert kept <= shards(tmp_path / "whole") == shards(tmp_path / "killed")
    np.testing.assert_array_equal(np.load(tmp_path / "whole.npy"), np.load(tmp_path / "killed.npy"))


def test_shards_make_one_array():
    rows = Rows([np.ones((4, 3), np.float32), np.zeros((2, 3), np.float32)], 2)
    assert rows.shape == (2, 3, 3)
    assert rows.whole().sum() == 12


@pytest.mark.parametrize("size", [4, slow(1), slow(11), slow(20)])
def test_views_in_microbatches_are_the_views(backbone, split, size):
    images = jnp.asarray(split.inner.images)
    places = jnp.stack([jnp.arange(11) % 3, jnp.arange(11)], axis=1).astype(jnp.int32)
    common = {"apply": backbone.apply, "crop": 16, "augmentation": Augmentation()}
    mesh = devices.make_mesh()
    arguments = backbone.params, images, KEY, places
    whole = embed_views(*arguments, **common, mesh=mesh)
    parts = embed_views(*arguments, **common, mesh=mesh, size=size)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    # Places are folded in one after the other, and each view has its own.
    keys = jax.vmap(lambda place: jax.random.fold_in(jax.random.fold_in(KEY, place[0]), place[1]))
    views = augment(keys(places), images, 16, Augmentation())
    expected = backbone.apply(backbone.params, views)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)


def test_an_image_that_cannot_be_read_ahead_is_an_error(backbone, split, monkeypatch):
    """Of the last of several batches, which a thread reads while the one before is embedded."""
    load = split.load

    def load_some(indices: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        if 7 in indices:
            raise UserError("cannot read image 7")
        return load(indices, places)

    monkeypatch.setattr(split, "load", load_some)
    with pytest.raises(UserError, match="cannot read image 7"):
        embed(backbone, split, Views(16), KEY)
