"""Checkpoints of a distillation with Orbax: asynchronous and atomic."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from jaxtyping import Array, UInt32

from lgm_jax import hosts, paths
from lgm_jax.distill import State, is_finite
from lgm_jax.errors import OUT_OF_MEMORY, UserError


def quiet_storage() -> None:
    """Silences what is printed beside the error that a checkpoint raises.

    Orbax logs the traceback of an error wherever it passes. After one of several simultaneous
    writes has failed, it closes their event loop: asyncio logs the errors of others that nobody
    awaits, and Python reports those that end later and warns of those that never began.
    """
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    hook = sys.unraisablehook
    if getattr(hook, "func", None) is not _report_unraisable:
        sys.unraisablehook = functools.partial(_report_unraisable, hook)


def _report_unraisable(hook: Callable[[Any], object], unraisable: Any) -> None:
    # Called while the interpreter ends too, when names of modules are gone: no globals here.
    code = getattr(unraisable.object, "cr_code", None)
    of_orbax = code is not None and "orbax" in code.co_filename
    if not (of_orbax or str(unraisable.exc_value) == "Event loop is closed"):
        hook(unraisable)


class Checkpoints:
    """The checkpoints of one run, newest last; a context manager that waits for pending writes.

    All processes make the same calls, and each writes and reads its own parts.
    """

    def __init__(self, folder: epath.Path, keep: int):
        """Opens a folder of checkpoints, and creates it if it does not exist."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._alias = paths.alias(folder)
        self._manager = ocp.CheckpointManager(self._alias, options=options)

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, if there is any."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Starts to write a checkpoint, unless that of the step exists."""
        if step not in self._manager.all_steps():
            check = ocp.args.JsonSave({"checksum": int(_checksum(state))})
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), check=check)
            self._manager.save(step, args=items)

    def restore(self, template: State) -> State | None:
        """Restores the newest sound checkpoint, placed like the template; `None` without any.

        Newer ones that cannot be read, differ from what was written, or hold numbers that are not
        finite, are removed.
        """
        # Otherwise Orbax looks for the devices that the checkpoint was written from.
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
            raise UserError(f"no checkpoint in {self._folder} is sound: delete it to start again")
        return None

    def _read(self, step: int, abstract: State) -> State | None:
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), check=ocp.args.JsonRestore()
        )
        try:
            if not hosts.first_says(_is_readable(self._alias / str(step) / "state")):
                return None
            items = self._manager.restore(step, args=items)
            sound = items.check["checksum"] == int(_checksum(items.state))
        # Orbax and its storage raise errors of no common class for missing or broken files.
        except Exception as error:
            if OUT_OF_MEMORY in str(error):
                # The device lacks memory; the files may be sound.
                raise
            return None
        return items.state if sound and is_finite(items.state) else None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


@jax.jit
def _checksum(state: State) -> UInt32[Array, ""]:
    """Returns a checksum of all bits of a state, since storage does not verify the content.

    A sum with odd weights, which differ from place to place, modulo 2^32.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(state):
        leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        word = jnp.dtype(f"uint{8 * min(4, leaf.dtype.itemsize)}")
        bits = jax.lax.bitcast_convert_type(leaf, word).reshape(-1).astype(jnp.uint32)
        weights = 2 * jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(0x9E3779B1) + jnp.uint32(1)
        total = total * jnp.uint32(31) + jnp.sum(bits * weights, dtype=jnp.uint32)
    return total


def _is_readable(folder: epath.Path) -> bool:
    """Returns whether process 0 can read all arrays in a folder, one after the other.

    Orbax reads all at once: where one fails, the others continue and write tracebacks to stderr.
    """
    if not hosts.is_first():
        return True
    base = str(folder)
    url = base if "://" in base else f"file://{base}"
    try:
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"{url}/"}).result()
        for name in store.list().result():
            store.read(name).result()
    # Storage raises errors of no common class.
    except Exception:
        return False
    return True
