"""TensorFlow Datasets, read as ArrayRecord files without TensorFlow.

To be imported where such a set is opened: `tensorflow_datasets` takes a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.utils import version

from lgm_jax import paths
from lgm_jax.data import cache
from lgm_jax.data.assembly import Request, Stored, assemble
from lgm_jax.data.dataset import Dataset, digest
from lgm_jax.data.labels import choose_label, read_labels, unlabelled
from lgm_jax.data.split_names import assign_splits
from lgm_jax.errors import UserError
from lgm_jax.progress import progress

# Their test images have no labels.
_UNLABELLED = frozenset({"imagenet2012"})
_BUILD = "pip install 'lgm_jax[tfdsbuild]' && tfds"


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """The images of one split, as the files that they were built from."""

    where: str
    split: str
    source: Any
    image_key: str

    def read(self, number: int) -> bytes:
        try:
            return self.source[number][self.image_key]
        # A damaged shard: the reader raises several types of its own.
        except (IndexError, RuntimeError, ValueError) as error:
            raise OSError(f"cannot read the record: {error}") from error

    def name(self, number: int) -> str:
        return f"{self.split}[{number}]"


def load_tfds(request: Request) -> Dataset:
    """Opens a prepared TFDS data set that has an image and a label.

    The splits are TFDS's, no training image is held out unless asked for, and the EXIF orientation
    is ignored, as TFDS does. The request's name is TFDS's, perhaps with a configuration
    (`imagenette/320px-v2`); its folder is where TFDS keeps its sets, by default `$TFDS_DATA_DIR` or
    `~/tensorflow_datasets`; its label is the feature of labels, of type `ClassLabel`.

    Raises:
        UserError: If the set is not prepared, is not in ArrayRecord format, lacks files, or has no
            image, label or training images. Says what to type.
    """
    name = request.name.removeprefix("tfds:")
    builder, folder = _find(name, request.folder)
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    # Of several formats, TFDS takes the one that it reads.
    formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
    if "array_record" not in formats:
        raise UserError(
            f"{name} is prepared as {formats[0]}, which needs TensorFlow to read; convert it: "
            f"{_BUILD} convert_format --dataset_version_dir={folder} --out_file_format=array_record"
        )
    base, features = name.split("/")[0], builder.info.features
    images, classes = (
        [key for key, kind in features.items() if isinstance(kind, wanted)]
        for wanted in (tfds.features.Image, tfds.features.ClassLabel)
    )
    if "image" not in images and len(images) != 1:
        raise UserError(f"{name} has features {sorted(features)}: it needs one image")
    image_key = "image" if "image" in images else images[0]
    label_key, notes = choose_label(classes, (), features, asked=request.label, where=base)
    kind = features[label_key]
    names = list(kind.names or map(str, range(kind.num_classes)))
    described = ("dataset_info.json", "features.json")
    identity = digest(*((folder / file).read_bytes() for file in described))
    assigned, ignored = assign_splits(builder.info.splits, base)
    notes += ignored
    stored = {}
    for split, called in assigned.items():
        if called == "test" and base in _UNLABELLED:
            notes.append(unlabelled(base, split))
            continue
        for path in builder.info.splits[called].filepaths:
            shard = folder / path.name.replace(".tfrecord-", ".array_record-")
            if not shard.exists():
                raise UserError(f"{shard} is missing: build {name} again, or copy all its files")
        # Images are handed over as the files that they were built from.
        decoders = dict.fromkeys(images, tfds.decode.SkipDecoding())
        source = builder.as_data_source(called, decoders=decoders)
        key = digest(identity, called, label_key)
        values = read_column(source, label_key, f"{base}, {called}", key)
        labels = read_labels(values, len(values), f"{base}, {split}", names)
        stored[split] = Stored(TfdsRecords(str(folder), called, source, image_key), labels)
    facts = [identity, request.resolution, *([label_key] if request.label else [])]
    return assemble(request, base, stored, benchmark=True, identity=facts, notes=notes)


def _find(name: str, data_dir: str) -> tuple[Any, Path]:
    """Finds a prepared set by TFDS's own look-up: the newest version, and its folder.

    Where the configuration is not named, it is TFDS's default, else the only one.
    """
    given = data_dir or os.environ.get("TFDS_DATA_DIR", "") or "~/tensorflow_datasets"
    root = Path(os.path.expanduser(given))
    if not re.fullmatch(r"[a-z]\w*(/[\w.-]+)?", name, re.ASCII | re.IGNORECASE) or ".." in name:
        raise UserError(f"{name!r} is no TFDS name: expected NAME or NAME/CONFIGURATION")
    place = os.fspath(paths.alias(root))

    def look_up(*names: str) -> dict[str, Any]:
        found = {}
        for each in names:
            with contextlib.suppress(tfds.core.DatasetNotFoundError):
                found[each] = read_only_builder.builder_from_files(each, data_dir=place)
        return found

    found = look_up(name)
    # A set of a person's own may lack the configurations that TFDS's of this name has.
    if not found and (versions := version.list_all_versions(root / name)):
        directory = os.path.join(place, name, str(versions[-1]))
        found = {name: tfds.builder_from_directory(directory)}
    if not found and "/" not in name and (root / name).is_dir():
        folders = sorted(path.name for path in (root / name).iterdir() if path.is_dir())
        found = look_up(*(f"{name}/{folder}" for folder in folders))
    if len(found) > 1:
        choices = " or ".join(f"tfds:{each}" for each in found)
        raise UserError(f"{name} is prepared in several ways: set --config.data.name={choices}")
    if not found:
        command = f"{_BUILD} build {name} --file_format=array_record --data_dir={root}"
        raise UserError(f"{root} holds no {name}: {_explain_files(name, root)}{command}")
    (builder,) = found.values()
    return builder, root / Path(builder.data_path).relative_to(place)


def _explain_files(name: str, root: Path) -> str:
    """Says which files the user must fetch before a set can be built, if any."""
    try:
        text = tfds.builder_cls(name.split("/")[0]).MANUAL_DOWNLOAD_INSTRUCTIONS
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"TFDS knows no set {name!r}, and {root} holds none") from error
    if not text:
        return ""
    words = " ".join(text.split()).rstrip(".")
    place = root / "downloads" / "manual"
    return f"it needs files that only you can fetch ({words}); put them into {place}, then: "


def read_column(source: Any, label_key: str, label: str, key: str) -> np.ndarray:
    """The labels (n,) of all records, which are remembered by `key`; `label` is for progress."""

    def read() -> np.ndarray:
        rows = progress(range(len(source)), f"{label}: labels")
        return np.asarray([source[row][label_key] for row in rows], np.int32)

    return cache.remember("labels", key, read)
