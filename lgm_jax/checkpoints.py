"""Saving and restoring the state of a distillation with Orbax: asynchronous and atomic."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging
from etils import epath
from jaxtyping import Array, UInt32

from lgm_jax import hosts, paths
from lgm_jax.distill import State, is_finite
from lgm_jax.errors import UserError

# Parts of a checkpoint.
_STATE, _CHECK = "state", "check"


def quiet_storage() -> None:
    """Leaves a failed write to the error that it raises: from now on, nothing else tells of it.

    Orbax logs the traceback of each error wherever it passes, before it raises it. Where one of the
    writes that it makes side by side fails, it waits no longer for the others, and these print a
    traceback each when they are done and find nobody to tell.
    """
    logging.set_verbosity(logging.FATAL)
    hook = sys.unraisablehook
    if getattr(hook, "func", None) is not _tell_unraisable:
        sys.unraisablehook = functools.partial(_tell_unraisable, hook)


def _tell_unraisable(tell: Callable[[Any], object], unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        tell(unraisable)


class Checkpoints:
    """The checkpoints of one run, newest last; a context manager that waits for pending writes.

    Of several processes, all make the same calls, and each writes and reads its own parts.
    """

    def __init__(self, folder: epath.Path, keep: int):
        """Opens, and creates if need be, a folder of checkpoints.

        Args:
            folder: Where they lie.
            keep: How many to keep.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._alias = paths.alias(folder)
        self._manager = ocp.CheckpointManager(self._alias, options=options)

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, if there is any."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Starts writing a checkpoint; one that exists already is left as it is."""
        if step not in self._manager.all_steps():
            check = {"checksum": int(_checksum(state))}
            items = ocp.args.Composite(
                **{_STATE: ocp.args.StandardSave(state), _CHECK: ocp.args.JsonSave(check)}
            )
            self._manager.save(step, args=items)

    def restore(self, template: State) -> State | None:
        """The newest checkpoint that is sound, placed like the template; `None` if there is none.

        Newer ones that cannot be read, are not what was written, or hold numbers that are not
        finite, are removed.

        Raises:
            UserError: If there are checkpoints, and none is sound.
        """
        # Orbax would look for the devices that the checkpoint was written from.
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            template,
        )
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            state = self._read(step, abstract)
            if state is not None:
                for damaged in steps[: steps.index(step)]:
                    self._manager.delete(damaged)
                return state
            print(f"note: the checkpoint of step {step} is damaged and not used")
        if steps:
            raise UserError(f"no checkpoint in {self._folder} is sound: delete it to start anew")
        return None

    def _read(self, step: int, abstract: State) -> State | None:
        items = ocp.args.Composite(
            **{_STATE: ocp.args.StandardRestore(abstract), _CHECK: ocp.args.JsonRestore()}
        )
        try:
            if not hosts.first_says(_is_readable(self._alias / str(step) / _STATE)):
                return None
            found = self._manager.restore(step, args=items)
            sound = found[_CHECK]["checksum"] == int(_checksum(found[_STATE]))
        # What Orbax and its storage raise for missing or broken files has no common class.
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                # The device lacks memory; the files may be sound.
                raise
            return None
        return found[_STATE] if sound and is_finite(found[_STATE]) else None

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


@jax.jit
def _checksum(state: State) -> UInt32[Array, ""]:
    """A number that changes when any bit of a state does: storage vouches for no array's content.

    Odd weights, different from place to place, in arithmetic modulo 2^32.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(state):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        weights = 2 * jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(0x9E3779B1) + jnp.uint32(1)
        total = total * jnp.uint32(31) + jnp.sum(bits * weights, dtype=jnp.uint32)
    return total


def _is_readable(folder: epath.Path) -> bool:
    """Whether process 0 can read everything that is stored in a folder, one after the other.

    Orbax reads all arrays at once: where one fails, the others go on and write tracebacks to
    stderr when they find that nobody waits for them any more.
    """
    if not hosts.is_first():
        return True
    base = str(folder)
    url = base if "://" in base else f"file://{base}"
    try:
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"{url}/"}).result()
        for name in store.list().result():
            store.read(name).result()
    # What storage raises for missing or broken files has no common class.
    except Exception:
        return False
    return True
