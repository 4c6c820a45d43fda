"""Files of trained heads, so that they are trained once."""

from __future__ import annotations

from collections.abc import Callable

from etils import epath

from lgm_jax import files, hosts
from lgm_jax.errors import UserError
from lgm_jax.solvers import Heads, Trained


def kept(path: epath.Path, train: Callable[[], Trained]) -> Trained:
    """Returns the heads of an `.npz` file; trains and writes them if it is missing or damaged.

    Of several processes, all are to call it: they train together, and each writes, for the folder
    may be one of its machine alone.
    """
    found = _read(path)
    if hosts.first_says(found is not None):
        if found is None:
            raise UserError(f"process {hosts.index()} cannot read {path}, which process 0 can")
        return found
    trained = train()
    arrays = {**trained.heads, "losses": trained.losses}
    present = {name: array for name, array in arrays.items() if array is not None}
    files.write_arrays(path, present, shared=True)
    return trained


def _read(path: epath.Path) -> Trained | None:
    if not path.exists():
        return None
    try:
        arrays = files.read_arrays(path)
        heads: Heads = {name: arrays[name] for name in ("kernel", "bias")}
    except (UserError, KeyError):
        print(f"note: {path} is damaged; its heads are trained again", flush=True)
        return None
    return Trained(heads, arrays.get("losses"))
