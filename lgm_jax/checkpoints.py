"""Saving and restoring the state of a distillation with Orbax: asynchronous and atomic."""

from __future__ import annotations

from types import TracebackType

import jax
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from lgm_jax.distill import State, is_finite
from lgm_jax.errors import UserError


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
        self._folder = folder.resolve()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, if there is any."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Starts writing a checkpoint; one that exists already is left as it is."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, template: State) -> State:
        """The newest checkpoint, placed like the template.

        Raises:
            UserError: If it cannot be read, or holds numbers that are not finite.
        """
        step = self.latest_step()
        # Orbax would look for the devices that the checkpoint was written from.
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            template,
        )
        advice = f"delete {self._folder / str(step)} to go on from the one before, or anew"
        try:
            _read_all(self._folder / str(step))
            state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        # What Orbax and its storage raise for missing or broken files has no common class.
        except Exception as error:
            raise UserError(f"the checkpoint of step {step} cannot be read: {advice}") from error
        if not is_finite(state):
            raise UserError(f"the checkpoint of step {step} is not finite: {advice}")
        return state

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


def _read_all(checkpoint: epath.Path) -> None:
    """Reads, and so verifies, everything in a checkpoint, one after the other.

    Orbax reads all arrays at once: where one fails, the others go on and write tracebacks to
    stderr when they find that nobody waits for them any more.
    """
    base = str(checkpoint / "default")
    url = base if "://" in base else f"file://{base}"
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"{url}/"}).result()
    for name in store.list().result():
        store.read(name).result()
