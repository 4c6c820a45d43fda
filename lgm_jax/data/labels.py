"""Labels of sources, and the one rule by which labels of several splits become one set.

Labels are numbers with or without names, names, or missing; each split may number its classes in an
order of its own. Classes are matched by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lgm_jax.errors import UserError, list_some, unknown_name
from lgm_jax.names import folded, match, plain

# What Hugging Face's and TFDS's sets have where there is no label.
_MISSING = -1
# What columns of labels are called, the likelier first.
_CALLED = ("label", "labels", "class", "classes", "target", "category", "y", "cls")


class Labels(NamedTuple):
    """The labels of one split.

    Attributes:
        numbers: (n,) Indices into the names, -1 without a label.
        names: Of the split's classes, in the order of its own.
        named: Whether the names came with the labels; else the labels are the names.
    """

    numbers: Int[np.ndarray, " n"]
    names: Sequence[str]
    named: bool = True


def read_labels(values: Any, count: int, what: str, names: Sequence[Any] | None = None) -> Labels:
    """Reads the labels of a split.

    Args:
        values: (n,) or (n, 1) Whole numbers, truth values or names; `None`, NaN, a masked entry,
            an empty name or -1 where there is no label.
        count: How many images `n` the split has.
        names: Of the classes that numbers count; by default the numbers themselves are the names.
    """
    present, has = _present(values, count, what)
    numbers = np.full(count, _MISSING, np.int32)
    own = None if names is None else list(map(_decode, names))
    is_text = present.dtype.kind == "U"
    if own is not None and not is_text:
        check_numbers(present, len(present), len(own), f"{what} labels")
        numbers[has] = present
        return Labels(numbers, own)
    found, places = np.unique(present, return_inverse=True)
    if own is None:
        if not is_text and present.min(initial=0) < 0:
            check_numbers(present, len(present), len(found), f"{what} labels")
        numbers[has] = places
        return Labels(numbers, list(map(str, found.tolist())), named=False)
    index = {name: number for number, name in enumerate(own)}
    for text in found.tolist():
        if text not in index:
            raise UserError(f"{what}: the label {plain(text)!r} is none of the class names")
    numbers[has] = np.asarray([index[text] for text in found.tolist()], np.int32)[places]
    return Labels(numbers, own)


def match_labels(
    splits: Mapping[str, Labels], where: str
) -> tuple[list[str], dict[str, Int[np.ndarray, " n"]], list[str]]:
    """Numbers the labels of all splits as `train`'s classes, which are matched by their names.

    Returns:
        The names of all classes, those that `train` lacks behind the others; by split the labels,
        without the splits that have none; and notes, on these too.

    Raises:
        UserError: If `train` has no labels, a split has some only or no class of `train`'s, or two
            classes have one name.
    """
    names: list[str] = []
    matched, notes = {}, []
    named = next((labels.names for labels in splits.values() if labels.named), ())
    for split in sorted(splits, key=lambda name: name != "train"):
        labels = splits[split]
        if not _has_labels(labels, where, split):
            notes.append(unlabelled(where, split))
            continue
        own = check_names(labels.names, where)
        # Numbers without names count the classes of whatever has names, first of all of `train`.
        theirs = names if splits["train"].named else check_names(named, where)
        if theirs and not labels.named and all(map(str.isdecimal, own)):
            whose = "train" if names else "the held-out split"
            own, said = _count_classes(own, theirs, f"{where}, {split}", whose)
            notes += said
        called = match(own, names)
        ours = [called.get(name, name) for name in own]
        if differing := [f"{a} is {b}" for a, b in zip(own, ours, strict=True) if a != b]:
            notes.append(f"{where}, {split}: classes by another spelling: {list_some(differing)}")
        used = np.bincount(labels.numbers, minlength=len(own))
        present = [name for name, images in zip(ours, used, strict=True) if images]
        if names and not set(present) & set(names):
            raise UserError(
                f"{where}: no class of its {split} images ({list_some(present)}) is one of train's "
                f"({list_some(names)}): name them alike"
            )
        names = names + [name for name in present if name not in names] if names else own
        index = {name: number for number, name in enumerate(names)}
        new = np.asarray([index.get(name, _MISSING) for name in ours], np.int32)
        matched[split] = new[labels.numbers]
    return names, matched, [*notes, *_alike(names, where)]


def _has_labels(labels: Labels, where: str, split: str) -> bool:
    """Whether images have labels; refuses splits of which only some have, and `train` without."""
    if not len(labels.numbers):
        raise UserError(f"{where} has no images in its {split} split")
    lacking = np.flatnonzero(labels.numbers == _MISSING)
    if len(lacking) == len(labels.numbers):
        if split == "train":
            raise UserError(f"{where} has no labels in its train split")
        return False
    if len(lacking):
        raise UserError(
            f"{where}: {len(lacking)} of {len(labels.numbers)} {split} images have no label "
            f"(nothing, NaN or -1), the first is number {lacking[0]}: label them, or leave them out"
        )
    return True


def _alike(names: Sequence[str], where: str) -> list[str]:
    """Notes on classes whose names are nearly the same: they may be meant as one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(folded(name), []).append(name)
    return [
        f"{where}: {' and '.join(map(repr, same))} are {len(same)} classes, though only case, "
        "spaces, _ or - tell them apart: name them alike if they are one"
        for same in groups.values()
        if len(same) > 1
    ]


