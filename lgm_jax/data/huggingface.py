"""Folders that Hugging Face's `datasets` reads: parquet or WebDataset's tars."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgm_jax import paths
from lgm_jax.data import formats
from lgm_jax.data.assembly import Request, Stored, assemble
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.folder import name_of, open_folder
from lgm_jax.data.labels import Labels, choose_label, is_called_label, read_labels, unlabelled
from lgm_jax.data.listing import check_inside
from lgm_jax.data.split_names import assign_splits
from lgm_jax.errors import UserError, list_some

_LAYOUT = (
    "parquet files with an image and a label column, WebDataset's .tar files, or what save_to_disk "
    "writes (class folders are read by --config.data.name=folder)"
)
_STORED = ("*.parquet", "*.arrow", "*.tar")
# Of what a WebDataset stores beside images, what is read: nothing that might run code.
_DECODED = frozenset({"cls", "cls2", "index", "id", "txt", "text", "json"})
# Of columns that may be labels without naming their classes.
_TEXT = frozenset({"string", "large_string"})
_LABEL_TYPES = frozenset(
    {"bool"} | _TEXT | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


@dataclasses.dataclass(frozen=True)
class HubRecords:
    """The images of one split, as files."""

    where: str
    split: str
    table: Any
    image_key: str

    def read(self, number: int) -> bytes:
        stored = self.table[number][self.image_key]
        if stored is None or (stored["bytes"] is None and stored["path"] is None):
            raise OSError("the record has no image")
        if stored["bytes"] is not None:
            return stored["bytes"]
        check_inside(stored["path"], Path(self.where))
        return Path(self.where, stored["path"]).read_bytes()

    def name(self, number: int) -> str:
        return f"{self.split}[{number}]"


def load_huggingface(request: Request) -> Dataset:
    """Opens a folder of parquet files or tars, or one that `datasets.save_to_disk` wrote.

    Nothing is downloaded and no script of the folder is run. The EXIF orientation is honoured, as
    `datasets` does. Splits may number their classes differently: names decide. The request's label
    is the column of labels: of type `ClassLabel`, integers or text. By default it is `label` if
    that is a `ClassLabel`, else the only one, else a column of another type that is called `label`
    or the like. Of several, comma-separated, each split's is the first that it has.

    Raises:
        UserError: If `datasets` is not installed, or the folder cannot be read or has no image,
            label or training images.
    """
    datasets = _import_datasets()
    root = open_folder(request.folder, _LAYOUT)
    tables, files, unread = _read(datasets, root)
    assigned, notes = assign_splits([*tables, *unread], str(root))
    images, read, said = _read_labels(datasets, tables, files, assigned, request.label, root)
    sizes = [
        [path.relative_to(root).as_posix(), path.stat().st_size]
        for path in sorted(path for kind in _STORED for path in root.rglob(kind))
    ]
    stored = {}
    for split, called in assigned.items():
        table = tables[called].cast_column(images[split], datasets.Image(decode=False))
        records = HubRecords(str(root), called, table, images[split])
        if split in read:
            stored[split] = Stored(records, read[split], identity=[called, sizes])
    return assemble(
        request, name_of(root), stored, benchmark=False, orient=True, notes=[*notes, *said]
    )


def _read_labels(
    datasets: Any,
    tables: Mapping[str, Any],
    files: Mapping[str, Sequence[str]],
    assigned: Mapping[str, str],
    asked: str,
    root: Path,
) -> tuple[dict[str, str], dict[str, Labels], list[str]]:
    """By split, the column of its images, and its labels if it has any; and what to say of them."""
    name = name_of(root)
    features = tables[assigned["train"]].features
    wanted = [asked] if asked in features else [key.strip() for key in asked.split(",")]
    first = next((key for key in wanted if key in features), asked)
    image, (label, notes) = (
        _find_image(datasets, features),
        _find_label(datasets, features, first, name),
    )
    images: dict[str, str] = {}
    read: dict[str, Labels] = {}
    for split, called in assigned.items():
        table = tables[called]
        images[split] = image if image in table.features else _find_image(datasets, table.features)
        if images[split] != image:
            notes.append(f"{name}: the {split} images are those of the column {images[split]}")
        key: str | None = label
        if label not in table.features:
            key, said = _find_own(
                datasets, table, features, label, wanted, read["train"], name, split
            )
            notes.append(said)
        if key is not None:
            names = _class_names(datasets, table.features, key, files.get(called, ()))
            read[split] = read_labels(
                _column(table, key), len(table), where=name, split=split, names=names
            )
    return images, read, notes


def _find_own(
    datasets: Any,
    table: Any,
    trained: Mapping[str, Any],
    label: str,
    wanted: Sequence[str],
    read: Labels,
    where: str,
    split: str,
) -> tuple[str | None, str]:
    """The column of labels of a split that calls it otherwise than `train`, if any, and a note.

    It is the one that was asked for, or the only one, of those that `train` has not, that numbers
    classes, is called as labels are, or has only names of `train`'s classes.

    Raises:
        UserError: If there are several.
    """
    features = table.features
    named = [key for key in wanted if key in features]
    new = [key for key in _usable(features, wanted) if key not in trained]
    known = set(read.names)
    likely = named[:1] or [
        key
        for key in new
        if isinstance(features[key], datasets.ClassLabel)
        or is_called_label(key)
        or (features[key].dtype in _TEXT and known.issuperset(_column(table, key)))
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


def _column(table: Any, key: str) -> list[Any]:
    return list(table.select_columns([key])[key])


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        message = f"datasets is not installed: pip install 'lgm_jax[hf]' ({error})"
        raise UserError(message) from error
    return datasets


def _read(
    datasets: Any, root: Path
) -> tuple[Mapping[str, Any], Mapping[str, Sequence[str]], Sequence[str]]:
    """By split, its table and the parquet files it is from; and names of files that are in none."""
    saved = any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
    stored = sorted(root.rglob("*.parquet"))
    # Of a program that saves each split by itself.
    parts = [] if saved or stored else sorted(path.parent for path in root.glob("*/state.json"))
    tars = [] if saved or stored or parts else sorted(root.rglob("*.tar"))
    if not saved and not stored and not parts and not tars:
        raise UserError(f"{root} holds no parquet files: expected {_LAYOUT}")
    files: Mapping[str, Sequence[str]] = {}
    place = os.fspath(paths.alias(root))
    try:
        if saved:
            tables = datasets.load_from_disk(place)
        elif parts:
            tables = {
                part.name: datasets.load_from_disk(os.path.join(place, part.name)) for part in parts
            }
        elif tars:
            tables = _load_tars(datasets, place)
        else:
            found = datasets.load_dataset_builder(place).config.data_files
            files = {str(split): list(each) for split, each in found.items()}
            tables = _load_parquet(datasets, place, files)
    # What is wrong with a file shows as an error of pyarrow, of datasets or of Python.
    except Exception as error:
        several = [] if saved or parts or tars else _configurations(datasets, place)
        if len(several) > 1:
            raise UserError(
                f"{root} has several configurations ({list_some(several)}): give a folder with the "
                "parquet files of one"
            ) from error
        for path in [*stored, *tars]:
            if reason := formats.explain_file(path):
                raise UserError(f"cannot read {path}: {reason}") from error
        reason = str(error).split("\n")[0] or type(error).__name__
        # It resolves links to folders of parquet files, and takes the name for a pattern again.
        misread = place != os.path.realpath(root)
        hint = ": datasets may misread the folder's name, rename it" if misread else ""
        raise UserError(f"cannot read {root}: {reason}{hint}") from error
    used = {os.path.realpath(file) for each in files.values() for file in each}
    unread = [path for path in stored if files and os.path.realpath(path) not in used]
    named = tables if isinstance(tables, dict) else {"train": tables}
    return named, files, [path.relative_to(root).as_posix() for path in unread]


def _load_parquet(datasets: Any, place: str, files: Mapping[str, Sequence[str]]) -> Any:
    """The tables of a folder of parquet files, whose splits may have different columns."""
    from pyarrow import parquet  # type: ignore[import-untyped]

    columns = set()
    for each in files.values():
        with Path(each[0]).open("rb") as stream:
            columns.add(frozenset(parquet.read_schema(stream).names))
    if len(columns) <= 1:
        return datasets.load_dataset(place)
    # `datasets` refuses columns that the first split has not.
    return {
        split: datasets.load_dataset("parquet", data_files={split: each}, split=split)
        for split, each in files.items()
    }


def _load_tars(datasets: Any, place: str) -> Any:
    """The tables of a WebDataset: an image, `.cls` and the like of each example, as columns."""
    from datasets.packaged_modules.webdataset.webdataset import (
        WebDataset,
    )

    decoders = WebDataset.DECODERS
    # `datasets` would hand files of PyTorch's to its unpickler.
    WebDataset.DECODERS = {kind: decoders[kind] for kind in _DECODED if kind in decoders}
    try:
        return datasets.load_dataset("webdataset", data_dir=place)
    finally:
        WebDataset.DECODERS = decoders


def _configurations(datasets: Any, place: str) -> list[str]:
    """Names of the data sets that a folder's card describes, if it can be read."""
    with contextlib.suppress(Exception):
        return list(datasets.get_dataset_config_names(place))
    return []


