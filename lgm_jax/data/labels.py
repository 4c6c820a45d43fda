"""Labels as sources have them, and the one rule by which those of several splits become one set.

Sources say labels as numbers with or without names, as names, or not at all; each split may number
its classes in an order of its own. Classes are matched by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from lgm_jax.errors import UserError, list_some, unknown_name
from lgm_jax.names import folded, match, plain

# What Hugging Face's and TFDS's sets have where there is no label.
_MISSING = -1
# What columns of labels are called, the likelier first.
_CALLED = ("label", "labels", "class", "classes", "target", "category", "y", "cls")


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of one split.

    Attributes:
        numbers: (n,) Indices into the names, -1 without a label.
        names: Of the split's classes, in the order of its own.
        named: Whether these came with the labels; else they are what the labels say.
    """

    numbers: Int[np.ndarray, " n"]
    names: Sequence[str]
    named: bool = True


def read_labels(
    values: Any,
    count: int,
    *,
    where: str,
    split: str,
    names: Sequence[Any] | None = None,
) -> Labels:
    """Reads the labels of a split.

    Args:
        values: (n,) or (n, 1) Whole numbers, truth values or names; `None`, NaN, a masked entry,
            an empty name or -1 where there is no label.
        count: How many images `n` the split has.
        where: What has them, for messages.
        split: Of what split they are, for messages.
        names: Of the classes that numbers count; by default the numbers themselves are the names.

    Raises:
        UserError: If they are anything else, if a name is none of `names`, or if a number is out
            of range.
    """
    present, has = _present(values, count, f"{where}, {split}")
    numbers = np.full(count, _MISSING, np.int32)
    if present.dtype.kind == "U":
        texts = present.tolist()
        own = sorted(set(texts)) if names is None else list(map(_decode, names))
        index = {name: number for number, name in enumerate(own)}
        strange = sorted(set(texts) - set(index))
        if strange:
            raise UserError(
                f"{where} has the label {plain(strange[0])!r} in its {split} split, which is "
                "none of its class names"
            )
        numbers[has] = [index[text] for text in texts]
        return Labels(numbers, own, names is not None)
    if names is not None:
        own = list(map(_decode, names))
        check_range(present, len(own), where=where, split=split)
    else:
        values_of = np.unique(present)
        if present.min(initial=0) < 0:
            check_range(present, len(values_of), where=where, split=split)
        own = [str(value) for value in values_of.tolist()]
        present = np.searchsorted(values_of, present)
    numbers[has] = present
    return Labels(numbers, own, names is not None)


def match_labels(
    splits: Mapping[str, Labels], where: str
) -> tuple[list[str], dict[str, Int[np.ndarray, " n"]], list[str]]:
    """Gives all splits the numbers of `train`'s classes, by their names.

    Args:
        splits: By split, its labels; `train` among them.
        where: What has them, for messages.

    Returns:
        The names of all classes, those that `train` has not behind the others; by split the
        labels, without the splits that have none; and a note on each of those.

    Raises:
        UserError: If `train` has no labels, a split has some only or no class of `train`'s, or two
            classes have one name.
    """
    names: list[str] = []
    matched, notes = {}, []
    for split in sorted(splits, key=lambda name: name != "train"):
        labels = splits[split]
        if not len(labels.numbers):
            raise UserError(f"{where} has no images in its {split} split")
        lacking = np.flatnonzero(labels.numbers == _MISSING)
        if len(lacking) == len(labels.numbers):
            if split == "train":
                raise UserError(f"{where} has no labels in its train split")
            notes.append(unlabelled(where, split))
            continue
        if len(lacking):
            raise UserError(
                f"{where}: {len(lacking)} of {len(labels.numbers)} {split} images have no label "
                f"(nothing, NaN or -1), the first is number {lacking[0]}: label them, or leave "
                "them out"
            )
        own = check_names(labels.names, where)
        if split == "train":
            names = own
        elif splits["train"].named and not labels.named and all(map(str.isdecimal, own)):
            own, said = _count_classes(own, names, f"{where}, {split}")
            notes += said
        used = np.bincount(labels.numbers, minlength=len(own))
        called = match(own, names)
        differing = [f"{name} is {called[name]}" for name in own if called.get(name, name) != name]
        if differing:
            notes.append(f"{where}, {split}: classes by another spelling: {list_some(differing)}")
        ours = [called.get(name, name) for name in own]
        present = [name for name, images in zip(ours, used, strict=True) if images]
        if not set(present) & set(names):
            raise UserError(
                f"{where}: no class of its {split} images ({list_some(present)}) is one of train's "
                f"({list_some(names)}): name them alike"
            )
        names = names + [name for name in present if name not in names]
        index = {name: number for number, name in enumerate(names)}
        new = np.asarray([index.get(name, _MISSING) for name in ours], np.int32)
        matched[split] = new[labels.numbers]
    return names, matched, [*notes, *_alike(names, where)]


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
    own: Sequence[str], names: Sequence[str], what: str
) -> tuple[list[str], list[str]]:
    """The classes of numbers that came without names, where `train`'s did not, and a note.

    Raises:
        UserError: If they are neither names nor indices of `train`'s classes.
    """
    numbers = list(map(int, own))
    counted = [names[n] for n in numbers] if max(numbers) < len(names) else []
    called = match(own, names)
    if len(called) == len(own):
        differ = counted and counted != [called[name] for name in own]
        said = (
            f"{what}: labels are numbers, taken for the names of train's classes, not their order"
        )
        return list(own), [said] if differ else []
    if not counted:
        raise UserError(
            f"{what}: labels are numbers without names, from {min(numbers)} to {max(numbers)}, but "
            f"train has {len(names)} classes: they must count these from 0, or have names"
        )
    meaning = [f"{n} is {name}" for n, name in sorted(zip(numbers, counted, strict=True))]
    said = f"{what}: labels are numbers without names, which count train's classes"
    return counted, [f"{said}: {list_some(meaning)}"]


