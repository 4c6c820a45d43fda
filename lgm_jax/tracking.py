"""Track a distillation in TensorBoard or Weights & Biases: curves and pictures.

Both have one interface, `Tracker`, and are imported when they are opened. The first process of a
run writes, the others have no tracker.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from etils import epath
from PIL import Image

from lgm_jax import files, hosts, paths, public, runs
from lgm_jax.errors import UserError

# A picture of a thousand classes would take a hundred megabytes each time.
_LARGEST_SIDE = 2048


@runtime_checkable
class Tracker(Protocol):
    """A recorder of values and pictures by step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records values by name after a number of updates."""

    def images(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Records RGB pictures by name after a number of updates."""

    def close(self) -> None:
        """Writes the remaining records; nothing may be recorded afterwards."""


class TensorBoard:
    """Writes `tensorboard/events.out.tfevents.*` in the run folder, one file per process.

    Each record is on disk when the call returns; in a bucket (`gs://`), it may get there only when
    the tracker is closed. TensorBoard reads the files as one series, and drops an earlier process's
    records of the steps that this one repeats.
    """

    def __init__(self, folder: epath.Path, start: int):
        """Opens a new file, for records after `start` updates."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._log = event_pb2.Event, event_pb2.SessionLog
        self._summary = summary_pb2.Summary
        events = folder / runs.TENSORBOARD
        events.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.name.split(".")[3]) for path in events.glob("events.out.tfevents.*.*")]
        # With zeros before it, so that the order of names is that of time.
        name = f"events.out.tfevents.{max(numbers, default=0) + 1:06}.lgm_jax"
        self._writer = RecordWriter((events / name).open("wb"))
        self._write(0, file_version="brain.Event:2")
        self._write(start + 1, session_log=self._log(status=self._log.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        entries = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        self._write(step, summary=self._summary(value=entries))

    def images(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        entries = []
        for name, picture in pictures.items():
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            image = self._summary.Image(
                height=picture.height,
                width=picture.width,
                colorspace=len(picture.getbands()),
                encoded_image_string=buffer.getvalue(),
            )
            entries.append(self._summary.Value(tag=name, image=image))
        self._write(step, summary=self._summary(value=entries))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()


class WandB:
    """A run of Weights & Biases, named after the run folder and continued when that is.

    The variables of its client decide where it belongs: `WANDB_PROJECT`, `WANDB_ENTITY`,
    `WANDB_MODE=offline`. Its files lie in `wandb/` in the run folder, or in the current folder
    where that is in a bucket (`gs://`).
    """

    def __init__(self, folder: epath.Path, start: int):
        """Starts or resumes the run; the service knows its last step.

        The settings of the run are shown beside it, folders by their name alone.
        """
        import wandb

        path = folder / runs.WANDB / "run.json"
        name = (files.read_json(path) or {}).get("id") or secrets.token_hex(4)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"id": name})
        settings = (files.read_json(folder / runs.CONFIG) or {}).get("config", {})
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "lgm_jax"),
                name=paths.name(folder),
                id=name,
                resume="allow",
                dir=None if paths.is_bucket(folder) else os.fspath(paths.alias(folder)),
                config=public.settings(settings),
            )
        except wandb.Error as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"Weights & Biases does not start: {reason}; run `wandb login`, set "
                "WANDB_MODE=offline, or leave wandb out of config.track"
            ) from error
        self._image = wandb.Image
        # The service takes no step back: its records of repeated steps stay.
        self._first = self._run.step

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def images(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        self._log(step, {name: self._image(picture) for name, picture in pictures.items()})

    def close(self) -> None:
        self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if step >= self._first:
            self._run.log(values, step=step)


TRACKERS: Mapping[str, Callable[[epath.Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}
"""Trackers by the name of their package, and of the extra that installs it."""


def check_installed(kinds: Sequence[str]) -> None:
    """Refuses trackers whose package is not installed, in the process that needs it."""
    for kind in kinds if hosts.is_first() else ():
        spec = importlib.util.find_spec(kind)
        # A folder of that name, as W&B creates, passes for a package without code.
        if spec is None or spec.origin is None:
            raise UserError(
                f"config.track={kind} needs the package {kind}, which is not installed: "
                f"pip install 'lgm_jax[{kind}]', in a clone pip install -e '.[{kind}]'"
            )


@contextlib.contextmanager
def opened(kinds: Sequence[str], folder: epath.Path, start: int) -> Iterator[list[Tracker]]:
    """Opens trackers on the first process, after `start` updates, and closes all that opened."""
    with contextlib.ExitStack() as closing:
        trackers: list[Tracker] = []
        for kind in dict.fromkeys(kinds) if hosts.is_first() else ():
            trackers.append(TRACKERS[kind](folder, start))
            closing.callback(trackers[-1].close)
        yield trackers


def shrink(picture: Image.Image) -> Image.Image:
    """Returns a picture of 2048 px at most."""
    small = picture.copy()
    small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return small
