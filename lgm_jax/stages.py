"""The stages of a run: distil, probe, baselines, report.

A stage takes a `Session`, does what the run folder does not hold yet, and records it there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, PartitionSpec
from PIL import Image

from lgm_jax import (
    baselines,
    compilation,
    diagnosis,
    distill,
    hosts,
    microbatch,
    probe,
    public,
    runs,
    sharding,
    tracking,
)
from lgm_jax.backbones import Backbone
from lgm_jax.checkpoints import Checkpoints
from lgm_jax.data.dataset import ArraySplit, Split
from lgm_jax.distilled import ARRAYS, save_distilled
from lgm_jax.errors import UserError, find_full
from lgm_jax.features import Views
from lgm_jax.identity import describe
from lgm_jax.interrupts import INTERRUPTS
from lgm_jax.profiling import StepTrace
from lgm_jax.progress import StepProgress, is_logged
from lgm_jax.report import gallery, pictures, timelapse
from lgm_jax.report.gallery import Gallery
from lgm_jax.report.grid import draw_grid
from lgm_jax.report.judge import judge
from lgm_jax.report.page import look, read_run, write_page, write_unfinished_page
from lgm_jax.report.table import TITLES, format_table
from lgm_jax.session import (
    FEATURES_ON_DEVICE,
    Session,
    content_hash,
    make_protocol,
    source_bytes,
    split_list,
)

# Separate random streams of what is not distillation.
_PROBE_STREAM, _BASELINE_STREAM = 101, 102

# Images in a picture of all: more are too small to see, and take long to draw.
_MOST_DRAWN = 400

# Points of a probe's learning curve.
_MOST_POINTS = 50

# Steps of which `step_costs` takes the median.
_TIMED_STEPS = 10


def distill_stage(session: Session) -> None:
    """Distils the images, from the newest checkpoint if there is one.

    Raises:
        UserError: If more steps were made already than the config asks for, if no checkpoint
            can be read, or if the loss or the images are no longer finite.
        Interrupted: If a signal came, once the state is saved.
    """
    config, recipe, run, steps = session.config, session.recipe, session.run, session.config.steps
    inputs = {**session.identity, "steps": steps}
    done = run.find("distill", inputs) is not None
    if done and (run.path / runs.DISTILLED / ARRAYS).exists():
        print(f"distill: {steps} steps are done")
        return
    with (
        Checkpoints(run.path / runs.CHECKPOINTS, config.keep_checkpoints) as checkpoints,
        contextlib.ExitStack() as workers,
    ):
        state = distill.init_state(session.key, recipe, _start_images(session))
        newest = checkpoints.latest_step() or 0
        if newest > steps:
            raise UserError(
                f"workdir holds {newest} steps, more than config.steps={steps}; name another "
                "workdir"
            )
        mesh = sharding.make_mesh()
        if mesh.is_multi_process:
            # Orbax knows no arrays that each process has for itself.
            state = sharding.replicate(mesh, state)
        state = checkpoints.restore(state) or state
        start = int(state.step)
        metrics = _Metrics(run.path / runs.METRICS, start)
        state = sharding.place(mesh, state)
        size = hosts.first_says(_microbatch_size(session, mesh))
        process = {**session.process_with(*session.backbones), "microbatch": size}
        made_by = run.begin("distill", start, process)
        # Pages on the way replace the report, which is then of no finished run.
        run.forget("report")
        where = f"{mesh.size} devices, " if mesh.size > 1 else ""
        where += f"{hosts.count()} processes, " if hosts.count() > 1 else ""
        _note_growth(session)
        print(
            f"distill: {recipe.num_images} images, steps {start} to {steps}, {where}"
            f"{size} views at a time",
            flush=True,
        )
        feed = _feed(session, mesh, size, workers)
        state, loss = _distill(session, mesh, size, feed, state, metrics, checkpoints)
        checkpoints.save(steps, state)
    rendered, probabilities = _render(session, mesh, state), _probabilities(mesh, state)
    if hosts.is_first():
        labels, names = np.asarray(recipe.labels()), session.dataset.class_names
        save_distilled(run.path / runs.DISTILLED, rendered, labels, names, probabilities)
    hosts.wait()
    run.await_file(f"{runs.DISTILLED}/{ARRAYS}")
    result = {"steps": steps, "final_loss": loss}
    run.finish("distill", inputs, result, metrics.elapsed(), made_by)


def probe_stage(session: Session) -> None:
    """Trains and evaluates probes on the distilled images.

    Raises:
        UserError: If there are none.
    """
    distilled = session.distilled
    if distilled is None:
        raise UserError("workdir has no distilled images yet: add distill to config.stages")
    every = np.arange(len(distilled.labels))[None]
    _probe(session, "distilled", distilled, lambda: every)


def baselines_stage(session: Session) -> None:
    """Trains and evaluates probes on real images: chosen in three ways, and all of them."""
    config, train = session.config, session.dataset.splits["train"]
    classes, runs_ = session.dataset.num_classes, config.probe.runs
    choices: Mapping[str, Callable[[], np.ndarray]] = {
        "random": lambda: baselines.random(train.labels, config.ipc, classes, runs_, config.seed),
        "centroids": lambda: session.centroids[None],
        "neighbors": lambda: _neighbors(session)[None],
        "full": lambda: np.arange(len(train.labels))[None],
    }
    for method in filter(split_list(config.baselines).__contains__, baselines.METHODS):
        if method != "neighbors" or session.distilled is not None:
            _probe(session, method, train, choices[method])


def report_stage(session: Session) -> None:
    """Writes `results.json`, `grid.png` and `report.html`, and prints the table.

    It is repeated when a result, a setting or the look of the page has changed, or a file is gone.
    """
    config, run = session.config, session.run
    started = time.perf_counter()
    own = session.source is None
    # What `distilled/` holds, which may be older than the config.
    record = run.latest("distill") if own else None
    results = {
        "version": 1,
        "dataset": session.dataset.name,
        "ipc": config.ipc,
        "objective": config.objective if own else None,
        "labels": _label_summary(session),
        "clp": config.clp.to_dict() if own and config.objective == "clp" else None,
        "num_classes": session.dataset.num_classes,
        "steps": record["steps"] if record else None,
        "seed": config.seed,
        "final_loss": record["final_loss"] if record else None,
        "pyramid": _pyramid(session.recipe, record["steps"]) if record else None,
        "backbones": [session.name_of(backbone) for backbone in session.backbones] if own else [],
        # Of what the results come from: not of looking at them, which would not change them.
        "seconds": {
            name: took for name, took in run.seconds().items() if name not in ("report", "measure")
        },
        "skipped_images": {split: list(names) for split, names in session.dataset.skipped.items()},
        "probe": _collect(session),
        "test_images": len(session.dataset.splits[config.probe.split].labels),
    }
    pictured = session.distilled is not None
    inputs = {
        "results": results,
        "settings": public.settings(session.settings),
        "images": content_hash(session.distilled) if session.distilled is not None else None,
        "look": look(),
    }
    sheets = (
        timelapse.find_sheets(run.path / runs.TIMELAPSE, record["steps"] if record else None)
        if hosts.is_first()
        else []
    )
    names = [runs.RESULTS, runs.PAGE]
    if pictured:
        names += [runs.GRID, runs.GALLERY]
        if not gallery.fits_one_file(session.dataset.num_classes):
            names.append(runs.REPORT)
    if sheets:
        names.append(runs.ANIMATION)
    complete = all((run.path / name).exists() for name in names)
    if hosts.first_says(not complete or run.find("report", inputs) is None):
        made = _make_gallery(session) if pictured else None
        if pictured:
            _write_pairs(session)
        if hosts.is_first():
            runs.write_json(run.path / runs.RESULTS, results)
            if made is not None:
                gallery.save_gallery(run.path / runs.GALLERY, made)
            timelapse.write_animation(run.path / runs.ANIMATION, sheets)
            write_page(read_run(run.path))
        took = time.perf_counter() - started
        made_by = [session.process_with(session.backbone)]
        run.finish("report", inputs, {"files": names}, took, made_by)
    print(format_table(results))
    for finding in judge(results):
        print(f"note: {finding.title}: {finding.text}")
    print(f"results: {run.path / runs.RESULTS}")
    if pictured:
        print(f"pictures: {run.path / runs.GRID}, {run.path / runs.DISTILLED}")
    print(f"report: {run.path / runs.PAGE}")


STAGES: Mapping[str, Callable[[Session], None]] = {
    "distill": distill_stage,
    "probe": probe_stage,
    "baselines": baselines_stage,
    "report": report_stage,
}


class _Metrics:
    """`metrics.jsonl`: a line per step that `is_logged`, none twice when a run goes on."""

    def __init__(self, path: epath.Path, start: int):
        self._path = path
        try:
            lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
            self._lines = [line for line in lines if line["step"] <= start]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged: delete it to go on without its lines") from error
        self._before = self._lines[-1]["seconds"] if self._lines else 0.0
        self._clock = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds spent, in earlier processes too."""
        return self._before + time.perf_counter() - self._clock

    def last_loss(self) -> float | None:
        """The newest loss, of earlier processes too."""
        return self._lines[-1]["loss"] if self._lines else None

    def write(self, step: int, loss: float, rate: float) -> None:
        line = {"step": step, "loss": loss, "steps_per_second": rate, "seconds": self.elapsed()}
        self._lines.append({name: round(value, 6) for name, value in line.items()})
        if not hosts.is_first():
            return
        with runs.replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self._lines))


