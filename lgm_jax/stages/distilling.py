"""The stage that distils: from the newest checkpoint to the last step and the images."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lgm_jax import (
    baselines,
    devices,
    diagnosis,
    distill,
    hosts,
    images,
    runs,
    tracking,
)
from lgm_jax import real as real_features
from lgm_jax.backbones import Backbone
from lgm_jax.checkpoints import Checkpoints
from lgm_jax.distilled import ARRAYS, save_distilled
from lgm_jax.errors import UserError
from lgm_jax.execution import Execution
from lgm_jax.interrupts import INTERRUPTS
from lgm_jax.profiling import StepTrace
from lgm_jax.programs import Programs
from lgm_jax.progress import StepProgress, is_logged
from lgm_jax.report import timelapse
from lgm_jax.session import Session
from lgm_jax.settings import backbone_weights, split_list
from lgm_jax.stages import progress

# Features that every step takes whole may take so much of the device.
MOST_FEATURES = 2 * 2**30


def distill_stage(session: Session) -> None:
    """Distils the images, from the newest checkpoint if there is one; saves before an interrupt."""
    config, task, run, steps = session.config, session.task, session.run, session.config.steps
    inputs = {**session.identity, "steps": steps}
    done = run.find("distill", inputs) is not None
    if done and (run.path / runs.DISTILLED / ARRAYS).exists():
        print(f"distill: {steps} steps are done")
        return
    mesh = devices.make_mesh(task.num_images, task.copies)
    with (
        Checkpoints(run.path / runs.CHECKPOINTS, config.keep_checkpoints) as checkpoints,
        contextlib.ExitStack() as workers,
    ):
        state = _restore(session, mesh, checkpoints)
        start = int(state.step)
        metrics = progress.Metrics(run.path, start)
        against = place_backbones(session, mesh)
        programs = make_programs(session, against, mesh)
        execution = choose_execution(session, programs, placed=devices.bytes_here(state))
        process = {**session.process_with(*session.backbones), **execution._asdict()}
        made_by = run.begin("distill", start, process)
        # Pages on the way replace the report.
        run.forget("report")
        progress.note_growth(session)
        where = f"{mesh.size} devices, " if mesh.size > 1 else ""
        where += f"{hosts.count()} processes, " if hosts.count() > 1 else ""
        print(f"distill: steps {start:,} to {steps:,}, {where}{execution}", flush=True)
        size = execution.microbatch
        real = make_real(session, against, mesh, execution.real_microbatch, workers)
        step = dataclasses.replace(programs, residuals=execution.residuals).step(size)
        loop = Loop(session, against, mesh, size, step, real, checkpoints, metrics)
        state = loop.run(state)
        checkpoints.save(steps, state)
    whole = devices.fetch(mesh, state)
    if hosts.is_first():
        probabilities = distill.probabilities(task, whole)
        save_distilled(
            run.path / runs.DISTILLED,
            np.asarray(distill.render(task, whole)),
            np.asarray(distill.hard_labels(task)),
            session.dataset.class_names,
            None if probabilities is None else np.asarray(probabilities),
        )
    hosts.wait()
    run.await_file(f"{runs.DISTILLED}/{ARRAYS}")
    result = {"steps": steps, "final_loss": metrics.last_loss()}
    run.finish("distill", inputs, result, metrics.elapsed(), made_by)


@dataclasses.dataclass(frozen=True)
class Loop:
    """The loop over the steps of a distillation: logs, pictures, checkpoints, checks."""

    session: Session
    against: Sequence[Backbone]
    mesh: Mesh
    size: int
    step: distill.Step
    real: real_features.Real
    checkpoints: Checkpoints
    metrics: progress.Metrics

    def run(self, state: distill.State) -> distill.State:
        """Runs the remaining steps; returns the state without padding."""
        session, config, start = self.session, self.session.config, int(state.step)
        if start == 0:
            self._write_frame(0, state)
        trace = StepTrace(
            session.run.path / runs.PROFILE, config.profile if hosts.is_first() else 0
        )
        largest = devices.make_largest(self.mesh) if self.mesh.is_multi_process else None
        unchecked: jax.Array | None = None
        params = [backbone.params for backbone in self.against]
        with (
            # First, since it may raise, and leave a bar open.
            tracking.opened(split_list(config.track), session.run.path, start) as trackers,
            contextlib.closing(
                StepProgress(start, config.steps, session.task.num_views, self.mesh.local_devices)
            ) as bar,
            trace,
            INTERRUPTS.deferred(make_agree(largest)) as interrupted,
        ):
            for number in range(start, config.steps):
                state, values = self.step(state, params, self.real(number))
                loss, step = values["loss"], number + 1
                bar.advance()
                trace.advance(loss)
                # The step before, while devices compute this one: more at a time would take memory,
                # and on CPUs programs of many devices would wait for each other's threads.
                if unchecked is not None:
                    self._check(number, unchecked, state)
                unchecked = loss
                last, logs = step == config.steps, is_logged(step, config.steps, config.log_every)
                draws = last or step % config.image_every == 0
                films = timelapse.is_kept(step, config.steps)
                saves = last or step % config.checkpoint_every == 0
                # After the last step, also of signals that have just come.
                leaving = interrupted() or (last and interrupted())
                saves = saves or leaving
                if logs or draws or films or saves:
                    self._check(step, loss, state, images_too=True)
                    unchecked = None
                if logs:
                    rate = bar.report(step, float(loss))
                    self.metrics.write(step, float(loss), rate)
                    for tracker in trackers:
                        tracker.scalars(step, self._scalars(step, float(loss), rate))
                if films:
                    self._write_frame(step, state)
                if draws:
                    picture = progress.write_progress(session, step, self._render(state))
                    if picture is not None:
                        for tracker in trackers:
                            tracker.images(step, {"distilled": tracking.shrink(picture)})
                if saves:
                    # Last, so that a run that continues from here repeats nothing of this step.
                    self.checkpoints.save(step, self._collect(state))
                if leaving:
                    break
        # As it is restored where a run was killed after the last step.
        return self._collect(state)

    def _collect(self, state: distill.State) -> distill.State:
        return devices.collect(self.mesh, state, self.session.task.num_images)

    def _render(self, state: distill.State, rows: Sequence[int] | None = None) -> np.ndarray:
        whole = devices.fetch(self.mesh, self._collect(state))
        return np.asarray(distill.render(self.session.task, whole, rows))

    def _write_frame(self, step: int, state: distill.State) -> None:
        some = timelapse.images_shown(self.session.task.num_images)
        progress.write_frame(self.session, step, self._render(state, some))

    def _scalars(self, step: int, loss: float, rate: float) -> dict[str, float]:
        """Returns values for trackers; `images_per_second` counts views of synthetic images."""
        task, schedule = self.session.task, self.session.task.schedule
        factor = 1.0 if schedule is None else float(schedule(step))
        return {
            "loss": loss,
            "steps_per_second": rate,
            "images_per_second": rate * task.num_views,
            "learning_rate": self.session.recipe.updates.learning_rate * factor,
        }

    def _check(
        self,
        step: int,
        loss: jax.Array,
        state: distill.State,
        *,
        images_too: bool = False,
    ) -> None:
        """Stops if the loss of a step is not finite, or images: all later steps would be lost.

        Args:
            images_too: Whether to check the state, too; it is then that after this step.
        """
        bad = not math.isfinite(float(loss))
        if bad:
            problem = f"the loss is {float(loss)} at step {step}"
        elif images_too and not distill.is_finite(state):
            problem = f"the images are no longer finite after step {step}"
        else:
            return
        newest = self.checkpoints.latest_step()
        saved = f"checkpoint {newest} is sound" if newest else "there is no checkpoint yet"
        cause = diagnosis.find_cause(
            self.session.recipe,
            self.session.key,
            self.against,
            self.real(step - 1),
            step,
            state,
            mesh=self.mesh,
            microbatch=self.size,
        )
        # A failed step changes nothing, but later ones may have.
        if bad and int(state.step) >= step:
            last = int(state.step)
            cause += f" (seen in images that later steps have changed, up to step {last})"
        raise UserError(
            f"{problem}: {cause}; {saved}, and the same command continues there; another value "
            "needs another workdir or --overwrite"
        )


def make_agree(largest: Callable[[int], jax.Array] | None) -> Callable[[int], int]:
    """Makes the function of each step that turns a process's signal, or 0, into that of any.

    All processes hear of it after the same step, the next: none waits for the answer of this one.

    Args:
        largest: The function of `devices.make_largest`; `None` for a single process.
    """
    asked: list[jax.Array] = []

    def agree(signal: int) -> int:
        if largest is None:
            return signal
        asked.append(largest(signal))
        return int(asked.pop(0)) if len(asked) > 1 else 0

    return agree


def place_backbones(session: Session, mesh: Mesh) -> list[Backbone]:
    """Returns the backbones to distil against with their weights on every device."""
    return [
        dataclasses.replace(backbone, params=devices.put(mesh, backbone.params))
        for backbone in session.backbones
    ]


def make_real(
    session: Session,
    against: Sequence[Backbone],
    mesh: Mesh,
    size: int | None,
    workers: contextlib.ExitStack,
) -> real_features.Real:
    """Makes the function that returns a step's real features, `size` in a backbone at a time."""
    recipe, train = session.recipe, session.dataset.splits["train"]
    options, task, key, count = recipe.real, recipe.task, session.key, len(train.labels)
    if options.source == "stream":
        source: Any
        if session.on_host:
            source = workers.enter_context(session.loader())
            by = f"{source.workers} processes" if source.workers else "threads"
            print(f"real images: {task.num_views} of {count} a step, read by {by}", flush=True)
        else:
            source = session.train
        return real_features.streamed(
            against,
            source,
            task,
            key,
            sampling=options.sampling,
            augmented=options.augmented,
            held=True,
            mesh=mesh,
            microbatch=size,
        )
    views = options.views
    once, streamed = views * count, session.config.steps * task.num_views
    by = f" by each of {len(against)} backbones" if len(against) > 1 else ""
    print(
        f"real features: {views} of each of {count} images, {once} embedded once{by}; streaming "
        f"would embed {streamed}"
    )
    if once > streamed:
        print("note: for so few steps, real.source=stream embeds fewer images")
    stored = [session.real_features(backbone) for backbone in against]
    if options.source == "cached":
        sampling = options.sampling
        return real_features.cached(stored, train.labels, task, key, sampling=sampling, mesh=mesh)
    largest = max(rows.nbytes for rows in stored)
    if largest > MOST_FEATURES and not recipe.prepares:
        raise UserError(
            f"the features take {largest / 1e9:.3g} GB, more than the "
            f"{MOST_FEATURES / 1e9:.3g} GB that real.source=exact keeps on the device: lower "
            "real.views, or set real.source=cached"
        )
    return real_features.exact(stored, train.labels, task, mesh=mesh)


