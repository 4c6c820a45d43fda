"""Features of real images under fixed views, computed once, kept in shards, checked when read.

A shard is an `.npy` file of consecutive rows whose name holds the hash of its content. It appears
whole or not at all, so a computation that was killed goes on where it stopped, and one that was
damaged on disk is noticed and made again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from lgm_jax import checks, compilation, devices, files, hosts, paths
from lgm_jax.augment import Augment, augment
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit, Split
from lgm_jax.errors import UserError
from lgm_jax.prefetch import Ahead
from lgm_jax.progress import progress

# Rows of a shard: what a kill can cost, and what is read into memory at a time.
SHARD = 1024

_SHARD_NAME = re.compile(r"(?P<number>\d{6,})-[0-9a-f]{32}\.npy")

BATCH = 128
"""Images embedded together on each device."""

# Of these, images in a backbone at a time on a TPU: its compiler estimates a tenth fewer cycles a
# view for 32 than for 125 (ViT-B/14 in bfloat16 on a v5e).
_ON_TPU = 32


AnyArray = np.ndarray | Array
Images = UInt8[AnyArray, "pool h w 3"] | Float[AnyArray, "pool h w 3"]


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of an image to embed.

    Attributes:
        crop: Side of the crops that the backbone sees, in pixels.
        augmentation: What makes a view; `None` for the centre crop.
        count: Views of each image; one without augmentation.

    Raises:
        UserError: If a number is out of range.
    """

    crop: int
    augmentation: Augment | None = None
    count: int = 1

    def __post_init__(self) -> None:
        checks.counts(self, "crop", "count")
        if self.augmentation is None:
            checks.in_range("count without augmentation", self.count, 1, 1, whole=True)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Features in shards, mapped from files where they are kept in a folder.

    Attributes:
        shards: Consecutive parts, each (rows, d) float32, all but the last of equal length.
        views: Views of each image; row `view * n + image` holds an image's view.
    """

    shards: Sequence[np.ndarray]
    views: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Views, images, features."""
        rows = sum(len(shard) for shard in self.shards)
        return self.views, rows // self.views, self.shards[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    def whole(self) -> Float[np.ndarray, "views n d"]:
        """All of them, in memory."""
        return np.concatenate(self.shards).reshape(self.shape)

    def take(self, rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        """Some of them, in memory."""
        length = len(self.shards[0])
        taken = np.empty((len(rows), self.shape[2]), np.float32)
        for number in np.unique(rows // length):
            chosen = rows // length == number
            taken[chosen] = self.shards[number][rows[chosen] % length]
        return taken


def embed(
    backbone: Backbone,
    split: Split,
    views: Views,
    key: Key[Array, ""],
    *,
    folder: epath.Path | None = None,
    label: str = "features",
    mesh: Mesh | None = None,
    size: Callable[[Backbone], int | None] = lambda _: None,
) -> Rows:
    """Features of every view of every image of a split, in its order.

    Of several processes, all are to call it: what is kept in a folder, they compute in turns.

    Args:
        key: Random key of the augmentations; a view's is folded from its number and the image's.
        folder: Where shards of these inputs alone are kept and found, to be mapped into memory
            unless it is in a bucket; `None` keeps nothing.
        mesh: Devices of this process that share each batch; all by default.
        size: Returns, for the backbone whose parameters are on these devices, the `size` of
            `embed_places`; not called where all features are found.

    Raises:
        UserError: If features are not finite.
    """
    mesh = devices.make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    images, total = len(split.labels), views.count * len(split.labels)
    numbers, dim = range(-(-total // SHARD)), backbone.feature_dim

    @functools.cache
    def placed() -> tuple[Backbone, int | None]:
        here = dataclasses.replace(backbone, params=devices.put(mesh, backbone.params))
        return here, size(here)

    def compute(number: int) -> Float[np.ndarray, "n d"]:
        rows = np.arange(number * SHARD, min((number + 1) * SHARD, total))
        places, load = np.divmod(rows, images), lambda at: split.load(rows[at] % images)
        here, each = placed()
        found = embed_places(here, load, np.stack(places, axis=1), views, key, mesh=mesh, size=each)
        if wrong := np.count_nonzero(~np.isfinite(found).all(axis=1)):
            raise UserError(
                f"features of {wrong} of {len(found)} images by {backbone.name} are not finite: "
                "its weights are damaged, or its network overflows; try "
                "config.backbone.dtype=float32 and config.backbone.attention=xla"
            )
        return found

    if folder is None:
        return Rows([compute(number) for number in progress(numbers, label)], views.count)
    folder = folder / f"shards_of_{SHARD}"
    if hosts.count() > 1:
        found, own = _find_shards(folder), numbers[hosts.index() :: hosts.count()]
        for number in progress([number for number in own if number not in found], label):
            _write_shard(folder, number, compute(number))
        hosts.wait()
    found, shards = _find_shards(folder), []
    for number in progress(numbers, label):
        shape = min(SHARD, total - number * SHARD), dim
        shard = _read_shard(found[number], shape) if number in found else None
        if shard is None:
            shard = _load(_write_shard(folder, number, compute(number)))
        shards.append(shard)
    return Rows(shards, views.count)


def embed_images(
    backbone: Backbone, images: Images, *, crop: int | None = None, mesh: Mesh | None = None
) -> Float[np.ndarray, "n d"]:
    """Features of the centre crops of images in memory.

    Args:
        images: uint8, or float in [0, 1] such as those of `distill.render`.
        crop: Side of the crops, in pixels; by default the backbone's resolution.
    """
    split = ArraySplit(np.asarray(images), np.zeros(len(images), np.int32))
    views = Views(crop or backbone.resolution)
    return embed(backbone, split, views, jax.random.key(0), mesh=mesh).whole()[0]


def embed_places(
    backbone: Backbone,
    load: Callable[[Int[np.ndarray, " b"]], np.ndarray],
    places: Int[np.ndarray, "n p"],
    views: Views,
    key: Key[Array, ""],
    *,
    mesh: Mesh,
    label: str | None = None,
    size: int | None = None,
) -> Float[np.ndarray, "n d"]:
    """Features of one view for each place; the host loads images while devices embed others.

    Args:
        backbone: The frozen backbone, its parameters on every device.
        load: Returns the images of some rows of `places`.
        places: As for `embed_views`.
        mesh: Devices that share each batch; of several processes, all are to make the same call,
            and each loads the images of its own devices.
        label: What a progress bar says; none by default.
        size: As for `embed_views`, of a batch of at most `BATCH` for each device.
    """
    # The last repeats rows, so that one compiled shape serves all. That of a whole batch is there
    # already, as a rule: to embed a tenth more takes less than to compile another.
    batch = BATCH * mesh.size
    if -len(places) % batch > len(places) // 10:
        batch = devices.even(len(places), batch)
        batch += -batch % mesh.size
    own = devices.rows_here(mesh, batch)
    starts = range(0, len(places), batch)
    rows = [np.resize(np.arange(i, min(i + batch, len(places))), batch) for i in starts]
    table = np.empty((len(rows) * batch, backbone.feature_dim), np.float32)
    under_way: list[tuple[int, Array]] = []

    def keep() -> None:
        """Waits for the batch before, so that few are under way."""
        start, found = under_way.pop(0)
        table[start : start + batch] = np.asarray(devices.fetch(mesh, found))[:batch]

    with Ahead(lambda number: load(rows[number][own]), len(rows)) as images:
        for number, start in enumerate(starts if label is None else progress(starts, label)):
            pixels = devices.put_rows(mesh, images(number), batch)
            numbers = devices.put(mesh, places[rows[number]].astype(np.int32), devices.ROWS)
            found = embed_views(
                backbone.params,
                pixels,
                key,
                numbers,
                apply=backbone.apply,
                crop=views.crop,
                augmentation=views.augmentation,
                mesh=mesh,
                size=size,
            )
            under_way.append((start, found))
            if number:
                keep()
    if under_way:
        keep()
    return table[: len(places)]


@functools.partial(
    compilation.Program, static_argnames=("apply", "crop", "augmentation", "mesh", "size")
)
def embed_views(
    params: Any,
    images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
    key: Key[Array, ""],
    places: Int[Array, "b p"],
    *,
    apply: Callable[[Any, Array], Array],
    crop: int,
    augmentation: Augment | None,
    mesh: Mesh,
    size: int | None = None,
) -> Float[Array, "b d"]:
    """Features of one view of each image: all features of real images are computed here.

    Args:
        params: The backbone's parameters, on every device.
        images: As they lie on the mesh, as many rows on each device.
        places: Of each view, numbers that are folded into the key one after the other.
        apply: The backbone's `apply(params, images)`.
        crop: Side of the views, in pixels.
        augmentation: What makes a view; `None` for the centre crop.
        size: Views in the backbone at a time on each device; by default, and at most, all of them,
            or as many as are worth it on a TPU.
    """
    here = len(images) // mesh.size
    size = most_at_once(mesh.devices.flat[0].platform, min(size or here, here))

    def part(params: Any, key: Key[Array, ""], images: Array, places: Array) -> Array:
        def fold(place: Int[Array, " p"]) -> Key[Array, ""]:
            return functools.reduce(jax.random.fold_in, place, key)

        def features(images: Array, places: Array) -> Array:
            return apply(params, augment(jax.vmap(fold)(places), images, crop, augmentation))

        return devices.map_rows(features, size, images, places)

    rows, everywhere = devices.ROWS, devices.EVERYWHERE
    specs = (everywhere, everywhere, rows, rows)
    mapped = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=rows)
    return mapped(params, key, images, places)


def most_at_once(platform: str, images: int) -> int:
    """Images, of so many, that it is worth to have in a backbone at a time, if memory suffices."""
    return min(images, _ON_TPU) if platform == "tpu" else images


def _find_shards(folder: epath.Path) -> dict[int, epath.Path]:
    if not folder.is_dir():
        return {}
    # Anything else there is the rest of a write that was cut off, or somebody else's.
    matches = ((_SHARD_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match["number"]): path for match, path in matches if match}


def _read_shard(path: epath.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """A shard, or `None` if it is missing or not what was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        # Another run that shares the folder has found it damaged.
        return None
    if hashlib.sha256(content).hexdigest()[:32] != path.stem.split("-")[1]:
        print(f"note: {path} is damaged; its features are computed again")
        path.unlink(missing_ok=True)
        return None
    shard = _load(path, content)
    return shard if shard.shape == shape else None


def _write_shard(folder: epath.Path, number: int, shard: np.ndarray) -> epath.Path:
    buffer = io.BytesIO()
    np.save(buffer, shard, allow_pickle=False)
    content = buffer.getvalue()
    path = folder / f"{number:06d}-{hashlib.sha256(content).hexdigest()[:32]}.npy"
    with files.replacing(path, shared=True) as temporary:
        temporary.write_bytes(content)
    return path


def _load(path: epath.Path, content: bytes = b"") -> np.ndarray:
    """Maps a shard, or reads it where its file cannot be mapped; its content may be known."""
    if not paths.is_bucket(path):
        return np.load(str(path), mmap_mode="r", allow_pickle=False)
    return np.load(io.BytesIO(content or path.read_bytes()), allow_pickle=False)
