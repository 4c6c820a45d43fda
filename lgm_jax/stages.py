"""The stages of a run: distil, probe, baselines, report.

A stage takes a `Session`, does what the run folder does not hold yet, and records it there.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lgm_jax import backbones, baselines, data, distill, images, probe, runs
from lgm_jax.augment import PRESETS, Augmentation
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit, Dataset
from lgm_jax.distilled import load_distilled, save_distilled
from lgm_jax.errors import UserError
from lgm_jax.progress import StepProgress
from lgm_jax.report.grid import draw_grid
from lgm_jax.report.table import format_table

# Training images are held in memory, decoded.
_MEMORY_LIMIT = 8 * 2**30

# Separate random streams of what is not distillation.
_PROBE_STREAM, _BASELINE_STREAM = 101, 102

METHODS = ("distilled", "random", "full")

_DISTILL_KEYS = (
    "seed",
    "ipc",
    "copies",
    "objective",
    "learning_rate",
    "head_std",
    "images",
    "augment",
    "data.name",
    "backbone.normalization",
    "backbone.dtype",
)


@dataclasses.dataclass(frozen=True)
class Session:
    """A checked config with everything it names loaded, and the folder it writes to."""

    config: ConfigDict
    dataset: Dataset
    backbone: Backbone
    eval_backbones: Sequence[Backbone]
    recipe: distill.Recipe
    identity: Mapping[str, Any]
    run: runs.Run

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.config.seed)

    @functools.cached_property
    def train(self) -> ArraySplit:
        """The training images, decoded."""
        return data.in_memory(
            self.dataset.splits["train"], limit_bytes=_MEMORY_LIMIT, progress="training images"
        )

    @functools.cached_property
    def test_features(self) -> dict[str, np.ndarray]:
        """Features of the test images by evaluation backbone."""
        test = self.dataset.splits["test"]
        return {
            b.name: probe.embed(b, test, self.recipe.crop, f"test, {b.name}")
            for b in self.eval_backbones
        }


def open_session(
    config: ConfigDict, flat: Mapping[str, Any], workdir: str, *, overwrite: bool
) -> Session:
    """Loads what a config names, checks that it fits together, and opens the run folder.

    Args:
        config: The config.
        flat: Its values by dotted name.
        workdir: The run folder.
        overwrite: Whether another distillation in it may be thrown away.

    Raises:
        UserError: If anything is missing or does not fit; the folder is then as it was.
    """
    options = {"normalization": config.backbone.normalization, "dtype": config.backbone.dtype}
    backbone = backbones.load(config.backbone.name, **options)
    names = [name.strip() for name in config.eval_backbones.split(",") if name.strip()]
    others = {
        name: backbones.load(name, **options) for name in names if name != config.backbone.name
    }
    evaluated = [others.get(name, backbone) for name in names] or [backbone]

    crop = config.images.crop or backbone.resolution
    # The paper's 256 px for crops of 224.
    resolution = config.images.resolution or round(crop * 8 / 7)
    for b in [backbone, *evaluated]:
        if b.resolution != crop:
            raise UserError(f"config.images.crop is {crop}, but {b.name} takes {b.resolution} px")
    if resolution < crop:
        raise UserError(
            f"config.images.resolution ({resolution}) is smaller than the crop ({crop})"
        )
    dataset = data.load_dataset(
        config.data.name,
        folder=config.data.folder,
        resolution=resolution,
        seed=config.data.split_seed,
    )
    smallest = np.bincount(dataset.splits["train"].labels, minlength=dataset.num_classes).min()
    if config.ipc > smallest:
        raise UserError(
            f"config.ipc is {config.ipc}, but the smallest class has {smallest} training images"
        )
    recipe = distill.Recipe(
        num_classes=dataset.num_classes,
        resolution=resolution,
        crop=crop,
        ipc=config.ipc,
        copies=config.copies,
        learning_rate=config.learning_rate,
        head_std=config.head_std,
        kind=config.images.kind,
        init=config.images.init,
        decorrelate=config.images.decorrelate,
        start_resolution=config.images.start_resolution,
        grow_every=config.images.grow_every,
        augmentation=_augmentation(config.augment),
    )
    identity = {
        name: value
        for name, value in flat.items()
        if any(name == key or name.startswith(f"{key}.") for key in _DISTILL_KEYS)
    } | {
        "images.crop": crop,
        "images.resolution": resolution,
        "backbone.name": backbone.name,
        "backbone.sha256": backbone.sha256,
        "data.fingerprint": dataset.fingerprint,
    }
    description = {
        "config": {k: _without_path(v) for k, v in flat.items()},
        "provenance": runs.provenance()
        | {"weights": {b.name: b.sha256 for b in [backbone, *evaluated]}}
        | {"data": {"name": dataset.name, "fingerprint": dataset.fingerprint}},
    }
    run = runs.open_run(workdir, identity, description, overwrite=overwrite)
    return Session(config, dataset, backbone, evaluated, recipe, identity, run)


def distill_stage(session: Session) -> None:
    """Distils the images, from the newest checkpoint if there is one.

    Raises:
        UserError: If more steps were made already than the config asks for.
    """
    from lgm_jax.checkpoints import Checkpoints

    config, recipe, run, steps = session.config, session.recipe, session.run, session.config.steps
    inputs = {**session.identity, "steps": steps}
    if run.find("distill", inputs) is not None:
        print(f"distill: {steps} steps are done")
        return
    with Checkpoints(run.path / runs.CHECKPOINTS, config.keep_checkpoints) as checkpoints:
        state = distill.init_state(session.key, recipe, _start_images(session))
        start = checkpoints.latest_step() or 0
        if start > steps:
            raise UserError(
                f"workdir holds {start} steps, more than config.steps={steps}; name another workdir"
            )
        if start:
            state = checkpoints.restore(state)
        metrics = _Metrics(run.path / runs.METRICS, start)
        print(f"distill: {recipe.num_images} images, steps {start} to {steps}", flush=True)
        state, loss = _distill(session, state, metrics, checkpoints.save)
        checkpoints.save(steps, state)
    rendered = _render(session, state)
    labels = np.asarray(recipe.labels())
    save_distilled(run.path / runs.DISTILLED, rendered, labels, session.dataset.class_names)
    run.finish("distill", inputs, {"steps": steps, "final_loss": loss}, metrics.elapsed())


def probe_stage(session: Session) -> None:
    """Trains and evaluates probes on the distilled images."""

    def pool() -> tuple[np.ndarray, np.ndarray]:
        distilled, labels, _ = load_distilled(str(session.run.path))
        return distilled, labels

    _probe(session, "distilled", pool, session.config.probe.epochs)


def baselines_stage(session: Session) -> None:
    """Trains and evaluates probes on random real images and on the whole training set."""
    config = session.config
    train = session.dataset.splits["train"]
    rows = baselines.random(
        train.labels, config.ipc, session.dataset.num_classes, config.probe.runs, config.seed
    )
    chosen, rows = np.unique(rows, return_inverse=True)
    _probe(
        session,
        "random",
        lambda: (train.load(chosen), train.labels[chosen]),
        config.probe.epochs,
        rows,
    )
    _probe(
        session,
        "full",
        lambda: (session.train.images, session.train.labels),
        config.probe.full_epochs,
    )


def report_stage(session: Session) -> None:
    """Writes `results.json` and `grid.png`, and prints the table."""
    config, run = session.config, session.run
    distilled_inputs = {**session.identity, "steps": config.steps}
    distilled = run.find("distill", distilled_inputs)
    results = {
        "version": 1,
        "dataset": session.dataset.name,
        "ipc": config.ipc,
        "objective": config.objective,
        "num_classes": session.dataset.num_classes,
        "steps": config.steps,
        "seed": config.seed,
        "final_loss": distilled["final_loss"] if distilled else None,
        "backbones": [session.backbone.name],
        "seconds": run.seconds(),
        "probe": _collect(session),
    }
    runs.write_json(run.path / runs.RESULTS, results)
    if distilled:
        rendered, labels, names = load_distilled(str(run.path))
        _write_grid(run.path / runs.GRID, rendered, [names[label] for label in labels])
    print(format_table(results))
    print(f"results: {run.path / runs.RESULTS}")
    if distilled:
        print(f"pictures: {run.path / runs.GRID}, {run.path / runs.DISTILLED}")


STAGES: Mapping[str, Callable[[Session], None]] = {
    "distill": distill_stage,
    "probe": probe_stage,
    "baselines": baselines_stage,
    "report": report_stage,
}


class _Metrics:
    """`metrics.jsonl`: a line per `log_every` steps, none twice when a run goes on."""

    def __init__(self, path: epath.Path, start: int):
        lines = path.read_text().splitlines() if path.exists() else []
        self._path = path
        self._lines = [line for line in map(json.loads, lines) if line["step"] <= start]
        self._before = self._lines[-1]["seconds"] if self._lines else 0.0
        self._clock = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds spent, in earlier processes too."""
        return self._before + time.perf_counter() - self._clock

    def write(self, step: int, loss: float, rate: float) -> None:
        line = {"step": step, "loss": loss, "steps_per_second": rate, "seconds": self.elapsed()}
        self._lines.append({name: round(value, 6) for name, value in line.items()})
        self._path.write_text("".join(json.dumps(line) + "\n" for line in self._lines))


