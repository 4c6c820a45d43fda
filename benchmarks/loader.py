"""How fast photos are decoded, resized and cropped: this package's loader beside PyTorch's.

    python benchmarks/loader.py FOLDER [--side=500] [--images=2000] [--rounds=3]

`FOLDER` holds `train/<class>/*.JPEG`. With `--side`, copies of the photos enlarged to that width,
at a ratio of 4:3 and quality 90 (about what ImageNet has), are written to a temporary folder and
read instead. All give images of 256 px in batches of 128, with as many workers as there are cores,
which have given a first batch before the clock starts:

- `torch_float`: PyTorch's `DataLoader` in processes, with PIL doing what torchvision's
  `Resize(256)` and `CenterCrop(256)` do, then `ToTensor`, as the authors of the paper have it.
- `torch_uint8`: the same with `PILToTensor`, a quarter of the bytes to hand over.
- `lgm_jax`: this package's as a run uses it, in worker processes, shuffled, uint8.
- `lgm_jax_threads`: the same with `data.workers=0`.

They take turns, after one round that is not counted, and the fastest round of each counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import torch
from PIL import Image

from lgm_jax.data.assembly import Request
from lgm_jax.data.folder import load_folder
from lgm_jax.data.loader import Loader, Parts
from lgm_jax.data.records import FileRecords, ImageSplit
from lgm_jax.data.sampling import Order

RESOLUTION = 256
BATCH = 128


class PilPhotos(torch.utils.data.Dataset):
    """Photos as torchvision's `ImageFolder` and transforms give them, (3, 256, 256)."""

    def __init__(self, paths: Sequence[Path], *, as_float: bool):
        self.paths, self.as_float = paths, as_float

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        short = min(image.size)
        width, height = (int(RESOLUTION * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - RESOLUTION) / 2), round((height - RESOLUTION) / 2)
        image = image.crop((left, top, left + RESOLUTION, top + RESOLUTION))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255) if self.as_float else pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=0)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy_photos(options.folder, Path(folder), options.images, options.side)
        print(json.dumps(compare(Path(folder), options.rounds, len(os.sched_getaffinity(0)))))


def copy_photos(source: Path, target: Path, count: int, side: int) -> None:
    """Some photos of every class, as they are or enlarged."""
    split = load_folder(Request(str(source), RESOLUTION)).splits["train"]
    if not isinstance(split, ImageSplit) or not isinstance(split.records, FileRecords):
        raise TypeError("a folder gives a split of files")
    rows = np.linspace(0, len(split.labels) - 1, min(count, len(split.labels))).astype(int)
    for i, row in enumerate(rows):
        path = target / str(split.labels[row]) / f"{i:05d}.JPEG"
        path.parent.mkdir(exist_ok=True)
        photo = split.records.read(int(split.rows[row]))
        if not side:
            path.write_bytes(photo)
            continue
        with Image.open(split.records.where / split.name(row)) as image:
            large = image.convert("RGB").resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
            large.save(path, quality=90)


def compare(folder: Path, rounds: int, workers: int) -> dict[str, float]:
    """Images per second of both, and how much their images differ."""
    paths = sorted(folder.glob("*/*.JPEG"))
    reference = PilPhotos(paths, as_float=False)
    files = [path.relative_to(folder).as_posix() for path in paths]
    labels = np.zeros(len(files), np.int32)
    ours = ImageSplit(FileRecords(folder, files), np.arange(len(files)), labels, RESOLUTION)
    # One batch to start with, and one to time.
    batch = min(BATCH, len(files) // 2)
    steps = len(files) // batch - 1

    def time_torch(photos: PilPhotos) -> float:
        loader = torch.utils.data.DataLoader(
            photos,
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            # JAX has threads, which a fork would lose.
            multiprocessing_context="spawn",
        )
        return seconds(iter(loader).__next__, steps)

    def time_ours(processes: int) -> float:
        order = Order("shuffle", jax.random.key(0), labels, 1)
        parts = Parts(ours, order, None, batch, steps + 1)
        with Loader(parts, processes) as loader:
            return seconds(functools.partial(call_in_turn, loader, iter(range(steps + 1))), steps)

    loaders: dict[str, Callable[[], float]] = {
        "torch_uint8": functools.partial(time_torch, reference),
        "torch_float": functools.partial(time_torch, PilPhotos(paths, as_float=True)),
        "lgm_jax": functools.partial(time_ours, workers),
        "lgm_jax_threads": functools.partial(time_ours, 0),
    }
    best = dict.fromkeys(loaders, 0.0)
    for number in range(rounds + 1):
        for name, loader in loaders.items():
            rate = steps * batch / loader()
            best[name] = max(best[name], rate) if number else 0.0
    sample = np.arange(0, len(files), max(1, len(files) // 200))
    expected = np.stack([reference[int(i)].permute(1, 2, 0).numpy() for i in sample])
    difference = np.abs(ours.load(sample).astype(int) - expected)
    return {
        "images": len(files),
        "workers": workers,
        **{f"{name}_images_per_second": round(rate, 1) for name, rate in best.items()},
        "ratio_to_uint8": round(best["lgm_jax"] / best["torch_uint8"], 2),
        "ratio_to_float": round(best["lgm_jax"] / best["torch_float"], 2),
        "largest_difference": int(difference.max()),
        "pixels_that_differ": float(np.mean(difference > 0)),
    }


def call_in_turn(loader: Loader, steps: Iterator[int]) -> None:
    loader(next(steps))


def seconds(give_batch: Callable[[], object], batches: int) -> float:
    """What batches take after the first one, for which workers start."""
    give_batch()
    start = time.perf_counter()
    for _ in range(batches):
        give_batch()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
