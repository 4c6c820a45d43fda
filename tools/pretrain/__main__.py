"""Trains a small Vision Transformer, without labels, on the training part of a data set.

    python -m tools.pretrain --method=contrastive --temperature=0.07 --epochs=130 --out=FOLDER
    python -m tools.pretrain --method=distilled --warp=0.6 --epochs=330 --out=FOLDER
    python -m tools.pretrain --data=PHOTOS --method=contrastive --epochs=40 --out=FOLDER

The first two trained embedded backbones on digits. `PHOTOS` is a folder of images, one folder per
class in each of `train` and `val` or `test`.

`contrastive` follows MoCo-v3 (arXiv 2104.02057): InfoNCE between two augmented views, a momentum
encoder for the keys, a prediction head for the queries. `distilled` follows DINO (arXiv
2104.14294): a student matches the centred, sharpened output of its momentum teacher. On photos,
both add views of small parts. `masked`, of digits alone, follows MAE (arXiv 2111.06377): an encoder
sees a quarter of the patches of an augmented view, and a light decoder fills in the others. Unlike
there, what it fills in is the scan without the view's contrast, noise and colour, and the features,
which are the mean of the patch tokens, are standardised over the training part by the last norm.

Labels are read only to print how well a linear head does on the validation part; the test part is
not read. On two CPU cores digits take 15 to 30 minutes, photos hours; a run that is started again
goes on after its last epoch, and refuses to go on with other flags. It writes them,
`pretraining.json`, and timm's format (`config.json`, `model.safetensors` in float16), so
`timm.create_model(architecture, **model_args)` loads it too.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from absl import app, flags
from flax import nnx
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from lgm_jax import terminal
from lgm_jax.backbones import families, port
from lgm_jax.backbones.vit_spec import AttentionSpec, EmbedSpec, MlpSpec, PoolSpec, ViTSpec
from lgm_jax.data import ArraySplit, in_memory, load_dataset
from lgm_jax.data.digits import RESOLUTION
from lgm_jax.errors import UserError

from . import methods, views
from .training import CHECKPOINTS, SETTINGS, Training, keep_settings

_DATA = flags.DEFINE_string("data", "digits", "digits, or a folder of photos.")
_METHOD = flags.DEFINE_enum("method", "contrastive", methods.METHODS, "Objective.")
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", 250, "Passes over the training part.")
_BATCH = flags.DEFINE_integer("batch", 127, "Images a step; 127 is a ninth of the digits.")
_SEED = flags.DEFINE_integer("seed", 0, "Root random seed.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak, after a linear warm-up.")
_WIDTH = flags.DEFINE_integer("width", 128, "Token dimension; heads have 32.")
_DEPTH = flags.DEFINE_integer("depth", 4, "Blocks.")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.2, "Of InfoNCE; the DINO teacher has a fifth of it."
)
_SIDE = flags.DEFINE_integer("side", 112, "Pixels of a photo's view.")
_STORED = flags.DEFINE_integer("stored", 160, "Pixels of the photos that views are cropped from.")
_SMALL = flags.DEFINE_integer("small", 4, "Views of small parts of a photo.")
_CROPS = flags.DEFINE_float(
    "crops", 0.25, "Area of a photo at which whole views begin, and small ones end."
)
_PATCH = flags.DEFINE_integer("patch", 0, "Pixels of a patch; 8 for digits and 16 for photos.")
_MASKED = flags.DEFINE_float("masked", 0.75, "Share of the patches that `masked` hides.")
_WARP = flags.DEFINE_float("warp", 0.8, "Strength of the geometric augmentation of digits.")
_REPORT_EVERY = flags.DEFINE_integer("report_every", 25, "Epochs between two accuracies.")

# A tenth of the training photos, for the accuracies that are printed.
_VALIDATION = 0.1
_MEMORY = 4 * 2**30


@terminal.one_line_errors
def main(_: Sequence[str]) -> int:
    """Trains the network that the command line describes; returns the exit code."""
    digits, masked, folder = _DATA.value == "digits", _METHOD.value == "masked", Path(_OUT.value)
    if masked and not digits:
        raise UserError("masked takes digits only: photos have no clean scan to fill in")
    train, val = _images(digits)
    draw: Any = (
        views.Digits(_WARP.value)
        if digits
        else views.Photos(_SIDE.value, _SMALL.value, most=_CROPS.value)
    )
    spec = ViTSpec(
        resolution=RESOLUTION if digits else _SIDE.value,
        width=_WIDTH.value,
        depth=_DEPTH.value,
        embed=EmbedSpec(_PATCH.value or (8 if digits else 16)),
        attention=AttentionSpec(_WIDTH.value // 32),
        mlp=MlpSpec(4 * _WIDTH.value),
        pool=PoolSpec("mean" if masked else "cls"),
    )
    root = jax.random.key(_SEED.value)
    network, loss, count = methods.make(
        _METHOD.value,
        spec,
        temperature=_TEMPERATURE.value,
        masked=_MASKED.value,
        rngs=nnx.Rngs(jax.random.fold_in(root, 0)),
    )
    training = Training(
        network,
        loss,
        functools.partial(draw, count=count),
        spec.resolution,
        root,
        _BATCH.value,
        _EPOCHS.value,
        _LEARNING_RATE.value,
        standardized=masked,
    )
    started = time.time()

    def report(epoch: int, loss: float, weights: dict[str, Any]) -> None:
        if epoch % _REPORT_EVERY.value and epoch != _EPOCHS.value:
            return
        for name, params in weights.items():
            params = training.finish(params, train.images)
            features, features_val = (training.embed(params, s.images) for s in (train, val))
            accuracies = evaluate(features, train.labels, features_val, val.labels)
            tqdm.write(f"epoch {epoch} loss {loss:.3f} {name}: {accuracies}")

    checkpoints = folder / CHECKPOINTS
    keep_settings(checkpoints, _settings())
    learner = training.run(train.images, checkpoints, report)
    # As published: MoCo-v3's encoder of queries, DINO's teacher. The masked autoencoder has none:
    # its slow copy is a mean over its last steps.
    published = learner.online if _METHOD.value == "contrastive" else learner.momentum
    write(folder, spec, training.finish(published, train.images)["backbone"])
    (checkpoints / SETTINGS).replace(folder / SETTINGS)
    shutil.rmtree(checkpoints)
    print(f"{folder}: {time.time() - started:.0f} s")
    return 0


def _settings() -> dict[str, Any]:
    """Returns the flags that the weights depend on."""
    module = flags.FLAGS.find_module_defining_flag(_DATA.name)
    return {
        flag.name: flag.value
        for flag in flags.FLAGS.get_flags_for_module(module)
        if flag.name not in (_OUT.name, _REPORT_EVERY.name)
    }


def _images(digits: bool) -> list[ArraySplit]:
    """The training and the validation part."""
    if digits:
        data = load_dataset("digits", resolution=RESOLUTION)
    else:
        folder, side = _DATA.value, _STORED.value
        data = load_dataset("folder", folder=folder, resolution=side, val_fraction=_VALIDATION)
    return [in_memory(data.splits[p], limit_bytes=_MEMORY, progress=p) for p in ("train", "val")]


def evaluate(train: np.ndarray, labels: np.ndarray, val: np.ndarray, labels_val: np.ndarray) -> str:
    """Validation accuracy of a linear head, of class means, and of one random image a class."""
    linear = LogisticRegression(max_iter=2000, C=1.0).fit(train, labels).score(val, labels_val)
    classes = np.unique(labels)

    def nearest(anchors: np.ndarray) -> float:
        distances = ((val[:, None] - anchors[None]) ** 2).sum(-1)
        return float((classes[distances.argmin(1)] == labels_val).mean())

    means = np.stack([train[labels == c].mean(0) for c in classes])
    rng = np.random.default_rng(0)
    ones = [
        nearest(np.stack([train[rng.choice(np.flatnonzero(labels == c))] for c in classes]))
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
            "mean": [methods.MEAN] * 3,
            "std": [methods.STD] * 3,
            "num_classes": 0,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
