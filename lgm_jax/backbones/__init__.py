"""Frozen, pre-trained backbones: `load(name, folder or hub id)` gives pure functions of images.

`python -m lgm_jax.backbones` lists the names. Weights are safetensors files, taken from the
package, a local folder or the Hugging Face hub.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lgm_jax import checks, hub_names, identity, plugins
from lgm_jax.backbones import configs, families, files, port, specs
from lgm_jax.backbones.attention import ATTENTIONS, choose_kernel, try_pallas
from lgm_jax.backbones.backbone import (
    DTYPES,
    Backbone,
    Settings,
    abstract_module,
    abstract_params,
    distinct_names,
    make_apply,
)
from lgm_jax.backbones.files import Files
from lgm_jax.backbones.network import IMAGENET, IndivisibleError, Network, Published
from lgm_jax.errors import UserError, unknown_name

__all__ = [
    "ATTENTIONS",
    "DTYPES",
    "NORMALIZATIONS",
    "RESIZED",
    "Backbone",
    "IndivisibleError",
    "Settings",
    "abstract_module",
    "abstract_params",
    "check_pooling",
    "distinct_names",
    "export",
    "load",
    "make_apply",
    "outline",
    "read_checkpoint",
]

NORMALIZATIONS = ("native", "imagenet")
RESIZED = ("positions", "images")

_IMPORTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_POOLING = re.compile(r"native|(cls\+mean|cls|mean)(:[1-9]\d*)?")


def load(
    source: str | Path,
    *,
    normalization: str = "native",
    dtype: DTypeLike = "float32",
    params_dtype: DTypeLike = "float32",
    attention: str = "auto",
    pooling: str | None = "native",
    position_offset: float = 0.0,
    resolution: int | None = None,
    resize: str = "positions",
    revision: str | None = None,
) -> Backbone:
    """Loads a backbone by registered name, from a local folder, or from the hub.

    Args:
        source: A registered name (see `specs.NAMES`), or `package.module:NAME` for a `specs.Entry`
            that is imported from there; a folder with `config.json` (timm's, transformers', or of
            an export) and `model.safetensors`, for which the network is never touched; or a
            repository of the Hugging Face hub with the same files, as `owner/name` or otherwise
            (see `hub_names.parse`). A `Path` is always a folder.
        normalization: Statistics of images: `native`, those of training, or `imagenet`, ImageNet's,
            as the authors' code has for every backbone.
        dtype: What it computes in, `float32` or `bfloat16`, by name or as `jnp.float32`; features
            are float32.
        params_dtype: What parameters are rounded to, likewise; in memory they have the narrower.
        attention: `cudnn`, `pallas`, `xla`, or `auto` for the first of these that runs on the
            default device; `apply` is for devices of that kind.
        pooling: `native` or `None` for the features that the family is used with; `cls`, `mean` (of
            patch tokens) or `cls+mean` for tokens after the last norm, without a projection or
            pooling head; `cls:4` for those of the last four blocks.
        position_offset: What the side of the patch grid counts more where positions of a DINOv2
            without registers are resized: 0.1 in the code of `torch.hub`. Others ignore it.
        resolution: Side of the images, in pixels, a multiple of the patch or of the network's
            stride; by default what the backbone is used at.
        resize: What fits where that is another side than the backbone is used at: its `positions`,
            as upstream resizes them, or the `images`, of any size, by an antialiased filter.
        revision: Branch, tag or commit, for the hub only.

    Raises:
        UserError: If the name is unknown, files are missing, broken or cannot be downloaded, or the
            weights do not fit.
    """
    checks.one_of("backbone.normalization", normalization, NORMALIZATIONS)
    checks.in_range("backbone.position_offset", position_offset, 0, 0.9)
    dtype, params_dtype, kept = _check_options(dtype, params_dtype, pooling, resize)
    # In float32 until positions are resized.
    found, published, params = read_checkpoint(source, revision=revision)
    spec, side = _reshape(published, pooling, resolution, resize)
    offset = position_offset if takes_offset(published, spec) else 0.0
    params = spec.fit(params, published.spec, offset)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, kept), params)
    statistics = IMAGENET if normalization == "imagenet" else published.preprocessing
    make = functools.partial(make_apply, spec, statistics, side=side)
    resolution = side or spec.resolution
    kernel = choose_kernel(attention, spec, dtype)
    if kernel == "pallas":
        kernel = try_pallas(attention, make, params, resolution, dtype)
    origin = provenance(found)
    # Where there are several files of weights, the hash of theirs.
    hashes = origin["sha256"]
    weights = next(iter(hashes.values())) if len(hashes) == 1 else identity.digest(hashes)
    settings = Settings(weights, spec, statistics, dtype, params_dtype, offset, side)
    return Backbone(
        name=str(source) if _entry(source) else Path(found.origin).name,
        apply=make(dtype, kernel),
        params=params,
        feature_dim=spec.feature_dim,
        resolution=resolution,
        fingerprint=identity.digest(settings),
        provenance=origin,
        published=published,
        settings=settings,
        attention=kernel,
    )


def read_checkpoint(
    source: str | Path, *, params_dtype: str = "float32", revision: str | None = None
) -> tuple[Files, Published, port.Params]:
    """A backbone's files, what they say it is, and its parameters as they were published.

    Arguments and errors are those of `load`; parameters are turned into `params_dtype`.
    """
    found, published = _find(source, revision)
    form, spec = families.formats()[published.form], published.spec
    _, shapes = abstract_module(spec)
    with files.open_tensors(found.weights) as tensors:
        try:
            keys, notes = port.find(form, spec, tensors)
            params = port.import_params(
                form.rows(spec), keys, tensors, shapes, jnp.dtype(params_dtype)
            )
        except UserError as error:
            raise UserError(f"{found.origin}: {error}") from error
    for note in notes:
        print(f"note: {found.origin}: {note}", flush=True)
    return found, published, params


def export(
    source: str | Path, out: Path, *, revision: str | None = None, dtype: str = "float32"
) -> None:
    """Writes a backbone, with weights of a `dtype`, to a new folder that `load` reads back.

    Raises:
        UserError: If it cannot be read, or the folder exists.
    """
    import safetensors.numpy

    if out.exists():
        raise UserError(f"{out} exists already: name another folder")
    found, published, params = read_checkpoint(source, params_dtype=dtype, revision=revision)
    tensors = port.export_params(families.formats()[published.form], published.spec, params)
    origin = provenance(found)
    # An export of an export is from where the first was.
    origin = origin.get("exported_from", origin)
    out.mkdir(parents=True)
    safetensors.numpy.save_file(tensors, out / files.WEIGHTS)
    content = json.dumps(configs.to_ours(published, origin), indent=1)
    (out / files.CONFIG).write_text(content + "\n")


def provenance(found: Files) -> dict[str, Any]:
    """Returns the origin of a backbone's files, for `Backbone.provenance`."""
    origin = configs.origin(found.config)
    exported = {"exported_from": origin} if origin else {}
    return {"source": found.origin, "revision": found.revision, "sha256": found.sha256()} | exported


