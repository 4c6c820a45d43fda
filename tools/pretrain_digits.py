"""Trains the embedded backbones, without labels, on the training part of the digits.

    python tools/pretrain_digits.py --method=contrastive --temperature=0.07 --epochs=130 \
        --out=FOLDER
    python tools/pretrain_digits.py --method=distilled --warp=0.6 --epochs=330 --out=FOLDER

`contrastive` follows MoCo-v3 (arXiv 2104.02057): InfoNCE between two augmented views, a momentum
encoder for the keys, a prediction head for the queries. `distilled` follows DINO (arXiv
2104.14294): a student matches the centred, sharpened output of its momentum teacher. `masked`
follows MAE (arXiv 2111.06377): an encoder sees a quarter of the patches of an augmented view, and a
light decoder fills in the others. Unlike there, what it fills in is the scan without the view's
contrast, noise and colour, and the features, which are the mean of the patch tokens, are
standardised over the training part by the last norm.

Labels are read only to print how well a linear head does on the validation part; the test part is
not read. A run takes 15 to 30 minutes on two CPU cores and writes timm's format (`config.json`,
`model.safetensors` in float16), so `timm.create_model(architecture, **model_args)` loads it too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from absl import app, flags
from einops import rearrange
from flax import nnx
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from lgm_jax.backbones import families, port
from lgm_jax.backbones.vit import Block, ViT
from lgm_jax.backbones.vit_spec import AttentionSpec, EmbedSpec, MlpSpec, PoolSpec, ViTSpec
from lgm_jax.data.digits import RESOLUTION, load_digits

_METHOD = flags.DEFINE_enum(
    "method", "contrastive", ["contrastive", "distilled", "masked"], "Objective."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", 250, "Passes over the training part.")
_BATCH = flags.DEFINE_integer("batch", 127, "Images a step; 127 is a ninth of the training part.")
_SEED = flags.DEFINE_integer("seed", 0, "Root random seed.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak, after a linear warm-up.")
_WIDTH = flags.DEFINE_integer("width", 128, "Token dimension.")
_DEPTH = flags.DEFINE_integer("depth", 4, "Blocks.")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.2, "Of InfoNCE; the DINO teacher has a fifth of it."
)
_PATCH = flags.DEFINE_integer("patch", 8, "Side of a patch, in pixels.")
_MASKED = flags.DEFINE_float("masked", 0.75, "Share of the patches that `masked` hides.")
_WARP = flags.DEFINE_float("warp", 0.8, "Strength of the geometric augmentation.")

MEAN, STD = 0.5, 0.5
HEAD_WIDTH, EMBEDDING, PROTOTYPES = 512, 128, 512
MOMENTUM = 0.99
DECODER_WIDTH, DECODER_DEPTH = 64, 2


class Batch(NamedTuple):
    """What a loss is of: views (v, b, 32, 32, 3), their scans (v, b, 32, 32), a random key."""

    views: jax.Array
    scans: jax.Array
    key: jax.Array


class Learner(NamedTuple):
    """What the optimiser changes, and its slow copy."""

    online: Any
    momentum: Any
    opt_state: Any
    center: jax.Array


def augment(key: jax.Array, image: jax.Array, warp: float) -> tuple[jax.Array, jax.Array]:
    """One view of one image (32, 32, 3): affine and elastic warp, contrast, blur, noise, patch.

    Returns:
        The view, and the warped scan (32, 32) it was made of: no contrast, blur, noise, patch.
    """
    keys = iter(jax.random.split(key, 24))

    def uniform(low: float, high: float, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.uniform(next(keys), shape, jnp.float32, low, high)

    angle, shear = uniform(-0.35, 0.35) * warp, uniform(-0.3, 0.3) * warp
    scale = jnp.exp(uniform(-0.35, 0.35, (2,)) * warp)
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    matrix = rotation @ jnp.array([[1.0, 0.0], [0.0, 1.0]]).at[1, 0].set(shear) / scale[:, None]
    grid = jnp.stack(
        jnp.meshgrid(jnp.arange(RESOLUTION), jnp.arange(RESOLUTION), indexing="ij"), -1
    ).astype(jnp.float32)
    middle = (RESOLUTION - 1) / 2
    where = (grid - middle) @ matrix.T + middle + uniform(-4.0, 4.0, (1, 1, 2)) * warp
    elastic = jax.random.normal(next(keys), (4, 4, 2)) * uniform(0.0, 1.5) * warp
    where += jax.image.resize(elastic, (RESOLUTION, RESOLUTION, 2), "cubic")
    sample = functools.partial(
        jax.scipy.ndimage.map_coordinates, order=1, mode="constant", cval=0.0
    )
    scan = grey = sample(image[..., 0], [where[..., 0], where[..., 1]])

    blurred = jax.image.resize(
        jax.image.resize(grey, (RESOLUTION // 2, RESOLUTION // 2), "linear"), grey.shape, "cubic"
    )
    grey = jnp.where(uniform(0.0, 1.0) < 0.3, blurred, grey)
    grey = jnp.clip(grey, 0.0, 1.0) ** jnp.exp(uniform(-0.5, 0.5))
    # Each channel gets its own ink and paper: distilled images are in colour.
    colored = uniform(0.0, 1.0) < 0.5
    ink, paper = uniform(0.6, 1.1, (1, 1, 3)), uniform(0.0, 0.4, (1, 1, 3))
    ink = jnp.where(colored, ink, ink[..., :1])
    paper = jnp.where(colored, paper, paper[..., :1])
    view = paper + (ink - paper) * grey[..., None]

    corner, side = uniform(0.0, 1.0, (2,)) * RESOLUTION, uniform(3.0, 12.0)
    inside = jnp.all((grid >= corner) & (grid < corner + side), axis=-1, keepdims=True)
    view = jnp.where(inside & (uniform(0.0, 1.0) < 0.3), uniform(0.0, 1.0), view)
    noise = jax.random.normal(next(keys), view.shape) * uniform(0.0, 0.2)
    return view + jnp.where(uniform(0.0, 1.0) < 0.5, noise, 0.0), scan


class Head(nnx.Module):
    """A two-layer MLP with batch normalisation from the batch's own statistics."""

    def __init__(self, inputs: int, outputs: int, *, normalize: bool, rngs: nnx.Rngs):
        self.up = nnx.Linear(inputs, HEAD_WIDTH, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(HEAD_WIDTH, outputs, use_bias=False, rngs=rngs)
        self.normalize = normalize

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.down(jax.nn.relu(_standardize(self.up(x))))
        return _standardize(x) if self.normalize else x


def _standardize(x: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=0, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.var(x, axis=0, keepdims=True) + 1e-5)


class Prototypes(nnx.Module):
    """Cosines with learned unit vectors: DINO's weight-normalised last layer."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _unit(x) @ _unit(self.kernel[...].T).T


class Network(nnx.Module):
    """Backbone, projector, and what the method puts on top."""

    def __init__(self, spec: ViTSpec, method: str, *, rngs: nnx.Rngs):
        self.backbone = ViT(spec, dtype=jnp.float32, rngs=rngs)
        self.projector = Head(spec.width, EMBEDDING, normalize=method == "contrastive", rngs=rngs)
        self.predictor: nnx.Module = (
            Head(EMBEDDING, EMBEDDING, normalize=False, rngs=rngs)
            if method == "contrastive"
            else Prototypes(EMBEDDING, PROTOTYPES, rngs=rngs)
        )

    def features(self, images: jax.Array) -> jax.Array:
        return self.backbone((images - MEAN) / STD)


class MaskedNetwork(nnx.Module):
    """Backbone, and the light decoder that fills in the patches it has not seen."""

    def __init__(self, spec: ViTSpec, masked: float, *, rngs: nnx.Rngs):
        self.backbone = ViT(spec, dtype=jnp.float32, rngs=rngs)
        self.visible = round((1 - masked) * spec.grid**2)
        light = dataclasses.replace(
            spec,
            width=DECODER_WIDTH,
            attention=AttentionSpec(DECODER_WIDTH // 32),
            mlp=MlpSpec(4 * DECODER_WIDTH),
        )
        self.narrow = nnx.Linear(spec.width, light.width, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.mask = nnx.Param(normal(rngs.params(), (1, 1, light.width)))
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + spec.grid**2, light.width)))
        self.blocks = nnx.List(
            Block(light, dtype=jnp.float32, kernel="xla", rngs=rngs) for _ in range(DECODER_DEPTH)
        )
        self.norm = nnx.LayerNorm(light.width, epsilon=light.norm_eps, rngs=rngs)
        self.pixels = nnx.Linear(light.width, spec.embed.patch**2, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        return self.backbone((images - MEAN) / STD)

    def fill_in(self, images: jax.Array, order: jax.Array) -> jax.Array:
        """Pixels (b, n, p * p) from the patches that come first in `order` (b, n)."""
        tokens = self.backbone.tokens((images - MEAN) / STD)
        seen = jnp.take_along_axis(tokens[:, 1:], order[:, : self.visible, None], axis=1)
        seen = jnp.concatenate([tokens[:, :1], seen], axis=1)
        seen = self.narrow(self.backbone.norm(self.backbone.blocks_out(seen)[-1]))
        hidden = order.shape[1] - self.visible
        masks = jnp.broadcast_to(self.mask[...], (len(images), hidden, seen.shape[-1]))
        patches = jnp.concatenate([seen[:, 1:], masks], axis=1)
        patches = jnp.take_along_axis(patches, jnp.argsort(order, axis=1)[..., None], axis=1)
        x = jnp.concatenate([seen[:, :1], patches], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x, None)
        return self.pixels(self.norm(x[:, 1:]))


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-8)


def contrastive_loss(
    online: Network, momentum: Network, batch: Batch, center: jax.Array, *, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Symmetric InfoNCE between queries of one view and keys of the other."""
    views = batch.views
    queries = [_unit(online.predictor(online.projector(online.features(v)))) for v in views]
    keys = [jax.lax.stop_gradient(_unit(momentum.projector(momentum.features(v)))) for v in views]
    labels = jnp.arange(views.shape[1])
    loss = jnp.zeros(())
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        logits = query @ key.T / temperature
        loss += jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    return loss, center


def distilled_loss(
    online: Network, momentum: Network, batch: Batch, center: jax.Array, *, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the student's view to the teacher's other view, centred and sharpened."""
    views = batch.views
    student = [online.predictor(online.projector(online.features(v))) / 0.1 for v in views]
    raw = [momentum.predictor(momentum.projector(momentum.features(v))) for v in views[:2]]
    teacher = [
        jax.lax.stop_gradient(jax.nn.softmax((r - center) / (0.2 * temperature))) for r in raw
    ]
    pairs = [(s, t) for s in range(len(student)) for t in range(2) if s != t]
    losses = [
        -jnp.mean(jnp.sum(teacher[t] * jax.nn.log_softmax(student[s]), axis=-1)) for s, t in pairs
    ]
    batch_center = jnp.mean(jnp.concatenate(raw), axis=0, keepdims=True)
    return jnp.mean(jnp.stack(losses)), 0.9 * center + 0.1 * jax.lax.stop_gradient(batch_center)


def masked_loss(
    online: MaskedNetwork, momentum: MaskedNetwork, batch: Batch, center: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean squared error of the scan's pixels in the patches of the view that were not seen."""
    del momentum
    images, patch = batch.views[0], online.backbone.spec.embed.patch
    pixels = rearrange(batch.scans[0], "b (h p) (w q) -> b (h w) (p q)", p=patch, q=patch)
    order = jnp.argsort(jax.random.uniform(batch.key, pixels.shape[:2]), axis=1)
    error = jnp.mean((online.fill_in(images, order) - pixels) ** 2, axis=-1)
    return jnp.mean(jnp.take_along_axis(error, order[:, online.visible :], axis=1)), center


def main(_: list[str]) -> None:
    data = load_digits()
    train, val = data.splits["train"], data.splits["val"]
    images = jnp.asarray(train.load(np.arange(len(train.labels))), jnp.float32) / 255
    images_val = jnp.asarray(val.load(np.arange(len(val.labels))), jnp.float32) / 255
    spec = ViTSpec(
        resolution=RESOLUTION,
        width=_WIDTH.value,
        depth=_DEPTH.value,
        embed=EmbedSpec(_PATCH.value),
        attention=AttentionSpec(_WIDTH.value // 32),
        mlp=MlpSpec(4 * _WIDTH.value),
        pool=PoolSpec("mean" if _METHOD.value == "masked" else "cls"),
    )
    root = jax.random.key(_SEED.value)
    method, temperature, warp = _METHOD.value, _TEMPERATURE.value, _WARP.value
    rngs = nnx.Rngs(jax.random.fold_in(root, 0))
    network: nnx.Module
    if method == "masked":
        network, num_views = MaskedNetwork(spec, _MASKED.value, rngs=rngs), 1
        objective: Callable[..., tuple[jax.Array, jax.Array]] = masked_loss
    else:
        network, num_views = Network(spec, method, rngs=rngs), 2
        matching = contrastive_loss if method == "contrastive" else distilled_loss
        objective = functools.partial(matching, temperature=temperature)
    definition, variables = nnx.split(network)
    params = nnx.to_pure_dict(variables)
    per_epoch = len(train.labels) // _BATCH.value
    steps = _EPOCHS.value * per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, _LEARNING_RATE.value, steps // 10, steps)
    decayed = jax.tree.map(lambda p: p.ndim > 1, params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(3.0), optax.adamw(schedule, weight_decay=0.05, mask=decayed)
    )
    learner = Learner(params, params, optimizer.init(params), jnp.zeros((1, PROTOTYPES)))

    @jax.jit
    def step(learner: Learner, number: jax.Array, batch: jax.Array) -> tuple[Learner, jax.Array]:
        key = jax.random.fold_in(jax.random.fold_in(root, 1), number)
        views, scans = jax.vmap(
            lambda k: jax.vmap(functools.partial(augment, warp=warp))(
                jax.random.split(k, batch.shape[0]), batch
            )
        )(jax.random.split(key, num_views))
        seen = Batch(views, scans, jax.random.fold_in(key, 0))

        def loss_fn(online: Any) -> tuple[jax.Array, jax.Array]:
            return objective(
                nnx.merge(definition, nnx.State(online)),
                nnx.merge(definition, nnx.State(learner.momentum)),
                seen,
                learner.center,
            )

        (loss, center), grads = jax.value_and_grad(loss_fn, has_aux=True)(learner.online)
        updates, opt_state = optimizer.update(grads, learner.opt_state, learner.online)
        online = optax.apply_updates(learner.online, updates)
        rate = 1 - (1 - MOMENTUM) * 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
        momentum = jax.tree.map(lambda m, o: rate * m + (1 - rate) * o, learner.momentum, online)
        return Learner(online, momentum, opt_state, center), loss

    @jax.jit
    def embed(params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(definition, nnx.State(params)).features(images)

    def finish(params: Any) -> Any:
        if method != "masked":
            return params
        features = np.asarray(embed(params, images))
        return params | {"backbone": standardize(params["backbone"], features)}

    started = time.time()
    with tqdm(total=steps, unit="step", mininterval=5) as bar:
        for epoch in range(_EPOCHS.value):
            order = jax.random.permutation(jax.random.fold_in(root, 2 + epoch), len(train.labels))
            for i in range(per_epoch):
                batch = images[order[i * _BATCH.value : (i + 1) * _BATCH.value]]
                learner, loss = step(learner, jnp.asarray(epoch * per_epoch + i), batch)
                bar.update()
            if (epoch + 1) % 25 == 0 or epoch + 1 == _EPOCHS.value:
                for name, params in (("online", learner.online), ("momentum", learner.momentum)):
                    params = finish(params)
                    report = evaluate(
                        np.asarray(embed(params, images)),
                        train.labels,
                        np.asarray(embed(params, images_val)),
                        val.labels,
                    )
                    tqdm.write(f"epoch {epoch + 1} loss {float(loss):.3f} {name}: {report}")
    # As published: MoCo-v3's encoder of queries, DINO's teacher. The masked autoencoder has none:
    # its slow copy is a mean over its last steps.
    published = learner.online if method == "contrastive" else learner.momentum
    write(Path(_OUT.value), spec, finish(published)["backbone"])
    print(f"{_OUT.value}: {time.time() - started:.0f} s")


def standardize(params: Any, features: np.ndarray) -> Any:
    """Folds batch normalisation of the features into the last norm.

    He et al. (A.1) put one without parameters before the linear head, since a masked autoencoder
    is not trained for features of one scale. Its mean and deviation are of the training part.
    """
    mean, std = features.mean(0), features.std(0)
    norm = params["norm"]
    return params | {"norm": {"scale": norm["scale"] / std, "bias": (norm["bias"] - mean) / std}}


def evaluate(train: np.ndarray, labels: np.ndarray, val: np.ndarray, labels_val: np.ndarray) -> str:
    """Validation accuracy of a linear head, of class means, and of one random image a class."""
    linear = LogisticRegression(max_iter=2000, C=1.0).fit(train, labels).score(val, labels_val)

    def nearest(anchors: np.ndarray) -> float:
        distances = ((val[:, None] - anchors[None]) ** 2).sum(-1)
        return float((distances.argmin(1) == labels_val).mean())

    means = np.stack([train[labels == c].mean(0) for c in range(10)])
    rng = np.random.default_rng(0)
    ones = [
        nearest(np.stack([train[rng.choice(np.flatnonzero(labels == c))] for c in range(10)]))
        for _ in range(20)
    ]
    return f"linear {linear:.1%}, class means {nearest(means):.1%}, 1-NN {np.mean(ones):.1%}"


def write(folder: Path, spec: ViTSpec, params: Any) -> None:
    """Saves the backbone in timm's format."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = port.export_params(families.formats()["timm_vit"], spec, params, np.float16)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    cls = spec.pool.kind == "cls"
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "num_features": spec.width,
        "model_args": {
            "img_size": spec.resolution,
            "patch_size": spec.embed.patch,
            "embed_dim": spec.width,
            "depth": spec.depth,
            "num_heads": spec.attention.heads,
            **({"global_pool": "token"} if cls else {"global_pool": "avg", "fc_norm": False}),
            "num_classes": 0,
        },
        "pretrained_cfg": {
            "input_size": [3, spec.resolution, spec.resolution],
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "num_classes": 0,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
