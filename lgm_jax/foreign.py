"""Finished images that others made, in the data set's label order: what `images.source` names."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from lgm_jax import paths
from lgm_jax.data import imagenet
from lgm_jax.data.arrays import read_npz
from lgm_jax.data.class_folders import (
    NUMBER_BEFORE,
    NUMBERED,
    NUMBERS,
    SAVE_AS_ARRAYS,
    ClassFolders,
    count_from,
    find_classes,
    numbers_of,
)
from lgm_jax.data.dataset import ArraySplit, Dataset
from lgm_jax.data.decode import resize_and_crop
from lgm_jax.data.labels import read_labels
from lgm_jax.distilled import (
    ARRAYS,
    DistilledSet,
    check_arrays,
    read_arrays,
    read_image,
    safe_name,
)
from lgm_jax.errors import UserError, list_some
from lgm_jax.names import folded, match

_WNID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?!\d)")


# The order from foreign labels to the data set's, and the rule that decides it, in words.
_Matched = tuple[Int[np.ndarray, " k"], str]


def read_source(folder: str, dataset: Dataset, resolution: int, ipc: int) -> ArraySplit:
    """Reads finished images, `ipc` of each class, at a side of `resolution` pixels.

    Class names decide which class is which, if all are the data set's. If none is, labels that the
    images come with do. Nothing is decoded before classes and numbers of images fit.

    Args:
        folder: A run's workdir, a folder that `data.class_folders` describes, or an `.npz` file.
    """
    path = paths.locate(folder)
    path = path / "distilled" if (path / "distilled").is_dir() else path
    arrays = path / ARRAYS if path.is_dir() else path
    if arrays.is_file():
        if not path.is_dir() and path.suffix != ".npz":
            raise UserError(f"{folder} is a file, but no .npz of arrays: {SAVE_AS_ARRAYS}")
        return _from_arrays(_read_arrays(arrays), dataset, folder, resolution, ipc)
    if not path.is_dir() or paths.is_bucket(path):
        raise UserError(f"{folder} is not a folder of images on this machine")
    found, (order, rule) = _choose(find_classes(Path(path)), dataset, folder)
    labels = np.repeat(order, list(map(len, found.files))).astype(np.int32)
    _check_counts(labels, dataset, folder, ipc)
    images, fitted = _read_images(found, resolution)
    for note in found.notes:
        print(f"note: {note}")
    print(f"images.source: {len(images)} images, labels by {rule}{fitted}", flush=True)
    return ArraySplit(images, labels)


def _read_arrays(path: epath.Path) -> DistilledSet:
    """A `distilled.npz`, or the arrays of another program: bytes, channels first, without names."""
    if path.name == ARRAYS:
        return read_arrays(path)
    arrays = read_npz(path, "images and labels")
    if not {"images", "labels"} <= set(arrays):
        raise UserError(f"{path} has arrays {sorted(arrays)}: {SAVE_AS_ARRAYS}")
    images, labels = _to_colour(arrays["images"], path), arrays["labels"]
    count, class_names = len(images) if images.ndim else 0, arrays.get("class_names")
    own = class_names.reshape(-1).tolist() if class_names is not None else None
    read = read_labels(labels, count, str(path), own)
    names = np.asarray(read.names, np.str_)
    found = check_arrays(path, images, read.numbers, names, arrays.get("probabilities"))
    if own is not None:
        return found
    return found._replace(labelled_by=None if labels.dtype.kind in "SU" else NUMBERS)


def _to_colour(images: np.ndarray, path: epath.Path) -> np.ndarray:
    """Images (n, h, w, 3) float32, of bytes or floats that are grey or have channels first."""
    if images.ndim == 4 and images.shape[-1] not in (1, 3, 4) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    grey = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 1)
    whole = images.dtype.kind in "iu" and images.dtype != np.uint8
    if (images.ndim == 4 and images.shape[-1] == 4) or whole:
        raise UserError(
            f"{path} has images that are {images.dtype} {images.shape}: expected 3 channels or 1, "
            "of 8 bits or in [0, 1]"
        )
    if grey:
        print(f"note: {path.name}: grey images are read as RGB", flush=True)
        images = np.repeat(images.reshape(*images.shape[:3], 1), 3, axis=-1)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    return images.astype(np.float32) if images.dtype.kind == "f" else images


def _from_arrays(
    found: DistilledSet, dataset: Dataset, folder: str, resolution: int, ipc: int
) -> ArraySplit:
    order, rule = _match(found.class_names, found.labelled_by, dataset, folder)
    labels, images, soft = order[found.labels], found.images, found.probabilities
    if soft is not None:
        # Column `c` of theirs is of class `order[c]` of ours.
        soft = soft[:, np.argsort(order)]
    _check_counts(labels, dataset, folder, ipc)
    if images.shape[1] != images.shape[2]:
        raise UserError(f"the images in {folder} are not square")
    print(f"images.source: {len(images)} images, labels by {rule}", flush=True)
    return ArraySplit(_resize(images, resolution), labels, probabilities=soft)


def _check_counts(labels: Int[np.ndarray, " n"], dataset: Dataset, folder: str, ipc: int) -> None:
    counts = np.bincount(labels, minlength=dataset.num_classes)
    low, high = int(counts.min()), int(counts.max())
    if low != high:
        few, many = (dataset.class_names[int(i)] for i in (counts.argmin(), counts.argmax()))
        raise UserError(
            f"{folder} has {low} to {high} images per class ({low} of {few}, {high} of {many}); "
            f"all need as many: keep {max(low, 1)} of each"
        )
    if low != ipc:
        raise UserError(f"{folder} has {low} images per class: add --config.ipc={low}, it is {ipc}")


def _read_images(found: ClassFolders, resolution: int) -> tuple[np.ndarray, str]:
    """Images (n, r, r, 3) float32, and what was done to them, in words."""
    from PIL import Image

    files = [found.root / file for files in found.files for file in files]
    shapes = {read_image(file).shape for file in files}
    height, width, _ = next(iter(shapes))
    if len(shapes) == 1 and height == width:
        images = np.stack([read_image(file) for file in files])
        return _resize(images.astype(np.float32) / 255, resolution), ""
    # As real images are treated. One at a time: they may be large.
    images = np.stack(
        [resize_and_crop(Image.fromarray(read_image(file)), resolution) for file in files]
    )
    fitted = f"; resized and cropped to {resolution} px, as they are not all square and of one size"
    return images.astype(np.float32) / 255, fitted


def _resize(images: Float[np.ndarray, "n h w 3"], resolution: int) -> Float[np.ndarray, "n r r 3"]:
    if images.shape[1] == resolution:
        return images
    shape = (len(images), resolution, resolution, 3)
    return np.asarray(jax.image.resize(images, shape, "linear"))


def _choose(
    ways: Sequence[ClassFolders], dataset: Dataset, folder: str
) -> tuple[ClassFolders, _Matched]:
    """The one way to read a folder that gives the data set's classes."""
    matched, errors = [], []
    for way in ways:
        try:
            matched.append((way, _match(way.names, way.labelled_by, dataset, folder)))
        except UserError as error:
            errors.append(error)
    if not matched:
        raise errors[0]
    if len(matched) > 1:
        raise UserError(
            f"{folder} can be read in two ways, by {matched[0][1][1]}, or by "
            f"{matched[1][1][1]}: put the images of each class into a folder of its own"
        )
    return matched[0]