def _distill(
    session: Session,
    mesh: Mesh,
    size: int,
    feed: _Feed,
    state: distill.AnyState,
    metrics: _Metrics,
    checkpoints: Checkpoints,
) -> tuple[distill.AnyState, float | None]:
    """Makes the steps that are left; gives the state without padding, and the loss."""
    config, recipe, run = session.config, session.recipe, session.run
    if int(state.step) == 0:
        whole = sharding.collect(mesh, state, recipe.num_images)
        _write_start(session, _render(session, mesh, whole))
    step_program = _step_program(session, mesh, size, feed)
    grow = distill.make_grow(recipe, session.key, mesh=mesh)
    # First, for it may refuse: a bar would stay open.
    tracker = tracking.open_trackers(split_list(config.track), run.path, int(state.step))
    bar = StepProgress(int(state.step), config.steps, recipe.batch, mesh.local_devices)
    before = None
    check = functools.partial(_check_finite, session, mesh, size, feed, checkpoints)
    agree = _make_agree(mesh)
    trace = StepTrace(run.path / runs.PROFILE, config.profile if hosts.is_first() else 0)
    with (
        contextlib.closing(bar),
        contextlib.closing(tracker),
        trace,
        INTERRUPTS.deferred(agree) as interrupted,
    ):
        updates = distill.run(
            step_program,
            jax.jit(grow, donate_argnums=0),
            recipe,
            state,
            sharding.replicate(mesh, tuple(backbone.params for backbone in session.backbones)),
            feed.sources,
            config.steps,
        )
        for step, (state, pending) in enumerate(updates, int(state.step) + 1):  # noqa: B020
            bar.advance()
            trace.advance(pending)
            # Reading a loss waits for it; the one before leaves the device a step to work on.
            check(step - 1, before, state)
            before, last, leaving = pending, step == config.steps, interrupted()
            logs = is_logged(step, config.steps, config.log_every)
            saves, draws = (
                last or step % every == 0 for every in (config.checkpoint_every, config.image_every)
            )
            if logs or saves or draws or leaving:
                check(step, pending, state, images_too=True)
            if logs:
                loss = float(pending)
                rate = bar.report(step, loss)
                metrics.write(step, loss, rate)
                tracker.scalars(step, _scalars(recipe, step, loss, rate))
            if draws:
                whole = sharding.collect(mesh, state, recipe.num_images)
                drawn = _write_progress(session, step, _render(session, mesh, whole))
                if drawn is not None:
                    tracker.images(step, {"distilled": drawn})
            if saves or leaving:
                # Last of all: a run that goes on from here repeats nothing of this step.
                checkpoints.save(step, sharding.collect(mesh, state, recipe.num_images))
            if leaving:
                break
    # As it is read back where a run was killed after the last step.
    return sharding.collect(mesh, state, recipe.num_images), metrics.last_loss()


