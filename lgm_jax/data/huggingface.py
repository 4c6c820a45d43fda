"""Folders that Hugging Face's `datasets` reads: parquet, WebDataset's tars, imagefolders."""

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
from lgm_jax.data.labels import choose_label, is_called_label, read_labels, unlabelled
from lgm_jax.data.listing import check_inside
from lgm_jax.data.split_names import assign_splits
from lgm_jax.errors import UserError, list_some

_LAYOUT = (
    "parquet files with an image and a label column, WebDataset's .tar files, an imagefolder, or "
    "what save_to_disk writes"
)
_STORED = (".parquet", ".arrow", ".tar")
# Of what a WebDataset stores beside images, what is read: nothing that might run code.
_DECODED = frozenset({"cls", "cls2", "index", "id", "txt", "text", "json"})
# Of columns that may be labels without naming their classes.
_TEXT = frozenset({"string", "large_string"})
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
    try:
        import datasets
    except ImportError as error:
        message = f"datasets is not installed: pip install 'lgm_jax[hf]' ({error})"
        raise UserError(message) from error
    root = open_folder(request.folder, _LAYOUT)
    where, place, asked = name_of(root), os.fspath(paths.alias(root)), request.label
    tables, files, sizes = _open(datasets, root, place)
    assigned, notes = assign_splits(tables, str(root))
    train = _Columns(datasets, tables[assigned["train"]], where, "train")
    wanted = [asked] if asked in train.features else [key.strip() for key in asked.split(",")]
    image = train.image()
    label, said = train.label(next((key for key in wanted if key in train.features), asked))
    notes += said
    stored: dict[str, Stored] = {}
    for split, called in assigned.items():
        columns = _Columns(datasets, tables[called], where, split)
        own, key = image if image in columns.features else columns.image(), label
        if own != image:
            notes.append(f"{where}: the {split} images are those of the column {own}")
        if label not in columns.features:
            known = set(stored["train"].labels.names)
            found, note = columns.other_label(label, train.features, wanted, known)
            notes.append(note)
            if found is None:
                continue
            key = found
        names, more = columns.class_names(key, files.get(called, ()))
        notes += more
        values = columns.values(key)
        labels = read_labels(values, len(values), f"{where}, {split}", names)
        images = columns.table.cast_column(own, datasets.Image(decode=False))
        records = HubRecords(str(root), place, called, images, own)
        stored[split] = Stored(records, labels, identity=[called, sizes])
    return assemble(request, where, stored, benchmark=False, orient=True, notes=notes)


def _open(
    datasets: Any, root: Path, place: str
) -> tuple[dict[str, Any], Mapping[str, Sequence[str]], list[Any]]:
    """By split, its table (`None` of parquet files in no split) and files; and all files' sizes."""
    held = sorted(path for path in root.rglob("*") if path.suffix in _STORED)
    shards = [path for path in held if path.suffix == ".parquet"]
    files: Mapping[str, Sequence[str]] = {}
    try:
        if any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
            opened = datasets.load_from_disk(place)
        # Of a program that saves each split by itself.
        elif (
            parts := []
            if shards
            else sorted(path.parent.name for path in root.glob("*/state.json"))
        ):
            opened = {part: datasets.load_from_disk(os.path.join(place, part)) for part in parts}
        else:
            opened, files = _load(datasets, place)
    # What is wrong with a file shows as an error of pyarrow, of datasets or of Python.
    except Exception as error:
        raise UserError(_explain(datasets, root, place, held, error)) from error
    every = [file for each in files.values() for file in each]
    tables = dict(opened) if isinstance(opened, dict) else {"train": opened}
    real = set(map(os.path.realpath, every))
    for path in shards if every else ():
        if os.path.realpath(path) not in real:
            tables[path.relative_to(root).as_posix()] = None
    images = [file for file in every if not file.endswith(_STORED)]
    held = sorted({*held, *(root / os.path.relpath(file, place) for file in images)})
    sizes = [[path.relative_to(root).as_posix(), path.stat().st_size] for path in held]
    return tables, files, sizes


