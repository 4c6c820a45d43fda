"""Settings and commands as others may see them: without the paths of this machine.

A run folder records them as they were typed, to repeat the run. Pages, cards and services show the
names of folders alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from lgm_jax import hub_names

# Keys and flags whose value is one file or folder, with any characters. Others may be lists.
_PATHS = ("config", "workdir", "data.folder", "images.source", "real.cache", "experiment.share")


def value(key: str, text: Any) -> Any:
    """Returns a value as others may see it.

    Args:
        text: Its value. In a string, each path from the root or the home folder, up through `..`,
            or to a bucket, becomes its last part; names such as `owner/name` and folders below the
            current one stay.
    """
    if not isinstance(text, str):
        return text
    if key in _PATHS:
        return _shorten(text)
    return ",".join(map(_shorten, text.split(",")))


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's settings, by config key, as others may see them."""
    return {key: value(key, text) for key, text in values.items()}


def command(typed: str) -> str:
    """Returns a command line as others may see it."""
    words = []
    flag = ""
    for word in shlex.split(typed):
        name, equals, text = word.partition("=")
        if word[:1] == "-":
            flag = name.lstrip("-").removeprefix("config.")
        else:
            # The value of the flag before it.
            name, equals, text = "", "", word
        words.append(name + equals + value(flag, text))
    return shlex.join(words)


def _shorten(item: str) -> str:
    path = item.strip()
    hub_name = hub_names.parse(path)
    if hub_name is not None:
        return item if hub_name.repo == path else hub_name.repo
    elsewhere = path[:1] in ("/", "~") or "://" in path or ".." in PurePath(path).parts
    return PurePath(path).name if elsewhere else item
