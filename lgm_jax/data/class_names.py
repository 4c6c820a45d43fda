"""Names that people use for classes, where a source has WordNet names or numbers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from lgm_jax.data import imagenet, tables
from lgm_jax.data.dataset import Dataset
from lgm_jax.errors import UserError
from lgm_jax.names import plain

FILE = "class_names.txt"
# A WordNet name, perhaps with words behind it: `n02085620-Chihuahua`.
_WNID = re.compile(r"(n\d{8})(?:[-_. ]+(.+))?")


def name_wordnet(dataset: Dataset) -> Dataset:
    """Renames classes that have WordNet names by the names that people use.

    Those of ImageNet-1k have names here; others keep the words behind the WordNet name, if any.
    """
    table = imagenet.names_by_wnid()
    matches = [_WNID.fullmatch(name) for name in dataset.class_names]
    wnids = [match[1] for match in matches if match and match[1] in table]
    names = [
        table.get(match[1], (match[2] or name).replace("_", " ")) if match else name
        for match, name in zip(matches, dataset.class_names, strict=True)
    ]
    if names == list(dataset.class_names) or len(set(names)) < len(names):
        return dataset
    known = wnids if len(wnids) == len(names) else dataset.wnids
    return dataclasses.replace(dataset, class_names=names, wnids=known)


def name_classes(dataset: Dataset, folder: str) -> Dataset:
    """Renames classes by `class_names.txt`, or WordNet names by the names that people use.

    The file, in `folder`, has a line `CLASS NAME` for each class, with a space, tab or comma
    between; where classes are numbers that count from 0 or 1, names alone will do, in their order.
    Refused is one that names none of the classes, or two alike.
    """
    path = Path(folder).expanduser() / FILE
    if not folder or not path.is_file():
        return name_wordnet(dataset)
    lines = [line.strip() for line in tables.read_text(path).split("\n") if line.strip()]
    classes, notes = list(dataset.class_names), list(dataset.notes)
    found = _keyed(lines, classes) or _counted(lines, classes)
    if found:
        notes.append(f"{dataset.name}: {FILE} names {len(found)} of {len(classes)} classes")
    elif not set(classes) <= set(map(plain, lines)):
        raise UserError(
            f"{path} names none of the classes, as {classes[0]}: expected a line for each, such as "
            f"'{classes[0]} its name'"
        )
    classes = [found.get(name, name) for name in classes]
    return name_wordnet(dataclasses.replace(dataset, class_names=classes, notes=notes))


def _keyed(lines: list[str], classes: list[str]) -> Mapping[str, str]:
    """From classes to the names behind them."""
    found: dict[str, str] = {}
    # Of `black` and `black cat`, the longer.
    longest_first = sorted(classes, key=len, reverse=True)
    pattern = re.compile(rf"({'|'.join(map(re.escape, longest_first))})[ \t,]+(.*)")
    for match in filter(None, map(pattern.match, lines)):
        # A name alone, which begins as another does.
        if match[0] in classes:
            continue
        if match[1] in found:
            raise UserError(f"{FILE} names {match[1]!r} twice")
        found[match[1]] = plain(match[2])
    return found


def _counted(lines: list[str], classes: list[str]) -> Mapping[str, str]:
    """From classes that are numbers to the names in their order, which count from 0 or 1."""
    if not all(map(str.isdecimal, classes)):
        return {}
    numbers = list(map(int, classes))
    first = int(0 not in numbers and max(numbers) == len(lines))
    if max(numbers) - first >= len(lines):
        return {}
    return {name: plain(lines[int(name) - first]) for name in classes}
