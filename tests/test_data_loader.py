"""Which images a step sees, and how they are read on the host: laws of order, workers, errors."""

import collections
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lgm_jax.data import load_dataset
from lgm_jax.data.dataset import ArraySplit, Split
from lgm_jax.data.loader import Loader, Parts
from lgm_jax.data.sampling import SAMPLINGS, Crops, Order, step_indices
from lgm_jax.errors import UserError

KEY = jax.random.key(5)
ROOT = Path(__file__).parents[1]

# Unequal classes, mixed.
LABELS = np.asarray([2, 0, 1, 1, 2, 1, 0, 1, 1, 1, 2], np.int32)

compiled = jax.jit(step_indices, static_argnums=(0, 3, 5))


def drawn(sampling: str, steps: int, batch: int) -> np.ndarray:
    """Indices of the images of some steps, (steps, batch)."""
    return np.stack([compiled(sampling, KEY, step, batch, LABELS, 3) for step in range(steps)])


class TestBalanced:
    @pytest.mark.parametrize("batch", [3, 6, 7, 1])
    def test_each_step_has_equally_many_of_each_class_up_to_one(self, batch):
        for indices in drawn("balanced", 12, batch):
            counts = np.bincount(LABELS[indices], minlength=3)
            assert counts.sum() == batch
            assert counts.max() - counts.min() <= (batch % 3 > 0)

    @pytest.mark.parametrize("batch", [6, 7])
    def test_every_image_of_a_class_comes_once_in_each_of_its_epochs(self, batch):
        order = drawn("balanced", 126 // batch, batch).reshape(-1)
        for label in range(3):
            members = np.flatnonzero(label == LABELS)
            seen = order[LABELS[order] == label]
            epochs = seen[: len(seen) // len(members) * len(members)].reshape(-1, len(members))
            assert len(epochs) >= 7
            np.testing.assert_array_equal(np.sort(epochs), np.tile(members, (len(epochs), 1)))
            assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1

    def test_classes_have_orders_of_their_own(self):
        labels = np.repeat(np.arange(2, dtype=np.int32), 20)
        order = np.asarray(compiled("balanced", KEY, 0, 40, labels, 2))
        first, second = order[labels[order] == 0], order[labels[order] == 1] - 20
        assert first.tolist() != second.tolist()

    def test_batches_are_cuts_of_one_sequence(self):
        np.testing.assert_array_equal(
            drawn("balanced", 20, 6).reshape(-1), drawn("balanced", 12, 10).reshape(-1)
        )

    @pytest.mark.parametrize("count", [3, 5])
    def test_every_image_is_as_likely_at_every_place(self, count):
        labels = jnp.zeros(count, jnp.int32)
        keys = jax.random.split(KEY, 4000)
        order = jax.vmap(lambda key: step_indices("balanced", key, 0, count, labels, 1))
        orders = np.asarray(jax.jit(order)(keys))
        for place in range(count):
            found = np.bincount(orders[:, place], minlength=count)
            # Six standard deviations of a binomial.
            deviation = np.sqrt(4000 * (count - 1)) / count
            np.testing.assert_allclose(found, 4000 / count, atol=6 * deviation)


class TestOrder:
    @pytest.mark.parametrize("sampling", SAMPLINGS)
    @pytest.mark.parametrize("batch", [4, 30])
    def test_equals_the_one_in_the_compiled_step(self, sampling, batch):
        order = pickle.loads(pickle.dumps(Order(sampling, KEY, LABELS, 3)))
        expected = drawn(sampling, 9, batch).reshape(-1)
        np.testing.assert_array_equal(order.at(np.arange(9 * batch)), expected)
        # Any position, in any order.
        some = np.asarray([8 * batch, 3, 2 * batch, 0])
        np.testing.assert_array_equal(order.at(some), expected[some])

    def test_keeps_two_shuffles(self):
        order = Order("shuffle", KEY, LABELS, 3)
        order.at(np.arange(11 * 20))
        kept = len(pickle.dumps(order))
        order.at(np.arange(11 * 20, 11 * 60))
        assert len(pickle.dumps(order)) <= kept + 20

    def test_a_late_position_of_a_large_set_costs_one_shuffle(self):
        order = Order("shuffle", KEY, np.zeros(10**5, np.int32), 1)
        order.at(np.asarray([0]))
        started = time.perf_counter()
        order.at(np.asarray([2**31 - 1]))
        # Measured: 0.02 s; shuffling all 21,474 epochs before would take minutes.
        assert time.perf_counter() - started < 5


def test_crops_are_uniform_and_belong_to_the_position():
    crops = Crops(KEY)
    places = crops.at(np.arange(4000))
    assert places.min() >= 0
    assert places.max() < 1
    np.testing.assert_allclose(places.mean(axis=0), 0.5, atol=0.03)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.1
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(crops)).at(np.asarray([7, 3])), places[[7, 3]]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photos that are not square, 30 of each of 3 classes to train on."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 1)):
        for label in "abc":
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 16 + i % 3, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i:02d}.png")
    return root