def _scalars(recipe: distill.Recipe, step: int, loss: float, rate: float) -> dict[str, float]:
    """What trackers follow; `images_per_second` counts the views of synthetic images."""
    return {
        "loss": loss,
        "steps_per_second": rate,
        "images_per_second": rate * recipe.batch,
        "learning_rate": recipe.learning_rate * float(recipe.learning_rate_factor(step)),
    }


def _step_program(session: Session, mesh: Mesh, size: int, feed: _Feed) -> compilation.Program:
    gradients = [
        distill.make_gradient(
            backbone.apply, session.recipe, session.key, real, mesh=mesh, microbatch_size=size
        )
        for backbone, real in zip(session.backbones, feed.reals, strict=True)
    ]
    gradient = distill.weigh_gradients(gradients, session.weights)
    step = distill.make_step_along(gradient, session.recipe, mesh=mesh, source_specs=feed.specs)
    return compilation.Program(step, donate_argnums=0)


class StepCost(NamedTuple):
    """What a step of a distillation takes.

    Attributes:
        seconds: Median of a few steps, without compilation or what is computed once.
        num_bytes: On a device, by XLA's account of the program: weights, images with Adam's
            moments, real images or features, and what is computed.
    """

    seconds: float
    num_bytes: int


def step_costs(session: Session, names: Sequence[str]) -> dict[str, StepCost]:
    """Time and memory of a step of the session's recipe by each of some objectives, in turns.

    Whatever else the machine does meanwhile slows all of them, so that their ratios can be trusted.
    Reading real images is left out, and the same for all. Nothing is written. All processes of a
    run get the same numbers.

    Args:
        session: Of a finished run.
        names: Objectives.
    """
    mesh = sharding.make_mesh()
    # Before anything lies on the device, so that all have the same.
    size = hosts.first_says(_microbatch_size(session, mesh))
    sessions = {
        name: dataclasses.replace(
            session, recipe=dataclasses.replace(session.recipe, objective=name)
        )
        for name in names
    }
    params = tuple(backbone.params for backbone in session.backbones)
    params = sharding.replicate(mesh, params)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as workers:
        # Means of classes are all that some ask for; whatever lies on the device lies there once.
        feeds: dict[bool, _Feed] = {}
        for each in sessions.values():
            if each.recipe.needs_means_alone not in feeds:
                feeds[each.recipe.needs_means_alone] = _feed(each, mesh, size, workers)
        batches = {means: feed.sources(0) for means, feed in feeds.items()}
        programs, states = {}, {}
        for name, each in sessions.items():
            state = distill.init_state(each.key, each.recipe, _start_images(each))
            states[name] = sharding.place(mesh, state)
            means = each.recipe.needs_means_alone
            step = _step_program(each, mesh, size, feeds[means]).jitted
            programs[name] = step.lower(states[name], params, batches[means]).compile()
        # The first is not counted: it may wait for memory.
        for _ in range(1 + _TIMED_STEPS):
            for name, each in sessions.items():
                started = time.perf_counter()
                made = programs[name](states[name], params, batches[each.recipe.needs_means_alone])
                states[name], _ = jax.block_until_ready(made)
                seconds[name].append(time.perf_counter() - started)
    medians = hosts.first_says({name: statistics.median(seconds[name][1:]) for name in names})
    return {name: StepCost(medians[name], _program_bytes(programs[name])) for name in names}


