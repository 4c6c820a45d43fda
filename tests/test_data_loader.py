"""How the images of a step are read on the host: laws of workers and errors."""

import collections
import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest
from PIL import Image

from lgm_jax.data import load_dataset, loader
from lgm_jax.data.dataset import ArraySplit, Split
from lgm_jax.data.loader import Loader, Parts
from lgm_jax.data.sampling import Crops, Order
from lgm_jax.errors import UserError

KEY = jax.random.key(5)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photos that are not square, 30 of each of 3 classes to train on, one class of JPEGs."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 1)):
        for label in "abc":
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 16 + i % 3, 3), np.uint8)
                suffix = "jpg" if label == "a" else "png"
                Image.fromarray(pixels).save(root / split / label / f"{i:02d}.{suffix}")
    return root


def open_train(folder: Path) -> Split:
    dataset = load_dataset("folder", folder=str(folder), resolution=8, val_fraction=0.0)
    return dataset.splits["train"]


def make_parts(split: Split, batch: int = 40, process: tuple[int, int] = (0, 1)) -> Parts:
    order = Order("shuffle", KEY, split.labels, 3)
    # Workers could decode a few hundred steps of these small images ahead, and end.
    return Parts(split, order, Crops(jax.random.key(9)), batch, 10_000, *process)


class TestLoader:
    def test_gives_the_images_of_the_order_cropped_where_crops_say(self, folder):
        split = open_train(folder)
        with Loader(make_parts(split), 0) as loader:
            for step in (0, 1, 2, 49, 3):
                batch = loader(step)
                positions = np.arange(40 * step, 40 * step + 40)
                indices = Order("shuffle", KEY, split.labels, 3).at(positions)
                places = Crops(jax.random.key(9)).at(positions)
                expected = split.load(indices, places)
                np.testing.assert_array_equal(batch.images, expected)
                np.testing.assert_array_equal(batch.labels, split.labels[indices])
                np.testing.assert_array_equal(batch.numbers, np.arange(40))
                np.testing.assert_array_equal(batch.indices, indices)
                assert not np.array_equal(expected, split.load(indices))

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
            for step in (20, 21, 22, 9):
                for ours, theirs in zip(alone(step), shared(step), strict=True):
                    np.testing.assert_array_equal(ours, theirs)
            assert len(multiprocessing.active_children()) == 2
            # A batch has two parts: each worker sends one of them.
            first, second = multiprocessing.active_children()
            first.kill()
            first.join()
            with pytest.raises(UserError, match="a process that decodes images died"):
                # What the worker has sent is read first.
                list(map(shared, range(10, 10_000)))
            np.testing.assert_array_equal(alone(10).images, shared(10).images)
            assert second not in multiprocessing.active_children()
        assert multiprocessing.active_children() == []

    def test_images_in_memory_are_not_copied_to_processes(self):
        split = ArraySplit(np.zeros((9, 4, 4, 3), np.uint8), np.zeros(9, np.int32))
        assert Loader(make_parts(split), 5).workers == 0

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_broken_image_is_named(self, folder, tmp_path, workers):
        for label in "ab":
            (tmp_path / "train" / label).mkdir(parents=True)
            (tmp_path / "val" / label).mkdir(parents=True)
            for split in ("train", "val"):
                Image.new("RGB", (9, 9)).save(tmp_path / split / label / "0.png")
        (tmp_path / "train" / "b" / "0.png").write_bytes(b"no image")
        words = r"cannot read image .*train/b/0\.png: not in a format that"
        with (
            Loader(make_parts(open_train(tmp_path)), workers) as loader,
            pytest.raises(UserError, match=words),
        ):
            loader(0)


class Worker(SpawnProcess):
    """Stands for a process that decodes."""

    def __init__(self):
        self.killed = threading.Event()

    def kill(self):
        self.killed.set()

    def join(self, timeout=None):
        assert self.killed.is_set()


class Wire(Connection):
    """Stands for the connection to it, which breaks a while after the process was killed."""

    def __init__(self, worker):
        self.worker, self.reading, self.shut = worker, threading.Event(), False
        self._handle = None

    def recv(self):
        self.reading.set()
        assert self.worker.killed.wait(60)
        time.sleep(0.05)
        assert not self.shut, "the connection was closed while it was read"
        raise EOFError

    def close(self):
        self.shut = True


def test_a_connection_is_not_closed_while_it_is_read(folder, monkeypatch):
    """Its number could be that of another file by then."""
    wire = Wire(Worker())
    monkeypatch.setattr(loader, "start_workers", lambda *_: [(wire.worker, wire)])
    reading = Loader(make_parts(open_train(folder)), 1)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(reading, 0)
        assert wire.reading.wait(60)
        reading.close()
        with pytest.raises(UserError, match="a process that decodes images died"):
            batch.result()
    assert wire.shut


def test_workers_that_start_while_the_loader_closes_end(folder, monkeypatch):
    wire, starting, closing = Wire(Worker()), threading.Event(), threading.Event()

    def start(*_):
        starting.set()
        assert closing.wait(60)
        return [(wire.worker, wire)]

    monkeypatch.setattr(loader, "start_workers", start)
    reading = Loader(make_parts(open_train(folder)), 1)
    shut = reading._ahead.close
    monkeypatch.setattr(reading._ahead, "close", lambda: (closing.set(), shut()))
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(reading, 0)
        assert starting.wait(60)
        reading.close()
        with pytest.raises(UserError, match="a process that decodes images died"):
            batch.result()
    assert wire.worker.killed.is_set()
    assert wire.shut


def test_workers_end_where_one_of_them_cannot_start(folder, monkeypatch):
    start, started = SpawnProcess.start, []

    def start_one(process):
        if started:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(process)
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", start_one)
    with (
        Loader(make_parts(open_train(folder)), 2) as loader,
        pytest.raises(UserError, match=r"cannot be started \(.*temporarily.*\): lower config.data"),
    ):
        loader(0)
    assert not started[0].is_alive()


@pytest.mark.slow
def test_a_program_that_closes_nothing_ends_with_its_workers(folder):
    code = (
        "import sys\n"
        "from tests.test_data_loader import Loader, Path, make_parts, multiprocessing, open_train\n"
        "if __name__ == '__main__':\n"
        "    loader = Loader(make_parts(open_train(Path(sys.argv[1]))), 1)\n"
        "    print(loader(0).images.shape, multiprocessing.active_children()[0].pid)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
    )
    shape, worker = done.stdout.rsplit(maxsplit=1)
    assert shape == "(40, 8, 8, 3)"
    assert not psutil.pid_exists(int(worker))


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