def open_train(folder: Path) -> Split:
    dataset = load_dataset("folder", folder=str(folder), resolution=8, val_fraction=0.0)
    return dataset.splits["train"]


def make_parts(split: Split, batch: int = 40, process: tuple[int, int] = (0, 1)) -> Parts:
    order = Order("shuffle", KEY, split.labels, 3)
    return Parts(split, order, Crops(jax.random.key(9)), batch, 50, *process)


class TestLoader:
    def test_gives_the_images_of_the_order_cropped_where_crops_say(self, folder):
        split = open_train(folder)
        with Loader(make_parts(split), 0) as loader:
            for step in (0, 1, 2, 49, 3):
                batch = loader(step)
                positions = np.arange(40 * step, 40 * step + 40)
                indices = compiled("shuffle", KEY, step, 40, jnp.asarray(split.labels), 3)
                places = Crops(jax.random.key(9)).at(positions)
                expected = split.load(np.asarray(indices), places)
                np.testing.assert_array_equal(batch.images, expected)
                np.testing.assert_array_equal(batch.labels, split.labels[indices])
                np.testing.assert_array_equal(batch.numbers, np.arange(40))
                assert not np.array_equal(expected, split.load(np.asarray(indices)))

    @pytest.mark.parametrize("count", [2, 3])
    def test_processes_share_a_batch_out(self, folder, count):
        split = open_train(folder)
        with Loader(make_parts(split), 0) as loader:
            whole = loader(3)
        seen: list[int] = []
        for index in range(count):
            with Loader(make_parts(split, process=(index, count)), 0) as loader:
                part = loader(3)
            assert part.numbers.tolist() == list(range(index, 40, count))
            np.testing.assert_array_equal(part.images, whole.images[part.numbers])
            np.testing.assert_array_equal(part.labels, whole.labels[part.numbers])
            seen += part.numbers.tolist()
        assert sorted(seen) == list(range(40))

    def test_worker_processes_give_the_same_and_end(self, folder):
        parts = make_parts(open_train(folder))
        with Loader(parts, 0) as alone, Loader(parts, 2) as shared:
            for step in (20, 21, 22):
                for ours, theirs in zip(alone(step), shared(step), strict=True):
                    np.testing.assert_array_equal(ours, theirs)
            assert len(multiprocessing.active_children()) == 2
        assert multiprocessing.active_children() == []

    def test_images_in_memory_are_not_copied_to_processes(self):
        split = ArraySplit(np.zeros((9, 4, 4, 3), np.uint8), np.zeros(9, np.int32))
        assert Loader(make_parts(split), 5).workers == 0

    def test_a_broken_image_is_named(self, folder, tmp_path):
        for label in "ab":
            (tmp_path / "train" / label).mkdir(parents=True)
            (tmp_path / "val" / label).mkdir(parents=True)
            for split in ("train", "val"):
                Image.new("RGB", (9, 9)).save(tmp_path / split / label / "0.png")
        (tmp_path / "train" / "b" / "0.png").write_bytes(b"no image")
        words = r"cannot read image .*train/b/0\.png: not in a format that"
        with (
            Loader(make_parts(open_train(tmp_path)), 0) as loader,
            pytest.raises(UserError, match=words),
        ):
            loader(0)


def test_grain_is_imported_where_it_is_used_and_without_tensorflow():
    code = (
        "import sys, lgm_jax, lgm_jax.stages, lgm_jax.data.loader\n"
        "assert 'grain' not in sys.modules\n"
        "import grain\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_memory_stays_flat_while_streaming(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
    photos = [str(tmp_path / f"{i}.jpg") for i in range(3)]
    options = ["--images=20000", "--classes=20", "--steps=400", "--batch=64", "--workers=2"]
    command = [sys.executable, "benchmarks/memory.py", *photos, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )
    found = json.loads(done.stdout)
    assert found["images"] == 20_000
    early, _, late = found["resident_mb"].values()
    assert len(early) == 3
    for before, after in zip(early, late, strict=True):
        # Measured: from 0 to 3 MB.
        assert after - before < 25
    assert collections.Counter(map(len, found["resident_mb"].values())) == {3: 3}
