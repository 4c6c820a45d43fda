"""The names that people give to splits: one table for every source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lgm_jax.errors import UserError

SPLITS = ("train", "val", "test")

_WORDS: Mapping[str, Sequence[str]] = {
    "train": ("train", "training", "trn", "trainset", "traindata"),
    "val": (
        *("val", "valid", "validation", "valset", "validset", "validationset"),
        *("dev", "devel", "development", "devset", "eval", "evaluation", "evalset"),
    ),
    "test": ("test", "testing", "tst", "testset", "testdata"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
# Beside the name of a split they say nothing: train_images, Test Set.
_FILLERS = frozenset(
    {
        *("data", "dataset", "set", "split", "sub", "subset", "folder", "files", "examples"),
        *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "samples"),
    }
)


def split_of(name: str) -> str | None:
    """The split that a name stands for, whatever its case: `train` for `Training`, `train2017`.

    `None` for a name that is not a split's, or that stands for two, as `test-dev` does.
    """
    found = splits_within(name)
    others = set(_words(name)) - _SPLIT_OF.keys() - _FILLERS
    return found.pop() if len(found) == 1 and not others else None


def find_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """From split to the names that stand for it, in the order of `SPLITS`.

    A name that begins with that of the data set, as `imagenet-val` does, counts where no other
    name stands for its split and all such names begin with the same words.
    """
    names = list(names)
    found = {split: [name for name in names if split_of(name) == split] for split in SPLITS}
    prefixes = {name: prefix for name in names if (prefix := _prefix(name))}
    if len(set(prefixes.values())) == 1:
        for split in SPLITS:
            ending = [name for name in prefixes if split in splits_within(name)]
            if len(ending) == 1 and not found[split]:
                found[split] = ending
    return {split: given for split, given in found.items() if given}


def assign_splits(names: Iterable[str], where: str) -> tuple[dict[str, str], list[str]]:
    """Decides which name is which split; `where` is the name of the source, for messages.

    Returns:
        From split to its name, and a note on every name that is ignored.

    Raises:
        UserError: If two names stand for one split, if none stands for `train`, or if there is a
            name that we do not know and no held-out split that we do: it may be that.
    """
    names = list(names)
    found = find_splits(names)
    for given in found.values():
        check_one(given, where)
    if "train" not in found:
        raise UserError(
            f"{where} has splits {', '.join(names) or 'none'}: one must be called train"
        )
    assigned = {split: given[0] for split, given in found.items()}
    others = [name for name in names if name not in assigned.values()]
    if others and len(found) == 1:
        raise UserError(
            f"{where} has a split {others[0]} beside {assigned['train']}: call it val or test, or "
            "remove it"
        )
    return assigned, [ignored(where, name) for name in others]


def check_one(given: Sequence[str], where: str) -> None:
    """Refuses several names for one split."""
    if len(given) > 1:
        raise UserError(f"{where} has both {' and '.join(given)}: keep one of them")


def ignored(where: str, name: str) -> str:
    """Returns the note on a name that is no split's."""
    return f"{where}: {name} is ignored, since it is called neither train, val nor test"


def splits_within(name: str) -> set[str]:
    """The splits that a name mentions, whatever else it says: `train` in `trainA`, `cat_train`."""
    return {_SPLIT_OF[word] for word in _words(name) if word in _SPLIT_OF}


def _prefix(name: str) -> tuple[str, ...]:
    """The words before a split's, where nothing else follows: of `imagenet-val`, `imagenet`."""
    *first, last = _words(name) or [""]
    if last not in _SPLIT_OF or split_of(name) or any(word in _SPLIT_OF for word in first):
        return ()
    return tuple(word for word in first if word not in _FILLERS)


def _words(name: str) -> list[str]:
    """The words of a name without digits, in lower case: `TrainImages_2017` has two."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W\d_]+", spaced.casefold())
