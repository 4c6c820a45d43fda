"""Folders that Hugging Face's `datasets` reads: parquet with images and labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lgm_jax import paths
from lgm_jax.data.dataset import Dataset, Split, digest
from lgm_jax.data.folder import open_folder
from lgm_jax.data.listing import check_inside
from lgm_jax.data.records import ImageSplit
from lgm_jax.data.splits import complete
from lgm_jax.errors import UserError

_LAYOUT = "parquet files with an image and a label column, or what save_to_disk writes"
_SPLITS: Mapping[str, str] = {"train": "train", "validation": "val", "val": "val", "test": "test"}


@dataclasses.dataclass(frozen=True)
class HubRecords:
    """The images of one split, as files."""

    where: str
    split: str
    table: Any
    image_key: str

    def read(self, number: int) -> bytes:
        stored = self.table[number][self.image_key]
        if stored["bytes"] is not None:
            return stored["bytes"]
        check_inside(stored["path"], Path(self.where))
        return Path(self.where, stored["path"]).read_bytes()

    def name(self, number: int) -> str:
        return f"{self.split}[{number}]"


def load_huggingface(
    folder: str | Path, *, resolution: int, seed: int = 0, val_fraction: float | None = None
) -> Dataset:
    """Opens a folder of parquet files, or one that `datasets.save_to_disk` wrote.

    Nothing is downloaded and no script of the folder is run. The EXIF orientation is honoured, as
    `datasets` does.

    Args:
        folder: The folder; `~` is expanded.
        resolution: Side of the images to give, in pixels.
        seed: Seed of the split.
        val_fraction: Part of the training images that becomes `val` where there is none.

    Raises:
        UserError: If `datasets` is not installed, or the folder cannot be read or has no image,
            label or training images.
    """
    try:
        import datasets
    except ImportError as error:
        message = f"datasets is not installed: pip install 'lgm_jax[hf]' ({error})"
        raise UserError(message) from error
    root = open_folder(folder, _LAYOUT)
    tables = _read(datasets, root)
    first = next(iter(tables.values()))
    image_key = _find(datasets.Image, "image", first.features)
    label_key = _find(datasets.ClassLabel, "label", first.features)
    splits: dict[str, Split] = {}
    facts: list[Any] = [resolution, list(first.features[label_key].names)]
    for name, table in tables.items():
        if name not in _SPLITS:
            continue
        table = table.cast_column(image_key, datasets.Image(decode=False))
        labels = np.asarray(table.with_format("numpy")[label_key][:], np.int32)
        records = HubRecords(str(root), name, table, image_key)
        rows = np.arange(len(labels))
        splits[_SPLITS[name]] = ImageSplit(records, rows, labels, resolution, orient=True)
        facts += [name, labels]
    if "train" not in splits:
        raise UserError(f"{folder} has splits {list(tables)}: it needs one named train")
    for path in sorted([*root.rglob("*.parquet"), *root.rglob("*.arrow")]):
        facts.append([path.relative_to(root).as_posix(), path.stat().st_size])
    name = Path(os.path.abspath(root)).name
    dataset = Dataset(name, list(first.features[label_key].names), splits, digest(*facts))
    return complete(dataset, seed=seed, val_fraction=val_fraction)


def _read(datasets: Any, root: Path) -> Mapping[str, Any]:
    saved = any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if not saved and not any(root.rglob("*.parquet")):
        raise UserError(f"{root} holds no parquet files: expected {_LAYOUT}")
    place = os.fspath(paths.alias(root))
    try:
        tables = datasets.load_from_disk(place) if saved else datasets.load_dataset(place)
    # What is wrong with a file shows as an error of pyarrow, of datasets or of Python.
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        # It resolves links to folders of parquet files, and takes the name for a pattern again.
        misread = place != os.path.realpath(root)
        hint = ": datasets may misread the folder's name, rename it" if misread else ""
        raise UserError(f"cannot read {root}: {reason}{hint}") from error
    return tables if isinstance(tables, dict) else {"train": tables}


def _find(kind: type, name: str, features: Mapping[str, Any]) -> str:
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    if name in keys:
        return name
    if len(keys) != 1:
        raise UserError(
            f"the columns are {sorted(features)}: one called {name} must be of type {kind.__name__}"
        )
    return keys[0]