def outline(
    source: str | Path,
    *,
    dtype: DTypeLike = "float32",
    params_dtype: DTypeLike = "float32",
    attention: str = "xla",
    pooling: str | None = "native",
    resolution: int | None = None,
    resize: str = "positions",
    device: Any = None,
) -> tuple[Network, int, Callable[..., Any], Any]:
    """Describes a backbone without its weights; a registered name needs no download.

    Arguments and errors are those of `load`, but that no kernel is tried; `device` is that for
    which one is chosen, as for `attention.choose_kernel`.

    Returns:
        Its shape, the side of the images that it takes, its `apply`, and its parameters as shapes
        and types.
    """
    dtype, params_dtype, kept = _check_options(dtype, params_dtype, pooling, resize)
    entry = _entry(source)
    published = _find(source, None)[1] if entry is None else entry.published
    spec, side = _reshape(published, pooling, resolution, resize)
    kernel = choose_kernel(attention, spec, dtype, device)
    apply = make_apply(spec, published.preprocessing, dtype, kernel, side)
    return spec, side or spec.resolution, apply, abstract_params(spec, kept)


def check_pooling(pooling: str) -> None:
    """Refuses what is no pooling; the message says what there is."""
    if not isinstance(pooling, str) or not _POOLING.fullmatch(pooling):
        known = ["native", "cls", "mean", "cls+mean", "cls:4", "mean:4", "cls+mean:4"]
        raise unknown_name("backbone.pooling", str(pooling), known, "for example")


