"""Folders that Hugging Face's `datasets` reads: parquet, WebDataset's tars, imagefolders.

To be imported where such a folder is opened: `datasets` is an extra, and takes a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from pyarrow import parquet  # type: ignore[import-untyped]

from lgm_jax import paths
from lgm_jax.data import formats
from lgm_jax.data.assembly import Request, Stored, assemble
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.folder import name_of, open_folder
from lgm_jax.data.labels import choose_label, is_called_label, read_labels, unlabelled
from lgm_jax.data.listing import check_inside, is_left_behind
from lgm_jax.data.split_names import assign_splits
from lgm_jax.errors import UserError, list_some

_LAYOUT = (
    "parquet files with an image and a label column, WebDataset's .tar files, an imagefolder, or "
    "what save_to_disk writes"
)
_STORED = (".parquet", ".arrow", ".tar")
# Of what a WebDataset stores beside images, what is read: nothing that might run code.
_DECODED = frozenset({"cls", "cls2", "index", "id", "txt", "text", "json"})
_TEXT = frozenset({"string", "large_string"})
# Whole numbers are stored as floats where some were missing once.
_FLOATS = frozenset({"float32", "float64"})
_LABEL_TYPES = frozenset(
    {"bool"} | _TEXT | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


@dataclasses.dataclass(frozen=True)
class HubRecords:
    """The images of one split, as files; `place` is how paths of the folder may begin."""

    where: str
    place: str
    split: str
    table: Any
    image_key: str

    def read(self, number: int) -> bytes:
        stored = self.table[number][self.image_key]
        if stored is None or (stored["bytes"] is None and stored["path"] is None):
            raise OSError("the record has no image")
        if stored["bytes"] is not None:
            return stored["bytes"]
        path = stored["path"]
        path = os.path.relpath(path, self.place) if os.path.isabs(path) else path
        check_inside(path, Path(self.where))
        return Path(self.where, path).read_bytes()

    def name(self, number: int) -> str:
        return f"{self.split}[{number}]"


def load_huggingface(request: Request) -> Dataset:
    """Opens a folder of parquet files, tars or images, or one that `save_to_disk` wrote.

    Nothing is downloaded and no script of the folder is run. The EXIF orientation is honoured, as
    `datasets` does. The request's label is the column of labels: see `choose_label`; of several,
    comma-separated, each split's is the first that it has.
    """
    root = open_folder(request.folder, _LAYOUT)
    where, place, asked = name_of(root), os.fspath(paths.alias(root)), request.label
    tables, sizes = _open(root, place)
    assigned, notes = assign_splits(tables, str(root))
    trained = tables[assigned["train"]].features
    image = _image_column(trained)
    wanted = [asked] if asked in trained else [key.strip() for key in asked.split(",")]
    asked = next((key for key in wanted if key in trained), asked)
    usable = _usable_as_labels(trained, [asked])
    classes = [key for key in usable if _names_classes(trained[key])]
    others = [key for key in usable if key not in classes]
    label, said = choose_label(classes, others, trained, asked=asked, where=where)
    notes += said
    stored: dict[str, Stored] = {}
    for split, called in assigned.items():
        table, kinds = tables[called], tables[called].features
        own = image if image in kinds else _image_column(kinds)
        if own != image:
            notes.append(f"{where}: the {split} images are those of the column {own}")
        key: str | None = label
        if label not in kinds:
            known = set(stored["train"].labels.names)
            new = [each for each in _usable_as_labels(kinds, wanted) if each not in trained]
            key, note = _other_label(table, split, where, label, new, wanted, known)
            notes.append(note)
        if key is None:
            continue
        values = _values(table, key)
        names = kinds[key].names if _names_classes(kinds[key]) else None
        labels = read_labels(values, len(values), f"{where}, {split}", names)
        images = table.cast_column(own, datasets.Image(decode=False))
        records = HubRecords(str(root), place, called, images, own)
        stored[split] = Stored(records, labels, identity=[called, sizes])
    return assemble(request, where, stored, benchmark=False, orient=True, notes=notes)


def _open(root: Path, place: str) -> tuple[dict[str, Any], list[Any]]:
    """By split, its table (`None` of parquet files in no split), and the sizes of all files."""
    stored = sorted(path for path in root.rglob("*") if path.suffix in _STORED)
    held = [p for p in stored if not any(map(is_left_behind, p.relative_to(root).parts))]
    if lost := [path.relative_to(root).as_posix() for path in held if not path.exists()]:
        raise UserError(
            f"{root} has links that lead nowhere, {list_some(lost)}: fetch what they lead to (git "
            "annex get, dvc pull), or remove them"
        )
    shards = [path for path in held if path.suffix == ".parquet"]
    # Of a program that saves each split by itself.
    parts = [] if shards else sorted(path.parent.name for path in root.glob("*/state.json"))
    files: list[str] = []
    try:
        if any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
            opened = datasets.load_from_disk(place)
        elif parts:
            opened = {part: datasets.load_from_disk(os.path.join(place, part)) for part in parts}
        else:
            opened, files = _load(place)
    except UserError:
        raise
    # What is wrong with a file shows as an error of pyarrow, of datasets or of Python.
    except Exception as error:
        raise UserError(_explain(root, place, held, error)) from error
    tables = dict(opened) if isinstance(opened, dict) else {"train": opened}
    real = set(map(os.path.realpath, files))
    for path in shards if files else ():
        if os.path.realpath(path) not in real:
            tables[path.relative_to(root).as_posix()] = None
    images = [file for file in files if not file.endswith(_STORED)]
    held = sorted({*held, *(root / os.path.relpath(file, place) for file in images)})
    return tables, [[path.relative_to(root).as_posix(), path.stat().st_size] for path in held]


def _load(place: str) -> tuple[Any, list[str]]:
    """The tables of a folder of parquet files, tars or images by split, and all files."""
    builder = datasets.load_dataset_builder(place)
    files = {str(split): list(each) for split, each in builder.config.data_files.items()}
    every = [file for each in files.values() for file in each]
    if isinstance(builder, Parquet):
        for each in files.values():
            _refuse_renamed(each)
        # Each by itself: `datasets` refuses columns that the first split has not, and takes its
        # names of classes for all.
        return {
            split: datasets.load_dataset(
                "parquet", data_files={split: each}, split=split, features=builder.info.features
            )
            for split, each in files.items()
        }, every
    if isinstance(builder, WebDataset):
        # `datasets` would hand files of PyTorch's to its unpickler.
        decoders = {kind: decode for kind, decode in builder.DECODERS.items() if kind in _DECODED}
        safe: Any = type("Safe", (WebDataset,), {"DECODERS": decoders})
        builder._get_pipeline_from_tar = safe._get_pipeline_from_tar
    elif not isinstance(builder, ImageFolder):
        raise ValueError(f"its files hold no images: expected {_LAYOUT}")
    builder.download_and_prepare()
    return builder.as_dataset(), every


def _refuse_renamed(files: Sequence[str]) -> None:
    """Refuses parquet files that name classes otherwise: `datasets` takes the first one's names."""
    named: dict[str, tuple[str, list[str]]] = {}
    for file in files:
        with Path(file).open("rb") as stream:
            features = datasets.Features.from_arrow_schema(parquet.read_schema(stream))
        for key, kind in features.items():
            if isinstance(kind, datasets.ClassLabel):
                first, names = named.setdefault(key, (file, kind.names))
                if kind.names != names:
                    raise UserError(f"{file} names the classes of {key} otherwise than {first}")


