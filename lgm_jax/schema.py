"""The form of the JSON files of a run, which may have been edited, or come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Form = Any
"""What a value must be:

- a type: `int` stands for numbers from 0 on, `float` for any number, `object` for anything;
- `None`, or a tuple of forms, of which one must fit;
- `[form]`, a list of any length; `[form, ...]`, one that is not empty;
- `{str: form}`, an object with any names;
- `{"name": form, "other?": form}`, an object that has the first and may lack the second. It may
  have more: later versions add names.
"""

_KINDS = {int: "no number from 0 on", float: "no number", str: "no text", dict: "no JSON object"}

_PROBE = {
    "top1_mean": float,
    "top1_std": (float, None),
    "top1_runs": [float, ...],
    "solver": str,
    "epochs": int,
    "augment": str,
    "split": str,
    "groups?": ({str: float}, None),
    "worst_group?": (float, None),
    "loss_curve?": ([[float, ...]], None),
    "per_class?": ([(float, None)], None),
    # No class that is named is -1.
    "confusion?": ({"class": [int], "named": [float], "images": [float]}, None),
    "against?": ({str: {"standard_error": float}}, None),
}

RESULTS = {
    "dataset?": str,
    "ipc": int,
    "objective": (str, None),
    "about_objective?": ({"title": str, "source?": str, "each_step?": str, "loss_is?": str}, None),
    "labels?": ({"kind": str, "bytes": int}, None),
    "num_classes?": (int, None),
    "steps": (int, None),
    "seed?": int,
    "final_loss?": (float, None),
    "pyramid?": ({"reached": int, "finest": int}, None),
    "backbones": [str],
    "seconds?": {str: float},
    "probe": {str: {str: _PROBE}},
    "taught?": {str: {str: {str: {**_PROBE, "teacher": str}}}},
    "test_images?": int,
}
"""`results.json`; see docs/run_folder.md."""

_COUNTS = {"images": int, "classes": {str: int}}
_SETTINGS = (
    *("seed", "steps", "ipc", "images.resolution", "images.start_resolution"),
    *("images.grow_every", "images.grow_delay"),
)

CONFIG = {
    "identity": dict,
    "command?": (str, None),
    "config?": {f"{name}?": (int, None) for name in _SETTINGS},
    "changed?": [str],
    "data?": {"name?": str, "fingerprint?": str, "counts?": {str: _COUNTS}},
}
"""`config.json` of a run."""

_PROCESS = {
    "from_step?": int,
    "versions?": {str: str},
    "devices?": [str],
    "commit?": (str, None),
    "weights?": {str: {"sha256?": dict}},
}

METRICS = [{"step": int, "loss": float, "seconds?": float}]
"""The lines of `metrics.jsonl`."""

STAGES = {
    str: {
        "seconds?": float,
        "finished?": str,
        "made_by?": [_PROCESS],
        "going_on?": [_PROCESS],
    }
}
"""`stages.json`."""


def find_fault(value: Any, form: Form, where: str = "it") -> str | None:
    """Returns what is wrong with a value, the first thing found, or `None` if it has the form.

    Args:
        value: As `json.loads` returns it.
        form: See `Form`.
        where: The name of the value.
    """
    if isinstance(form, tuple):
        faults = [find_fault(value, each, where) for each in form]
        return None if None in faults else faults[0]
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        if ... in form and not value:
            return f"{where} is empty"
        parts = [(f"{where}[{i}]", each, form[0]) for i, each in enumerate(value)]
    elif isinstance(form, Mapping):
        if not isinstance(value, dict):
            return f"{where} is no JSON object"
        if str in form:
            forms = dict.fromkeys(value, form[str])
        else:
            forms = {name.removesuffix("?"): each for name, each in form.items()}
            lacking = [name for name in form if name[-1] != "?" and name not in value]
            if lacking:
                return f"{where} has no {lacking[0]}"
        inner = "" if where == "it" else f"{where}."
        parts = [(inner + name, value[name], forms[name]) for name in forms if name in value]
    else:
        return None if _is(value, form) else f"{where} is {_KINDS.get(form, 'no null')}"
    return next(filter(None, (find_fault(part, each, name) for name, part, each in parts)), None)


def _is(value: Any, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if isinstance(value, bool):
        return kind is object
    if kind is float:
        return isinstance(value, int | float)
    if kind is int:
        return isinstance(value, int) and value >= 0
    return isinstance(value, kind)