def make_programs(session: Session, against: Sequence[Backbone], mesh: Mesh) -> Programs:
    """Returns the programs of a session for some devices and placed backbones."""
    return Programs(
        session.recipe,
        against,
        session.key,
        len(session.dataset.splits["train"].labels),
        session.on_host,
        mesh,
        backbone_weights(session.config),
    )


def choose_execution(session: Session, programs: Programs, *, placed: int = 0) -> Execution:
    """Chooses how to execute steps: as configured, as before, or the fastest way that fits."""
    config, now = session.config, session.process_with(*session.backbones)
    before = hosts.first_says(dict(session.run.last_process("distill", now)))
    if config.microbatch is None and "microbatch" in before:
        size = before["microbatch"]
        streams = session.recipe.real.source == "stream"
        real = before.get("real_microbatch", size) if streams else None
        return Execution(size, before.get("residuals", "all"), real)
    return programs.choose(config.microbatch, placed=placed)


def start_params(session: Session) -> images.Levels | None:
    """Returns parameters of real images to start from, where the config asks for these."""
    pixels = session.task.parametrisation
    if not isinstance(pixels, images.Pixels) or pixels.init != "real":
        return None
    train, config = session.dataset.splits["train"], session.config
    rows = baselines.random(train.labels, config.ipc, session.dataset.num_classes, 1, config.seed)
    return images.from_images(
        jnp.asarray(train.load(rows[0])), decorrelate=pixels.decorrelate, grey=pixels.grey
    )


def _restore(session: Session, mesh: Mesh, checkpoints: Checkpoints) -> distill.State:
    """Returns the state to continue from, as it lies on the mesh."""
    state = distill.init_state(session.task, session.key, params=start_params(session))
    newest, steps = checkpoints.latest_step() or 0, session.config.steps
    if newest > steps:
        raise UserError(
            f"workdir holds {newest} steps, more than config.steps={steps}; name another workdir"
        )
    if mesh.is_multi_process:
        # Orbax takes no arrays that each process has for itself.
        state = devices.put(mesh, state)
    state = checkpoints.restore(state) or state
    return devices.place(mesh, state, session.task.num_images)