def _explain(root: Path, place: str, held: Sequence[Path], error: Exception) -> str:
    """Why a folder cannot be read."""
    with contextlib.suppress(Exception):
        # Of the data sets that a folder's card describes, if it can be read.
        several = list(datasets.get_dataset_config_names(place))
        if len(several) > 1:
            return (
                f"{root} has several configurations ({list_some(several)}): give a folder with the "
                "parquet files of one"
            )
    for path in held:
        if reason := formats.explain_file(path):
            return f"cannot read {path}: {reason}"
    if not held and not isinstance(error, ValueError):
        return f"{root} holds no parquet files: expected {_LAYOUT}"
    # Of what `datasets` says, the rest is traces.
    reason = str(error).split("\n")[0] or type(error).__name__
    return f"cannot read {root}: {reason}"


def _values(table: Any, key: str) -> list[Any]:
    """The cells of a column."""
    # Of the whole table, rows would be read with their images.
    return list(table.select_columns([key])[key])


def _image_column(kinds: Mapping[str, Any]) -> str:
    """Returns the column of images: the only one, or that called `image`."""
    typed = [key for key, kind in kinds.items() if isinstance(kind, datasets.Image)]
    # Files that no `datasets` has written say no type: bytes, alone or beside a path.
    parts = {k: p["bytes"] if isinstance(p, dict) and "bytes" in p else p for k, p in kinds.items()}
    binary = ("binary", "large_binary")
    untyped = [key for key, kind in parts.items() if getattr(kind, "dtype", "") in binary]
    for found in (typed, untyped):
        if "image" in found or len(found) == 1:
            return "image" if "image" in found else found[0]
    what = f"images in {' and '.join(typed)}" if typed else "no image"
    raise UserError(
        f"the columns are {sorted(kinds)}, with {what}: one called image must be of type Image, or "
        "the bytes of files"
    )


def _usable_as_labels(kinds: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    return [
        key
        for key, kind in kinds.items()
        if (dtype := getattr(kind, "dtype", "")) in _LABEL_TYPES
        or (dtype in _FLOATS and (key in asked or is_called_label(key)))
    ]


def _names_classes(kind: Any) -> bool:
    return isinstance(kind, datasets.ClassLabel)


def _other_label(
    table: Any,
    split: str,
    where: str,
    label: str,
    new: Sequence[str],
    wanted: Sequence[str],
    known: set[str],
) -> tuple[str | None, str]:
    """Returns the column of labels of a split without that of `train`, if any, and a note.

    It is the one that was asked for, or the only one, of the `new` ones that `train` has not, that
    numbers classes, is called as labels are, or has only `known` names, those of `train`.
    """
    kinds = table.features
    likely = [key for key in wanted if key in kinds][:1] or [
        key
        for key in new
        if _names_classes(kinds[key])
        or is_called_label(key)
        or (kinds[key].dtype in _TEXT and known.issuperset(_values(table, key)))
    ]
    if len(likely) > 1:
        raise UserError(
            f"{where} has no column {label} in its {split} split, and may have labels in "
            f"{', '.join(likely)}: set --config.data.label={label},{likely[0]} or another"
        )
    if likely:
        return likely[0], f"{where}: the {split} labels are those of the column {likely[0]}"
    hint = f"; if {new[0]} has them, set --config.data.label={label},{new[0]}" if new else ""
    return None, f"{unlabelled(where, split)}: there is no column {label}{hint}"