def _distill(
    session: Session,
    state: distill.State,
    metrics: _Metrics,
    save: Callable[[int, distill.State], None],
) -> tuple[distill.State, float | None]:
    config, recipe, run = session.config, session.recipe, session.run
    draw = distill.make_draw(session.key, recipe)
    step_fn = distill.make_step(session.backbone.apply, recipe, session.key, draw)
    grow = jax.jit(distill.make_grow(recipe, session.key))
    memory = distill.Memory(jnp.asarray(session.train.images), jnp.asarray(session.train.labels))
    captions = [session.dataset.class_names[label] for label in np.asarray(recipe.labels())]
    bar = StepProgress(int(state.step), config.steps)
    loss = None
    try:
        updates = distill.run(
            jax.jit(step_fn),
            grow,
            recipe,
            state,
            session.backbone.params,
            lambda _: memory,
            config.steps,
        )
        for step, (state, pending) in enumerate(updates, int(state.step) + 1):  # noqa: B020
            bar.advance()
            last = step == config.steps
            if last or step % config.log_every == 0:
                loss = float(pending)
                metrics.write(step, loss, bar.report(step, loss))
            if step % config.checkpoint_every == 0:
                save(step, state)
            if last or step % config.image_every == 0:
                picture = run.path / runs.PROGRESS / f"step_{step:06d}.png"
                _write_grid(picture, _render(session, state), captions)
    finally:
        bar.close()
    return state, loss