def _class_names(
    datasets: Any, features: Mapping[str, Any], key: str, files: Sequence[str]
) -> Sequence[str] | None:
    """The names that the numbers of a split stand for; `None` where labels are no `ClassLabel`.

    `datasets` takes those of the first parquet file for all files, whatever the others say.
    """
    from pyarrow import parquet

    if not isinstance(features[key], datasets.ClassLabel):
        return None
    names = features[key].names
    for number, file in enumerate(files):
        with Path(file).open("rb") as stream:
            schema = parquet.read_schema(stream)
        feature = datasets.Features.from_arrow_schema(schema).get(key)
        own = feature.names if isinstance(feature, datasets.ClassLabel) else names
        if number and own != names:
            raise UserError(f"{file} names the classes of {key} otherwise than {files[0]}")
        names = own
    return names


def _find_image(datasets: Any, features: Mapping[str, Any]) -> str:
    keys = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    # Files that no `datasets` has written say no type: bytes, alone or beside a path.
    untyped = [key for key, feature in features.items() if _holds_bytes(feature)]
    for found in (keys, untyped):
        if "image" in found or len(found) == 1:
            return "image" if "image" in found else found[0]
    what = f"images in {' and '.join(keys)}" if keys else "no image"
    raise UserError(
        f"the columns are {sorted(features)}, with {what}: one called image must be of type Image, "
        "or the bytes of files"
    )


def _holds_bytes(feature: Any) -> bool:
    inside = feature.get("bytes") if isinstance(feature, Mapping) else feature
    return getattr(inside, "dtype", "") in ("binary", "large_binary")


def _find_label(
    datasets: Any, features: Mapping[str, Any], asked: str, where: str
) -> tuple[str, list[str]]:
    """The column of labels, and what to say of the choice."""
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    usable = _usable(features, [asked])
    others = [key for key in usable if key not in classes]
    return choose_label(classes, others, features, asked=asked, where=where)


def _usable(features: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    """The columns that may be of labels."""
    return [
        key
        for key, kind in features.items()
        if (dtype := getattr(kind, "dtype", "")) in _LABEL_TYPES
        # Whole numbers are stored so where some were missing once.
        or (dtype in ("float32", "float64") and (key in asked or is_called_label(key)))
    ]
