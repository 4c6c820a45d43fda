"""Builds small TFDS sets with TFDS's own tools. A program of its own: it imports TensorFlow.

python tests/build_tfds.py FOLDER: photos in FOLDER/photos, sets in FOLDER/tfds.
"""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

WNIDS = ("n01440764", "n02102040", "n02979186")
COUNTS = {"train": 10, "validation": 4}


def write_photos(folder: Path) -> None:
    """JPEGs of various sizes: folder/train/<wnid>/0.JPEG and so on."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for label, wnid in enumerate(WNIDS):
            for i in range(count):
                small = rng.integers(0, 80, (4, 5, 3), np.uint8) + 80 * label
                size = (40 + 3 * i, 30 + 5 * label)
                path = folder / split / wnid / f"{i:02d}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(small.astype(np.uint8)).resize(size).save(path)


def examples(folder: Path, label_name: str = "label") -> list[tuple[str, dict]]:
    """TFDS's examples of one split; a path makes it store the file as it is."""
    return [
        (str(path), {"image": str(path), label_name: WNIDS.index(path.parent.name)})
        for path in sorted(folder.glob("*/*.JPEG"))
    ]


def build(folder: Path) -> None:
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    label = tfds.features.ClassLabel(names=WNIDS)
    photos = {split: folder / "photos" / split for split in COUNTS}
    for name, label_name, file_format in (
        ("imagenette", "label", "array_record"),
        ("birds", "species", "array_record"),
        ("food101", "label", "tfrecord"),
    ):
        tfds.dataset_builders.AdhocBuilder(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict({"image": image, label_name: label}),
            split_datasets={s: examples(photos[s], label_name) for s in COUNTS},
            data_dir=folder / "tfds",
            file_format=file_format,
        ).download_and_prepare()


if __name__ == "__main__":
    write_photos(Path(sys.argv[1]) / "photos")
    build(Path(sys.argv[1]))
