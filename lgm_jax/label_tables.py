"""Tables beside images that say which image is of which class, as many programs write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from lgm_jax.errors import UserError, list_some

_SUFFIXES = (".csv", ".tsv")
# Names of columns of files, where these are without suffix.
_FILES = (
    *("file_name", "filename", "file", "image", "image_name", "image_id", "image_path", "path"),
    *("img", "img_filename", "id"),
)
# Names of columns of class names; of labels, `data.labels.is_called_label` knows.
_NAMES = ("class_name", "class name", "classname", "label_name", "category_name", "species")
# What files that label images are called, of whatever kind they are.
_LABELS = re.compile(r"(?:^|[\W_])(?:labels?|metadata|annotations?|targets?|truth)(?:$|[\W_])")
_WRITE = "a labels.csv with the columns file_name and label"


def find_labels(
    root: Path, folders: Sequence[str], files: Sequence[str]
) -> tuple[str, dict[str, str]] | None:
    """The table that labels images, if there is one.

    Args:
        root: The folder that everything lies in.
        folders: Where a table may lie, below `root`; the innermost holds the images.
        files: The images, below `root`.

    Returns:
        The table, below `root`, and the class of each image, as it says it; `None` if none names
        an image.

    Raises:
        UserError: If it cannot be told what it says, it does not label all images, or several do.
    """
    known = _names_of(files, folders)
    found = []
    for path in _beside(root, folders):
        if path.suffix.lower() in _SUFFIXES and (labels := _read(path, known)):
            found.append((path.relative_to(root).as_posix(), labels))
    if len(found) > 1:
        tables = " and ".join(table for table, _ in found)
        raise UserError(f"{root}: both {tables} name the images: keep one of them")
    if not found:
        return None
    table, labels = found[0]
    lacking = [file for file in files if not labels.get(file)]
    if lacking:
        raise UserError(f"{root / table} says no class of {list_some(lacking)}")
    return table, labels


def refuse_others(root: Path, folders: Sequence[str]) -> None:
    """Refuses to number images by their files' names beside a file that may say otherwise.

    Raises:
        UserError: If there is one, by its name.
    """
    for path in _beside(root, folders):
        if _LABELS.search(path.stem.lower()):
            raise UserError(
                f"{path} may say which image is of which class, but is not read: write {_WRITE}, "
                "put the images of each class into a folder of its own, or move it away"
            )


def _beside(root: Path, folders: Sequence[str]) -> list[Path]:
    """The files in these folders that are no images and were not left behind."""
    from lgm_jax.data import formats, listing

    return [
        path
        for folder in dict.fromkeys(folders)
        for path in sorted((root / folder).iterdir())
        if path.is_file() and not formats.is_image(path) and not listing.is_left_behind(path.name)
    ]


def _names_of(files: Sequence[str], folders: Sequence[str]) -> Mapping[str, str]:
    """From what a table may call an image to its path: with or without the folders."""
    called: dict[str, set[str]] = {}
    for file in files:
        inside = {file.removeprefix(f"{folder}/") for folder in folders}
        for way in {file, PurePosixPath(file).name, *inside}:
            called.setdefault(way, set()).add(file)
    return {way: paths.pop() for way, paths in called.items() if len(paths) == 1}


def _read(table: Path, known: Mapping[str, str]) -> dict[str, str]:
    """From images to what a table says of them; nothing if it names none.

    Raises:
        UserError: If it cannot be told which column has the classes, or it says two of an image.
    """
    from lgm_jax.data import tables

    try:
        rows = list(tables.read_rows(table))
    except UserError:
        # A log in another encoding is nobody's concern.
        if _LABELS.search(table.stem.lower()):
            raise
        return {}
    width = max((len(cells) for _, cells in rows), default=0)
    cells = [[*row, *[""] * (width - len(row))] for _, row in rows]
    head = [cell.lower() for cell in cells[0]] if cells else []
    hits = [sum(_plain(row[i]) in known for row in cells) for i in range(width)]
    if not any(hits):
        # Numbers of images may be those of anything, unless the columns say what they are.
        files = next((i for i in range(width) if head[i] in _FILES), None)
        known = {str(PurePosixPath(way).with_suffix("")): file for way, file in known.items()}
        if files is None or not any(_plain(row[files]) in known for row in cells[1:]):
            return {}
    else:
        files = hits.index(max(hits))
        head = [] if _plain(cells[0][files]) in known else head
    column = _find_column(head, files, width, table)
    labels: dict[str, str] = {}
    for (line, _), row in zip(rows, cells, strict=True):
        file, label = known.get(_plain(row[files])), tables.whole(row[column])
        if file is not None and labels.setdefault(file, label) != label:
            raise UserError(f"{table}, line {line}: {file} has another class above")
    return labels


def _find_column(head: Sequence[str], files: int, width: int, table: Path) -> int:
    from lgm_jax.data.labels import is_called_label

    others = [i for i in range(width) if i != files]
    named = [i for i in others if head and head[i] in _NAMES]
    called = [i for i in others if head and is_called_label(head[i])]
    for found in (named, called, others):
        if len(found) == 1:
            return found[0]
    raise UserError(
        f"{table} names the images, but it cannot be told which column has their classes: write "
        f"{_WRITE}"
    )


def _plain(cell: str) -> str:
    return cell.replace("\\", "/").removeprefix("./")