def _entry(source: str | Path) -> specs.Entry | None:
    """Returns the entry of a name, ours or `package.module:NAME`; `None` for others."""
    # A path means a folder, whatever its name.
    if not isinstance(source, str):
        return None
    if source not in specs.NAMES and not _IMPORTED.fullmatch(source):
        return None
    found: Any = plugins.resolve("backbone", source, specs.NAMES)
    if not isinstance(found, specs.Entry):
        raise UserError(f"backbone {source!r} is a {type(found).__name__}, not a specs.Entry")
    return found


def takes_offset(published: Published, spec: Any) -> bool:
    """Whether positions are resized, and the code that upstream published has an offset there.

    `torch.hub` has one for DINOv2 without registers alone, whose positions are not antialiased.
    """
    own: Any = published.spec
    takes = families.formats()[published.form].takes_offset and not own.embed.antialias
    return takes and spec.grid != own.grid


def _find(source: str | Path, revision: str | None) -> tuple[Files, Published]:
    """The files of a backbone, and what they are."""
    if not isinstance(source, str | Path) or not str(source):
        raise UserError(f"backbone.name must be a name, a folder or a hub id, not {source!r}")
    entry = _entry(source)
    if entry is not None and entry.pickle:
        raise UserError(
            f"{source} is published as a pickle, which can run any code: put {entry.pickle} into a "
            f"folder, beside a {files.CONFIG} of {json.dumps(entry.config)}, and give that folder, "
            "to be told how to convert it"
        )
    if entry is not None and entry.folder is None:
        return _from_sources(entry, revision)
    # A shell leaves the `~` of --config.backbone.name=~/weights as it is.
    folder = (entry and entry.folder) or Path(os.path.expanduser(source))
    if os.path.isdir(folder):
        if revision:
            raise UserError(
                f"backbone.revision is for the hub, and {source} is not loaded from there"
            )
        found = files.from_folder(folder)
    elif os.path.isfile(folder):
        raise UserError(f"{source} is a file: give the folder that it is in, with config.json")
    elif isinstance(source, str) and (named := hub_names.parse(source)) is not None:
        if named.revision and revision and named.revision != revision:
            raise UserError(
                f"{source} names revision {named.revision}, and backbone.revision {revision}: "
                "leave one out"
            )
        found = files.from_hub(named.repo, revision or named.revision)
    elif isinstance(source, Path) or os.sep in source:
        raise UserError(f"there is no folder {source}")
    else:
        where = "no such folder; `python -m lgm_jax.backbones` lists the names, for example"
        raise unknown_name("backbone", source, list(specs.NAMES), where)
    try:
        return found, configs.read_config(found.config, found.preprocessor)
    except UserError as error:
        raise UserError(f"the config.json of {found.origin} is not understood: {error}") from error


def _from_sources(entry: specs.Entry, revision: str | None) -> tuple[Files, Published]:
    refused = []
    for repo, form in entry.sources.items():
        try:
            return files.from_hub(repo, revision, need_config=False), entry.published_as(form)
        except UserError as error:
            refused.append(error)
    # The first repository's trouble is the one to tell.
    raise refused[0]


def _check_options(
    dtype: DTypeLike, params_dtype: DTypeLike, pooling: str | None, resize: str
) -> tuple[str, str, str]:
    """Returns the names of both types, and of that which weights have in memory, the narrower."""
    checks.one_of("backbone.resize", resize, RESIZED)
    if pooling is not None:
        check_pooling(pooling)
    names = []
    for kind, value in (("dtype", dtype), ("params_dtype", params_dtype)):
        names.append(value if isinstance(value, str) else jnp.dtype(value).name)
        checks.one_of(f"backbone.{kind}", names[-1], DTYPES)
    return names[0], names[1], "bfloat16" if "bfloat16" in names else "float32"


def _reshape(
    published: Published, pooling: str | None, resolution: int | None, resize: str
) -> tuple[Network, int]:
    """A backbone's shape with other features, for images of another size or to resize these to.

    The second is the side of the images that are resized, or 0.
    """
    spec, own = published.spec, published.resolution
    kind, _, blocks = (pooling or "native").partition(":")
    spec = spec if kind == "native" else spec.pooled(kind, int(blocks or 1))
    if resize == "positions":
        own = resolution or own
    spec = spec if own == 0 else spec.at(own)
    if resize == "positions" or resolution in (None, spec.resolution):
        return spec, 0
    checks.in_range("resolution", resolution, 1, whole=True)
    return spec, resolution