def _program_bytes(program: Any) -> int:
    found = program.memory_analysis()
    # The new state takes the place of the old one.
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )


def _make_agree(mesh: Mesh) -> Callable[[int], int]:
    """Makes `agree(signal)`: the largest number that a process gave at the step before.

    Reading it waits for the devices no longer than reading that step's loss does.
    """
    if not mesh.is_multi_process:
        return lambda signal: signal
    largest = sharding.make_largest(mesh)
    pending = [largest(0)]

    def agree(signal: int) -> int:
        pending.append(largest(signal))
        return int(pending.pop(0))

    return agree


def _microbatch_size(session: Session, mesh: Mesh) -> int:
    """Views in the backbone at a time: as configured, as before, or what fits in memory."""
    config, recipe = session.config, session.recipe
    if config.microbatch is not None:
        return config.microbatch
    before = session.run.last_process("distill")
    # Other devices round in other ways, and have other memory.
    if "microbatch" in before and before.get("devices") == session.process.get("devices"):
        return before["microbatch"]
    images_here = recipe.images_on(mesh.size)
    # Levels have a gradient, and another of the backbones before; the state lies on the device.
    reserved = 4 * 3 * images_here * sum(side**2 for side in recipe.sizes)
    reserved *= min(2, len(session.backbones))
    num_images = len(session.dataset.splits["train"].labels)
    reserved += source_bytes(
        recipe,
        num_images,
        [backbone.feature_dim for backbone in session.backbones],
        mesh.size,
        on_host=session.on_host,
    )
    # XLA may have one backbone's views in memory beside another's.
    view_bytes = sum(
        distill.view_bytes(backbone.apply, backbone.params, recipe, session.key)
        for backbone in session.backbones
    )
    return microbatch.choose_size(
        view_bytes,
        microbatch.free_bytes(mesh.local_devices[0].memory_stats(), reserved),
        images_here * recipe.copies,
    )


class _Feed(NamedTuple):
    """Where each step's real features are from, for every backbone to distil against.

    Attributes:
        reals: The functions for the step.
        sources: What they draw from, by step number.
        specs: How that is laid out on the mesh.
    """

    reals: Sequence[distill.Real]
    sources: Callable[[int], Sequence[distill.Source]]
    specs: Sequence[Any]


class _FeatureFeed(NamedTuple):
    """The same, of features that are computed once, for one backbone."""

    real: distill.Real
    source: Callable[[int], distill.Source]
    specs: Any = sharding.EVERYWHERE


def _feed(session: Session, mesh: Mesh, size: int, workers: contextlib.ExitStack) -> _Feed:
    """Processes that read images end with `workers`."""
    recipe, key = session.recipe, session.key
    if recipe.real != "stream":
        _print_cost(session, len(session.dataset.splits["train"].labels))
        feeds = [_feature_feed(session, mesh, backbone) for backbone in session.backbones]
        return _Feed(
            [feed.real for feed in feeds],
            lambda step: tuple(feed.source(step) for feed in feeds),
            tuple(feed.specs for feed in feeds),
        )
    applies = [backbone.apply for backbone in session.backbones]
    if session.on_host:
        loader = workers.enter_context(session.loader())
        how = f"{loader.workers} processes" if loader.workers else "threads"
        count = len(session.dataset.splits["train"].labels)
        print(f"real images: {recipe.batch} of {count} a step, read by {how}", flush=True)

        def read(step: int) -> Sequence[distill.ImageBatch]:
            images, labels, numbers = loader(step)
            batch = distill.ImageBatch(
                sharding.join(mesh, images, recipe.batch),
                sharding.join(mesh, labels, recipe.batch, fill=sharding.PADDING),
                sharding.join(mesh, numbers, recipe.batch),
            )
            return (batch,) * len(applies)

        given = [
            distill.make_given_images(apply, recipe, key, microbatch_size=size) for apply in applies
        ]
        return _Feed(given, read, (sharding.DIVIDED,) * len(applies))
    images, labels = session.train.images, session.train.labels
    memory = sharding.replicate(mesh, distill.Memory(jnp.asarray(images), jnp.asarray(labels)))
    reals = [
        distill.make_stream(apply, recipe, key, mesh=mesh, microbatch_size=size)
        for apply in applies
    ]
    memories = (memory,) * len(applies)
    return _Feed(reals, lambda _: memories, (sharding.EVERYWHERE,) * len(applies))


