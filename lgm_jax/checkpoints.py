"""Saving and restoring the state of a distillation with Orbax: asynchronous and atomic."""

from __future__ import annotations

from types import TracebackType

import jax
import orbax.checkpoint as ocp
from etils import epath

from lgm_jax.distill import State


class Checkpoints:
    """The checkpoints of one run, newest last; a context manager that waits for pending writes."""

    def __init__(self, folder: epath.Path, keep: int):
        """Opens, and creates if need be, a folder of checkpoints.

        Args:
            folder: Where they lie.
            keep: How many to keep.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        # Orbax takes absolute paths only.
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, if there is any."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Starts writing a checkpoint; one that exists already is left as it is."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, template: State) -> State:
        """The newest checkpoint, placed like the template."""
        abstract = jax.eval_shape(lambda: template)
        return self._manager.restore(self.latest_step(), args=ocp.args.StandardRestore(abstract))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
