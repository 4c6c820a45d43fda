"""A folder of images with one folder per class, split by its owner or here with a seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from lgm_jax.data.dataset import Dataset, Split
from lgm_jax.errors import UserError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# Naming them keeps PIL from handing a disguised file to its other plugins: EPS runs Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_SPLIT_FOLDERS: Mapping[str, Sequence[str]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_LAYOUT = "<folder>/<class>/*.jpg, or <folder>/train/<class>/*.jpg with val/ or test/ beside train/"
_MOST_NAMED = 5


class _File(NamedTuple):
    """An image: its path below the data folder, with slashes, and its size in bytes."""

    path: str
    size: int


_Classes = Mapping[str, Sequence[_File]]


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """A split whose images are decoded when asked for.

    Attributes:
        folder: The data folder.
        files: The images' paths below it.
        labels: (n,) int32, indices into the data set's class names.
        resolution: Side `r` of the images that `load` gives, in pixels.
    """

    folder: Path
    files: Sequence[str]
    labels: Int[np.ndarray, " n"]
    resolution: int

    def load(self, indices: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b r r 3"]:
        """Decodes images as torchvision's `Resize(r)` and `CenterCrop(r)` show them.

        The EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled to 8
        bits, and of an animation the first frame is taken.

        Raises:
            UserError: If an image cannot be read; the message names it.
        """
        images = np.empty((len(indices), self.resolution, self.resolution, 3), np.uint8)
        paths = [self.folder / self.files[index] for index in indices]
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(lambda path: _decode(path, self.resolution), paths)
            for i, image in enumerate(decoded):
                images[i] = image
        return images


def load_folder(folder: str | Path, *, resolution: int, seed: int = 0) -> Dataset:
    """Lists a folder of images; nothing is decoded yet.

    Two layouts are read. `train/<class>/*` comes with `val` (or `valid`, `validation`), `test` or
    both: without `val`, a fifth of each class of `train` becomes it; without `test`, the given
    `val` is reported on and a fifth of `train` takes its place. `<class>/*` alone is split into
    about 70 % `train`, 10 % `val` and 20 % `test` of each class. A class too small for all three
    keeps an image for `train` first, then for `test`.

    Images may lie at any depth below their class. Hidden files and folders, and files with other
    suffixes, are ignored. The split depends on names and seed, not on where the folder lies or in
    which order the file system lists it. The fingerprint covers names, sizes, labels, splits and
    resolution, but not what is in the files.

    Args:
        folder: The data folder; `~` is expanded.
        resolution: Side of the images to give, in pixels.
        seed: Seed of the split.

    Raises:
        UserError: If the folder is missing or laid out otherwise, has fewer than two classes, a
            class without images or classes that differ between splits, if an image could not be
            held out for every split, or if a symbolic link leads nowhere or out of the folder.
    """
    root = Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise UserError(f"{folder} is not a folder: expected {_LAYOUT}")
    classes = _read_splits(root, seed)
    class_names = list(classes["train"])
    splits: dict[str, Split] = {}
    digest = hashlib.sha256(json.dumps([resolution, class_names]).encode())
    for split, members in classes.items():
        rows = [(file, label) for label, files in enumerate(members.values()) for file in files]
        if not rows:
            raise UserError(f"{root} has too few images per class to hold any out for {split!r}")
        for file, label in rows:
            digest.update(json.dumps([split, *file, label]).encode())
        labels = np.asarray([label for _, label in rows], np.int32)
        splits[split] = FolderSplit(root, [file.path for file, _ in rows], labels, resolution)
    # `.` has no name of its own.
    name = Path(os.path.abspath(root)).name
    return Dataset(name, class_names, splits, digest.hexdigest())


def _read_splits(root: Path, seed: int) -> dict[str, _Classes]:
    given = _given_splits(root)
    train_folder = given.get("train", "")
    train = _list_classes(root, train_folder)
    if len(train) < 2:
        raise UserError(
            f"{root / train_folder} has one class only, {next(iter(train))!r}: expected {_LAYOUT}"
        )
    held_out = {split: _list_classes(root, given[split]) for split in given if split != "train"}
    for split, classes in held_out.items():
        _check_same_classes(root / train_folder, train, root / given[split], classes)

    rng = np.random.default_rng(seed)
    if not given:
        train, test = _hold_out(train, 0.2, rng)
        train, val = _hold_out(train, 1 / 8, rng)
    elif set(held_out) == {"val", "test"}:
        val, test = held_out["val"], held_out["test"]
    else:
        # A recipe is tuned on `val`, so the images given to report on must not be it.
        (test,) = held_out.values()
        train, val = _hold_out(train, 0.2, rng)
    return {"train": train, "val": val, "test": test}


def _given_splits(root: Path) -> dict[str, str]:
    """From split to its folder's name, or nothing where the folders are classes."""
    names = [entry.name for entry in _entries(root, "") if entry.is_dir()]
    given: dict[str, str] = {}
    for split, known in _SPLIT_FOLDERS.items():
        found = [name for name in names if name.lower() in known]
        if len(found) > 1:
            raise UserError(f"{root} has both {' and '.join(found)}: keep one of them")
        if found:
            given[split] = found[0]
    if "train" not in given and given:
        raise UserError(f"{root} has {' and '.join(given.values())} but no train folder")
    if set(given) == {"train"}:
        if len(names) == 1:
            raise UserError(
                f"{root} has {names[0]} but neither val nor test: give {root / names[0]} to have "
                "it split"
            )
        # Among other folders and with nothing held out, it is a class: trains.
        return {}
    return given