def _feature_feed(session: Session, mesh: Mesh, backbone: Backbone) -> _FeatureFeed:
    recipe, key = session.recipe, session.key
    labels = session.dataset.splits["train"].labels
    rows = session.real_features(backbone)
    if recipe.needs_means_alone:
        means = rows.class_means(labels)[None]
        return _features_on_devices(session, mesh, means, np.arange(means.shape[1], dtype=np.int32))
    if rows.nbytes <= FEATURES_ON_DEVICE:
        return _features_on_devices(session, mesh, rows.whole(), labels)
    if recipe.real == "exact":
        raise UserError(
            f"the features take {rows.nbytes / 1e9:.3g} GB, more than the "
            f"{FEATURES_ON_DEVICE / 1e9:.3g} GB that real.source=exact keeps on the device: lower "
            "real.views, or set real.source=cached"
        )
    choose, all_labels = jax.jit(distill.make_rows(recipe, key)), jnp.asarray(labels)

    def batch(step: int) -> distill.Batch:
        drawn = choose(jnp.int32(step), all_labels)
        views, chosen = (np.asarray(rows)[hosts.index() :: hosts.count()] for rows in drawn)
        # Views times images may not fit 32 bits.
        taken = rows.take(views.astype(np.int64) * len(labels) + chosen)
        return distill.Batch(
            sharding.join(mesh, taken, recipe.batch),
            sharding.join(mesh, labels[chosen], recipe.batch, fill=sharding.PADDING),
        )

    return _FeatureFeed(distill.given, batch, sharding.DIVIDED)


def _features_on_devices(
    session: Session, mesh: Mesh, features: np.ndarray, labels: np.ndarray
) -> _FeatureFeed:
    """All features, on every device to draw from, or divided among them."""
    if session.recipe.real == "exact":
        divided = distill.FeatureMemory(
            sharding.divide(mesh, features, axis=1),
            sharding.divide(mesh, labels, fill=sharding.PADDING),
        )
        layout = PartitionSpec(None, sharding.AXIS), sharding.DIVIDED
        specs = distill.FeatureMemory._make(layout)
        return _FeatureFeed(distill.exact, lambda _: divided, specs)
    memory = distill.FeatureMemory(jnp.asarray(features), jnp.asarray(labels))
    memory = sharding.replicate(mesh, memory)
    real = distill.make_cached(session.recipe, session.key, mesh=mesh)
    return _FeatureFeed(real, lambda _: memory)


def _print_cost(session: Session, num_images: int) -> None:
    """Says what embedding real images once costs, against embedding a batch at every step."""
    recipe, steps = session.recipe, session.config.steps
    once, streamed = recipe.real_views * num_images, steps * recipe.batch
    backbones = f" by each of {len(session.backbones)} backbones"
    print(
        f"real features: {recipe.real_views} of each of {num_images} images, {once} embedded once"
        f"{backbones if len(session.backbones) > 1 else ''}; streaming would embed {streamed}"
    )
    if once > streamed:
        print("note: for so few steps, real.source=stream embeds fewer images")


def _pyramid(recipe: distill.Recipe, steps: int) -> dict[str, int] | None:
    """Sides in px of the finest level that was distilled, and of the finest that there is."""
    if recipe.kind != "pyramid":
        return None
    reached = int(recipe.num_active(max(0, steps - 1)))
    return {"reached": recipe.sizes[reached - 1], "finest": recipe.sizes[-1]}


def _note_growth(session: Session) -> None:
    """Says so if the images will not be as fine as they may be, or do not grow level by level."""
    recipe, steps, levels = session.recipe, session.config.steps, len(session.recipe.sizes)
    reached = int(recipe.num_active(max(0, steps - 1)))
    if reached < levels:
        print(
            f"note: the images stay at {recipe.sizes[reached - 1]} of {recipe.resolution} px: with "
            f"config.images.grow_every={recipe.grow_every}, config.steps={steps} is too few for "
            f"{levels} levels; raise it, or leave grow_every unset"
        )
    elif (
        session.config.images.grow_every is None
        and recipe.grow_every == 0
        and levels > 1
        and recipe.start_resolution < recipe.resolution
    ):
        print(
            f"note: {steps} steps are too few to add {levels} levels one by one: all count at once"
        )


