"""Images beside each other, of which a table says the classes, and perhaps groups and splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lgm_jax import label_tables
from lgm_jax.data.assembly import Listed, Request, assemble_files
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.folder import LAYOUT, name_of, open_folder
from lgm_jax.data.listing import Listing
from lgm_jax.data.split_names import assign_splits, check_one, find_splits
from lgm_jax.errors import UserError, list_some

SUFFIXES = (".csv", ".tsv", ".jsonl")


def load_flat(request: Request) -> Dataset | None:
    """Lists images that lie in no class folders, as a table beside them labels each.

    They lie in the folder itself, in one folder in it, or in folders of splits (with a table each,
    or one above). The table's columns are the file's name, its class, and perhaps `group` and
    `split`; the order is free, and it may have others. The EXIF orientation is honoured.

    Returns:
        The data set; `None` if no table names such images.

    Raises:
        UserError: If it cannot be told what the table says, or images to train on have no class.
    """
    root = open_folder(request.folder, LAYOUT)
    look = Listing(root)
    places = _find_places(look)
    listing = Listing(root)
    listed: dict[str, Listed] = {}
    for split, inside in places.items():
        files = look.beside(inside)
        names = [file.path for file in files]
        table = label_tables.find_table(root, list(dict.fromkeys(["", inside])), names, SUFFIXES)
        if table is None and split == "train":
            return None
        rows = table.rows if table else {}
        listed[split] = Listed(
            files,
            [rows[name].label or None if name in rows else None for name in names],
            [rows[name].group if name in rows else "" for name in names],
        )
        if table is None:
            continue
        listing.say(f"{root}: {table.path} says which image is of which class")
        if len(places) == 1:
            listed = _split(listing, listed["train"], [rows.get(name) for name in names])
            if table.missing:
                listing.say(
                    f"{root}: {table.path} names {len(table.missing)} files that are not "
                    f"there: {list_some(table.missing)}"
                )
        _check_labelled(root / table.path, listed.get(split, Listed()), split)
    return _assemble(request, root, listing, listed) if listed else None


def _find_places(look: Listing) -> Mapping[str, str]:
    """From splits to the folders that hold images and no folders; `train` alone is to be split."""
    names = look.folders()
    if look.beside():
        return {} if any(map(look.images, names)) else {"train": ""}
    found = find_splits(names)
    for given in found.values():
        check_one(given, str(look.root))
    places = {split: given[0] for split, given in found.items()}
    if "train" not in places or len(places) < len(names):
        places = {"train": names[0]} if len(names) == 1 else {}
    flat = all(look.beside(inside) and not look.folders(inside) for inside in places.values())
    return places if flat else {}


def _split(
    listing: Listing, every: Listed, rows: list[label_tables.Row | None]
) -> dict[str, Listed]:
    """Images by what the table says of their splits, if it does."""
    said = [row.split if row else "" for row in rows]
    if not any(said):
        return {"train": every}
    if not all(said):
        lacking = [file.path for file, split in zip(every.files, said, strict=True) if not split]
        raise UserError(f"{listing.root}: the table says no split of {list_some(lacking)}")
    assigned, notes = assign_splits(dict.fromkeys(said), str(listing.root))
    for note in notes:
        listing.say(note)
    listed = {}
    for split, called in assigned.items():
        chosen = [i for i, each in enumerate(said) if each == called]
        columns = (every.files, every.classes, every.groups)
        listed[split] = Listed(*([column[i] for i in chosen] for column in columns))  # type: ignore[arg-type]
    return listed


def _check_labelled(table: Path, part: Listed, split: str) -> None:
    lacking = [
        file.path for file, name in zip(part.files, part.classes, strict=True) if name is None
    ]
    if lacking and (split == "train" or len(lacking) < len(part.files)):
        raise UserError(f"{table} says no class of {list_some(lacking)}")


def _assemble(request: Request, root: Path, listing: Listing, listed: dict[str, Listed]) -> Dataset:
    classes = {name for part in listed.values() for name in part.classes if name is not None}
    numbered = all(name.isdecimal() for name in classes)
    groups = sorted({group for part in listed.values() for group in part.groups})
    grouped = groups != [""]
    if grouped and "" in groups:
        raise UserError(f"{root}: the table says the groups of some images only")
    return assemble_files(
        request,
        name_of(root),
        listing,
        listed,
        classes=sorted(classes, key=int if numbered else str),
        group_names=groups if grouped else (),
        benchmark=False,
        orient=True,
    )