def _count_classes(
    own: Sequence[str], names: Sequence[str], what: str, whose: str
) -> tuple[list[str], list[str]]:
    """The classes of numbers that came without names, where others have names, and notes."""
    numbers = list(map(int, own))
    if len(match(own, names)) == len(own):
        return list(own), []
    counted = [names[n] for n in numbers] if max(numbers) < len(names) else []
    if not counted:
        raise UserError(
            f"{what}: labels are numbers without names, from {min(numbers)} to {max(numbers)}, but "
            f"{whose} has {len(names)} classes: they must count these from 0, or have names"
        )
    meaning = [f"{n} is {name}" for n, name in sorted(zip(numbers, counted, strict=True))]
    note = f"{what}: labels are numbers without names, which count {whose}'s classes"
    return counted, [f"{note}: {list_some(meaning)}"]


def choose_label(
    classes: Sequence[str], others: Sequence[str], columns: Iterable[str], *, asked: str, where: str
) -> tuple[str, list[str]]:
    """Decides which column has the labels, and notes where another one might have been meant.

    Of all `columns`, `classes` number classes and name them; `others` have numbers or text, which
    may be labels too.

    Raises:
        UserError: If there is none, or several and none is called `label` or the like.
    """
    every = [*classes, *others]
    if asked in every:
        return asked, []
    if asked:
        raise unknown_name(f"column of {where} in config.data.label", asked, every)
    if not every:
        raise UserError(f"{where} has features {sorted(columns)}: it needs one label")
    candidates = list(classes or others)
    named = [key for word in _CALLED for key in candidates if key.casefold() == word]
    if not named and len(candidates) > 1:
        raise UserError(
            f"{where} may have labels in {', '.join(candidates)}: set "
            f"--config.data.label={candidates[0]} or another"
        )
    chosen = (named or candidates)[0]
    said = f"{where}: labels are those of the column {chosen}"
    rest = [k for k in every if k != chosen and (k in classes or is_called_label(k))]
    if rest:
        return chosen, [f"{said}; for others, set --config.data.label={' or '.join(rest)}"]
    return chosen, [] if chosen in classes or named else [said]


def is_called_label(column: str) -> bool:
    """Whether a column's name says that it has labels."""
    return column.casefold() in _CALLED


def unlabelled(where: str, split: str) -> str:
    """Returns the note on a split without labels."""
    return f"{where}: the {split} images have no labels and are ignored"


def check_numbers(
    numbers: np.ndarray, count: int, limit: int, what: str, of: str = "classes"
) -> None:
    """Refuses what are not `count` whole numbers that count the `limit` classes, or groups."""
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu":
        raise UserError(f"{what} are {numbers.dtype} {numbers.shape}: expected integers ({count},)")
    if count and (numbers.min() < 0 or numbers.max() >= limit):
        raise UserError(
            f"{what} are from {numbers.min()} to {numbers.max()}, but there are {limit} {of}: they "
            "must count from 0"
        )


def check_names(names: Sequence[Any], where: str, kind: str = "class") -> list[str]:
    """Returns names as text that can be shown."""
    shown: dict[str, int] = {}
    for number, name in enumerate(names):
        text = plain(_decode(name))
        if not _decode(name).strip():
            raise UserError(f"{where}: {kind} {number} has no name")
        if text in shown:
            raise UserError(
                f"{where} has two {kind} names {text!r}, numbers {shown[text]} and {number}"
            )
        shown[text] = number
    return list(shown)


def _decode(value: object) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _present(values: Any, count: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels that exist, as int64 or text, and (n,) whether an image has one."""
    # Numpy would make text of numbers beside text.
    array = values if isinstance(values, np.ndarray) else np.asarray(values, object)
    wrong = f"{what} labels are {array.dtype} {{}}: expected integers ({count},)"
    if array.shape not in ((count,), (count, 1)):
        raise UserError(wrong.format(array.shape))
    cells = list(map(_cell, array.reshape(-1).tolist()))
    has = np.asarray([cell is not None for cell in cells], bool)
    found = [cell for cell in cells if cell is not None]
    kinds = set(map(type, found))
    if kinds == {str}:
        return np.asarray(found, np.str_), has
    if not kinds <= {bool, int, float}:
        raise UserError(wrong.format(array.shape))
    # Before they are 32 bits, which a larger number would leave; infinity divides to NaN.
    if strange := [number for number in found if number % 1 or abs(number) >= 2**31]:
        raise UserError(wrong.format(f"like {strange[0]}"))
    numbers = np.asarray(found, np.int64)
    has[has] = numbers != _MISSING
    return numbers[numbers != _MISSING], has


def _cell(value: Any) -> Any:
    """A label as a number or text of Python's; `None` where there is none."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        value = _decode(value)
    # Also pandas' `NA` and `NaT`, which are not equal to themselves either.
    missing = type(value).__name__ in ("NAType", "NaTType") or value in (None, "")
    return None if missing or value != value else value
