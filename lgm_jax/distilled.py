"""Distilled sets on disk: an image folder that other tools load, and the exact values beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from lgm_jax.errors import UserError
from lgm_jax.runs import replacing

ARRAYS = "distilled.npz"
METADATA = "metadata.jsonl"


def save_distilled(
    folder: epath.PathLike,
    images: Float[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
) -> None:
    """Writes one PNG per image, `metadata.jsonl`, and `distilled.npz` with the unrounded values.

    Folders are named `<label>_<class name>`, so that sorting them by name, as torchvision, TFDS
    and the Hugging Face hub do, gives the labels back.

    Args:
        folder: Where to write; made if need be.
        images: Images in [0, 1], float32.
        labels: Indices into `class_names`, int32.
        class_names: Human-readable, in label order.
    """
    folder = epath.Path(folder)
    counts: dict[int, int] = {}
    lines = []
    for image, label in zip(images, labels.tolist(), strict=True):
        number = counts[label] = counts.get(label, -1) + 1
        name = f"{class_folder(label, class_names)}/{number:03d}.png"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))
        entry = {"file_name": name, "label": label, "class_name": class_names[label]}
        lines.append(json.dumps(entry, ensure_ascii=False))
    (folder / METADATA).write_text("\n".join(lines) + "\n")
    with replacing(folder / ARRAYS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, images=images, labels=labels, class_names=np.asarray(class_names, np.str_)
        )


def load_distilled(
    folder: str | Path,
) -> tuple[Float[np.ndarray, "n h w 3"], Int[np.ndarray, " n"], list[str]]:
    """Reads a distilled set.

    Args:
        folder: A run's workdir, its `distilled/`, or any folder of PNGs in one folder per class,
            whose sorted names then give the labels.

    Returns:
        Images (n, h, w, 3) float32 in [0, 1], not normalised; labels (n,) int32; class names.

    Raises:
        UserError: If there is no distilled set, or one that cannot be read.
    """
    path = epath.Path(folder)
    if (path / "distilled").is_dir():
        path = path / "distilled"
    if (path / ARRAYS).is_file():
        with (path / ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = [str(name) for name in arrays["class_names"]]
            return arrays["images"], arrays["labels"], names
    if not path.is_dir():
        raise UserError(f"{folder} is not a folder")
    classes = sorted(child for child in path.iterdir() if child.is_dir())
    files = [(label, file) for label, c in enumerate(classes) for file in sorted(c.glob("*.png"))]
    if not files:
        raise UserError(f"{folder} holds no distilled set: expected {ARRAYS} or <class>/*.png")
    images = [_read_png(file) for _, file in files]
    if len({image.shape for image in images}) > 1:
        raise UserError(f"the images in {folder} differ in size")
    labels = np.asarray([label for label, _ in files], np.int32)
    return np.stack(images), labels, [_class_name(child, path) for child in classes]


def class_folder(label: int, class_names: Sequence[str]) -> str:
    """A folder name that sorts by label and is valid on any file system."""
    width = len(str(len(class_names) - 1))
    safe = re.sub(r"[^\w.-]+", "_", class_names[label]).strip("._")[:80]
    return f"{label:0{width}d}_{safe}"


def encode_png(image: Float[np.ndarray, "h w 3"]) -> bytes:
    """An image in [0, 1] as an 8-bit PNG."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _read_png(path: epath.Path) -> Float[np.ndarray, "h w 3"]:
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as file, Image.open(file) as image:
            return np.asarray(image.convert("RGB"), np.float32) / 255
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read image {path}: {error}") from error


def _class_name(child: epath.Path, root: epath.Path) -> str:
    if (root / METADATA).is_file():
        for line in (root / METADATA).read_text().splitlines():
            entry = json.loads(line)
            if entry["file_name"].startswith(f"{child.name}/") and "class_name" in entry:
                return entry["class_name"]
    return child.name