def _match(
    names: Sequence[str], labelled_by: str | None, dataset: Dataset, folder: str
) -> _Matched:
    """Returns the class of the data set for each class of foreign images."""
    known = list(map(str, dataset.class_names))
    best: dict[str, str] = {}
    for rule, theirs, write in _ways_to_name(dataset):
        if len(set(theirs)) < len(theirs):
            continue
        written = {write(name): name for name in names}
        place = dict(zip(theirs, known, strict=True))
        pairs = match(list(written), theirs, folded_safe, number)
        found = {written[name]: place[other] for name, other in pairs.items()}
        if len(found) == len(known) == len(names):
            order = [known.index(found[name]) for name in names]
            return np.asarray(order, np.int32), f"{rule}, all of which match"
        best = max(best, found, key=len)
    lacking = list_some([name for name in known if name not in best.values()])
    foreign = list_some([name for name in names if name not in best])
    if len(names) != len(known):
        raise UserError(
            f"{folder} has {len(names)} classes, but {dataset.name} has {len(known)}: "
            f"{foreign or 'none'} there alone, {lacking or 'none'} here alone; config.data.subset "
            "chooses classes of the data set"
        )
    if best:
        raise UserError(
            f"some classes of {folder} are {dataset.name}'s and some are not: {foreign} there, "
            f"{lacking} here; give all the same names"
        )
    return _by_label(names, labelled_by, dataset, folder)