def _list_classes(root: Path, inside: str) -> _Classes:
    folder = root / inside
    names = [entry.name for entry in _entries(root, inside) if entry.is_dir()]
    if not names:
        raise UserError(f"{folder} has no class folders: expected {_LAYOUT}")
    classes = {name: list(_images(root, Path(inside, name).as_posix())) for name in names}
    for name, files in classes.items():
        if not files:
            raise UserError(f"class {name!r} has no images in {folder / name}")
    return classes


def _images(root: Path, inside: str) -> Iterator[_File]:
    for entry in _entries(root, inside):
        path = f"{inside}/{entry.name}"
        if entry.is_dir():
            yield from _images(root, path)
        elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in _SUFFIXES:
            yield _File(path, entry.stat().st_size)


def _entries(root: Path, inside: str) -> list[os.DirEntry[str]]:
    """What a folder below `root` holds, sorted by name, without what is hidden."""
    folder = root / inside
    try:
        with os.scandir(folder) as listing:
            visible = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error
    entries = sorted(visible, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if not target.is_relative_to(os.path.realpath(root)):
                raise UserError(f"{entry.path} is a symbolic link that leads out of {root}")
            # A link to a folder above itself ends here too, once it was followed often enough.
            if not os.path.exists(entry.path):
                raise UserError(f"{entry.path} is a symbolic link that leads nowhere or in a loop")
    return entries


def _hold_out(
    classes: _Classes, fraction: float, rng: np.random.Generator
) -> tuple[_Classes, _Classes]:
    """Splits off a part of each class, at least one image, but never the last one."""
    kept, held_out = {}, {}
    for name, files in classes.items():
        count = min(max(1, round(fraction * len(files))), len(files) - 1)
        order = rng.permutation(len(files))
        held_out[name] = [files[i] for i in sorted(order[:count])]
        kept[name] = [files[i] for i in sorted(order[count:])]
    return kept, held_out


def _check_same_classes(
    train_folder: Path, train: _Classes, folder: Path, classes: _Classes
) -> None:
    for here, there, lacking in (
        (folder, train_folder, set(classes) - set(train)),
        (train_folder, folder, set(train) - set(classes)),
    ):
        if lacking:
            names = ", ".join(sorted(lacking)[:_MOST_NAMED])
            more = f" and {len(lacking) - _MOST_NAMED} more" if len(lacking) > _MOST_NAMED else ""
            raise UserError(f"{here} has classes that {there} lacks: {names}{more}")


def _decode(path: Path, resolution: int) -> UInt8[np.ndarray, "r r 3"]:
    try:
        # Without JPEG's draft mode, which is faster but gives other pixels.
        with Image.open(path, formats=_FORMATS) as image:
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read image {path}: not one of {', '.join(_FORMATS)}") from error
    # Broken bytes make PIL's decoders raise almost anything, SyntaxError and struct.error included.
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"cannot read image {path}: {reason or type(error).__name__}") from error
    return np.asarray(_resize_and_crop(rgb, resolution))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # PIL would clip at 255.
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit grey has no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _resize_and_crop(image: Image.Image, resolution: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    # The short side is exactly `resolution`; torchvision rounds the long one down.
    width, height = int(resolution * width / short), int(resolution * height / short)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - resolution) / 2), round((height - resolution) / 2)
    return image.crop((left, top, left + resolution, top + resolution))
