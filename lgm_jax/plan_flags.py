"""The flags of `launch.py` for a plan: `--plan` and `--plan_NAME=VALUE`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lgm_jax.errors import UserError, unknown_name

_PLAN, _TOPOLOGY = "plan", "topology"


def take(argv: Sequence[str]) -> tuple[dict[str, str] | None, list[str]]:
    """Splits a command line into the values of flags by names without `plan_`, and the rest."""
    values: dict[str, str] | None = None
    rest = []
    for argument in argv:
        name, _, value = argument.lstrip("-").partition("=")
        if argument[:1] != "-" or name.split("_")[0] != _PLAN:
            rest.append(argument)
            continue
        values = {} if values is None else values
        if name != _PLAN:
            values[name.removeprefix(f"{_PLAN}_")] = value
    return values, rest


def read(values: Mapping[str, str]) -> Callable[[ConfigDict], str]:
    """Makes the function that describes the plan of a config for the flags' devices; starts JAX.

    Args:
        values: Fields of `plan.Machine`, or a `topology`.
    """
    from lgm_jax import accelerators, compiled, plan, platforms

    names = [*(field.name for field in dataclasses.fields(plan.Machine)), _TOPOLOGY]
    topology = values.get(_TOPOLOGY)
    numbers: dict[str, Any] = {}
    for name, text in values.items():
        flag = f"--{_PLAN}_{name}"
        if name not in names:
            raise unknown_name("flag", flag, [f"--{_PLAN}_{each}" for each in names])
        if name == _TOPOLOGY:
            continue
        if topology is not None:
            raise UserError(f"--{_PLAN}_{_TOPOLOGY} decides {flag}: leave it out")
        try:
            numbers[name] = int(text) if name == "devices" else float(text)
        except ValueError:
            numbers[name] = 0
        if not 0 < numbers[name] < math.inf:
            raise UserError(f"{flag} must be a positive number, not {text!r}")
    if topology is None:
        platforms.start()
        return functools.partial(plan.describe, machine=plan.Machine(**numbers))
    accelerators.on_cpu()
    platforms.start()
    return functools.partial(compiled.describe, name=topology)