def _check_finite(
    session: Session,
    mesh: Mesh,
    size: int,
    feed: _Feed,
    checkpoints: Checkpoints,
    step: int,
    loss: jax.Array | None,
    state: distill.AnyState,
    *,
    images_too: bool = False,
) -> None:
    """Stops a distillation of which something is not finite; its later steps would all be lost."""
    if loss is not None and not math.isfinite(float(loss)):
        what = f"the loss is {float(loss)} at step {step}"
    elif images_too and not distill.is_finite(state):
        what = f"the images are no longer finite after step {step}"
    else:
        return
    newest = checkpoints.latest_step()
    saved = f"checkpoint {newest} is sound" if newest else "there is no checkpoint yet"
    with contextlib.ExitStack() as workers:
        if session.on_host:
            # Anew, since the batches that it has read have been thrown away.
            feed = _feed(session, mesh, size, workers)
        # A step that failed counts for none, and the one after it may have come to an end.
        failed = state._replace(step=state.step * 0 + (step - 1))
        cause = diagnosis.find_cause(
            session.recipe,
            session.key,
            session.backbones,
            feed.reals,
            feed.sources(step - 1),
            failed,
            mesh=mesh,
            specs=feed.specs,
        )
    raise UserError(
        f"{what}: {cause}; {saved}, and the same command goes on from there; another value needs "
        "another workdir or --overwrite"
    )


def _render(session: Session, mesh: Mesh, state: distill.AnyState) -> np.ndarray:
    # The last update was made with the levels that counted before it.
    active = session.recipe.num_active(max(0, int(state.step) - 1))
    levels = sharding.fetch(mesh, state.levels)
    return np.asarray(distill.render(session.recipe, levels, active))


def _probabilities(mesh: Mesh, state: distill.AnyState) -> np.ndarray | None:
    """Of the classes of each image, where labels are learned."""
    if not isinstance(state, distill.SoftState):
        return None
    return np.asarray(jax.nn.softmax(sharding.fetch(mesh, state.logits)))


def _write_progress(session: Session, step: int, images: np.ndarray) -> Image.Image | None:
    """The images on the way: a picture, a sheet of the timelapse, and the page as it is so far.

    The first process writes them, and gives the picture. One that cannot be written is not worth
    the end of the distillation, unless the disk is full: then the next checkpoint would fail.
    """
    if not hosts.is_first():
        return None
    config, path = session.config, session.run.path
    names, labels = session.dataset.class_names, np.asarray(session.recipe.labels())
    some = pictures.spread(len(images), _MOST_DRAWN)
    drawn = draw_grid(images[some], [names[label] for label in labels[some]])
    with _spared("the picture", step):
        _write_png(path / runs.PROGRESS / f"step_{step:06d}.png", drawn)
    if timelapse.is_kept(step, config.steps, config.image_every):
        with _spared("the contact sheet", step):
            timelapse.write_sheet(path / runs.TIMELAPSE, step, images)
    with _spared("the page", step):
        write_unfinished_page(path, step, images, labels, names)
    return drawn


def _write_start(session: Session, images: np.ndarray) -> None:
    """The sheet of the timelapse that shows what the images began as."""
    if hosts.is_first():
        with _spared("the contact sheet", 0):
            timelapse.write_sheet(session.run.path / runs.TIMELAPSE, 0, images)


@contextlib.contextmanager
def _spared(what: str, step: int) -> Iterator[None]:
    """Goes on without something of a step that cannot be written."""
    try:
        yield
    except (OSError, UserError) as error:
        if find_full(error) is not None:
            raise
        print(f"note: {what} of step {step} is left out: {error}", flush=True)