def _load(datasets: Any, place: str) -> tuple[Any, Mapping[str, Sequence[str]]]:
    """The tables of a folder of parquet files, tars or images, and the files of each split."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    builder = datasets.load_dataset_builder(place)
    files = {str(split): list(each) for split, each in builder.config.data_files.items()}
    if isinstance(builder, Parquet):
        # Each by itself: `datasets` refuses columns that the first split has not, and takes its
        # names of classes for all.
        return {
            split: datasets.load_dataset(
                "parquet", data_files={split: each}, split=split, features=builder.info.features
            )
            for split, each in files.items()
        }, files
    if isinstance(builder, WebDataset):
        # `datasets` would hand files of PyTorch's to its unpickler.
        decoders = {kind: decode for kind, decode in builder.DECODERS.items() if kind in _DECODED}
        safe: Any = type("Safe", (WebDataset,), {"DECODERS": decoders})
        builder._get_pipeline_from_tar = safe._get_pipeline_from_tar
    elif not isinstance(builder, ImageFolder):
        raise ValueError(f"its files hold no images: expected {_LAYOUT}")
    builder.download_and_prepare()
    return builder.as_dataset(), files


def _explain(datasets: Any, root: Path, place: str, held: Sequence[Path], error: Exception) -> str:
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
    # It resolves links to folders of files, and takes the name for a pattern again.
    misread = place != os.path.realpath(root)
    if not held and not misread and not isinstance(error, ValueError):
        return f"{root} holds no parquet files: expected {_LAYOUT}"
    reason = str(error).split("\n")[0] or type(error).__name__
    hint = ": datasets may misread the folder's name, rename it" if misread else ""
    return f"cannot read {root}: {reason}{hint}"


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The columns of a split: which have images and labels."""

    datasets: Any
    table: Any
    where: str
    split: str

    @property
    def features(self) -> Mapping[str, Any]:
        """The columns' types."""
        return self.table.features

    def values(self, key: str) -> list[Any]:
        """The cells of a column."""
        # Of the whole table, rows would be read with their images.
        return list(self.table.select_columns([key])[key])

    def image(self) -> str:
        """Returns the column of images: the only one, or that called `image`."""
        kinds = self.features.items()
        typed = [key for key, kind in kinds if isinstance(kind, self.datasets.Image)]
        # Files that no `datasets` has written say no type: bytes, alone or beside a path.
        parts = {k: p["bytes"] if isinstance(p, dict) and "bytes" in p else p for k, p in kinds}
        binary = ("binary", "large_binary")
        untyped = [key for key, kind in parts.items() if getattr(kind, "dtype", "") in binary]
        for found in (typed, untyped):
            if "image" in found or len(found) == 1:
                return "image" if "image" in found else found[0]
        what = f"images in {' and '.join(typed)}" if typed else "no image"
        raise UserError(
            f"the columns are {sorted(self.features)}, with {what}: one called image must be of "
            "type Image, or the bytes of files"
        )

    def label(self, asked: str) -> tuple[str, list[str]]:
        """Returns the column of labels, and notes on the choice; see `choose_label`."""
        usable = self._usable([asked])
        classes = [key for key in usable if self._names_classes(key)]
        others = [key for key in usable if key not in classes]
        return choose_label(classes, others, self.features, asked=asked, where=self.where)

    def other_label(
        self, label: str, trained: Mapping[str, Any], wanted: Sequence[str], known: set[str]
    ) -> tuple[str | None, str]:
        """Returns the column of labels of a split without that of `train`, if any, and a note.

        It is the one that was asked for, or the only one, of those that `train` has not, that
        numbers classes, is called as labels are, or has only `known` names, those of `train`.
        """
        new = [key for key in self._usable(wanted) if key not in trained]
        likely = [key for key in wanted if key in self.features][:1] or [
            key
            for key in new
            if self._names_classes(key)
            or is_called_label(key)
            or (self.features[key].dtype in _TEXT and known.issuperset(self.values(key)))
        ]
        if len(likely) > 1:
            raise UserError(
                f"{self.where} has no column {label} in its {self.split} split, and may have "
                f"labels in {', '.join(likely)}: set --config.data.label={label},{likely[0]} or "
                "another"
            )
        if likely:
            said = f"the {self.split} labels are those of the column {likely[0]}"
            return likely[0], f"{self.where}: {said}"
        hint = f"; if {new[0]} has them, set --config.data.label={label},{new[0]}" if new else ""
        return None, f"{unlabelled(self.where, self.split)}: there is no column {label}{hint}"

    def class_names(
        self, key: str, files: Sequence[str]
    ) -> tuple[Sequence[str] | None, Sequence[str]]:
        """Returns the names that numbers stand for (`None` where labels have none), and notes.

        `datasets` takes those of the first parquet file for all files, whatever the others say.
        """
        from pyarrow import parquet  # type: ignore[import-untyped]

        if not self._names_classes(key):
            return None, ()
        first, bare = ("", self.features[key].names), []
        for file in files if files and files[0].endswith(".parquet") else ():
            with Path(file).open("rb") as stream:
                schema = parquet.read_schema(stream)
            own = self.datasets.Features.from_arrow_schema(schema).get(key)
            if not isinstance(own, self.datasets.ClassLabel):
                bare.append(os.path.basename(file))
            elif first[0] and own.names != first[1]:
                raise UserError(f"{file} names the classes of {key} otherwise than {first[0]}")
            else:
                first = (file, own.names)
        note = f"{self.where}, {self.split}: labels of {list_some(bare)} count these classes too"
        return first[1], [note] if bare and first[0] else ()

    def _names_classes(self, key: str) -> bool:
        return isinstance(self.features[key], self.datasets.ClassLabel)

    def _usable(self, asked: Sequence[str]) -> list[str]:
        """The columns that may be of labels."""
        return [
            key
            for key, kind in self.features.items()
            if (dtype := getattr(kind, "dtype", "")) in _LABEL_TYPES
            # Whole numbers are stored so where some were missing once.
            or (dtype in ("float32", "float64") and (key in asked or is_called_label(key)))
        ]
