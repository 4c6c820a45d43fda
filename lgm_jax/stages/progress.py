"""The record of a distillation under way: losses, pictures, the timelapse, the unfinished page."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import numpy as np
from etils import epath
from PIL import Image

from lgm_jax import distill, files, hosts, images, runs
from lgm_jax.errors import UserError, find_full
from lgm_jax.report import pictures, timelapse
from lgm_jax.report.grid import draw_grid
from lgm_jax.report.page import write_unfinished_page
from lgm_jax.session import Session

MOST_DRAWN = 400
"""Images in a picture of all: more are too small to see, and take long to draw."""


class Metrics:
    """`metrics.jsonl`: one line for each logged step, also of a run that was continued."""

    def __init__(self, folder: epath.Path, start: int):
        """Reads the lines of earlier processes, up to the step from which the run continues."""
        self._path = folder / runs.METRICS
        try:
            lines = runs.read_metrics(folder)
        except UserError as error:
            raise UserError(f"{error}; delete it to continue without its lines") from error
        self._lines = [line for line in lines if line["step"] <= start]
        self._before = self._lines[-1].get("seconds", 0.0) if self._lines else 0.0
        self._clock = time.perf_counter()

    def elapsed(self) -> float:
        """Returns the seconds spent, in earlier processes too."""
        return self._before + time.perf_counter() - self._clock

    def last_loss(self) -> float | None:
        """Returns the newest loss, of earlier processes too."""
        return self._lines[-1]["loss"] if self._lines else None

    def write(self, step: int, loss: float, rate: float) -> None:
        """Adds a line."""
        line = {"step": step, "loss": loss, "steps_per_second": rate, "seconds": self.elapsed()}
        self._lines.append({name: round(value, 6) for name, value in line.items()})
        if not hosts.is_first():
            return
        with files.replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self._lines))


def write_progress(session: Session, step: int, images: np.ndarray) -> Image.Image | None:
    """Writes a picture of the images, and the unfinished page.

    The first process writes them, and returns the picture. A failure to write does not end the
    distillation, unless the disk is full: then the next checkpoint would fail.
    """
    if not hosts.is_first():
        return None
    path = session.run.path
    names, labels = session.dataset.class_names, np.asarray(distill.hard_labels(session.task))
    some = pictures.spread(len(images), MOST_DRAWN)
    picture = draw_grid(images[some], [names[label] for label in labels[some]])
    with _spared("the picture", step):
        pictures.write_png(path / runs.PROGRESS / f"step_{step:06d}.png", picture)
    with _spared("the page", step):
        write_unfinished_page(path, step, images, labels, names)
    return picture


def write_frame(session: Session, step: int, images: np.ndarray) -> None:
    """Writes the sheet of the timelapse after a step; the first process does."""
    if hosts.is_first():
        with _spared("the contact sheet", step):
            timelapse.write_sheet(session.run.path / runs.TIMELAPSE, step, images)


def note_growth(session: Session) -> None:
    """Prints a note if the images will not reach full detail, or do not grow level by level."""
    pyramid, steps = session.task.parametrisation, session.config.steps
    if not isinstance(pyramid, images.Pyramid):
        return
    levels, reached = len(pyramid.sizes), pyramid.side_at(max(0, steps - 1))
    if reached < pyramid.resolution:
        print(
            f"note: the images stay at {reached} of {pyramid.resolution} px: with "
            f"config.images.grow_every={pyramid.grow_every}, config.steps={steps} is too few for "
            f"{levels} levels; raise it, or leave grow_every unset"
        )
    elif (
        session.config.images.grow_every is None
        and pyramid.grow_every == 0
        and levels > 1
        and pyramid.start_resolution < pyramid.resolution
    ):
        print(
            f"note: {steps} steps are too few to add {levels} levels one by one: all count at once"
        )


@contextlib.contextmanager
def _spared(what: str, step: int) -> Iterator[None]:
    """Makes a failure to write a file of a step a note, unless the disk is full."""
    try:
        yield
    except (OSError, UserError) as error:
        if find_full(error) is not None:
            raise
        print(f"note: {what} of step {step} is left out: {error}", flush=True)