def _render(session: Session, state: distill.State) -> np.ndarray:
    # The last update was made with the levels that counted before it.
    active = session.recipe.num_active(max(0, int(state.step) - 1))
    return np.asarray(images.decode(state.levels, active, decorrelate=session.recipe.decorrelate))


def _write_grid(path: epath.Path, pictures: np.ndarray, captions: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    draw_grid(pictures, captions).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def _start_images(session: Session) -> jax.Array | None:
    if session.recipe.init != "real":
        return None
    train, config = session.dataset.splits["train"], session.config
    rows = baselines.random(train.labels, config.ipc, session.dataset.num_classes, 1, config.seed)
    return distill.to_float(jnp.asarray(train.load(rows[0])))


def _augmentation(config: ConfigDict) -> Augmentation | None:
    preset = PRESETS[config.preset]
    changes = {
        name: config[name]
        for name in ("flip", "noise", "noise_mean", "noise_std")
        if config[name] is not None
    }
    low, high = config.scale_min, config.scale_max
    if preset is None:
        if changes or low is not None or high is not None:
            raise UserError("config.augment.preset=none leaves nothing to change by other keys")
        return None
    low = preset.scale[0] if low is None else low
    high = preset.scale[1] if high is None else high
    if low > high:
        raise UserError(f"config.augment.scale_min ({low}) exceeds scale_max ({high})")
    return dataclasses.replace(preset, scale=(low, high), **changes)


def _probe_inputs(session: Session, method: str, backbone: Backbone) -> dict[str, Any]:
    """What the probe of a method depends on."""
    config = session.config
    inputs = {
        "seed": config.seed,
        "probe": config.probe.to_dict(),
        "augment": config.augment.to_dict(),
        "crop": session.recipe.crop,
        "resolution": session.recipe.resolution,
        "normalization": config.backbone.normalization,
        "dtype": config.backbone.dtype,
        "data": session.dataset.fingerprint,
        "weights": backbone.sha256,
    }
    if method == "distilled":
        inputs["distilled"] = runs.digest({**session.identity, "steps": config.steps})
    elif method != "full":
        inputs["ipc"] = config.ipc
    return inputs


def _probe(
    session: Session,
    method: str,
    pool: Callable[[], tuple[np.ndarray, np.ndarray]],
    epochs: int,
    rows: np.ndarray | None = None,
) -> None:
    """Probes every evaluation backbone that has no result for these inputs yet."""
    config, run = session.config.probe, session.run
    todo = [b for b in session.eval_backbones if _find_probe(session, method, b) is None]
    if not todo:
        print(f"{method}: done")
        return
    augmentation = session.recipe.augmentation
    protocol = probe.Protocol(
        epochs=epochs,
        batch=config.batch,
        runs=config.runs,
        crop=session.recipe.crop,
        augment=config.augment,
        augmentation=dataclasses.replace(augmentation, noise=0.0) if augmentation else None,
        views=config.views,
    )
    pool_images, pool_labels = pool()
    if rows is None:
        rows = np.broadcast_to(np.arange(len(pool_labels)), (config.runs, len(pool_labels)))
    test = session.dataset.splits["test"]
    stream = _PROBE_STREAM if method == "distilled" else _BASELINE_STREAM
    for backbone in todo:
        started = time.perf_counter()
        heads = probe.train(
            jax.random.fold_in(session.key, stream),
            backbone,
            jnp.asarray(pool_images),
            jnp.asarray(pool_labels[rows]),
            jnp.asarray(rows, jnp.int32),
            session.dataset.num_classes,
            protocol,
            label=f"{method}, {backbone.name}",
        )
        scores = probe.evaluate(heads, session.test_features[backbone.name], test.labels)
        result = _summary(scores, protocol)
        run.finish(
            _stage_name(method, backbone),
            _probe_inputs(session, method, backbone),
            result,
            time.perf_counter() - started,
        )
        print(f"{method}: {result['top1_mean']:.1f} % on {backbone.name}", flush=True)


def _summary(scores: Mapping[str, Any], protocol: probe.Protocol) -> dict[str, Any]:
    """One entry of `results.json`; std is the sample's (one degree of freedom), 0 for one run."""

    def moments(name: str) -> dict[str, float | None]:
        values = scores[name]
        if values is None:
            return {f"{name}_mean": None, f"{name}_std": None}
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return {f"{name}_mean": float(np.mean(values)), f"{name}_std": std}

    return {
        **moments("top1"),
        **moments("top5"),
        "top1_runs": [float(value) for value in scores["top1"]],
        "solver": "adam",
        "epochs": protocol.epochs,
        "augment": protocol.augment,
        "groups": None,
        "worst_group": None,
    }


def _collect(session: Session) -> dict[str, dict[str, Any]]:
    """Results of all probes that belong to the current config."""
    table: dict[str, dict[str, Any]] = {}
    for backbone in session.eval_backbones:
        found = {method: _find_probe(session, method, backbone) for method in METHODS}
        kept = {method: result for method, result in found.items() if result is not None}
        if kept:
            table[backbone.name] = kept
    return table


def _find_probe(session: Session, method: str, backbone: Backbone) -> Any | None:
    return session.run.find(_stage_name(method, backbone), _probe_inputs(session, method, backbone))


def _stage_name(method: str, backbone: Backbone) -> str:
    stage = "probe" if method == "distilled" else "baselines"
    return f"{stage}/{method}/{backbone.name}"


def _without_path(value: Any) -> Any:
    return epath.Path(value).name if isinstance(value, str) and "/" in value else value