def _write_png(path: epath.Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with runs.replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _start_images(session: Session) -> jax.Array | None:
    if session.recipe.init != "real":
        return None
    train, config = session.dataset.splits["train"], session.config
    rows = baselines.random(train.labels, config.ipc, session.dataset.num_classes, 1, config.seed)
    return distill.to_float(jnp.asarray(train.load(rows[0])))


def _protocol(session: Session, method: str) -> probe.Protocol:
    """How a row is trained: once, if repetitions could not differ."""
    full = method == "full"
    protocol = make_protocol(session.config, session.recipe, full=full)
    count = len(session.dataset.splits["train"].labels) if full else session.recipe.num_images
    # As it is used, so that a batch of more images than there are is no other protocol.
    protocol = dataclasses.replace(protocol, batch=min(protocol.batch, count))
    # Random images are drawn anew for each run.
    once = method != "random" and not probe.repeats_differ(protocol)
    return dataclasses.replace(protocol, runs=1) if once else protocol


def _probe_inputs(session: Session, method: str, backbone: Backbone) -> dict[str, Any]:
    """What the probe of a method depends on, and nothing else."""
    config = session.config
    inputs = {
        "seed": config.seed,
        "protocol": describe(_protocol(session, method)),
        "split": config.probe.split,
        "resolution": session.recipe.resolution,
        "data": session.dataset.fingerprint,
        "backbone": backbone.fingerprint,
    }
    if method == "full":
        return inputs
    inputs["ipc"] = config.ipc
    if method in ("centroids", "neighbors"):
        inputs["chosen_by"] = session.backbone.fingerprint
    if method in ("distilled", "neighbors") and session.distilled is not None:
        inputs["images"] = content_hash(session.distilled)
    return inputs


def _probe(
    session: Session,
    method: str,
    split: Split,
    choose: Callable[[], np.ndarray],
) -> None:
    """Probes every evaluation backbone that has no result for these inputs yet.

    Args:
        session: The session.
        method: The row of the results.
        split: Images to train on.
        choose: Gives the rows of the split that each run trains on, (runs, n), or (1, n) if all
            train on the same.
    """
    config, run = session.config.probe, session.run
    todo = [b for b in session.eval_backbones if _find_probe(session, method, b) is None]
    if not todo:
        print(f"{method}: done")
        return
    protocol, rows = _protocol(session, method), choose()
    for backbone in todo:
        started = time.perf_counter()
        trained = _train(session, method, backbone, protocol, split, rows)
        scores = probe.evaluate(
            trained.heads,
            session.features(backbone, config.split),
            session.dataset.splits[config.split].labels,
            session.dataset.splits[config.split].groups,
            mesh=sharding.mesh_of_several(jax.local_devices()),
        )
        result = _summary(scores, protocol, config.split, session.dataset.group_names)
        result["loss_curve"] = _loss_curve(trained.losses)
        run.finish(
            _stage_name(session, method, backbone),
            _probe_inputs(session, method, backbone),
            result,
            time.perf_counter() - started,
            [session.process_with(backbone)],
        )
        once = ", trained once: repetitions are identical" if protocol.runs < config.runs else ""
        print(
            f"{method}: {result['top1_mean']:.1f} % on {session.name_of(backbone)}{once}",
            flush=True,
        )


def _train(
    session: Session,
    method: str,
    backbone: Backbone,
    protocol: probe.Protocol,
    split: Split,
    rows: np.ndarray,
) -> probe.Trained:
    """Trains a head per run, on kept features as far as the protocol allows."""
    stream = _PROBE_STREAM if method == "distilled" else _BASELINE_STREAM
    key, label = jax.random.fold_in(session.key, stream), f"{method}, {session.name_of(backbone)}"
    mesh = sharding.mesh_of_several(jax.devices())
    classes = session.dataset.num_classes
    soft = split.probabilities if isinstance(split, ArraySplit) else None
    targets = (split.labels if soft is None else soft)[rows]
    labels = jnp.asarray(np.broadcast_to(targets, (protocol.runs, *targets.shape[1:])))
    table = None
    if method != "distilled" and protocol.augment == "none":
        table = session.features(backbone, "train")[rows][:, None]
    elif method == "full" and protocol.augment == "views":
        views = Views(protocol.crop, protocol.augmentation, protocol.views)
        draws = 1 if protocol.share_views else protocol.runs
        table = np.stack(
            [session.embed(backbone, "train", views, draw).whole() for draw in range(draws)]
        )
    if table is not None:
        return probe.train_on_features(
            key, table, labels, classes, protocol, label=label, mesh=mesh
        )
    used, chosen = np.unique(rows, return_inverse=True)
    pool = session.train.images if method == "full" else split.load(used)
    owned = jnp.asarray(np.broadcast_to(chosen, labels.shape[:2]), jnp.int32)
    return probe.train(
        key, backbone, jnp.asarray(pool), labels, owned, classes, protocol, label=label, mesh=mesh
    )


def _summary(
    scores: Mapping[str, Any], protocol: probe.Protocol, split: str, group_names: Sequence[str]
) -> dict[str, Any]:
    """What is recorded of a probe, but for its learning curve.

    `groups` is each group's accuracy, `worst_group` that of each run's worst group, both as means
    over runs; groups without images are left out.
    """
    top1, top5 = scores["top1"], scores["top5"]
    return {
        "top1_mean": float(np.mean(top1)),
        "top5_mean": None if top5 is None else float(np.mean(top5)),
        "top1_runs": [float(value) for value in top1],
        "top5_runs": None if top5 is None else [float(value) for value in top5],
        "solver": protocol.solver,
        "epochs": protocol.epochs,
        "augment": protocol.augment,
        "split": split,
        **_group_summary(scores["groups"], group_names),
    }


def _loss_curve(losses: np.ndarray | None) -> list[tuple[int, float]] | None:
    """Epochs, from 1, with the mean training loss of all runs: the first, and evenly spread ones.

    Args:
        losses: Of each run in each epoch, (runs, epochs). Epochs after a probe has diverged are
            left out.
    """
    if losses is None:
        return None
    epochs = pictures.spread_with_ends(losses.shape[1], _MOST_POINTS)
    points = [(epoch + 1, float(losses[:, epoch].mean())) for epoch in epochs]
    return [(epoch, round(loss, 6)) for epoch, loss in points if math.isfinite(loss)]


def _group_summary(
    accuracy: np.ndarray | None, group_names: Sequence[str]
) -> dict[str, dict[str, float] | float | None]:
    if accuracy is None:
        return {"groups": None, "worst_group": None}
    means = np.mean(accuracy, axis=0).tolist()
    present = {name: mean for name, mean in zip(group_names, means, strict=False) if mean == mean}
    return {"groups": present, "worst_group": float(np.mean(np.nanmin(accuracy, axis=1)))}


def _label_summary(session: Session) -> dict[str, Any] | None:
    """What kind of labels the images have, and the bytes that these take beside the images."""
    if session.distilled is None:
        return None
    soft, hard = session.distilled.probabilities, session.distilled.labels
    if soft is None:
        return {"kind": "hard", "bytes": hard.nbytes}
    return {"kind": "soft", "bytes": soft.nbytes}


def _with_spread(record: Mapping[str, Any], ddof: int) -> dict[str, Any]:
    """An entry of `results.json`: what was recorded, and standard deviations, null for one run."""

    def spread(values: Sequence[float] | None) -> float | None:
        return float(np.std(values, ddof=ddof)) if values and len(values) > 1 else None

    entry = {name: value for name, value in record.items() if name != "top5_runs"}
    stds = {"top1_std": spread(record["top1_runs"]), "top5_std": spread(record["top5_runs"])}
    return {**entry, **stds}


def _collect(session: Session) -> dict[str, dict[str, Any]]:
    """Results of all probes that belong to the current config."""
    ddof = session.config.probe.ddof
    table: dict[str, dict[str, Any]] = {}
    for backbone in session.eval_backbones:
        found = {method: _find_probe(session, method, backbone) for method in TITLES}
        kept = {method: _with_spread(e, ddof) for method, e in found.items() if e is not None}
        if kept:
            table[session.name_of(backbone)] = kept
    return table


def _neighbors(session: Session) -> np.ndarray:
    """Indices of the training images that look most like the distilled ones to the backbone."""
    if session.distilled is None:
        raise ValueError("there are no distilled images")
    return baselines.neighbors(
        session.features(session.backbone, "train"),
        session.dataset.splits["train"].labels,
        session.features_syn,
        session.distilled.labels,
    )


def _make_gallery(session: Session) -> Gallery | None:
    """Pictures for the page: distilled images, real ones beside them, a map of their features.

    Features are computed by all processes together; the first makes the pictures.
    """
    if session.distilled is None:
        raise ValueError("there are no distilled images")
    config, train, distilled = session.config, session.dataset.splits["train"], session.distilled
    classes = session.dataset.num_classes
    rows = gallery.real_rows(
        distilled.labels,
        session.centroids,
        _neighbors(session),
        # Those of the first run of the baseline.
        baselines.random(train.labels, config.ipc, classes, config.probe.runs, config.seed)[0],
    )
    features, features_syn = session.features(session.backbone, "train"), session.features_syn
    if not hosts.is_first():
        return None
    return gallery.make_gallery(
        distilled.images,
        distilled.labels,
        session.dataset.class_names,
        {kind: train.load(indices) for kind, indices in rows.items()},
        gallery.make_map(features, train.labels, features_syn[gallery.shown(distilled.labels)]),
    )


def _write_pairs(session: Session) -> None:
    """Draws distilled images, evenly chosen, each with the centroid of its class beside it."""
    if session.distilled is None:
        raise ValueError("there are no distilled images")
    # By all processes together, if it is not known.
    centroids = session.centroids.reshape(session.dataset.num_classes, -1)[:, 0]
    if not hosts.is_first():
        return
    some = pictures.spread(len(session.distilled.labels), _MOST_DRAWN // 2)
    labels = session.distilled.labels[some]
    real = session.dataset.splits["train"].load(centroids[labels]).astype(np.float32) / 255
    pairs = np.stack([session.distilled.images[some], real], axis=1)
    names = [session.dataset.class_names[label] for label in labels]
    captions = [text for name in names for text in (name, f"{name}, real")]
    columns = 2 * max(1, round(math.sqrt(len(names) / 2)))
    grid = draw_grid(pairs.reshape(-1, *pairs.shape[2:]), captions, columns)
    _write_png(session.run.path / runs.GRID, grid)


def _find_probe(session: Session, method: str, backbone: Backbone) -> Any | None:
    stage = _stage_name(session, method, backbone)
    return session.run.find(stage, _probe_inputs(session, method, backbone))


def _stage_name(session: Session, method: str, backbone: Backbone) -> str:
    stage = "probe" if method == "distilled" else "baselines"
    return f"{stage}/{method}/{session.name_of(backbone)}"