def _ways_to_name(dataset: Dataset) -> list[tuple[str, list[str], Callable[[str], str]]]:
    """Rules by which names may be compared: the rule, the data set's names, and theirs."""
    known = list(map(str, dataset.class_names))
    # Folders may be named by WordNet names, with or without other names for their classes.
    wnids = list(dataset.wnids) or known
    bare = functools.partial(NUMBER_BEFORE.sub, "")
    return [
        ("class name", known, str),
        ("class name behind a number", list(map(bare, known)), bare),
        ("WordNet name", list(map(_wnid_in, wnids)), _wnid_in),
        ("class name of a WordNet name", list(map(_name_of, wnids)), _name_of),
    ]


def _by_label(
    names: Sequence[str], labelled_by: str | None, dataset: Dataset, folder: str
) -> _Matched:
    """By the labels that images come with, where no name is known."""
    classes = list(map(str, dataset.class_names))
    numbers = numbers_of(names) if labelled_by in (NUMBERS, None) else None
    rules: dict[str, list[int]] = {}
    if labelled_by == NUMBERED or labelled_by not in (NUMBERS, None):
        rules[labelled_by] = list(range(len(names)))
    elif numbers is not None:
        first = count_from(numbers, len(names))
        if first is not None:
            rules[f"{NUMBERS}, counted from {first}"] = [n - first for n in numbers]
        thousand = [imagenet.wnids()[n] if n < 1000 else "" for n in numbers]
        if dataset.wnids and set(thousand) == set(dataset.wnids):
            rules["ImageNet-1k's numbers"] = [list(dataset.wnids).index(w) for w in thousand]
    if not rules:
        raise UserError(
            f"no class of {folder} ({list_some(names)}) is one of {dataset.name}'s "
            f"({list_some(classes)}): name its folders as the classes, <label>_<name>, or by "
            f"numbers from 0 to {len(names) - 1}"
        )
    if len({tuple(order) for order in rules.values()}) > 1:
        raise UserError(
            f"{folder}: {NUMBERS} may be the data set's labels or ImageNet-1k's, which differ: "
            "name its folders as the classes, or by WordNet names"
        )
    rule, order = next(iter(rules.items()))
    meaning = [f"{name} is {classes[i]}" for name, i in zip(names, order, strict=True)]
    rule = f"{rule}, since no class name matches: {list_some(meaning)}"
    return np.asarray(order, np.int32), rule


def folded_safe(name: str) -> str:
    """Equal for a name and what is left of it in a file's name."""
    return folded(safe_name(name))


def number(name: str) -> str:
    """Equal for one number with and without leading zeros."""
    return str(int(name)) if name.isdecimal() else folded(name)


def _wnid_in(name: str) -> str:
    """The WordNet name in a name, or the name."""
    found = _WNID.findall(name)
    return found[0] if len(found) == 1 else name


def _name_of(name: str) -> str:
    """The name that people use for the WordNet name in a name, or the first of its synonyms."""
    return imagenet.names_by_wnid().get(_wnid_in(name)) or name.partition(",")[0]
