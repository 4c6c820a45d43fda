"""A frozen backbone: pure functions of images, what its features depend on, and its name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lgm_jax.backbones import families
from lgm_jax.backbones.attention import AttentionKernel
from lgm_jax.backbones.network import CLIP, HALF, IMAGENET, Network, Preprocessing, Published
from lgm_jax.errors import UserError

DTYPES = ("float32", "bfloat16")

# Digits of a hash where nothing else tells two backbones apart.
_DIGITS = 8

_STATISTICS: Mapping[Preprocessing, str] = {IMAGENET: "imagenet", CLIP: "clip", HALF: "half"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that features depend on; its hash (`identity.digest`) is the fingerprint.

    Pooling and resolution are part of the spec. Left out is what changes no more than rounding:
    which kernel computes attention, on which device. A field that is added later needs a default
    under which features stay as they were.

    Attributes:
        weights: Hash of the weights file; of the files' hashes where there are several.
        spec: The shape, with the pooling and resolution that the features are taken with.
        params_dtype: What its parameters are rounded to.
        position_offset: What the side of the patch grid was taken to be larger by; 0 where that
            does not apply.
        side: Side of the images, in pixels, where these are resized to that of the spec; else 0.
    """

    weights: str
    spec: Network
    preprocessing: Preprocessing
    dtype: str = "float32"
    params_dtype: str = "float32"
    position_offset: float = 0.0
    side: int = 0


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen feature extractor.

    Attributes:
        name: Its registered name, or its folder's or repository's base name; `distinct_names` tells
            backbones of one name apart.
        apply: `apply(params, images) -> features`; images (n, r, r, 3) float32 in [0, 1], features
            (n, d) float32. Pure: the parameters are an argument, so that compiled code does not
            hold them as constants. Normalises the images itself.
        resolution: Side `r` of the images it takes, in pixels.
        fingerprint: The hash of `settings`: changes when the features do.
        provenance: Where it is from, for a run's record: `source`, `revision` (the hub's commit, or
            `None`), `sha256` by file; for an export, `exported_from` has the same of its origin.
        published: What the checkpoint says it is; `None` for a backbone made by hand.
        settings: What the features depend on; `None` for a backbone made by hand.
        attention: The kernel that computes attention, one of `attention.AttentionKernel`.
    """

    name: str
    apply: Callable[[Any, Float[Array, "n h w 3"]], Float[Array, "n d"]]
    params: Any
    feature_dim: int
    resolution: int
    fingerprint: str
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: Published | None = None
    settings: Settings | None = None
    attention: str = "xla"

    @property
    def spec(self) -> Network | None:
        """The network that its features are taken of; `None` for a backbone made by hand."""
        return None if self.settings is None else self.settings.spec


def abstract_module(
    spec: Network, dtype: DTypeLike = jnp.float32, kernel: AttentionKernel = "xla"
) -> tuple[nnx.GraphDef, dict[str, tuple[int, ...]]]:
    """The module's definition and its parameters' shapes by path, without allocating any."""
    make: Any = families.family_of(spec).module
    options = {"kernel": kernel} if spec.heads else {}
    module = nnx.eval_shape(lambda: make(spec, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0), **options))
    definition, state = nnx.split(module)
    leaves = flatten_dict(nnx.to_pure_dict(state), sep="/")
    return definition, {path: leaf.shape for path, leaf in leaves.items()}


def abstract_params(spec: Network, dtype: DTypeLike = jnp.float32) -> Any:
    """Parameters as shapes and types, nested as `apply` takes them."""
    shapes = abstract_module(spec)[1]
    leaves = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}
    return unflatten_dict(leaves, sep="/")


@functools.cache
def make_apply(
    spec: Network,
    statistics: Preprocessing,
    dtype: DTypeLike = "float32",
    kernel: AttentionKernel = "xla",
    side: int = 0,
) -> Callable[..., Float[Array, "n d"]]:
    """Makes a pure `apply(params, images)`, once for a process, so that it is compiled once.

    Where the module knows several ways to keep what its gradient needs, `apply` takes `residuals`.
    Images of `side` pixels, if it is not 0, are resized to the side of the spec by a bilinear
    filter, antialiased where it shrinks them.
    """
    definition, _ = abstract_module(spec, dtype, kernel)
    # Accelerators round the operands of float32 products unless told not to: who asks for float32
    # gets it, who wants speed asks for bfloat16.
    precision = "highest" if jnp.dtype(dtype) == jnp.float32 else "default"
    taken = side or spec.resolution

    def apply(params: Any, images: Float[Array, "n h w 3"], *options: Any) -> Float[Array, "n d"]:
        if images.shape[1:] != (taken, taken, 3):
            raise UserError(
                f"the backbone takes images of {taken} x {taken} x 3, "
                f"not {' x '.join(map(str, images.shape[1:]))}: set images.crop"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"the backbone takes floats in [0, 1], not {images.dtype}")
        images = images.astype(jnp.float32)
        mean, std = (
            jnp.asarray(each, jnp.float32).reshape(1, 1, 1, 3)
            for each in (statistics.mean, statistics.std)
        )
        with jax.default_matmul_precision(precision):
            if taken != spec.resolution:
                shape = (len(images), spec.resolution, spec.resolution, 3)
                images = jax.image.resize(images, shape, "linear")
            module = nnx.merge(definition, nnx.State(params))
            features = module((images - mean) / std, *options)
        return features.astype(jnp.float32)

    module = families.family_of(spec).module
    if "residuals" in inspect.signature(module.__call__).parameters:
        return lambda params, images, residuals="all": apply(params, images, residuals)
    return apply


def distinct_names(backbones: Sequence[Backbone]) -> list[str]:
    """Returns a name for each backbone, in their order; equal only where the features are.

    A backbone whose name no other has keeps it. Others are followed by what differs: `vit
    (pooling=cls)` and `vit (pooling=mean)`, `vit (weights=62beafa4)` where only the weights do.
    Such names are for people and tables of one run; records refer to a backbone by its
    `fingerprint`.
    """
    groups: dict[str, dict[str, Backbone]] = {}
    for backbone in backbones:
        groups.setdefault(backbone.name, {}).setdefault(backbone.fingerprint, backbone)
    named = {}
    for name, group in groups.items():
        for fingerprint, suffix in zip(group, _differences(list(group.values())), strict=True):
            named[name, fingerprint] = name + suffix
    if len(set(named.values())) < len(named):
        # Somebody's folder has the name that another was to get.
        named = {key: f"{key[0]} ({key[1][:_DIGITS]})" for key in named}
    return [named[backbone.name, backbone.fingerprint] for backbone in backbones]


def _differences(group: Sequence[Backbone]) -> list[str]:
    """The fewest settings that tell each of a group apart, in brackets; nothing if it is alone."""
    if len(group) == 1:
        return [""]
    described = [_described(backbone) for backbone in group]
    keys = [key for key in described[0] if all(key in each for each in described)]

    def kinds(*chosen: str) -> int:
        return len({tuple(each[key] for key in chosen) for each in described})

    # One setting where one is enough; the last key is a hash, which always is.
    chosen = [key for key in keys[:-1] if kinds(key) == len(group)][:1]
    for key in () if chosen else keys:
        if kinds(*chosen, key) > kinds(*chosen):
            chosen.append(key)
    return [f" ({', '.join(f'{key}={each[key]}' for key in chosen)})" for each in described]


def _described(backbone: Backbone) -> dict[str, str]:
    """A backbone's settings as text: first those of a config, by its keys; hashes last."""
    last = {"fingerprint": backbone.fingerprint[:_DIGITS]}
    settings = backbone.settings
    if settings is None:
        return last
    spec, statistics = settings.spec, settings.preprocessing
    owner, _, _ = str(backbone.provenance.get("source", "")).rpartition("/")
    shape = flatten_dict(dataclasses.asdict(spec), sep=".")
    return {
        "pooling": spec.pooling,
        "resolution": str(settings.side or spec.resolution),
        "resize": "images" if settings.side else "positions",
        "normalization": _STATISTICS.get(statistics, f"{statistics.mean}/{statistics.std}"),
        "dtype": settings.dtype,
        "params_dtype": settings.params_dtype,
        "position_offset": f"{settings.position_offset:g}",
        **{key: str(value) for key, value in shape.items() if key != "resolution"},
        "source": owner or "folder",
        "weights": settings.weights[:_DIGITS],
        **last,
    }
