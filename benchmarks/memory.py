"""How long a large folder takes to open, and whether memory grows while its photos are streamed.

    python benchmarks/memory.py PHOTO [PHOTO ...] [--images=200000] [--classes=200] [--steps=400]
        [--batch=256] [--resolution=64] [--workers=2]

makes a temporary folder of that many images, hard links of the given ones, and prints the seconds
until it is open and until the first batch is there, and, at some steps, the resident memory in MB
of this process and of its workers, shared memory counted in each that maps it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from lgm_jax.data.assembly import Request
from lgm_jax.data.folder import load_folder
from lgm_jax.data.loader import Loader, Parts
from lgm_jax.data.sampling import Crops, Order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+")
    for name, default in (
        *(("images", 200_000), ("classes", 200), ("steps", 400)),
        *(("batch", 256), ("resolution", 64), ("workers", 2)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    # Hard links do not lead to another file system.
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), options.photos, options.images, options.classes)
        print(json.dumps(measure(Path(folder), options)))


def make_folder(folder: Path, photos: list[Path], images: int, classes: int) -> None:
    """`images` files in `train/` and one a class in `val/`."""
    # A file has at most 65,000 names on ext4.
    copies = max(1, -(-images // (50_000 * len(photos))))
    pool = []
    for number, photo in enumerate(photos * copies):
        pool.append(folder / f"photo{number}.jpg")
        pool[-1].write_bytes(photo.read_bytes())
    for number in range(images + classes):
        split = "train" if number < images else "val"
        path = folder / "data" / split / f"class{number % classes:04d}" / f"photo_{number:08d}.jpg"
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
        os.link(pool[number % len(pool)], path)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the module's docstring says."""
    started = time.perf_counter()
    dataset = load_folder(Request(str(folder / "data"), options.resolution, val_fraction=0.0))
    train, key = dataset.splits["train"], jax.random.key(0)
    opened = time.perf_counter()
    order = Order("shuffle", key, train.labels, dataset.num_classes)
    # Workers end with the last step, which they would reach before it is asked for.
    parts = Parts(train, order, Crops(key), options.batch, 2 * options.steps)
    found: dict[str, Any] = {"images": len(train.labels), "open_seconds": opened - started}
    memory: dict[int, list[int]] = {}
    with Loader(parts, options.workers) as loader:
        loader(0)
        found["first_batch_seconds"] = time.perf_counter() - opened
        for step in range(1, options.steps + 1):
            loader(step)
            if step in (50, options.steps // 2, options.steps):
                workers = sorted(child.pid or 0 for child in multiprocessing.active_children())
                memory[step] = [resident(pid) for pid in (os.getpid(), *workers)]
    return found | {"resident_mb": memory}


def resident(pid: int) -> int:
    """A process's resident memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    if found is None:
        raise ValueError("no VmRSS in /proc")
    return round(int(found[1]) / 1024)


if __name__ == "__main__":
    main()