def choose_label(
    classes: Sequence[str],
    others: Sequence[str],
    columns: Iterable[str],
    *,
    asked: str,
    where: str,
) -> tuple[str, list[str]]:
    """Decides which column has the labels.

    Args:
        classes: Columns that number classes and name them.
        others: Columns of numbers or text, which may be labels too.
        columns: All there are.
        asked: What `config.data.label` says, if anything.
        where: What has them, for messages.

    Returns:
        Its name, and a note where another one might have been meant.

    Raises:
        UserError: If there is none, or several and none is called `label` or the like.
    """
    if asked:
        if asked not in [*classes, *others]:
            raise unknown_name(
                f"column of {where} in config.data.label", asked, [*classes, *others]
            )
        return asked, []
    if not classes and not others:
        raise UserError(f"{where} has features {sorted(columns)}: it needs one label")
    candidates = list(classes or others)
    named = [key for word in _CALLED for key in candidates if key.casefold() == word]
    if not named and len(candidates) > 1:
        raise UserError(
            f"{where} may have labels in {', '.join(candidates)}: set "
            f"--config.data.label={candidates[0]} or another"
        )
    chosen = (named or candidates)[0]
    rest = [key for key in [*classes, *others] if key != chosen]
    rest = [key for key in rest if key in classes or is_called_label(key)]
    if rest:
        return chosen, [
            f"{where}: labels are those of the column {chosen}; for others, set "
            f"--config.data.label={' or '.join(rest)}"
        ]
    said = f"{where}: labels are those of the column {chosen}"
    return chosen, [] if chosen in classes or named else [said]


def is_called_label(column: str) -> bool:
    """Whether a column's name says that it has labels."""
    return column.casefold() in _CALLED


def unlabelled(where: str, split: str) -> str:
    """The note on a split without labels."""
    return f"{where}: the {split} images have no labels and are ignored"


def check_range(labels: np.ndarray, classes: int, *, where: str, split: str) -> None:
    """Refuses labels that are none of a class.

    Raises:
        UserError: If there is one.
    """
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{where} has labels from {low} to {high} in its {split} split, but "
            f"{classes} classes: labels must count from 0"
        )


def check_names(names: Sequence[Any], where: str, kind: str = "class") -> list[str]:
    """Names as text that can be shown.

    Raises:
        UserError: If one is missing or empty, or two are the same.
    """
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
    """The labels that there are, as int64 or text, and (n,) whether an image has one."""
    masked = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    # Numpy would make text of numbers beside text.
    array = np.asarray(values, object if isinstance(values, list | tuple) else None)
    if array.shape == (count, 1):
        array, masked = array.reshape(-1), None if masked is None else masked.reshape(-1)
    if array.shape != (count,):
        raise UserError(
            f"{what} labels are {array.dtype} {array.shape}: expected integers ({count},)"
        )
    has = np.ones(count, bool) if masked is None else ~masked
    if array.dtype.kind == "O":
        has &= np.asarray([not _is_missing(value) for value in array], bool)
        array = array.copy()
        present = array[has].tolist()
        if all(isinstance(value, str | bytes) for value in present):
            array[has] = list(map(_decode, present))
            array[~has] = ""
            array = array.astype(np.str_)
        elif all(isinstance(value, bool | int | float | np.generic) for value in present):
            array[~has] = _MISSING
            array = np.asarray(array.tolist())
    if array.dtype.kind == "S":
        array = np.asarray(list(map(_decode, array.tolist())), np.str_)
    if array.dtype.kind == "T":
        array = array.astype(np.str_)
    if array.dtype.kind == "U":
        has &= array != ""
        return array[has], has
    if array.dtype.kind == "f":
        has &= ~np.isnan(array)
        strange = array[has][array[has] != np.floor(array[has])]
        if len(strange):
            raise UserError(
                f"{what} labels are {array.dtype} like {strange[0]}: expected integers ({count},)"
            )
    elif array.dtype.kind not in "biu":
        raise UserError(
            f"{what} labels are {array.dtype} {array.shape}: expected integers ({count},)"
        )
    # Before they are 64 bits, which a larger number would leave.
    far = array[has][np.abs(array[has].astype(np.float64)) >= 2**31]
    if len(far):
        raise UserError(f"{what} labels have {far[0]}: no class has such a number")
    whole = np.full(count, _MISSING, np.int64)
    whole[has] = array[has]
    has &= whole != _MISSING
    return whole[has], has


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))
